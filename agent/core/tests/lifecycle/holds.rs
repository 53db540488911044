//! Who may make an update wait, and for how long: maintenance hours, a person at the device, its application; and
//! what a device does that cannot hold two versions in memory.

use crate::fake::{Fate, NEEDS, Nature, Shell, desired, model, policy};
use plimsoll_agent_core::{Effect, Event, Rules};
use plimsoll_protocol::Digest;
use plimsoll_protocol::hours::{LocalTime, MaintenanceHours};
use plimsoll_protocol::wire::v1::{DesiredModel, JobPhase, UpdatePolicy};

const NIGHT: &str = "02:00-04:00";

/// A device that runs 1.0.0, and has just been ordered 1.1.0.
fn ordered(policy: UpdatePolicy) -> (Shell, Digest, Digest) {
    let mut shell = Shell::new();
    let first = shell.publish("meter", "1.0.0", Nature::Good);
    let wanted = shell.wanted(first);
    shell.order(1, vec![wanted]);
    shell.settle();
    let second = shell.publish("meter", "1.1.0", Nature::Good);
    shell.local = Some(LocalTime::new(0, 1, 0));
    let wanted = DesiredModel { policy, ..shell.wanted(second) };
    shell.order(2, vec![wanted]);
    (shell, first, second)
}

fn at_night() -> UpdatePolicy {
    UpdatePolicy { jitter_s: 0, hours: MaintenanceHours::parse(&[NIGHT]).unwrap(), ..policy() }
}

fn at_once() -> UpdatePolicy {
    UpdatePolicy { jitter_s: 0, ..policy() }
}

fn reason(shell: &Shell) -> String {
    shell.core.jobs()[0].reason.clone().unwrap_or_default()
}

fn until_self_tested(shell: &mut Shell) {
    while !shell.work.is_empty() {
        shell.finish_work(0, false, Fate::Whole);
    }
}

#[test]
fn an_update_waits_for_its_hours_is_cut_off_at_their_end_and_goes_on_in_the_next() {
    let (mut shell, first, second) = ordered(at_night());
    assert_eq!((shell.state("meter"), shell.work.len()), ("waiting", 0));
    assert!(
        reason(&shell).contains("Mon 01:00") && reason(&shell).contains("in 1 h 0 min"),
        "{}",
        reason(&shell)
    );
    assert_eq!(shell.wake, Some(shell.mono_ms + 3_600_000), "it wakes when they begin, and not before");

    shell.local = Some(LocalTime::new(0, 2, 0));
    shell.advance(3_600_000, Fate::Whole);
    assert!(matches!(shell.work.as_slice(), [Effect::Fetch { digest, .. }] if *digest == second));
    shell.local = Some(LocalTime::new(0, 4, 0));
    let ends = shell.wake.unwrap() - shell.mono_ms;
    assert_eq!(ends, 2 * 3_600_000, "it wakes when they end");
    shell.advance(ends, Fate::Whole);
    assert_eq!((shell.state("meter"), shell.work.len()), ("waiting", 0), "the fetch is cut off");

    shell.local = Some(LocalTime::new(1, 3, 0));
    shell.advance(23 * 3_600_000, Fate::Whole);
    shell.settle();
    assert_eq!(shell.active("meter").map(|a| a.digest), Some(second));
    assert_ne!(first, second);
}

#[test]
fn what_was_fetched_in_time_is_not_activated_after_the_hours_and_a_return_does_not_wait_for_them() {
    let (mut shell, first, _) = ordered(at_night());
    shell.local = Some(LocalTime::new(0, 3, 59));
    shell.advance(3_600_000, Fate::Whole);
    shell.finish_work(0, false, Fate::Whole); // fetched
    shell.finish_work(0, false, Fate::Whole); // durable
    shell.local = Some(LocalTime::new(0, 4, 0));
    shell.finish_work(0, false, Fate::Whole); // self-tested, too late
    shell.feed(Event::ServerHeard, Fate::Whole);
    assert_eq!((shell.state("meter"), shell.orders.len()), ("self_tested", 0));
    assert!(reason(&shell).contains("maintenance hours"), "{}", reason(&shell));
    shell.local = Some(LocalTime::new(1, 2, 0));
    shell.advance(22 * 3_600_000, Fate::Whole);
    shell.feed(Event::ServerHeard, Fate::Whole);
    shell.settle();
    assert_eq!(shell.active("meter").map(|a| a.version.to_string()).as_deref(), Some("1.1.0"));

    shell.local = Some(LocalTime::new(1, 12, 0));
    let back = DesiredModel { policy: at_night(), rollback: true, ..shell.wanted(first) };
    shell.order(3, vec![back]);
    shell.settle();
    assert_eq!(shell.active("meter").map(|a| a.digest), Some(first));
}

