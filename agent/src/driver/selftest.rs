//! Golden samples in a child process: a model that exhausts memory, aborts or overflows its stack ends the child,
//! and the driver lives to report it.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use plimsoll_agent_core::{Failure, ModelEvent};
use plimsoll_runtime::how_it_ended;
use tokio::process::Command;

use crate::serve::control::SelfTestLine;

/// Limit of a self-test: the core allows 10 minutes for loading and 64 samples at 5 s; half of that is left for a
/// second child after a crash of the first.
pub const LIMIT: Duration = Duration::from_secs(5 * 60);
/// Exit code of `plimsoll-agent selftest`: it answers, and wrongly.
const MISMATCH: i32 = 3;
/// Exit code: it does not load.
const UNLOADABLE: i32 = 4;

/// Runs the golden samples of a bundle. Never fails: every end is an event.
pub async fn run(program: &Path, dir: &Path, limit: Duration) -> ModelEvent {
    let child = Command::new(program)
        .arg("selftest")
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let ended = async {
        let child = child?;
        child.wait_with_output().await
    };
    match tokio::time::timeout(limit, ended).await {
        Ok(Ok(output)) => judge(&output),
        Ok(Err(error)) => broke(format!("the self-test could not be started: {error}")),
        Err(_) => broke(format!("the self-test did not end within {} s and was killed", limit.as_secs())),
    }
}

fn judge(output: &Output) -> ModelEvent {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = explain(text.lines().next_back().unwrap_or_default());
    match output.status.code() {
        Some(0) => ModelEvent::SelfTestPassed {
            peak_rss_bytes: peak_rss(text.lines().next_back().unwrap_or_default()),
        },
        Some(MISMATCH | UNLOADABLE) => {
            ModelEvent::SelfTestFailed { failure: Failure::Permanent, reason: said }
        }
        _ => broke(format!("the self-test {}", how_it_ended(output.status).trim_start_matches("it "))),
    }
}

/// Memory of the child at its peak, from its last line; 0 when that does not say.
fn peak_rss(line: &str) -> u64 {
    match serde_json::from_str(line) {
        Ok(SelfTestLine::Report(report)) => report.peak_rss_bytes,
        _ => 0,
    }
}

/// The reason in words, from the child's last line.
fn explain(line: &str) -> String {
    match serde_json::from_str(line) {
        Ok(SelfTestLine::Broken { error }) => error,
        Ok(SelfTestLine::Report(report)) => report
            .mismatch
            .map_or_else(|| "no sample differed, and yet it failed".to_owned(), |m| m.to_string()),
        Err(_) => line.chars().take(400).collect(),
    }
}

fn broke(reason: String) -> ModelEvent {
    ModelEvent::SelfTestFailed { failure: Failure::Transient, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    async fn end_of(script: &str, limit: Duration) -> ModelEvent {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("agent");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        run(&program, dir.path(), limit).await
    }

    #[tokio::test]
    async fn every_end_of_a_self_test_is_told_apart() {
        let long = Duration::from_secs(60);
        assert_eq!(end_of("exit 0", long).await, ModelEvent::SelfTestPassed { peak_rss_bytes: 0 });
        let report = r#"echo '{"ok":true,"samples":1,"max_abs_error":0.0,"load_ms":1,"infer_us":1,"peak_rss_bytes":77}'"#;
        assert_eq!(end_of(report, long).await, ModelEvent::SelfTestPassed { peak_rss_bytes: 77 });
        for (script, failure, words) in [
            (
                r#"echo '{"ok":false,"samples":1,"max_abs_error":2.0,"mismatch":{"sample":7,"output":"y","difference":"top1","row":0,"got":3,"expected":8},"load_ms":1,"infer_us":1,"peak_rss_bytes":1}'; exit 3"#,
                Failure::Permanent,
                "golden sample 7",
            ),
            (r#"echo '{"error":"operator Foo is unknown"}'; exit 4"#, Failure::Permanent, "Foo"),
            ("echo plain words; exit 4", Failure::Permanent, "plain words"),
            ("kill -9 $$", Failure::Transient, "memory"),
            ("kill -6 $$", Failure::Transient, "aborted"),
            ("exit 101", Failure::Transient, "101"),
        ] {
            let got = end_of(script, long).await;
            let ModelEvent::SelfTestFailed { failure: kind, reason } = &got else {
                panic!("{script}: {got:?}")
            };
            assert_eq!(*kind, failure, "{script}");
            assert!(reason.contains(words), "{script}: {reason}");
        }
    }

    #[tokio::test]
    async fn a_self_test_that_hangs_is_killed() {
        let got = end_of("read never < /dev/zero; while :; do :; done", Duration::from_millis(300)).await;
        assert!(matches!(got, ModelEvent::SelfTestFailed { failure: Failure::Transient, .. }), "{got:?}");
    }
}
