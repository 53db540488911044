//! What is refused, what is warned of, and how sizes round.

use plimsoll_protocol::ModelName;
use plimsoll_protocol::api::{GateSpec, OnBreach};

use super::*;

fn spec(sizes: &[&str]) -> RolloutSpec {
    let stage =
        |size: &&str| StageSpec { name: None, size: (*size).to_owned(), min: 0, soak_s: 60, approval: false };
    RolloutSpec {
        model: ModelName::new("meter").unwrap(),
        version: semver::Version::new(1, 1, 0),
        selector: String::new(),
        stages: sizes.iter().map(stage).collect(),
        gate: GateSpec::default(),
        on_breach: OnBreach::Rollback,
        policy: Default::default(),
        supersede: false,
    }
}

fn refused(spec: RolloutSpec, expect: &str) {
    let error = ValidSpec::check(spec).expect_err(expect).to_string();
    assert!(error.contains(expect), "{error:?} does not say {expect:?}");
}

#[test]
fn each_way_to_be_wrong_is_refused_by_name() {
    refused(spec(&[]), "this one has 0");
    refused(spec(&["100%"; MAX_STAGES + 1]), "this one has 13");
    for size in ["", "many", "-1", "0", "0%", "101%", "1e2%", "inf%", "nan%", "10 percent", "+3"] {
        refused(spec(&[size, "100%"]), "neither a number of devices");
    }
    refused(spec(&["1%", "50%"]), "last stage has size \"50%\"".replace('"', "").as_str());
    refused(spec(&["10%", "5%", "100%"]), "stage 2: 5% is less than 10%");
    refused(spec(&["5", "2", "100%"]), "stage 2: 2 is less than 5");
    refused(RolloutSpec { selector: "site = ".into(), ..spec(&["100%"]) }, "column 8");
    let gate = |change: fn(&mut GateSpec)| {
        let mut bad = spec(&["100%"]);
        change(&mut bad.gate);
        bad
    };
    refused(gate(|g| g.max_failed_percent = -1.0), "gate.max_failed_percent is -1");
    refused(gate(|g| g.max_failed_percent = f64::NAN), "gate.max_failed_percent is NaN");
    refused(gate(|g| g.max_silent_percent = 51.0), "gate.max_silent_percent is 51");
    refused(gate(|g| g.min_accuracy_percent = Some(0.0)), "gate.min_accuracy_percent is 0");
    refused(gate(|g| g.min_accuracy_percent = Some(100.0)), "gate.min_accuracy_percent is 100");
    refused(gate(|g| g.min_accuracy_percent = Some(f64::NAN)), "gate.min_accuracy_percent is NaN");
    refused(gate(|g| g.confidence = 1.0), "gate.confidence is 1");
    refused(gate(|g| g.silent_after_s = 0), "gate.silent_after_s is 0");
    let mut soak = spec(&["100%"]);
    soak.stages[0].soak_s = MAX_SOAK_S + 1;
    refused(soak, "stage 1: soak_s");
    let mut tries = spec(&["100%"]);
    tries.policy.tries = 0;
    refused(tries, "policy.tries is 0");
}

#[test]
fn sizes_round_down_but_never_to_nothing() {
    let stage =
        |size: &str, min| StageSpec { name: None, size: size.into(), min, soak_s: 0, approval: false };
    for (size, min, fleet, expect) in [
        ("1%", 0, 50, 1),
        ("1%", 3, 50, 3),
        ("1%", 3, 2, 2),
        ("10%", 0, 25, 2),
        ("7%", 0, 100, 7),
        ("29%", 0, 100, 29),
        ("100%", 0, 7, 7),
        ("2", 0, 6, 2),
        ("2", 0, 1, 1),
        ("1%", 0, 0, 0),
        ("0.5%", 0, 1000, 5),
    ] {
        assert_eq!(reach(&stage(size, min), fleet), expect, "{size} min {min} of {fleet}");
    }
}

#[test]
fn a_small_fleet_is_told_what_its_gates_cannot_see() {
    let warnings = ValidSpec::check(spec(&["2", "100%"])).unwrap().warnings(6);
    let failed = warnings
        .iter()
        .find(|w| w.contains("the gate before the last stage, with at most 2 devices"))
        .unwrap();
    assert!(failed.contains("stops it at 2 of 2 failed or silent"), "{failed}");
    assert!(failed.contains("with 7 % failed or silent there, about 243 devices would do"), "{failed}");
    assert!(
        warnings.iter().any(|w| w.contains("gate.min_sample is 3, with at most 2 devices")),
        "{warnings:?}"
    );
}

#[test]
fn a_large_fleet_with_long_stages_needs_no_warning() {
    assert_eq!(
        ValidSpec::check(spec(&["1%", "10%", "100%"])).unwrap().warnings(50_000),
        Vec::<String>::new()
    );
}

#[test]
fn shapes_that_do_not_guard_are_named() {
    let check = |spec: RolloutSpec, fleet, expect: &str| {
        let warnings = ValidSpec::check(spec).unwrap().warnings(fleet);
        assert!(warnings.iter().any(|w| w.contains(expect)), "{warnings:?} do not say {expect:?}");
    };
    check(spec(&["100%"]), 6, "there is one stage");
    check(spec(&["90%", "100%"]), 10, "is no canary");
    check(spec(&["10%", "20%", "100%"]), 6, "stage 2 adds no device");
    check(spec(&["1", "100%"]), 0, "no device matches");
    let mut hasty = spec(&["1", "100%"]);
    hasty.stages[0].soak_s = 0;
    hasty.gate.min_accuracy_percent = Some(95.0);
    check(hasty.clone(), 6, "only trials on the devices");
    let warnings = ValidSpec::check(hasty.clone()).unwrap().warnings(6);
    assert!(!warnings.iter().any(|w| w.contains("judges by labels")), "its last stage waits: {warnings:?}");
    hasty.stages[1].soak_s = 0;
    check(hasty, 6, "gate.min_accuracy_percent judges by labels");
}