#[test]
fn the_hours_of_the_device_hold_beside_those_of_the_order_and_an_unknown_time_is_told() {
    let (mut shell, ..) = ordered(UpdatePolicy { jitter_s: 100, ..policy() });
    let hours = MaintenanceHours::parse(&["Sat 00:00-24:00"]).unwrap();
    shell.feed(Event::Rules(Rules { hours, not_now_max_ms: 0 }), Fate::Whole);
    shell.advance(100_001, Fate::Whole);
    assert_eq!(shell.state("meter"), "waiting");
    assert!(reason(&shell).contains("Sat 00:00-24:00"), "{}", reason(&shell));
    shell.local = None;
    shell.feed(Event::Rules(Rules::default()), Fate::Whole);
    assert_eq!(shell.state("meter"), "fetching", "without hours nobody asks for the time");

    let (mut shell, ..) = ordered(at_night());
    shell.local = None;
    shell.advance(10 * 3_600_000, Fate::Whole);
    assert_eq!(shell.state("meter"), "waiting");
    let again = shell.wake.unwrap() - shell.mono_ms;
    assert!(again <= 600_000, "a clock that is set is noticed after {again} ms");
    shell.restart();
    shell.local = None;
    shell.advance(1, Fate::Whole);
    assert!(reason(&shell).contains("does not know the time"), "{}", reason(&shell));
}

#[test]
fn a_person_at_the_device_holds_its_updates_over_restarts_and_lets_them_go_on() {
    let (mut shell, first, second) = ordered(at_once());
    shell.feed(Event::PausedHere(true), Fate::Whole);
    assert_eq!((shell.state("meter"), shell.work.len()), ("waiting", 0), "the fetch is cut off");
    shell.restart();
    shell.start_child(Fate::Whole);
    shell.advance(3_600_000, Fate::Whole);
    shell.feed(Event::ServerHeard, Fate::Whole);
    assert_eq!(shell.state("meter"), "waiting");
    assert!(reason(&shell).contains("plimsoll-agent resume"), "{}", reason(&shell));
    assert_eq!(shell.active("meter").map(|a| a.digest), Some(first));
    shell.feed(Event::PausedHere(false), Fate::Whole);
    shell.settle();
    assert_eq!(shell.active("meter").map(|a| a.digest), Some(second));
}

#[test]
fn the_application_puts_the_swap_off_until_it_is_done_or_the_operator_s_bound_is_reached() {
    let not_now = |shell: &mut Shell, for_ms| shell.feed(Event::NotNow { for_ms }, Fate::Whole);
    for released in [true, false] {
        let (mut shell, first, _) = ordered(at_once());
        shell.feed(Event::Rules(Rules { not_now_max_ms: 100_000, ..Rules::default() }), Fate::Whole);
        not_now(&mut shell, 60_000);
        until_self_tested(&mut shell);
        shell.feed(Event::ServerHeard, Fate::Whole);
        assert_eq!(
            (shell.state("meter"), shell.orders.len()),
            ("self_tested", 0),
            "fetched and tested meanwhile"
        );
        assert!(reason(&shell).contains("not now"), "{}", reason(&shell));
        assert_eq!(shell.core.jobs()[0].phase, JobPhase::Waiting);
        shell.advance(50_000, Fate::Whole);
        shell.feed(Event::ServerHeard, Fate::Whole);
        not_now(&mut shell, 60_000); // it prolongs its lock
        assert_eq!(shell.state("meter"), "self_tested");
        if released {
            not_now(&mut shell, 0);
        } else {
            assert_eq!(shell.wake, Some(shell.mono_ms + 50_000), "the bound counts from the first refusal");
            shell.advance(50_000, Fate::Whole);
        }
        assert_eq!(shell.state("meter"), "activating");
        assert_eq!(shell.active("meter").map(|a| a.digest), Some(first));
    }
    let (mut shell, ..) = ordered(at_once());
    not_now(&mut shell, 60_000);
    until_self_tested(&mut shell);
    assert_eq!(shell.state("meter"), "activating", "without a bound set the application has no say");
}

#[test]
fn a_device_without_memory_for_two_unloads_the_old_version_first_and_takes_it_back_when_the_new_one_fails() {
    let (mut shell, first, second) = ordered(at_once());
    shell.ram_available = Some(NEEDS);
    until_self_tested(&mut shell);
    let order: Vec<_> =
        shell.orders.iter().map(|o| format!("{o:?}").split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(order, ["Unload", "Load"]);
    assert!(reason(&shell).contains("leaves memory first"), "{}", reason(&shell));
    shell.obey(false, Fate::Whole);
    shell.obey(true, Fate::Whole); // it does not load
    while !shell.orders.is_empty() {
        shell.obey(false, Fate::Whole);
    }
    assert_eq!(shell.child.as_ref().unwrap().serving[&model("meter")], first, "the old one answers again");
    shell.settle();
    assert_eq!(shell.active("meter").map(|a| (a.digest, a.ram_bytes)), Some((second, NEEDS)));
    assert_eq!(shell.child.as_ref().unwrap().loaded.len(), 1);

    let (mut shell, ..) = ordered(at_once());
    shell.ram_available = Some(2 * NEEDS);
    until_self_tested(&mut shell);
    assert!(
        matches!(shell.orders.make_contiguous(), [Effect::Load { .. }]),
        "with memory for two they overlap"
    );
    shell.feed(desired(2, vec![]), Fate::Whole);
}
