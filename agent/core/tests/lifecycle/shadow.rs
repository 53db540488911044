//! A version beside the one that runs, before it takes over.

use crate::fake::{Fate, NEEDS, Nature, Shell, model, policy, with_shadow};
use plimsoll_agent_core::{Effect, Event, ModelEvent};
use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::{DesiredModel, JobPhase, ShadowEnd, ShadowPolicy, UpdatePolicy};

/// A device that runs 1.0.0, proven, and was just ordered 1.1.0 of this nature.
fn ordered(nature: Nature, policy: UpdatePolicy) -> (Shell, Digest, Digest) {
    let mut shell = Shell::new();
    let first = shell.publish("meter", "1.0.0", Nature::Good);
    let wanted = shell.wanted(first);
    shell.order(1, vec![wanted]);
    shell.settle();
    shell.jobs.clear();
    let second = shell.publish("meter", "1.1.0", nature);
    let wanted = DesiredModel { policy, ..shell.wanted(second) };
    shell.order(2, vec![wanted]);
    (shell, first, second)
}

/// Everything until the child compares.
fn until_compared(shell: &mut Shell) {
    shell.advance(5_001, Fate::Whole); // the jitter, or a backoff
    for _ in 0..20 {
        shell.finish_work(0, false, Fate::Whole);
        shell.obey(false, Fate::Whole);
    }
    assert_eq!(shell.state("meter"), "shadowing");
    assert!(!shell.child.as_ref().unwrap().shadows.is_empty());
}

fn running(shell: &Shell) -> Option<Digest> {
    shell.active("meter").map(|a| a.digest)
}

fn serving(shell: &Shell) -> Digest {
    shell.child.as_ref().unwrap().serving[&model("meter")]
}

fn ends(shell: &Shell) -> Vec<ShadowEnd> {
    shell.shadows.iter().map(|s| s.end).collect()
}

#[test]
fn a_good_version_is_compared_before_it_takes_over_and_is_not_loaded_twice() {
    let (mut shell, first, second) = ordered(Nature::Good, with_shadow());
    until_compared(&mut shell);
    assert_eq!((running(&shell), serving(&shell)), (Some(first), first));
    shell.compare(9, Fate::Whole);
    assert!(shell.shadows.is_empty(), "told before it means anything");
    shell.compare(1, Fate::Whole);
    shell.compare(5, Fate::Whole);
    assert_eq!(ends(&shell), [ShadowEnd::Open], "told once for each doubling");
    let status = shell.core.jobs()[0].clone();
    assert_eq!(status.phase, JobPhase::Shadowing);
    assert_eq!(
        status.reason.as_deref(),
        Some("15 rows compared with the running version, 0 answered otherwise")
    );
    shell.advance(19_000, Fate::Whole);
    assert_eq!(shell.state("meter"), "shadowing");
    shell.advance(1_000, Fate::Whole);
    assert_eq!(ends(&shell), [ShadowEnd::Open, ShadowEnd::Agreed]);
    assert_eq!(shell.state("meter"), "activating");
    let unloaded = shell.orders.iter().any(|o| matches!(o, Effect::Unload { .. }));
    assert!(!unloaded, "{:?}", shell.orders);
    shell.settle();
    use JobPhase as P;
    let mut phases: Vec<_> = shell.jobs.iter().map(|j| j.phase).collect();
    phases.dedup();
    let expected =
        [P::Waiting, P::Fetching, P::SelfTesting, P::Shadowing, P::Activating, P::Probation, P::Active];
    assert_eq!(phases, expected);
    assert_eq!((running(&shell), serving(&shell)), (Some(second), second));
    let last = shell.shadows.last().unwrap();
    assert_eq!((last.candidate, last.current, last.totals.rows), (second, Some(first), 15));
}

#[test]
fn a_version_that_is_proven_to_answer_otherwise_never_answers() {
    let (mut shell, first, second) = ordered(Nature::Differs, with_shadow());
    until_compared(&mut shell);
    shell.compare(6, Fate::Whole); // 3 of 6: too few rows to mean anything
    assert_eq!(shell.state("meter"), "shadowing");
    shell.compare(6, Fate::Whole);
    assert_eq!((shell.state("meter"), running(&shell), serving(&shell)), ("failed", Some(first), first));
    let reason = shell.jobs.last().unwrap().reason.clone().unwrap();
    assert!(reason.starts_with("in shadow it answered 6 of 12 rows otherwise than 1.0.0"), "{reason}");
    assert!(reason.ends_with("is proven, the limit is 5 %"), "{reason}");
    assert_eq!(shell.shadows.last().unwrap().end, ShadowEnd::Differs);
    shell.settle();
    let child = shell.child.as_ref().unwrap();
    assert!(child.shadows.is_empty() && !child.loaded.contains(&second), "it stays in memory");
    // The same order under a newer generation, because of another model, say, is answered and not tried again.
    let wanted = DesiredModel { policy: with_shadow(), ..shell.wanted(second) };
    shell.order(3, vec![wanted]);
    assert_eq!((shell.state("meter"), shell.work.len()), ("failed", 0));
}

