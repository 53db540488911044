//! `plimsoll-agent export-diagnostics`: one tar to send to whoever helps. It holds what a helper asks for first and no
//! secret: no key, no token, no password, no request or answer of the model.
//!
//! Works with a running agent and without one, and on a disk that takes no writes (the tar goes to standard output).
//! What cannot be collected is named in the tar instead of failing the export.

use std::io::Write;

use plimsoll_protocol::archive::{ArchiveError, Writer};
use serde_json::{Value, json};

use crate::anchor;
use crate::check::Finding;
use crate::config::Settings;
use crate::control::{self, Answer, Ask};
use crate::health::{Sampler, disk_free};
use crate::slots::{Check, Slots};

/// Writes the tar.
pub async fn export(settings: &Settings, findings: &[Finding], to: impl Write) -> Result<(), ArchiveError> {
    let mut tar = Writer::plain(to);
    let mut put = |name: &str, bytes: &[u8]| tar.file(&format!("plimsoll-diagnostics/{name}"), bytes);
    put("versions.json", &pretty(&versions(settings)))?;
    put("settings.json", &pretty(&settings_without_secrets(settings)))?;
    put("check.json", &pretty(&json!(findings)))?;
    put("status.json", &pretty(&answer(settings, &Ask::Status).await))?;
    let logs = match control::ask(&settings.state_dir, &Ask::Logs).await {
        Ok(Answer::Logs { lines }) => lines.join("\n") + "\n",
        Ok(other) => format!("the agent answered {other:?}\n"),
        Err(why) => format!("no log lines: {why}\n(older ones: journalctl -u plimsoll-agent)\n"),
    };
    put("log.txt", logs.as_bytes())?;
    put("anchor.json", &pretty(&anchor_summary(settings)))?;
    put("slots.json", &pretty(&slots(settings)))?;
    tar.finish().map(drop)
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default(); // text keys only: cannot fail
    text.push(b'\n');
    text
}

fn versions(settings: &Settings) -> Value {
    let machine = Sampler::new().machine();
    json!({
        "agent": env!("CARGO_PKG_VERSION"),
        "architecture": crate::arch(),
        "os": machine.os,
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "ram_bytes": machine.ram_bytes,
        "disk_free_bytes": disk_free(&settings.state_dir),
    })
}

/// Field by field, so that a setting that is added later is not exported before somebody has thought about it.
fn settings_without_secrets(settings: &Settings) -> Value {
    json!({
        "state_dir": settings.state_dir,
        "listen": settings.listen,
        "socket": settings.socket.as_ref().map(|s| &s.path),
        "mqtt_bridge": settings.bridge.is_some(), // it may hold a password
        "labels": settings.labels,
        "health_interval_s": settings.health_interval_s,
        "window_s": settings.window_s,
        "outbox_bytes": settings.outbox_bytes,
        "bandwidth": settings.bandwidth,
        "first_contact_spread_s": settings.first_contact_spread_s,
        "reserve_bytes": settings.reserve_bytes,
        "models_bytes": settings.models_bytes,
        "max_body_bytes": settings.max_body_bytes,
        "maintenance_hours": settings.maintenance_hours,
        "not_now_max_s": settings.not_now_max_s,
        "clock": settings.clock,
        "log": settings.log,
    })
}

async fn answer(settings: &Settings, ask: &Ask) -> Value {
    match control::ask(&settings.state_dir, ask).await {
        Ok(answer) => json!(answer),
        Err(why) => json!({ "error": why }),
    }
}

fn anchor_summary(settings: &Settings) -> Value {
    match anchor::peek(&settings.state_dir) {
        Ok(Some(state)) => json!(state),
        Ok(None) => json!({ "error": "no copy of the anchor is whole" }),
        Err(error) => json!({ "error": crate::causes(&error) }),
    }
}

fn slots(settings: &Settings) -> Value {
    let observed = Slots::at(&settings.state_dir).observe(Check::Sizes);
    match observed {
        Ok(observed) => {
            let whole = observed.slots.iter().map(|(digest, slot)| {
                json!({ "digest": digest, "model": slot.model, "version": slot.version, "proven": slot.proven })
            });
            json!({ "whole": whole.collect::<Vec<_>>(), "damaged": observed.damaged })
        }
        Err(error) => json!({ "error": crate::causes(&error) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    #[tokio::test]
    async fn the_tar_is_one_for_tar_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        for secret in ["device.key", "device.crt"] {
            std::fs::write(dir.path().join(secret), "-----SECRET-----").unwrap();
        }
        let layer = Layer { state_dir: Some(dir.path().to_owned()), ..Layer::default() };
        let finding = Finding { ok: false, what: "clock", text: "it is 1970".into() };
        let tar = dir.path().join("d.tar");
        export(&layer.resolve().unwrap(), &[finding], std::fs::File::create(&tar).unwrap()).await.unwrap();

        let text = |args: &[&str]| {
            let out = std::process::Command::new("tar").args(args).arg(&tar).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        let names = text(&["tf"]);
        for name in ["versions", "settings", "check", "status", "anchor", "slots"] {
            assert!(names.contains(&format!("plimsoll-diagnostics/{name}.json")), "{names}");
        }
        let all = text(&["xOf"]);
        assert!(all.contains("it is 1970") && all.contains("is it running"), "{all}");
        assert!(!all.contains("SECRET"), "{all}");
    }
}
