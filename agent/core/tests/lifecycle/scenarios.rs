//! What one device does in situations that have a name.

use crate::fake::{Fate, Nature, Shell, desired, model, policy};
use plimsoll_agent_core::record::MAX_MODELS;
use plimsoll_agent_core::{Core, Ctx, Effect, Event, ModelEvent, Observed, Persistent};
use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::{DesiredModel, JobPhase, UpdatePolicy};

/// A device that runs 1.0.0, proven, and the generation it came with is 1.
fn device() -> (Shell, Digest) {
    let mut shell = Shell::new();
    let first = shell.publish("meter", "1.0.0", Nature::Good);
    let wanted = shell.wanted(first);
    shell.order(1, vec![wanted]);
    shell.settle();
    assert_eq!(shell.state("meter"), "active");
    shell.jobs.clear();
    (shell, first)
}

fn phases(shell: &Shell) -> Vec<JobPhase> {
    let mut phases: Vec<_> = shell.jobs.iter().map(|j| j.phase).collect();
    phases.dedup();
    phases
}

fn running(shell: &Shell) -> Option<Digest> {
    shell.active("meter").map(|a| a.digest)
}

/// Everything but the end of the trial.
fn until_trial(shell: &mut Shell) {
    shell.advance(5_001, Fate::Whole); // the jitter
    while shell.state("meter") != "probation" || !shell.orders.is_empty() {
        shell.finish_work(0, false, Fate::Whole);
        shell.obey(false, Fate::Whole);
    }
}

#[test]
fn a_good_version_goes_through_every_phase_and_ends_active() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    shell.settle();
    use JobPhase as P;
    let expected = [P::Waiting, P::Fetching, P::SelfTesting, P::Activating, P::Probation, P::Active];
    assert_eq!(phases(&shell), expected);
    assert_eq!(running(&shell), Some(second));
    let last = shell.jobs.last().unwrap();
    assert_eq!((last.generation, last.running, last.reason.as_deref()), (2, Some(second), None));
    assert!(shell.slots.contains_key(&first), "N-1 is kept");
    assert_eq!(shell.slots[&second].proven, Some(2));
}

#[test]
fn only_the_version_before_is_kept() {
    let (mut shell, first) = device();
    for (generation, version) in [(2, "1.1.0"), (3, "1.2.0")] {
        let next = shell.publish("meter", version, Nature::Good);
        let wanted = shell.wanted(next);
        shell.order(generation, vec![wanted]);
        shell.settle();
    }
    assert_eq!(shell.slots.len(), 2);
    assert!(!shell.slots.contains_key(&first));
}

#[test]
fn each_bad_version_ends_as_it_should_and_the_running_one_serves_on() {
    use JobPhase as P;
    for (nature, end, word) in [
        (Nature::Tampered, P::Failed, "it was so"),
        (Nature::Foreign, P::NotApplicable, "it was so"),
        (Nature::Wrong, P::Failed, "self-test failed"),
        (Nature::KillsSelfTest, P::Failed, "self-test broke 2 times"),
        (Nature::KillsLoad, P::Failed, "activation failed 2 times"),
        (Nature::KillsServe, P::RolledBack, "died before it had passed its trial"),
        (Nature::FailsRequests, P::RolledBack, "50 of 100 requests"),
    ] {
        let (mut shell, first) = device();
        let bad = shell.publish("meter", "1.1.0", nature);
        let wanted = shell.wanted(bad);
        shell.order(2, vec![wanted]);
        shell.settle();
        let last = shell.jobs.last().unwrap();
        assert_eq!((last.phase, last.running), (end, Some(first)), "{nature:?}");
        assert!(last.reason.as_ref().unwrap().contains(word), "{nature:?}: {:?}", last.reason);
        assert_eq!(shell.child.as_ref().unwrap().serving[&model("meter")], first, "{nature:?}");
        assert!(!shell.slots.contains_key(&bad), "{nature:?} keeps its slot");
        assert!(shell.staging.is_empty(), "{nature:?} keeps its staging");
    }
}

