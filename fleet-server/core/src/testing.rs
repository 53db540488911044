//! What several tests of this crate start from.

use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::{DeviceId, Digest};

use crate::rollout::{Bundle, Member, Rollout, RolloutState};

/// A running rollout `r1` of meter 1.1.0 by a spec with these further fields; so many devices were ordered at 0 and have
/// come through.
pub fn rollout(more: serde_json::Value, devices: usize) -> Rollout {
    let mut spec =
        serde_json::json!({ "model": "meter", "version": "1.1.0", "stages": [{ "size": "100%" }] });
    let serde_json::Value::Object(more) = more else { panic!("fields of a spec") };
    spec.as_object_mut().unwrap().extend(more);
    let member =
        Member { stage: 0, ordered_ms: 0, previous: None, reached_ms: Some(0), answer: None, recalled: None };
    let members = (0..devices).map(|n| (device(n), member.clone())).collect();
    let state = RolloutState {
        id: RolloutId::new("r1").unwrap(),
        number: 1,
        epoch: 1,
        seed: 7,
        spec: serde_json::from_value(spec).unwrap(),
        target: Bundle { version: "1.1.0".parse().unwrap(), digest: Digest::of(b"1.1.0") },
        started_ms: 0,
        ended_ms: None,
        status: RolloutStatus::Running,
        reason: String::new(),
        stages: vec![],
        approved: 0,
        accepted_ms: None,
        stopped_for: None,
        evidence: None,
    };
    Rollout { state, members }
}

/// `cam-0`, `cam-1`, …
pub fn device(n: usize) -> DeviceId {
    DeviceId::new(&format!("cam-{n}")).unwrap()
}
