//! The demo's story, played to the end by the demo itself, is a test: every outcome that it promises must hold.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_story_of_the_demo_holds() {
    let binaries = plimsoll_tests::Binaries::locate().expect("the programs are built");
    let demo = binaries.server().with_file_name("plimsoll-demo");
    let output = Command::new(&demo)
        .args(["--once", "--output", "json", "--no-build"])
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", demo.display()));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the demo ended with {}:\n{words}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    let summary: Value =
        serde_json::from_slice(&output.stdout).expect("one JSON document on standard output");
    assert_eq!(summary["ok"], true, "{summary:#}");
    let outcomes = summary["outcomes"].as_array().expect("a list of outcomes");
    assert!(outcomes.len() >= 26, "only {} outcomes were checked: {summary:#}", outcomes.len());
    assert!(outcomes.iter().all(|o| o["holds"] == true), "{summary:#}");
}