#[test]
fn a_blocked_version_is_answered_with_its_reason_until_an_order_raises_the_attempt() {
    let (mut shell, first) = device();
    let bad = shell.publish("meter", "1.1.0", Nature::Wrong);
    let wanted = shell.wanted(bad);
    shell.order(2, vec![wanted.clone()]);
    shell.settle();
    shell.jobs.clear();
    shell.order(3, vec![wanted.clone()]);
    assert_eq!(phases(&shell), [JobPhase::Failed]);
    let job = shell.jobs.last().unwrap();
    assert_eq!(job.generation, 3);
    assert!(
        job.reason.as_ref().unwrap().contains("blocked on this device: self-test failed"),
        "{:?}",
        job.reason
    );
    // The samples were at fault, say, and the digest is the same.
    shell.natures.insert(bad, Nature::Good);
    shell.order(4, vec![DesiredModel { attempt: 1, ..wanted }]);
    shell.settle();
    assert_eq!(running(&shell), Some(bad));
    assert!(shell.slots.contains_key(&first));
}

#[test]
fn a_stale_order_is_refused_by_name_and_the_same_one_again_does_nothing() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    let core = shell.core.clone();
    shell.order(0, vec![wanted.clone()]);
    assert_eq!(shell.codes.pop().as_deref(), Some("order.stale"));
    shell.order(1, vec![wanted]);
    assert_eq!((shell.core.record(), &shell.jobs.len()), (core.record(), &0));
    assert_eq!(running(&shell), Some(first));
}

#[test]
fn an_order_that_breaks_a_limit_is_refused_whole() {
    let (mut shell, _) = device();
    let names: Vec<String> = (0..MAX_MODELS).map(|n| format!("model-{n}")).collect();
    let many: Vec<_> = names.iter().map(|n| shell.publish(n, "1.0.0", Nature::Good)).collect();
    let too_many: Vec<_> = many.iter().map(|d| shell.wanted(*d)).collect();
    let twice = vec![too_many[0].clone(), too_many[0].clone()];
    let long = format!("1.0.0-{}", "x".repeat(80)).parse().unwrap();
    let long = vec![DesiredModel { version: long, ..too_many[0].clone() }];
    for models in [too_many, twice, long] {
        shell.order(2, models);
        assert_eq!(shell.codes.pop().as_deref(), Some("order.invalid"));
        assert_eq!(shell.core.generation(), 1);
    }
}

#[test]
fn a_newer_order_supersedes_at_any_state_and_never_touches_what_runs() {
    for steps in 0..8 {
        let (mut shell, first) = device();
        let second = shell.publish("meter", "1.1.0", Nature::Good);
        let third = shell.publish("meter", "1.2.0", Nature::Good);
        let wanted = shell.wanted(second);
        shell.order(2, vec![wanted]);
        shell.advance(5_001, Fate::Whole);
        for _ in 0..steps {
            shell.finish_work(0, false, Fate::Whole);
            shell.obey(false, Fate::Whole);
        }
        let before = running(&shell);
        let serving = shell.child.as_ref().unwrap().serving.clone();
        let wanted = shell.wanted(third);
        shell.order(3, vec![wanted]);
        assert!(
            shell.jobs.iter().any(|j| j.phase == JobPhase::Superseded && j.digest == second),
            "step {steps}"
        );
        assert_eq!(
            (running(&shell), &shell.child.as_ref().unwrap().serving),
            (before, &serving),
            "step {steps}"
        );
        shell.settle();
        assert_eq!(running(&shell), Some(third), "step {steps}");
        // What is kept to return to has passed a trial: the first version or, when it had its time, the second.
        let previous = shell.core.record().models[&model("meter")].previous.as_ref().unwrap();
        assert!(previous.trial_passed && [first, second].contains(&previous.digest), "step {steps}");
    }
}

#[test]
fn a_device_that_lost_the_server_does_not_activate_until_it_is_heard() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    shell.advance(5_001, Fate::Whole);
    shell.finish_work(0, false, Fate::Whole); // fetched
    shell.finish_work(0, false, Fate::Whole); // staged
    shell.advance(60_000, Fate::Whole); // the lease ends
    shell.finish_work(0, false, Fate::Whole); // self-tested
    assert_eq!(shell.state("meter"), "self_tested");
    let last = shell.jobs.last().unwrap();
    assert_eq!((last.phase, last.running), (JobPhase::Waiting, Some(first)));
    assert!(last.reason.as_ref().unwrap().contains("not heard within 60 s"), "{:?}", last.reason);
    // Nor after a restart, whose clock begins anew.
    shell.restart();
    shell.start_child(Fate::Whole);
    assert_eq!(shell.state("meter"), "self_tested");
    shell.feed(Event::ServerHeard, Fate::Whole);
    assert_eq!(shell.state("meter"), "activating");
}

