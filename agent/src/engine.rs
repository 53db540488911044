//! Engines of the device's owner: what runs a bundle whose variant is `external`.
//!
//! The agent delivers such a bundle, verifies it, keeps it in a slot and rolls it back like any other; what it cannot
//! do is run it. So the settings name a command that holds it against its golden samples, and the owner's process says
//! over the inference endpoint what it answered (`POST /v2/models/{m}/versions/{v}/observe`). The command comes from
//! the device's settings and never from a bundle.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use plimsoll_agent_core::{Failure, ModelEvent};
use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, RuntimeKind, Variant};
use plimsoll_runtime::how_it_ended;
use serde::Deserialize;
use tokio::process::Command;

use crate::files;

/// Building an engine's plan out of a model takes minutes on a small accelerator; the core waits ten for a self-test.
const MAX_LIMIT_S: u32 = 9 * 60;
/// Characters of a reason that are told; an event's text holds 600 bytes.
const MAX_REASON: usize = 400;

/// One engine of the settings: `[engines.tensorrt]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Program and arguments. It runs in the folder of the bundle and ends with 0 when the golden samples are
    /// answered as expected; its last line on standard output says why not.
    pub selftest: Vec<String>,
    /// Seconds that it may take.
    #[serde(default = "default_limit_s")]
    pub selftest_limit_s: u32,
}

const fn default_limit_s() -> u32 {
    5 * 60
}

/// Engines by name, as manifests name them.
pub type Engines = BTreeMap<String, Engine>;

/// What is wrong with the settings of engines, if anything is.
pub fn check(engines: &Engines) -> Result<(), String> {
    for (name, engine) in engines {
        if engine.selftest.first().is_none_or(String::is_empty) {
            return Err(format!(
                "[engines.{name}]: `selftest` is a program and its arguments, as in [\"/usr/bin/check\"]"
            ));
        }
        if !(1..=MAX_LIMIT_S).contains(&engine.selftest_limit_s) {
            return Err(format!("[engines.{name}]: selftest_limit_s is 1 to {MAX_LIMIT_S}"));
        }
    }
    Ok(())
}

/// A bundle in a slot that an engine runs.
#[derive(Debug)]
pub struct External {
    manifest: Manifest,
    variant: Variant,
    engine: String,
}

/// The bundle in `dir`, when this device would have an engine run it.
pub fn external(dir: &Path) -> Option<External> {
    // What cannot be read is for the self-test of the agent's own runtime to tell.
    let bytes = files::read_limited(&dir.join(MANIFEST_FILE), MAX_MANIFEST_BYTES).ok()?;
    let manifest = Manifest::parse(&bytes).ok()?;
    let variant = manifest.variant_for(crate::arch())?.clone();
    let RuntimeKind::External { engine } = &variant.runtime else { return None };
    Some(External { engine: engine.clone(), variant, manifest })
}

