//! `plimsoll ca`: the fleet's certificate authority, and how to change it without touching devices.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use plimsoll_protocol::api::{CaCertificate, CaInfo};
use serde_json::json;

use crate::api::Api;
use crate::output::Screen;
use crate::time::utc;

/// `plimsoll ca …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what signs certificates now, what follows, and what devices were told to trust
    Status,
    /// Make the next authority (step 1); then `plimsoll trust publish-ca FILE` (step 2)
    Prepare {
        /// Where to write the certificates that devices should trust meanwhile, for `plimsoll trust publish-ca`.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the certificates that devices should trust, for `plimsoll trust publish-ca`
    Bundle {
        /// Where to.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Let the next authority sign (step 3); refused until devices can follow
    Switch,
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    match command {
        Command::Status => {
            let info: CaInfo = api.get("ca").await?;
            screen.show(&info, || describe(&info))
        }
        Command::Prepare { out } => {
            let info: CaInfo = api.post("ca/prepare", &json!({})).await?;
            write(&out, &info)?;
            screen.show(&info, || {
                format!(
                    "{}\n\n{} holds both. Let devices trust both, give those that are on a day to hear of it, then \
                     switch:\n  plimsoll trust publish-ca {}\n  plimsoll ca switch",
                    describe(&info),
                    out.display(),
                    out.display()
                )
            })
        }
        Command::Bundle { out } => {
            let info: CaInfo = api.get("ca").await?;
            write(&out, &info)?;
            screen.show(&info, || format!("{} holds what devices should trust.", out.display()))
        }
        Command::Switch => {
            let info: CaInfo = api.post("ca/switch", &json!({})).await?;
            screen.show(&info, || {
                format!(
                    "{}\n\nThe server shows a certificate of the new authority from now on, and devices renew with \
                     it when their time comes. Join tokens made before carry the old fingerprint: make new ones.\n\
                     Later, when no device needs the old one, let devices forget it:\n  plimsoll ca bundle --out \
                     ca.pem\n  plimsoll trust publish-ca ca.pem",
                    describe(&info)
                )
            })
        }
    }
}

fn write(out: &std::path::Path, info: &CaInfo) -> Result<()> {
    std::fs::write(out, &info.bundle_pem).with_context(|| format!("cannot write {}", out.display()))
}

fn describe(info: &CaInfo) -> String {
    let line = |ca: &CaCertificate| {
        let told = match &info.published {
            None => "nothing is published, devices trust what they enrolled with",
            Some(listed) if listed.contains(&ca.fingerprint) => "devices are told to trust it",
            Some(_) => "NOT in what devices are told to trust",
        };
        let devices = ca.devices.map(|n| format!(", {n} device(s)")).unwrap_or_default();
        format!("{} {} until {} UTC{devices}; {told}", ca.fingerprint.short(), ca.subject, utc(ca.until_ms))
    };
    let mut lines = vec![format!("signs now  {}", line(&info.issuing))];
    if info.own_files {
        lines.push("           from files of your own PKI".into());
    }
    lines.extend(info.next.as_ref().map(|next| format!("next       {}", line(next))));
    lines.push(format!(
        "server     its own certificate ends {} UTC and is remade by itself",
        utc(info.server_until_ms)
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::Digest;

    #[test]
    fn an_authority_that_devices_do_not_know_is_said_to_be_so() {
        let ca = |name: &str| CaCertificate {
            fingerprint: Digest::of(name.as_bytes()),
            subject: format!("CN={name}"),
            until_ms: 1_800_000_000_000,
            devices: Some(3),
        };
        let mut info = CaInfo {
            issuing: ca("old"),
            next: Some(ca("new")),
            own_files: false,
            published: Some(vec![Digest::of(b"old")]),
            bundle_pem: String::new(),
            server_until_ms: 0,
        };
        let text = describe(&info);
        let [old, new, _] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert!(old.contains("CN=old") && old.contains("3 device(s); devices are told"), "{text}");
        assert!(new.contains("CN=new") && new.contains("NOT in what"), "{text}");
        info.published = None;
        assert!(describe(&info).contains("nothing is published"));
    }
}