#[test]
fn an_ordered_return_skips_jitter_pause_lease_and_trial_and_uses_the_slot_that_is_there() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    shell.settle();
    shell.feed(Event::Paused(true), Fate::Whole);
    shell.jobs.clear();
    let back = DesiredModel { rollback: true, blocked: vec![second], ..shell.wanted(first) };
    shell.order(3, vec![back]);
    assert!(shell.work.is_empty(), "fetched what is there: {:?}", shell.work);
    shell.obey(false, Fate::Whole);
    shell.obey(false, Fate::Whole);
    assert_eq!(phases(&shell), [JobPhase::Activating, JobPhase::Probation, JobPhase::Active]);
    assert_eq!(shell.slots[&first].proven, Some(3));
    // The operator cannot go to what the server has stopped.
    shell.feed(Event::RollbackAsked { model: model("meter") }, Fate::Whole);
    assert!(shell.refused.pop().unwrap().contains("blocked"));
    assert_eq!(running(&shell), Some(first));
}

#[test]
fn a_pause_holds_the_start_and_the_activation_and_survives_a_restart() {
    let (mut shell, first) = device();
    shell.feed(Event::Paused(true), Fate::Whole);
    shell.restart();
    shell.start_child(Fate::Whole);
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    shell.advance(5_001, Fate::Whole);
    assert_eq!((shell.state("meter"), shell.work.len()), ("waiting", 0));
    assert!(shell.jobs.last().unwrap().reason.as_ref().unwrap().contains("paused"));
    shell.feed(Event::Paused(false), Fate::Whole);
    assert_eq!(shell.state("meter"), "fetching");
    shell.feed(Event::Paused(true), Fate::Whole);
    for _ in 0..3 {
        shell.finish_work(0, false, Fate::Whole);
    }
    assert_eq!((shell.state("meter"), running(&shell)), ("self_tested", Some(first)));
}

#[test]
fn an_operator_s_rollback_returns_to_the_version_before_and_stays_there() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted.clone()]);
    shell.settle();
    shell.feed(Event::RollbackAsked { model: model("meter") }, Fate::Whole);
    shell.settle();
    assert_eq!((running(&shell), shell.state("meter")), (Some(first), "rolled_back"));
    shell.order(3, vec![wanted]); // the server has not heard of it yet
    shell.settle();
    assert_eq!((running(&shell), shell.state("meter")), (Some(first), "failed"));
    shell.feed(Event::RollbackAsked { model: model("meter") }, Fate::Whole);
    assert!(shell.refused.pop().unwrap().contains("no previous version"));
}

#[test]
fn a_model_that_is_not_in_the_order_keeps_running() {
    let (mut shell, first) = device();
    let other = shell.publish("valve", "1.0.0", Nature::Good);
    let wanted = shell.wanted(other);
    shell.order(2, vec![wanted]);
    shell.settle();
    assert_eq!(running(&shell), Some(first));
    assert_eq!(shell.child.as_ref().unwrap().serving.len(), 2);
}

#[test]
fn two_models_are_on_trial_one_after_the_other_so_that_a_death_has_one_suspect() {
    let mut shell = Shell::new();
    let good = shell.publish("alpha", "1.0.0", Nature::Good);
    let bad = shell.publish("beta", "1.0.0", Nature::KillsLoad);
    let models = vec![shell.wanted(good), shell.wanted(bad)];
    shell.order(1, models);
    shell.settle();
    assert_eq!((shell.state("alpha"), shell.state("beta")), ("active", "failed"));
    let blocked = &shell.core.record().blocked;
    assert_eq!(blocked.iter().map(|b| b.digest).collect::<Vec<_>>(), [bad]);
}

#[test]
fn an_agent_that_keeps_dying_in_a_trial_ends_it_when_the_tries_are_spent() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    until_trial(&mut shell);
    shell.restart();
    assert_eq!(running(&shell), Some(second), "the first restart tries again");
    shell.restart();
    assert_eq!((running(&shell), shell.state("meter")), (Some(first), "rolled_back"));
    let reason = shell.jobs.last().unwrap().reason.clone().unwrap();
    assert!(reason.contains("stopped 2 times while it was on trial"), "{reason}");
}

