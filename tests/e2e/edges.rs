//! The edges between our crates are those of ARCHITECTURE.md, and no others; the pure crates stay pure.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Every edge that ARCHITECTURE.md draws: crate, and the crates of ours that it may use.
const EDGES: [(&str, &[&str]); 11] = [
    ("plimsoll-protocol", &[]),
    ("plimsoll-agent-core", &["plimsoll-protocol"]),
    ("plimsoll-runtime", &["plimsoll-protocol", "plimsoll-runtime-ml"]),
    ("plimsoll-runtime-ml", &[]),
    ("plimsoll-agent", &["plimsoll-protocol", "plimsoll-agent-core", "plimsoll-runtime"]),
    ("plimsoll-fleet-core", &["plimsoll-protocol"]),
    ("plimsoll-server", &["plimsoll-protocol", "plimsoll-fleet-core"]),
    ("plimsoll-ctl", &["plimsoll-protocol", "plimsoll-runtime"]),
    ("plimsoll-tests", &["plimsoll-protocol"]),
    (
        "plimsoll-fuzz",
        &[
            "plimsoll-protocol",
            "plimsoll-fleet-core",
            "plimsoll-server",
            "plimsoll-agent",
            "plimsoll-runtime",
        ],
    ),
    ("plimsoll-demo", &["plimsoll-protocol", "plimsoll-tests"]),
];

/// What a pure crate may never reach, however indirectly.
const IMPURE: [&str; 8] = ["tokio", "tract-core", "reqwest", "rumqttc", "sled", "redb", "rustix", "rustls"];

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(cargo).args(args).current_dir(root).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

#[test]
fn crates_use_each_other_only_as_the_architecture_says() {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version=1", "--no-deps", "--offline"])).unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let ours = package["dependencies"].as_array().unwrap().iter();
        let ours = ours.filter(|d| d["kind"] != "dev").filter_map(|d| d["name"].as_str());
        let ours = ours.filter(|name| name.starts_with("plimsoll-")).map(str::to_owned).collect();
        found.insert(package["name"].as_str().unwrap().to_owned(), ours);
    }
    let allowed: BTreeMap<String, BTreeSet<String>> = EDGES
        .iter()
        .map(|(name, edges)| ((*name).to_owned(), edges.iter().map(|e| (*e).to_owned()).collect()))
        .collect();
    assert_eq!(found, allowed, "change ARCHITECTURE.md and this table together, or neither");
}

fn reached(package: &str) -> BTreeSet<String> {
    let tree =
        cargo(&["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}"]);
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_pure_crates_reach_no_clock_no_network_no_store() {
    for package in ["plimsoll-protocol", "plimsoll-agent-core", "plimsoll-fleet-core"] {
        let reached = reached(package);
        for impure in IMPURE {
            assert!(!reached.contains(impure), "{package} reaches {impure}");
        }
    }
}

#[test]
fn the_agent_has_no_server_store_and_nobody_has_a_second_tls() {
    assert!(!reached("plimsoll-agent").contains("sled"));
    assert!(
        !reached("plimsoll-server").contains("tract-core"),
        "the server must build without the inference runtime"
    );
    for package in ["plimsoll-agent", "plimsoll-server", "plimsoll-ctl"] {
        let reached = reached(package);
        for denied in ["aws-lc-rs", "aws-lc-sys", "openssl-sys", "native-tls"] {
            assert!(!reached.contains(denied), "{package} reaches {denied}: see deny.toml");
        }
    }
}