#[test]
fn without_a_limit_a_device_only_reports() {
    let shadow = ShadowPolicy { max_disagree_percent: None, ..with_shadow().shadow.unwrap() };
    let (mut shell, _, second) = ordered(Nature::Differs, UpdatePolicy { shadow: Some(shadow), ..policy() });
    until_compared(&mut shell);
    shell.compare(100, Fate::Whole);
    shell.settle();
    assert_eq!((running(&shell), shell.state("meter")), (Some(second), "active"));
    assert_eq!(shell.shadows.last().map(|s| (s.end, s.totals.differ >= 50)), Some((ShadowEnd::Agreed, true)));
}

#[test]
fn a_shadow_that_saw_little_is_told_and_goes_on() {
    let (mut shell, _, second) = ordered(Nature::Good, with_shadow());
    until_compared(&mut shell);
    shell.compare(3, Fate::Whole);
    shell.advance(20_000, Fate::Whole);
    assert_eq!(shell.state("meter"), "activating");
    assert_eq!(ends(&shell), [ShadowEnd::Few]);
    assert_eq!(shell.codes.last().map(String::as_str), Some("shadow.few"));
    shell.settle();
    assert_eq!(running(&shell), Some(second));
}

#[test]
fn a_crash_of_the_agent_in_a_shadow_starts_it_again_and_costs_a_try() {
    let (mut shell, first, second) = ordered(Nature::Good, with_shadow());
    until_compared(&mut shell);
    shell.compare(15, Fate::Whole);
    shell.restart();
    assert_eq!(shell.state("meter"), "self_tested");
    shell.start_child(Fate::Whole);
    shell.feed(Event::ServerHeard, Fate::Whole);
    assert_eq!(shell.state("meter"), "self_tested", "nothing answers yet that it could be compared with");
    let waits = shell.core.jobs()[0].reason.clone().unwrap();
    assert!(waits.contains("until the running version answers"), "{waits}");
    until_compared(&mut shell);
    assert_eq!(serving(&shell), first);
    assert_eq!(shell.core.record().tries(&model("meter"), second).shadows, 2);
    // The budget is two: a third is not begun.
    shell.restart();
    shell.start_child(Fate::Whole);
    shell.settle();
    assert_eq!((running(&shell), shell.state("meter")), (Some(first), "failed"));
    let reason = shell.jobs.last().unwrap().reason.clone().unwrap();
    assert!(reason.contains("its shadow was begun 2 times and never ended"), "{reason}");
}

#[test]
fn a_shadow_that_ended_is_not_held_again_after_a_crash() {
    let (mut shell, _, second) = ordered(Nature::Good, with_shadow());
    until_compared(&mut shell);
    shell.compare(15, Fate::Whole);
    shell.advance(20_000, Fate::Whole);
    assert_eq!(shell.state("meter"), "activating");
    shell.restart();
    shell.start_child(Fate::Whole);
    shell.feed(Event::ServerHeard, Fate::Whole);
    assert_eq!(shell.state("meter"), "activating");
    shell.settle();
    assert_eq!(running(&shell), Some(second));
}

#[test]
fn a_version_that_kills_the_serving_process_in_its_shadow_fails_and_the_running_one_returns() {
    for (nature, words) in [
        (Nature::KillsShadow, "its shadow broke 2 times: the serving process died"),
        (Nature::PanicsInShadow, "on a request that the running version answered: index out of bounds"),
        (Nature::KillsLoad, "its shadow broke 2 times"),
    ] {
        let (mut shell, first, _) = ordered(nature, with_shadow());
        shell.settle();
        assert_eq!((running(&shell), serving(&shell)), (Some(first), first), "{nature:?}");
        let last = shell.jobs.last().unwrap();
        assert_eq!(last.phase, JobPhase::Failed, "{nature:?}");
        assert!(last.reason.as_ref().unwrap().contains(words), "{nature:?}: {:?}", last.reason);
        assert_eq!(shell.shadows.last().unwrap().end, ShadowEnd::Broke);
    }
}

