use std::collections::BTreeMap;

use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::{ShadowEnd, ShadowReport, ShadowTotals};
use plimsoll_protocol::{DeviceId, Digest, ModelName};

use super::{ShadowView, weigh};
use crate::gate::Verdict;
use crate::rollout::Rollout;
use crate::testing::device;

fn rollout(limit: Option<f64>, devices: usize) -> Rollout {
    let more = serde_json::json!({
        "gate": { "max_shadow_disagree_percent": limit }, "policy": { "shadow": { "min_rows": 100 } },
    });
    crate::testing::rollout(more, devices)
}

fn report(differ: u64, rows: u64) -> ShadowView {
    let report = ShadowReport {
        generation: 2,
        rollout: Some(RolloutId::new("r1").unwrap()),
        model: ModelName::new("meter").unwrap(),
        version: "1.1.0".parse().unwrap(),
        candidate: Digest::of(b"1.1.0"),
        current_version: Some("1.0.0".parse().unwrap()),
        current: Some(Digest::of(b"1.0.0")),
        end: ShadowEnd::Open,
        reason: None,
        totals: ShadowTotals { rows, differ, ..ShadowTotals::default() },
    };
    ShadowView { report, at_ms: 50 }
}

/// Verdict and words for devices that compared so many rows, at a limit of 5 %.
fn judged(counts: &[(u64, u64)]) -> (Option<Verdict>, String) {
    let rollout = rollout(Some(5.0), counts.len());
    let views: BTreeMap<DeviceId, Vec<ShadowView>> =
        counts.iter().enumerate().map(|(n, (d, r))| (device(n), vec![report(*d, *r)])).collect();
    let weighed = weigh(&rollout, |d| views.get(d).map(Vec::as_slice)).unwrap();
    let text = weighed.reading.as_ref().map_or(weighed.evidence.text.clone(), |r| r.text.clone());
    (weighed.reading.map(|r| r.verdict), text)
}

#[test]
fn disagreement_is_pooled_over_devices_and_must_be_proven() {
    use Verdict::{Breach, Doubt, Pass};
    for (counts, expect) in [
        (&[(0, 1_000), (0, 1_000)][..], Some(Pass)),
        (&[(50, 1_000), (50, 1_000)], Some(Pass)),
        (&[(137, 1_000), (138, 1_000), (137, 1_000)], Some(Breach)),
        // Too little on each, enough together.
        (&[(14, 120), (15, 120), (14, 120)], Some(Breach)),
        (&[(12, 120)], Some(Doubt)),
        // Below what means anything on a device.
        (&[(9, 20), (9, 20)], None),
    ] {
        let (verdict, text) = judged(counts);
        assert_eq!(verdict, expect, "{counts:?}: {text}");
    }
}

#[test]
fn one_odd_device_is_not_the_version() {
    let (verdict, _) = judged(&[(900, 1_000), (10, 1_000), (12, 1_000)]);
    assert_eq!(verdict, Some(Verdict::Pass));
    let (verdict, _) = judged(&[(900, 1_000), (800, 1_000), (12, 1_000)]);
    assert_eq!(verdict, Some(Verdict::Breach));
}

#[test]
fn the_words_carry_the_numbers() {
    let (_, text) = judged(&[(137, 1_000), (138, 1_000), (137, 1_000)]);
    assert!(
        text.starts_with("in shadow on 3 devices 412 of 3000 answers differ from those of 1.0.0; at 99 %"),
        "{text}"
    );
    assert!(text.ends_with("above the limit of 5 %"), "{text}");
    assert_eq!(judged(&[(0, 0)]).1, "in shadow 1 device compared nothing yet");
}

#[test]
fn without_a_gate_it_is_told_only_and_what_a_person_accepted_is_not_judged_again() {
    let views = [report(900, 1_000)];
    let seen = |_: &DeviceId| Some(&views[..]);
    let quiet = weigh(&rollout(None, 1), seen).unwrap();
    assert_eq!((quiet.reading, quiet.evidence.differ), (None, 900));
    let mut accepted = rollout(Some(5.0), 1);
    accepted.state.accepted_ms = Some(50);
    let weighed = weigh(&accepted, seen).unwrap();
    assert_eq!((weighed.reading, weighed.evidence.rows), (None, 1_000));
    // Of another rollout of the same version, it says nothing about this one.
    let mut other = rollout(Some(5.0), 1);
    other.state.id = RolloutId::new("r2").unwrap();
    assert!(weigh(&other, seen).is_none());
}
