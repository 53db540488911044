//! `plimsoll device`: enrol, list, show, revoke.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{DeviceInfo, NewJoinToken, TokenCreated};
use serde_json::json;

use crate::api::Api;
use crate::cli::pair;
use crate::output::{Screen, bytes, table};
use crate::time::utc;

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
    },
    /// List the fleet
    List,
    /// Show one device
    Show {
        /// The device.
        device: DeviceId,
    },
    /// Never let a device connect again
    Revoke {
        /// The device.
        device: DeviceId,
    },
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    match command {
        Command::Token { uses, minutes, labels } => {
            let labels: BTreeMap<_, _> = labels.into_iter().collect();
            let created: TokenCreated =
                api.post("join-tokens", &NewJoinToken { uses, minutes, labels }).await?;
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
        Command::Revoke { device } => {
            api.act(&format!("devices/{device}/revoke"), &json!({})).await?;
            screen.show(&json!({ "device": device, "revoked": true }), || {
                format!("{device} is revoked: its connection is closed, and its certificate is refused from now on.")
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
                "           {}: {} requests, {} failed, {} refused, {} busy, p50 {} us, p99 {} us",
                m.model, m.requests, m.failed, m.refused, m.busy, m.p50_us, m.p99_us
            ));
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
