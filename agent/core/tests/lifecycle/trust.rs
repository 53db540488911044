//! Versions that are no longer signed for, and versions that somebody brings by hand.

use std::collections::BTreeSet;

use crate::fake::{Fate, Nature, Shell, model};
use plimsoll_agent_core::Event;
use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::{DesiredModel, JobPhase};

/// A device that runs 1.1.0 and could return to 1.0.0.
fn device() -> (Shell, Digest, Digest) {
    let mut shell = Shell::new();
    let old = shell.publish("meter", "1.0.0", Nature::Good);
    let new = shell.publish("meter", "1.1.0", Nature::Good);
    for (generation, digest) in [(1, old), (2, new)] {
        let wanted = shell.wanted(digest);
        shell.order(generation, vec![wanted]);
        shell.settle();
    }
    assert_eq!(running(&shell), Some(new));
    shell.codes.clear();
    shell.jobs.clear();
    (shell, old, new)
}

fn running(shell: &Shell) -> Option<Digest> {
    shell.active("meter").map(|a| a.digest)
}

fn revoke(shell: &mut Shell, digests: &[Digest]) {
    shell.feed(Event::Revoked(digests.iter().copied().collect()), Fate::Whole);
}

fn import(shell: &mut Shell, digest: Digest) {
    let version = shell.names[&digest].1.clone();
    shell.brought(digest);
    shell.feed(Event::Imported { model: model("meter"), version, digest }, Fate::Whole);
}

#[test]
fn what_runs_goes_on_running_when_it_is_revoked_and_it_is_told_once() {
    let (mut shell, _, new) = device();
    revoke(&mut shell, &[new]);
    assert_eq!((running(&shell), shell.codes.clone()), (Some(new), vec!["model.revoked".to_owned()]));
    revoke(&mut shell, &[new]);
    shell.restart();
    revoke(&mut shell, &[new]);
    assert_eq!(shell.codes.len(), 1, "also after a restart: {:?}", shell.codes);
    // Signed for again, and revoked again: that is news.
    revoke(&mut shell, &[]);
    revoke(&mut shell, &[new]);
    assert_eq!((running(&shell), shell.codes.len()), (Some(new), 2));
}

#[test]
fn a_bundle_that_is_not_here_is_not_remembered_as_revoked() {
    let (mut shell, ..) = device();
    revoke(&mut shell, &[Digest::of(b"elsewhere")]);
    assert!(shell.codes.is_empty() && shell.core.record().revoked.is_empty());
}

#[test]
fn an_order_to_return_to_a_revoked_version_is_refused_although_its_slot_is_here() {
    let (mut shell, old, new) = device();
    revoke(&mut shell, &[old]);
    let back = DesiredModel { rollback: true, ..shell.wanted(old) };
    shell.order(3, vec![back]);
    shell.settle();
    let last = shell.jobs.last().unwrap();
    assert_eq!((last.phase, last.running), (JobPhase::Failed, Some(new)));
    assert!(last.reason.as_ref().unwrap().contains("1.0.0 was revoked"), "{last:?}");
}

#[test]
fn a_person_cannot_return_to_a_revoked_version_either() {
    let (mut shell, old, new) = device();
    revoke(&mut shell, &[old]);
    shell.feed(Event::RollbackAsked { model: model("meter") }, Fate::Whole);
    assert_eq!(running(&shell), Some(new));
    assert!(shell.refused.last().unwrap().contains("revoked"), "{:?}", shell.refused);
}

#[test]
fn a_bad_version_falls_back_on_a_revoked_one_when_nothing_else_is_left() {
    let (mut shell, _, new) = device();
    revoke(&mut shell, &[new]);
    let bad = shell.publish("meter", "1.2.0", Nature::KillsServe);
    let wanted = shell.wanted(bad);
    shell.order(3, vec![wanted]);
    shell.settle();
    let last = shell.jobs.last().unwrap();
    assert_eq!(last.phase, JobPhase::RolledBack);
    assert_eq!(running(&shell), shell.child.as_ref().unwrap().serving.get(&model("meter")).copied());
    assert!(running(&shell).is_some(), "a device without a model is worse than one on a revoked model");
}

#[test]
fn the_version_kept_to_return_to_is_one_that_is_still_signed_for() {
    let (mut shell, old, new) = device();
    revoke(&mut shell, &[new]);
    let bad = shell.publish("meter", "1.2.0", Nature::KillsServe);
    let wanted = shell.wanted(bad);
    shell.order(3, vec![wanted]);
    shell.settle();
    assert_eq!(running(&shell), Some(old), "1.1.0 was revoked, 1.0.0 was not");
}

#[test]
fn a_staged_version_that_is_revoked_before_it_is_activated_never_runs() {
    let (mut shell, _, new) = device();
    let next = shell.publish("meter", "1.2.0", Nature::Good);
    let wanted = shell.wanted(next);
    shell.order(3, vec![wanted]);
    shell.advance(5_001, Fate::Whole);
    shell.feed(Event::Paused(true), Fate::Whole); // after the fetch has begun
    while shell.state("meter") != "self_tested" {
        shell.finish_work(0, false, Fate::Whole);
    }
    revoke(&mut shell, &[next]);
    shell.feed(Event::Paused(false), Fate::Whole);
    shell.settle();
    assert_eq!((running(&shell), shell.state("meter")), (Some(new), "failed"));
}

#[test]
fn a_bundle_brought_by_hand_goes_the_way_of_every_version_without_a_server() {
    let (mut shell, _, new) = device();
    let next = shell.publish("meter", "1.2.0", Nature::Good);
    shell.restart(); // since when no server was heard
    shell.start_child(Fate::Whole);
    import(&mut shell, next);
    shell.settle();
    assert_eq!(running(&shell), Some(next));
    let phases: BTreeSet<_> = shell.jobs.iter().map(|j| j.phase).collect();
    assert!(phases.contains(&JobPhase::SelfTesting) && phases.contains(&JobPhase::Probation), "{phases:?}");
    assert!(shell.slots.contains_key(&new), "N-1 is kept");
}

#[test]
fn a_bad_bundle_brought_by_hand_ends_like_any_other() {
    for (nature, phase) in [(Nature::Wrong, JobPhase::Failed), (Nature::KillsServe, JobPhase::RolledBack)] {
        let (mut shell, _, new) = device();
        let bad = shell.publish("meter", "1.2.0", nature);
        import(&mut shell, bad);
        shell.settle();
        assert_eq!((running(&shell), shell.jobs.last().unwrap().phase), (Some(new), phase));
        shell.jobs.clear();
        import(&mut shell, bad);
        assert!(shell.refused.last().unwrap().contains("blocked on this device"), "{:?}", shell.refused);
        assert!(shell.jobs.is_empty());
    }
}

#[test]
fn a_newer_order_of_the_server_supersedes_what_was_brought_by_hand() {
    let (mut shell, ..) = device();
    let by_hand = shell.publish("meter", "1.2.0", Nature::Good);
    let ordered = shell.publish("meter", "1.3.0", Nature::Good);
    import(&mut shell, by_hand);
    let wanted = shell.wanted(ordered);
    shell.order(3, vec![wanted]);
    shell.settle();
    assert_eq!(running(&shell), Some(ordered));
    import(&mut shell, ordered);
    assert!(shell.refused.last().unwrap().contains("runs already"), "{:?}", shell.refused);
}
