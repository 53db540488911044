//! `plimsoll device`: enrol, list, show, revoke, readmit; and the join tokens with which devices enrol.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{
    CommandSent, DeviceInfo, DriftInfo, JoinTokenInfo, NewJoinToken, Readmit, TokenCreated,
};
use plimsoll_protocol::wire::v1::CommandKind;
use serde_json::json;

use crate::api::{Api, encoded};
use crate::cli::pair;
use crate::join;
use crate::output::{Screen, bytes, memory, table};
use crate::time::{now, utc};

/// `plimsoll device …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token with which devices enrol
    Token {
        /// How many devices may use it.
        #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Minutes until it ends.
        #[arg(long, default_value_t = 60, value_name = "M", value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
        /// Label of every device that enrols with it; repeat for several.
        #[arg(long = "label", value_name = "K=V", value_parser = pair)]
        labels: Vec<(String, String)>,
        /// Names that may enrol with it: one name, or the start of names and a star (cam-*) [default: every name].
        #[arg(long, value_name = "NAMES")]
        names: Option<String>,
    },
    /// List the join tokens that were made (their secrets are not known any more)
    Tokens,
    /// Take a join token back: nobody enrols with it any more
    RevokeToken {
        /// Its public part: the second of the four parts between dots.
        id: String,
    },
    /// List the fleet
    List,
    /// Show one device
    Show {
        /// The device.
        device: DeviceId,
    },
    /// Show what the measurement windows of one device say: drift, data quality, and accuracy where labels came
    Drift {
        /// The device.
        device: DeviceId,
    },
    /// Send a one-off command to a device that is online; what became of it is in `plimsoll events`
    Command {
        /// The device.
        device: DeviceId,
        /// What it is told.
        #[command(subcommand)]
        what: What,
    },
    /// Keep a device out from now on, and end its connections
    Revoke {
        /// The device.
        device: DeviceId,
    },
    /// Let a revoked device in again
    Readmit {
        /// The device.
        device: DeviceId,
        /// It has a new key (its disk was replaced): the next enrolment under its name may bring it, the old key
        /// stays out.
        #[arg(long)]
        new_key: bool,
    },
}

/// What a command does. None of them changes which model runs.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Look at the signed metadata now
    Refresh,
    /// Report state, health and the open measurement windows now
    Report,
    /// Another log filter for a while
    Log {
        /// debug, or module=level.
        filter: String,
        /// Seconds until the device returns to its own; at most an hour.
        #[arg(long = "for", default_value_t = 600, value_name = "S")]
        for_s: u32,
    },
    /// Hold the device's updates, also after a restart; what runs goes on running
    Pause,
    /// Let the device's updates go on
    Resume,
}

