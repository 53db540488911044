//! Models that mean harm, through the real command: it says what is wrong and lives, whatever becomes of the process
//! that opened the model.

#![allow(clippy::unwrap_used, reason = "a test's unwrap is an assertion, in its helpers too")]

use std::process::Command;
use std::time::{Duration, Instant};

use plimsoll_runtime::testing::hostile::{Case, Expect, cases};

/// What a device of 1 GB would give the model: enough for what is meant, not for what is not.
const RAM: &str = "1GB";
/// No case computes for long; the command's own limit is five minutes.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn every_hostile_model_is_told_by_a_command_that_lives() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    for place in ["secret.bin", "home/weights.bin"] {
        std::fs::write(dir.path().join(place), [0; 12]).unwrap();
    }
    std::os::unix::fs::symlink(dir.path().join("secret.bin"), home.join("link.bin")).unwrap();
    let mut wrong = Vec::new();
    for Case { name, onnx, expect } in cases() {
        std::fs::write(home.join("model.onnx"), onnx).unwrap();
        let start = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(["model", "check", "model.onnx", "--ram", RAM])
            .current_dir(&home)
            .env_clear()
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let code = output.status.code();
        let as_expected = match (code, expect) {
            (Some(3), Expect::Says(words)) => said.contains(words),
            (Some(3), Expect::Ends) => {
                said.contains("does not run on the agent: ") || said.contains("ended the process")
            }
            (Some(3), Expect::Overflows) => said.contains("overflowed its stack"),
            (Some(0), Expect::Ends) => said.contains("runs on the agent"),
            _ => false,
        };
        if !as_expected || start.elapsed() > LONG {
            wrong.push(format!("{name}: {code:?}, not {expect:?}, after {:?}: {said}", start.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
