//! The document that a device gets: what is in it, and when its generation rises.

use plimsoll_fleet_core::gate::{Reading, Verdict};
use plimsoll_fleet_core::{fleet, plan};
use plimsoll_protocol::ModelName;
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::wire::v1::JobPhase;

use super::world::{World, bundle, device, spec};

#[test]
fn a_generation_rises_only_when_the_content_changes() {
    let mut world = World::new(2);
    world.start("r", spec("1.1.0", "100%"), 1).unwrap();
    world.tick();
    let cam = device("cam-1");
    let doc = world.stored[&cam].clone();
    assert_eq!(doc.generation, 1);
    for _ in 0..5 {
        world.now_ms += 10_000;
        world.tick();
    }
    assert_eq!(world.stored[&cam], doc);
}

#[test]
fn a_restored_server_goes_past_the_generation_that_the_device_reports() {
    let mut world = World::new(1);
    world.start("r", spec("1.1.0", "100%"), 1).unwrap();
    world.tick();
    let cam = device("cam-1");
    let doc = world.stored[&cam].clone();
    let again = fleet::desired(&cam, &world.rollouts, &world.revoked, Some(&doc), 41, world.now_ms).unwrap();
    assert_eq!((again.generation, &again.models), (42, &doc.models));
    assert_eq!(fleet::desired(&cam, &world.rollouts, &world.revoked, Some(&again), 42, world.now_ms), None);
}

#[test]
fn a_device_that_nobody_ordered_anything_gets_no_document() {
    let mut world = World::new(1);
    let cam = device("cam-1");
    assert_eq!(fleet::desired(&cam, &world.rollouts, &world.revoked, None, 7, 0), None);
    let mut elsewhere = spec("1.1.0", "100%");
    elsewhere.selector = "site = lyon".into();
    world.start("r", elsewhere, 1).unwrap();
    world.tick();
    assert!(!world.stored.contains_key(&cam));
}

#[test]
fn two_models_share_one_document_under_one_generation() {
    let mut world = World::new(1);
    world.start("r1", spec("1.1.0", "100%"), 1).unwrap();
    world.tick();
    let mut other = spec("3.0.0", "100%");
    other.model = ModelName::new("faces").unwrap();
    world.start("r2", other, 2).unwrap();
    world.tick();
    let doc = &world.stored[&device("cam-1")];
    let listed: Vec<_> = doc.models.iter().map(|m| (m.model.as_str(), m.version.to_string())).collect();
    assert_eq!(listed, [("faces", "3.0.0".to_owned()), ("meter", "1.1.0".to_owned())]);
    assert_eq!(doc.generation, 2);
}

#[test]
fn a_rollback_is_an_older_version_under_a_newer_generation_and_blocks_the_bad_one() {
    let mut world = World::new(1);
    world.start("r", spec("1.1.0", "100%"), 1).unwrap();
    world.tick();
    let cam = device("cam-1");
    world.report(&cam, JobPhase::RolledBack, Some("timeouts"));
    world.tick();
    let doc = &world.stored[&cam];
    let order = &doc.models[0];
    assert_eq!(doc.generation, 2);
    assert_eq!((order.version.to_string(), order.rollback), ("1.0.0".to_owned(), true));
    assert_eq!(order.blocked, [bundle("1.1.0").digest]);
}

#[test]
fn judgements_of_other_evidence_stop_or_hold_like_the_planners_own() {
    let outcome = |verdict| {
        let mut world = World::new(6);
        world.start("r", spec("1.1.0", "2, 100%"), 1).unwrap();
        world.tick();
        let canaries: Vec<_> = world.stored.keys().cloned().collect();
        canaries.iter().for_each(|cam| world.report(cam, JobPhase::Active, None));
        let rollout = world.rollout("r");
        let mut view = fleet::view(&world.devices, &world.rollouts, &world.revoked, rollout).unwrap();
        view.readings.push(Reading { gate: "drift".into(), verdict, text: "confidence fell on both".into() });
        let plan = plan(&view, rollout, world.now());
        assert_eq!(plan.next.reason.contains("confidence fell on both"), verdict != Verdict::Pass);
        plan.next.status
    };
    assert_eq!(outcome(Verdict::Breach), RolloutStatus::RollingBack);
    assert_eq!(outcome(Verdict::Doubt), RolloutStatus::WaitingForApproval);
    assert_eq!(outcome(Verdict::Pass), RolloutStatus::Running);
}