impl From<What> for CommandKind {
    fn from(what: What) -> Self {
        match what {
            What::Refresh => Self::Refresh,
            What::Report => Self::Report,
            What::Log { filter, for_s } => Self::Log { filter, for_s },
            What::Pause => Self::Pause,
            What::Resume => Self::Resume,
        }
    }
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    match command {
        Command::Token { uses, minutes, labels, names } => {
            let labels: BTreeMap<_, _> = labels.into_iter().collect();
            let created: TokenCreated =
                api.post("join-tokens", &NewJoinToken { uses, minutes, labels, names }).await?;
            screen.show(&created, || {
                format!(
                    "{}\n\nFor {uses} device(s), until {} UTC; it is not shown again. On the device:\n  \
                     plimsoll-agent enroll --server https://<server>:8443 --token <the line above> --device <name>",
                    created.token,
                    utc(created.expires_ms)
                )
            })
        }
        Command::List => {
            let devices: Vec<DeviceInfo> = api.get("devices").await?;
            screen.show(&devices, || {
                if devices.is_empty() {
                    return "No device has enrolled yet: `plimsoll device token` makes a token for one."
                        .into();
                }
                let rows: Vec<_> = devices.iter().map(row).collect();
                table(&["DEVICE", "STATE", "RUNS", "LAST SEEN (UTC)", "LABELS", "DOING"], &rows)
            })
        }
        Command::Show { device } => {
            let info: DeviceInfo = api.get(&format!("devices/{device}")).await?;
            screen.show(&info, || describe(&info))
        }
        Command::Drift { device } => {
            let models: Vec<DriftInfo> = api.get(&format!("devices/{device}/drift")).await?;
            screen.show(&models, || drifts(&device, &models))
        }
        Command::Command { device, what } => {
            let sent: CommandSent =
                api.post(&format!("devices/{device}/commands"), &CommandKind::from(what)).await?;
            screen.show(&sent, || {
                format!("Sent to {device} as {}; its answer is an event: plimsoll events", sent.id)
            })
        }
        Command::Revoke { device } => {
            api.act(&format!("devices/{device}/revoke"), &json!({})).await?;
            screen.show(&json!({ "device": device, "revoked": true }), || {
                format!("{device} is revoked: its connection is closed, and its certificate is refused from now on.")
            })
        }
        Command::Readmit { device, new_key } => {
            api.act(&format!("devices/{device}/readmit"), &Readmit { new_key }).await?;
            screen.show(&json!({ "device": device, "new_key": new_key }), || match new_key {
                true => format!(
                    "The next enrolment of {device} may bring a new key: make a token with `plimsoll device token \
                     --names {device}`, and on the device `plimsoll-agent enroll`."
                ),
                false => format!("{device} is let in again with its registered key; it comes back by itself."),
            })
        }
        Command::Tokens => {
            let tokens: Vec<JoinTokenInfo> = api.get("join-tokens").await?;
            screen.show(&tokens, || join::list(&tokens, now() * 1000))
        }
        Command::RevokeToken { id } => {
            let token: JoinTokenInfo =
                api.post(&format!("join-tokens/{}/revoke", encoded(&id)), &json!({})).await?;
            screen.show(&token, || {
                format!("Join token {id} is revoked; the devices that enrolled with it stay.")
            })
        }
    }
}

fn row(d: &DeviceInfo) -> Vec<String> {
    vec![d.device.to_string(), state(d).into(), running(d), seen(d), labels(&d.labels), doing(d)]
}

fn state(d: &DeviceInfo) -> &'static str {
    match (d.revoked, d.online) {
        (true, _) => "revoked",
        (false, true) => "online",
        (false, false) => "offline",
    }
}

fn running(d: &DeviceInfo) -> String {
    let models = d.running.iter().map(|m| {
        let trial = if m.trial_passed { "" } else { " (on trial)" };
        format!("{} {}{trial}", m.model, m.version)
    });
    let models: Vec<_> = models.collect();
    if models.is_empty() { "-".into() } else { models.join(", ") }
}

fn seen(d: &DeviceInfo) -> String {
    d.last_seen_ms.map_or("never".into(), utc)
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
}

fn doing(d: &DeviceInfo) -> String {
    let jobs = d.jobs.iter().filter(|j| !j.phase.is_some_and(|p| p.is_end()));
    let jobs = jobs.map(|j| format!("{} {}: {}", j.model, j.version, phase(j.phase)));
    jobs.chain(d.waiting.clone()).collect::<Vec<_>>().join("; ")
}

fn phase(phase: Option<plimsoll_protocol::wire::v1::JobPhase>) -> String {
    match phase {
        None => "ordered, no answer yet".into(),
        Some(phase) => {
            let name = serde_json::to_value(phase).unwrap_or_default();
            name.as_str().unwrap_or("unknown").replace('_', " ")
        }
    }
}