#[test]
fn there_is_no_shadow_where_it_could_show_nothing_and_the_reason_is_told() {
    // A device without a version before.
    let mut shell = Shell::new();
    let first = shell.publish("meter", "1.0.0", Nature::Good);
    let wanted = DesiredModel { policy: with_shadow(), ..shell.wanted(first) };
    shell.order(1, vec![wanted]);
    shell.settle();
    assert_eq!(running(&shell), Some(first));
    assert_eq!(ends(&shell), [ShadowEnd::Skipped]);
    assert!(shell.shadows[0].reason.as_ref().unwrap().contains("nothing runs"), "{:?}", shell.shadows);

    // One that cannot hold two.
    let (mut shell, _, second) = ordered(Nature::Differs, with_shadow());
    shell.ram_available = Some(NEEDS);
    shell.settle();
    assert_eq!((running(&shell), ends(&shell).as_slice()), (Some(second), &[ShadowEnd::Skipped][..]));

    // Two versions that answer different questions.
    let (mut shell, _, second) = ordered(Nature::Good, with_shadow());
    until_compared(&mut shell);
    let what = ModelEvent::ShadowRefused { reason: "input \"x\" has another shape".into() };
    shell.feed(Event::Of { model: model("meter"), digest: second, what }, Fate::Whole);
    assert_eq!(shell.state("meter"), "activating");
    assert!(shell.shadows[0].reason.as_ref().unwrap().contains("another shape"));
}

#[test]
fn a_return_to_an_earlier_version_is_in_a_hurry() {
    let (mut shell, first, _) = ordered(Nature::Good, policy());
    shell.settle();
    let back = DesiredModel { rollback: true, policy: with_shadow(), ..shell.wanted(first) };
    shell.order(3, vec![back]);
    assert_eq!(shell.state("meter"), "activating");
    shell.settle();
    assert_eq!(running(&shell), Some(first));
    assert!(shell.shadows.is_empty());
}

#[test]
fn a_newer_order_and_a_person_s_rollback_end_a_shadow() {
    let (mut shell, first, second) = ordered(Nature::Good, with_shadow());
    until_compared(&mut shell);
    let third = shell.publish("meter", "1.2.0", Nature::Good);
    let wanted = shell.wanted(third);
    shell.order(3, vec![wanted]);
    assert!(shell.jobs.iter().any(|j| j.phase == JobPhase::Superseded && j.digest == second));
    shell.settle();
    assert_eq!(running(&shell), Some(third));
    assert!(!shell.child.as_ref().unwrap().loaded.contains(&second));

    // 1.3.0 in shadow beside 1.2.0, and somebody wants 1.0.0 back.
    let fourth = shell.publish("meter", "1.3.0", Nature::Good);
    let wanted = DesiredModel { policy: with_shadow(), ..shell.wanted(fourth) };
    shell.order(4, vec![wanted]);
    until_compared(&mut shell);
    shell.feed(Event::RollbackAsked { model: model("meter") }, Fate::Whole);
    assert_eq!(running(&shell), Some(first));
    shell.settle();
    assert_eq!(running(&shell), Some(fourth), "the order stands, and was compared with what runs now");
    assert_eq!(shell.shadows.last().unwrap().current, Some(first));
}

#[test]
fn one_candidate_at_a_time_so_that_a_death_has_one_suspect() {
    let mut shell = Shell::new();
    let olds = ["meter", "valve"].map(|name| shell.publish(name, "1.0.0", Nature::Good));
    let models = olds.map(|d| shell.wanted(d)).to_vec();
    shell.order(1, models);
    shell.settle();
    let meter = shell.publish("meter", "1.1.0", Nature::Good);
    let valve = shell.publish("valve", "1.1.0", Nature::KillsShadow);
    let shadowed = |shell: &Shell, d| DesiredModel { policy: with_shadow(), ..shell.wanted(d) };
    let models = vec![shadowed(&shell, meter), shadowed(&shell, valve)];
    shell.order(2, models);
    shell.settle(); // the fake device asserts that the two never shadow together
    assert_eq!((shell.state("meter"), shell.state("valve")), ("active", "failed"));
    let blocked = &shell.core.record().blocked;
    assert_eq!(blocked.iter().map(|b| b.digest).collect::<Vec<_>>(), [valve]);
}

#[test]
fn a_shadow_asked_for_during_an_exclusive_activation_brings_the_running_version_back_first() {
    let (mut shell, first, second) = ordered(Nature::Good, policy());
    shell.ram_available = Some(NEEDS); // one of the two, not both
    shell.advance(5_001, Fate::Whole);
    for _ in 0..20 {
        shell.finish_work(0, false, Fate::Whole);
    }
    assert_eq!(shell.state("meter"), "activating");
    assert!(shell.orders.iter().any(|o| matches!(o, Effect::Unload { digest, .. } if *digest == first)));

    // Something else left the device's memory, and now somebody wants to see the two side by side.
    shell.ram_available = Some(3 * NEEDS);
    let wanted = DesiredModel { policy: with_shadow(), ..shell.wanted(second) };
    shell.order(3, vec![wanted]);
    assert_eq!(shell.state("meter"), "self_tested");
    assert!(shell.orders.iter().any(|o| matches!(o, Effect::Load { digest, .. } if *digest == first)));
    until_compared(&mut shell);
    assert_eq!(serving(&shell), first);
    shell.compare(15, Fate::Whole);
    shell.settle();
    assert_eq!((running(&shell), ends(&shell).last()), (Some(second), Some(&ShadowEnd::Agreed)));
}
