//! Models that mean harm, through the process in which the agent tries a bundle: it ends, in words, within bounds; and
//! the processes that open models are bounded before they do.

#![allow(clippy::unwrap_used, reason = "a test's unwrap is an assertion, in its helpers too")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use plimsoll_agent::serve::control::Order;
use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::Manifest;
use plimsoll_runtime::how_it_ended;
use plimsoll_runtime::testing::hostile::{Case, Expect, TOO_DEEP, cases, nested_sizes};
use plimsoll_runtime::testing::{add_file, classifier, classifier_manifest, write_bundle};
use serde_json::Value;

/// What a device of 1 GB would give the model, KiB.
const MEMORY_KIB: u64 = 800_000;

/// A bundle around a model that is not the one it describes.
fn bundle(dir: &Path, good: &Manifest, onnx: &[u8]) {
    let mut manifest = good.clone();
    manifest.files.retain(|f| f.path.as_str() != "model.onnx");
    add_file(dir, &mut manifest, "model.onnx", onnx);
    std::fs::write(dir.join("bundle.json"), manifest.to_bytes()).unwrap();
}

/// The process that serves models, without its driver.
fn serving() -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
    command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Exit code, the line of its answer, and what it said on standard error.
fn self_test(dir: &Path) -> (Option<i32>, Value, String) {
    // As on a small device: a limit that is lower already stays.
    let script = format!("ulimit -d {MEMORY_KIB}; exec \"$@\"");
    let output = Command::new("/bin/sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_plimsoll-agent"), "selftest", "--dir"])
        .arg(dir)
        .env_clear()
        .output()
        .unwrap();
    let line = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), line, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_hostile_bundle_ends_its_self_test_with_a_reason_or_by_a_death_that_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("bundle");
    std::fs::write(dir.path().join("secret.bin"), [0; 12]).unwrap();
    let (good, _) = write_bundle(&home, &classifier(3, 2, 1.0), classifier_manifest(3, 2));
    assert_eq!(self_test(&home).0, Some(0), "the bundle itself is good");
    let mut wrong = Vec::new();
    for Case { name, onnx, expect } in cases() {
        bundle(&home, &good, &onnx);
        let (code, line, said) = self_test(&home);
        let error = line["error"].as_str().unwrap_or_default();
        let as_expected = match (code, expect) {
            // A link is in no manifest, so here it is refused before it is followed.
            (Some(4), Expect::Says("outside")) => error.contains("does not list"),
            (Some(4), Expect::Says(words)) => error.contains(words),
            (Some(3), Expect::Ends) => !line.is_null(),
            (Some(4), Expect::Ends) => !error.is_empty(),
            (None, Expect::Overflows) => said.contains("overflowed its stack"),
            (None, Expect::Ends) => true, // by a signal, which the driver tells
            _ => false,
        };
        if !as_expected {
            wrong.push(format!("{name}: {code:?}, not {expect:?}: {line} {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_model_that_fills_the_stack_kills_the_process_that_serves_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (good, _) = write_bundle(dir.path(), &classifier(3, 2, 1.0), classifier_manifest(3, 2));
    bundle(dir.path(), &good, &nested_sizes(TOO_DEEP));
    let digest = Digest::of(&std::fs::read(dir.path().join("bundle.json")).unwrap());
    let configure = Order::Configure {
        listen: "127.0.0.1:0".parse().unwrap(),
        socket: None,
        bridge: None,
        max_body: 1 << 20,
        agent_version: "0.1.0".into(),
    };
    // A self-test comes first in service; this is for the model that would get past it.
    let (model, version) = (good.model.clone(), good.version.clone());
    let load = Order::Load { model, version, digest, dir: dir.path().to_owned(), next_window: 0 };
    let mut child = serving();
    for order in [configure, load] {
        let line = serde_json::to_string(&order).unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap(); // until it is gone: its input is still open
    let ended = how_it_ended(child.wait().unwrap());
    assert!(
        ended.contains("an overflowing stack") && said.contains("overflowed its stack"),
        "{ended}: {said}"
    );
}

#[test]
fn a_process_that_serves_models_is_bounded_before_it_opens_one() {
    let mut child = serving();
    // Its answer to nonsense proves that it reads orders; none has told it to open anything.
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"nonsense\n").unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let most = |name: &str| -> Vec<String> {
        let line = limits.lines().find(|l| l.starts_with(name)).unwrap().trim_start_matches(name);
        line.split_whitespace().take(2).map(str::to_owned).collect()
    };
    let data = plimsoll_runtime::share_of(plimsoll_runtime::memory::total_bytes()).unwrap().to_string();
    assert_eq!(most("Max data size"), [data.clone(), data], "{limits}");
    assert_eq!(most("Max core file size"), ["0", "0"], "{limits}");
    let stack: u64 = most("Max stack size")[0].parse().unwrap();
    assert!(stack <= plimsoll_runtime::STACK as u64, "{limits}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "it ends with its driver");
}