fn describe(d: &DeviceInfo) -> String {
    let mut lines = vec![
        format!("{}: {}, last seen {}", d.device, state(d), seen(d)),
        format!("runs       {}", running(d)),
        format!("labels     {}", labels(&d.labels)),
        format!("generation {}", d.generation),
        format!("certificate until {} UTC", utc(d.certificate_until_ms)),
    ];
    if let Some(birth) = &d.birth {
        lines.push(format!(
            "machine    {}, {}, {} RAM, agent {}, boot {}",
            birth.os,
            birth.arch,
            bytes(birth.ram_bytes),
            birth.agent_version,
            birth.boot
        ));
    }
    if let Some(health) = &d.health {
        lines.push(format!(
            "health     CPU {:.0} %, agent {} of {} RAM in use, {} disk free, {} report(s) waiting",
            health.cpu * 100.0,
            bytes(health.agent_rss_bytes),
            bytes(health.ram_used_bytes),
            bytes(health.disk_free_bytes),
            health.outbox_entries
        ));
        for m in &health.models {
            lines.push(format!(
                "           {}: {} requests, {} failed, {} refused, {} busy, p50 {} us, p99 {} us{}",
                m.model,
                m.requests,
                m.failed,
                m.refused,
                m.busy,
                m.p50_us,
                m.p99_us,
                memory(m.memory_bytes).map_or_else(String::new, |memory| format!(", {memory} of memory"))
            ));
            let more = [m.quality.words(), m.truth.words(None)];
            lines.extend(more.iter().filter(|w| !w.is_empty()).map(|words| format!("           {words}")));
        }
    }
    for job in &d.jobs {
        let why = job.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
        lines.push(format!("order      {} {}: {}{why}", job.model, job.version, phase(job.phase)));
    }
    for alarm in &d.drift {
        let cause = if alarm.cause.is_empty() { "where from is not known yet" } else { alarm.cause.as_str() };
        lines.push(format!("drift      {} {}: {cause}", alarm.model, alarm.version));
        lines.extend(alarm.features.iter().map(|f| format!("           {f}")));
    }
    lines.extend(d.waiting.as_ref().map(|w| format!("waits      {w}")));
    lines.join("\n")
}

fn drifts(device: &DeviceId, models: &[DriftInfo]) -> String {
    if models.is_empty() {
        return format!("{device} has reported no measurement window of a bundle with a drift baseline yet.");
    }
    let model = |m: &DriftInfo| {
        let mut lines = vec![format!(
            "{} {}: {} window(s), the last until {} UTC with {} samples",
            m.model,
            m.version,
            m.windows,
            utc(m.closed_ms),
            m.samples
        )];
        let all = [&m.quality, &m.truth];
        lines.extend(all.into_iter().filter(|words| !words.is_empty()).map(|words| format!("  {words}")));
        lines.extend(m.cause.iter().map(|cause| format!("  where from: {cause}")));
        let feature = |f: &plimsoll_protocol::api::FeatureDrift| {
            format!("  {} {}", if f.alarm { "ALARM" } else { "     " }, f.text)
        };
        lines.extend(m.features.iter().map(feature));
        lines.join("\n")
    };
    models.iter().map(model).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceInfo {
        serde_json::from_value(json!({
            "device": "cam-1", "online": true, "revoked": false, "last_seen_ms": 1_800_000_000_000_i64,
            "labels": {"site": "lyon"}, "birth": null, "health": null, "generation": 3, "waiting": null,
            "running": [{"model": "meter", "version": "1.0.0", "digest": "00".repeat(32), "trial_passed": false}],
            "jobs": [{"model": "meter", "version": "1.1.0", "digest": "00".repeat(32), "phase": "self_testing",
                      "reason": null, "at_ms": null}]
        }))
        .unwrap()
    }

    #[test]
    fn a_row_says_what_a_device_runs_and_does() {
        let expect = [
            "cam-1",
            "online",
            "meter 1.0.0 (on trial)",
            "2027-01-15 08:00:00",
            "site=lyon",
            "meter 1.1.0: self testing",
        ];
        assert_eq!(row(&device()), expect);
    }

    #[test]
    fn a_device_whose_data_drift_says_how_far_and_where_from() {
        let mut d = device();
        d.drift = serde_json::from_value(json!([{
            "model": "meter", "version": "1.0.0", "features": ["sharpness fell from 2 to 0.1 on average; PSI 6"],
            "cause": "the devices themselves (cam-1), not the model",
        }]))
        .unwrap();
        let text = describe(&d);
        assert!(
            text.contains("drift      meter 1.0.0: the devices themselves (cam-1), not the model"),
            "{text}"
        );
        assert!(text.contains("\n           sharpness fell from 2"), "{text}");
    }

    #[test]
    fn a_revoked_device_is_shown_as_such_even_while_it_is_connected() {
        let mut d = device();
        d.revoked = true;
        assert_eq!(state(&d), "revoked");
        assert!(describe(&d).starts_with("cam-1: revoked"));
    }
}