#[test]
fn a_trial_without_enough_requests_passes_with_a_remark() {
    let (mut shell, _) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    until_trial(&mut shell);
    shell.sample(3, Fate::Whole);
    shell.advance(10_000, Fate::Whole);
    let last = shell.jobs.last().unwrap();
    assert_eq!(last.phase, JobPhase::Active);
    assert!(last.reason.as_ref().unwrap().contains("saw 3 requests; 4 were asked for"), "{:?}", last.reason);
}

#[test]
fn a_lost_slot_is_replaced_by_the_version_before_and_fetched_again() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    shell.settle();
    shell.slots.remove(&second);
    shell.restart();
    assert_eq!(running(&shell), Some(first));
    assert!(shell.codes.contains(&"slot.lost".to_owned()));
    shell.settle();
    assert_eq!((running(&shell), shell.state("meter")), (Some(second), "active"));
}

#[test]
fn a_proven_version_that_stops_loading_gives_way_to_the_one_before_after_three_tries() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted]);
    shell.settle();
    shell.kill_child(Fate::Whole);
    assert_eq!(running(&shell), Some(second), "a death without a trial blames nobody");
    shell.start_child(Fate::Whole);
    for _ in 0..3 {
        assert_eq!(running(&shell), Some(second));
        shell.obey(true, Fate::Whole);
        shell.advance(60_000, Fate::Whole);
    }
    assert_eq!(running(&shell), Some(first));
    shell.settle();
    assert_eq!(shell.child.as_ref().unwrap().serving[&model("meter")], first);
}

#[test]
fn a_version_on_trial_answers_for_a_run_of_its_own_that_does_not_end_and_not_for_anothers() {
    for (hangs, stays) in [("meter", false), ("valve", true)] {
        let (mut shell, first) = device();
        let valve = shell.publish("valve", "1.0.0", Nature::Good);
        let both = vec![shell.wanted(first), shell.wanted(valve)];
        shell.order(2, both);
        shell.settle();
        let second = shell.publish("meter", "1.1.0", Nature::Good);
        let newer = vec![shell.wanted(second), shell.wanted(valve)];
        shell.order(3, newer);
        until_trial(&mut shell);
        let serving = shell.child.as_ref().unwrap().serving.clone();
        let which = serving.keys().position(|name| *name == model(hangs)).unwrap();
        shell.hang_child(which, Fate::Whole);
        assert_eq!(running(&shell), Some(if stays { second } else { first }), "{hangs}");
        assert_eq!(shell.active("valve").map(|a| a.digest), Some(valve), "a proven one stays: {hangs}");
        // The trial does not go on without a process: it begins anew, and is passed as usual.
        shell.advance(1_000_000, Fate::Whole);
        assert_eq!(shell.state("meter"), if stays { "probation" } else { "rolled_back" });
        shell.start_child(Fate::Whole);
        shell.settle();
        assert_eq!(shell.state("meter"), if stays { "active" } else { "rolled_back" });
        assert_eq!(running(&shell), Some(if stays { second } else { first }), "{hangs}");
    }
}

#[test]
fn a_lost_anchor_is_rebuilt_from_what_was_proven_and_the_retained_order_is_taken_again() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.order(2, vec![wanted.clone()]);
    shell.settle();
    let third = shell.publish("meter", "1.2.0", Nature::Good);
    let newest = shell.wanted(third);
    shell.order(3, vec![newest]);
    until_trial(&mut shell); // in its slot, not proven
    let observed = Observed { slots: shell.slots.clone(), damaged: vec![] };
    let record = Persistent::rebuild(&observed);
    let meter = &record.models[&model("meter")];
    assert_eq!(meter.active.as_ref().map(|a| a.digest), Some(second));
    assert!(meter.previous.is_none(), "the first went when the third took its place");
    assert!(!shell.slots.contains_key(&first));
    shell.anchor = record;
    shell.restart();
    assert!(!shell.slots.contains_key(&third), "what was not proven is not kept");
    shell.order(2, vec![wanted]);
    assert_eq!((running(&shell), shell.state("meter")), (Some(second), "active"));
}