/// Has the owner's command hold the bundle against its golden samples. Never fails: every end is an event.
pub async fn self_test(engines: &Engines, external: &External, dir: &Path) -> ModelEvent {
    let name = &external.engine;
    let Some(engine) = engines.get(name) else {
        return failed(
            Failure::Permanent,
            format!("the settings have no [engines.{name}] any more: the bundle cannot be tested"),
        );
    };
    let Some((program, args)) = engine.selftest.split_first() else {
        return failed(Failure::Permanent, format!("[engines.{name}]: `selftest` is empty"));
    };
    let child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("PLIMSOLL_BUNDLE", dir)
        .env("PLIMSOLL_ENTRY", dir.join(external.variant.entry.as_str()))
        .env("PLIMSOLL_MODEL", external.manifest.model.as_str())
        .env("PLIMSOLL_VERSION", external.manifest.version.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let limit = Duration::from_secs(engine.selftest_limit_s.into());
    match tokio::time::timeout(limit, child).await {
        Ok(Ok(output)) => judge(name, &output),
        Ok(Err(error)) => failed(
            Failure::Transient,
            format!("the self-test of engine {name} ({program}) could not be started: {error}"),
        ),
        Err(_) => failed(
            Failure::Transient,
            format!("the self-test of engine {name} did not end within {} s and was killed", limit.as_secs()),
        ),
    }
}

fn judge(name: &str, output: &Output) -> ModelEvent {
    let text = String::from_utf8_lossy(&output.stdout);
    let said: String = text.lines().next_back().unwrap_or_default().chars().take(MAX_REASON).collect();
    match output.status.code() {
        // The owner's process holds the model, not a child of the agent: its memory is not known here.
        Some(0) => ModelEvent::SelfTestPassed { peak_rss_bytes: 0 },
        Some(code) if said.is_empty() => failed(
            Failure::Permanent,
            format!("engine {name} does not answer the golden samples as expected (exit code {code})"),
        ),
        Some(_) => failed(Failure::Permanent, format!("engine {name}: {said}")),
        None => failed(
            Failure::Transient,
            format!(
                "the self-test of engine {name} {}",
                how_it_ended(output.status).trim_start_matches("it ")
            ),
        ),
    }
}

fn failed(failure: Failure, reason: String) -> ModelEvent {
    ModelEvent::SelfTestFailed { failure, reason }
}

#[cfg(test)]
mod tests {
    use plimsoll_runtime::testing::{classifier, classifier_manifest, write_bundle};

    use super::*;

    /// A bundle for the engine `sh`, and what becomes of its self-test with this script.
    async fn end_of(script: &str, limit_s: u32) -> ModelEvent {
        let dir = tempfile::tempdir().unwrap();
        let (mut manifest, _) = write_bundle(dir.path(), &classifier(2, 2, 1.0), classifier_manifest(2, 2));
        assert!(external(dir.path()).is_none(), "the agent's own runtime runs it");
        manifest.variants[0].runtime = RuntimeKind::External { engine: "sh".into() };
        std::fs::write(dir.path().join(MANIFEST_FILE), manifest.to_bytes()).unwrap();
        let command = ["/bin/sh", "-c", script].map(String::from).into();
        let engines = Engines::from([("sh".into(), Engine { selftest: command, selftest_limit_s: limit_s })]);
        check(&engines).unwrap();
        self_test(&engines, &external(dir.path()).unwrap(), dir.path()).await
    }

    #[tokio::test]
    async fn the_owners_command_sees_the_bundle_and_every_end_is_told_apart() {
        let sees = "test -f \"$PLIMSOLL_ENTRY\" && test -f golden/test_data_set_0/input_0.pb && \
                    test \"$PLIMSOLL_MODEL $PLIMSOLL_VERSION\" = 'meter 1.0.0'";
        assert_eq!(end_of(sees, 60).await, ModelEvent::SelfTestPassed { peak_rss_bytes: 0 });
        for (script, failure, words) in [
            (
                "echo loading; echo sample 3 is off by 0.5; exit 1",
                Failure::Permanent,
                "sample 3 is off by 0.5",
            ),
            ("exit 7", Failure::Permanent, "exit code 7"),
            ("kill -9 $$", Failure::Transient, "memory"),
            ("while :; do :; done", Failure::Transient, "did not end within 1 s"),
        ] {
            let got = end_of(script, if script.starts_with("while") { 1 } else { 60 }).await;
            let ModelEvent::SelfTestFailed { failure: kind, reason } = &got else {
                panic!("{script}: {got:?}")
            };
            assert_eq!(*kind, failure, "{script}: {reason}");
            assert!(reason.contains(words), "{script}: {reason}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let engine = |selftest: &[&str], selftest_limit_s| {
            let selftest = selftest.iter().map(|s| (*s).to_owned()).collect();
            Engines::from([("npu".to_owned(), Engine { selftest, selftest_limit_s })])
        };
        assert!(check(&engine(&[], 1)).unwrap_err().contains("[engines.npu]: `selftest` is a program"));
        assert!(check(&engine(&["x"], 0)).unwrap_err().contains("selftest_limit_s"));
        assert_eq!(check(&engine(&["x"], 540)), Ok(()));
    }
}