#[test]
fn jitter_spreads_over_its_whole_range_and_backoff_obeys_the_server() {
    let (shell, _) = device();
    let mut shell = shell;
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = DesiredModel { policy: UpdatePolicy { jitter_s: 100, ..policy() }, ..shell.wanted(second) };
    let start = |seed| {
        let mut core = Core::default();
        let ctx = Ctx { now_ms: 0, mono_ms: 50, seed, local: None, ram_available_bytes: None };
        let outcome = core.decide(desired(1, vec![wanted.clone()]), &ctx);
        outcome.commit(&mut core, |_| Ok::<(), ()>(())).unwrap().wake_mono_ms.unwrap() - 50
    };
    let starts: Vec<u64> = (0..200).map(start).collect();
    assert!(starts.iter().all(|s| *s <= 100_000));
    for quarter in 0..4 {
        let inside = starts.iter().filter(|s| **s / 25_001 == quarter).count();
        assert!((20..80).contains(&inside), "{inside} of 200 in quarter {quarter}");
    }
    shell.order(2, vec![shell.wanted(second)]);
    shell.advance(5_001, Fate::Whole);
    let what = ModelEvent::FetchFailed {
        failure: plimsoll_agent_core::Failure::Transient,
        reason: "503".into(),
        retry_after_ms: Some(90_000),
    };
    shell.feed(Event::Of { model: model("meter"), digest: second, what }, Fate::Whole);
    let wait = shell.wake.unwrap() - shell.mono_ms;
    assert!((90_000..=92_000).contains(&wait), "{wait} ms");
}

#[test]
fn an_event_about_a_version_that_no_longer_matters_is_refused_by_name() {
    let (mut shell, _) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let before = shell.core.clone();
    for what in [
        ModelEvent::FetchDone,
        ModelEvent::Loaded,
        ModelEvent::SelfTestPassed { peak_rss_bytes: 0 },
        ModelEvent::Staged,
    ] {
        let name = what.name();
        shell.feed(Event::Of { model: model("meter"), digest: second, what }, Fate::Whole);
        let refused = shell.refused.pop().unwrap();
        assert!(refused.contains(name) && refused.contains("active of meter"), "{refused}");
        assert_eq!(shell.core.record(), before.record());
    }
}

#[test]
fn a_decision_that_could_not_be_written_is_made_again_with_the_next_event() {
    let (mut shell, _) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    let wanted = shell.wanted(second);
    shell.feed(desired(2, vec![wanted]), Fate::PersistFails);
    assert_eq!(shell.anchor.generation, 1);
    shell.advance(1, Fate::Whole);
    assert_eq!(shell.anchor.generation, 2);
    shell.advance(5_001, Fate::Whole);
    assert!(matches!(shell.work.as_slice(), [Effect::Fetch { digest, .. }] if *digest == second));
}

#[test]
fn a_proven_version_is_loaded_again_while_its_successor_waits() {
    let (mut shell, first) = device();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    shell.kill_child(Fate::Whole);
    shell.start_child(Fate::Whole);
    shell.obey(true, Fate::Whole); // no memory, for a moment
    let slow = UpdatePolicy { jitter_s: 1_000_000, ..policy() };
    shell.order(2, vec![DesiredModel { policy: slow, ..shell.wanted(second) }]);
    shell.advance(2_001, Fate::Whole);
    shell.obey(false, Fate::Whole);
    shell.obey(false, Fate::Whole);
    assert_eq!(shell.state("meter"), "waiting");
    assert_eq!(shell.child.as_ref().unwrap().serving[&model("meter")], first);
}

#[test]
fn an_ordered_return_that_the_device_makes_by_itself_meanwhile_is_done() {
    let (mut shell, first) = device();
    let bad = shell.publish("meter", "1.1.0", Nature::FailsRequests);
    let wanted = shell.wanted(bad);
    shell.order(2, vec![wanted]);
    until_trial(&mut shell);
    let back = DesiredModel { rollback: true, ..shell.wanted(first) };
    shell.order(3, vec![back]);
    assert_eq!(shell.state("meter"), "activating");
    shell.sample(100, Fate::Whole); // and the device finds out for itself
    assert_eq!((running(&shell), shell.state("meter")), (Some(first), "active"));
    shell.settle();
    assert_eq!(shell.child.as_ref().unwrap().serving[&model("meter")], first);
}
