//! The lifecycle of one model: one match over (state, event). Every legal edge has its comment; everything else is
//! refused by name.
//!
//! Two rules hold everywhere. What runs is not touched before a replacement is loaded beside it and has passed its
//! self-test. A try is spent in the same decision that orders the risky step, so it is durable before the step.

use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::Severity;

use crate::event::{Failure, ModelEvent};
use crate::orders;
use crate::outcome::{Effect, Refused};
use crate::policy::{
    FETCH_DEADLINE_MS, LOAD_DEADLINE_MS, RELOADS, RETRY_AFTER_CAP_MS, SELF_TEST_DEADLINE_MS,
    SERVE_DEADLINE_MS, STAGE_DEADLINE_MS, Verdict, budget, judge,
};
use crate::record::{Installed, Order, State, kept};
use crate::retry::backoff_ms;
use crate::turn::{Turn, Unit};

/// An event as one model sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// A newer order for this model.
    Ordered(Box<Order>),
    /// Time passed, or something that a state waits for may have changed.
    Tick,
    /// The serving child is up and empty.
    ServeStarted,
    /// The serving child was up and died.
    ServeDied(String),
    /// By an operator on the device.
    RollbackAsked,
    /// About the version on its way.
    Candidate(ModelEvent),
    /// About the version that runs.
    Running(ModelEvent),
    /// Counters of the version that runs.
    Sample { requests: u64, failed: u64 },
    /// About a version that is neither.
    Stale { digest: Digest, what: ModelEvent },
}

pub(crate) fn step(unit: &mut Unit, event: Step, turn: &mut Turn) -> Result<(), Refused> {
    use {ModelEvent as M, State as S};
    match (unit.record.state.clone(), event) {
        // A newer order is taken in any state; the running model is not touched by it.
        (_, Step::Ordered(order)) => orders::take(unit, *order, turn),

        // ---- a version on its way ----
        // Jitter or backoff ended, and nothing pauses the fleet: fetch (or take the slot that is there).
        (S::Waiting, Step::Tick) => leave_waiting(unit, turn),
        // Everything verified against the signed manifest: make it durable.
        (S::Fetching, Step::Candidate(M::FetchDone)) => {
            unit.enter(S::Verified, Some(turn.ctx.mono_ms + STAGE_DEADLINE_MS));
            if let Some((_, _, digest)) = unit.wanted() {
                turn.effect(Effect::Stage {
                    model: unit.name.clone(),
                    digest,
                });
            }
        }
        // The manifest asks for what this device does not have.
        (S::Fetching, Step::Candidate(M::NotApplicable { reason })) => {
            cancel(unit, turn);
            unit.enter(
                S::NotApplicable {
                    reason: kept(&reason),
                },
                None,
            );
            turn.report_job(unit);
        }
        // The network or the server failed: the partial fetch stays, and is resumed after a backoff.
        (
            S::Fetching,
            Step::Candidate(M::FetchFailed {
                failure: Failure::Transient,
                reason,
                retry_after_ms,
            }),
        ) => {
            retry_fetch(unit, &reason, retry_after_ms, turn);
        }
        // A signature, a digest, a limit: not a byte of it is kept.
        (
            S::Fetching,
            Step::Candidate(M::FetchFailed {
                failure: Failure::Permanent,
                reason,
                ..
            }),
        ) => {
            cancel(unit, turn);
            fail(unit, &reason, turn);
        }
        // Durable: on to the golden samples.
        (S::Verified, Step::Candidate(M::Staged)) => {
            unit.enter(S::Staged, None);
            self_test(unit, turn);
        }
        // A full or failing disk may recover.
        (
            S::Verified,
            Step::Candidate(M::StageFailed {
                failure: Failure::Transient,
                reason,
            }),
        ) => {
            retry_fetch(unit, &reason, None, turn);
        }
        // What was staged is not what was verified.
        (
            S::Verified,
            Step::Candidate(M::StageFailed {
                failure: Failure::Permanent,
                reason,
            }),
        ) => {
            cancel(unit, turn);
            fail(unit, &reason, turn);
        }
        // The effect never answered.
        (S::Fetching | S::Verified, Step::Tick) if unit.overdue(turn) => {
            cancel(unit, turn);
            retry_fetch(unit, "it did not end within its deadline", None, turn);
        }
        // It answers as the notebook does, on this hardware.
        (S::Staged, Step::Candidate(M::SelfTestPassed)) => {
            unit.enter(S::SelfTested, None);
            activate(unit, turn);
        }
        // It answers wrongly: no number of tries makes that right.
        (
            S::Staged,
            Step::Candidate(M::SelfTestFailed {
                failure: Failure::Permanent,
                reason,
            }),
        ) => {
            fail_and_block(unit, &format!("self-test failed: {reason}"), turn);
        }
        // The child crashed or ran out of time: again, while there are tries.
        (
            S::Staged,
            Step::Candidate(M::SelfTestFailed {
                failure: Failure::Transient,
                reason,
            }),
        ) => {
            self_test_broke(unit, &reason, turn);
        }
        // The driver lost the child.
        (S::Staged, Step::Tick) if unit.overdue(turn) => {
            cancel(unit, turn);
            self_test_broke(unit, "it did not answer within its deadline", turn);
        }
        // The backoff between two self-tests ended.
        (S::Staged, Step::Tick) if unit.volatile.hold_until.is_some() && !unit.held(turn) => {
            self_test(unit, turn)
        }
        // What it waited for may be there: lease, end of a pause, serving child, backoff.
        (S::SelfTested, Step::Tick) => activate(unit, turn),
        // Loaded beside the running one: flip the record, then swap.
        (S::Activating, Step::Candidate(M::Loaded)) => flip(unit, turn),
        // The running one still runs; the try is already spent.
        (S::Activating, Step::Candidate(M::LoadFailed { reason } | M::Fault { reason })) => {
            activation_broke(unit, &reason, turn);
        }
        (S::Activating, Step::ServeDied(reason)) => {
            unit.child_lost();
            activation_broke(
                unit,
                &format!("the serving process died while loading it: {reason}"),
                turn,
            );
        }
        (S::Activating, Step::Tick) if unit.overdue(turn) => {
            activation_broke(unit, "it did not load within its deadline", turn);
        }

        // ---- a version on trial ----
        // Requests reach it: the trial's clock starts, and what it replaced leaves memory (not the disk).
        (S::Probation, Step::Running(M::Serving)) => {
            unit.serves();
            unload_others(unit, turn);
            start_trial(unit, turn);
        }
        // Counters count from the start of the trial on.
        (S::Probation, Step::Sample { requests, failed }) => {
            unit.volatile.trial_seen = (requests, failed);
            if unit.volatile.trial_ends.is_some() {
                end_trial(unit, false, turn);
            }
        }
        // The trial's time is over.
        (S::Probation, Step::Tick)
            if unit
                .volatile
                .trial_ends
                .is_some_and(|end| end <= turn.ctx.mono_ms) =>
        {
            end_trial(unit, true, turn);
        }
        // It was loaded and yet no request ever reached it.
        (S::Probation, Step::Tick) if unit.overdue(turn) => {
            roll_back(unit, "it did not begin to serve within its deadline", turn);
        }
        (S::Probation, Step::ServeDied(reason)) => {
            unit.child_lost();
            roll_back(
                unit,
                &format!("the serving process died while it was on trial: {reason}"),
                turn,
            );
        }
        (S::Probation, Step::Running(M::LoadFailed { reason } | M::Fault { reason })) => {
            roll_back(unit, &reason, turn);
        }

        // ---- what runs, whatever becomes of the order ----
        // A load ordered by a start of the child or a rollback ended.
        (_, Step::Running(M::Loaded)) => {
            if let Some(active) = &unit.record.active {
                let digest = active.digest;
                unit.volatile.loaded.insert(digest);
                turn.effect(Effect::Serve {
                    model: unit.name.clone(),
                    digest,
                });
            }
        }
        (_, Step::Running(M::Serving)) => {
            unit.serves();
            unload_others(unit, turn);
        }
        // A newer order came during its trial, which therefore never ended: its failures still count.
        (_, Step::Running(M::LoadFailed { reason } | M::Fault { reason }))
            if !unit.trial_passed() =>
        {
            roll_back(unit, &reason, turn);
        }
        (_, Step::ServeDied(reason)) if unit.record.active.is_some() && !unit.trial_passed() => {
            unit.child_lost();
            roll_back(
                unit,
                &format!("the serving process died before it had passed a trial: {reason}"),
                turn,
            );
        }
        (_, Step::Sample { requests, failed }) if !unit.trial_passed() => {
            unit.volatile.trial_seen = (requests, failed);
            end_trial(unit, false, turn);
        }
        // It has served before: memory may be short, so it is loaded again before anything else is believed.
        (_, Step::Running(M::LoadFailed { reason })) => reload(unit, &reason, turn),
        // A proven version misbehaves once: told, not judged; the fleet's gates judge.
        (_, Step::Running(M::Fault { reason })) => {
            let digest = unit.record.active.as_ref().map(|a| a.digest);
            turn.report_event(
                Severity::Warning,
                "serve.fault",
                &reason,
                Some(&unit.name),
                digest,
            );
        }
        // The child is empty: load what runs, then see whether a version waits for the child.
        (_, Step::ServeStarted) => {
            unit.child_lost();
            load_active(unit, turn);
            return step(unit, Step::Tick, turn);
        }
        (_, Step::ServeDied(_)) => unit.child_lost(),
        // Counters of a proven version are the fleet's business.
        (_, Step::Sample { .. }) => {}
        // Which of the two runs is just being decided.
        (S::Activating, Step::RollbackAsked) => {
            return Err(unit.refusal(
                "rollback_asked",
                "another version is being loaded: ask again in a minute",
            ));
        }
        (_, Step::RollbackAsked) => return rollback_asked(unit, turn),
        // A reload's backoff ended, or there is nothing to do.
        (_, Step::Tick) => {
            if unit
                .volatile
                .reload_at
                .is_some_and(|at| at <= turn.ctx.mono_ms)
            {
                load_active(unit, turn);
            }
        }

        // ---- everything else ----
        (_, Step::Candidate(what) | Step::Running(what)) => {
            return Err(unit.refusal(what.name(), "nothing of the kind is under way"));
        }
        (_, Step::Stale { digest, what }) => {
            let why = format!("{digest:?} is neither what runs nor what is on its way");
            return Err(unit.refusal(what.name(), &why));
        }
    }
    Ok(())
}

fn leave_waiting(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    if unit.held(turn) || hold_for_pause(unit, order.wanted.rollback, turn) {
        return;
    }
    if unit
        .record
        .previous
        .as_ref()
        .is_some_and(|p| p.digest == digest)
    {
        // It is in its slot, was verified when it was put there and has passed a trial on this device.
        unit.enter(State::SelfTested, None);
        activate(unit, turn);
        return;
    }
    unit.enter(State::Fetching, Some(turn.ctx.mono_ms + FETCH_DEADLINE_MS));
    turn.effect(Effect::Fetch {
        model: unit.name.clone(),
        version,
        digest,
    });
    turn.report_job(unit);
}

fn retry_fetch(unit: &mut Unit, reason: &str, retry_after_ms: Option<u64>, turn: &mut Turn) {
    unit.volatile.failures = unit.volatile.failures.saturating_add(1);
    let asked = retry_after_ms.unwrap_or(0).min(RETRY_AFTER_CAP_MS);
    let delay = asked + backoff_ms(unit.volatile.failures, turn.ctx.seed);
    unit.enter(State::Waiting, None);
    unit.volatile.hold_until = Some(turn.ctx.mono_ms + delay);
    turn.report_job_because(
        unit,
        &format!("{reason}; next try in {} s", delay.div_ceil(1_000)),
    );
}

/// Begins a self-test, or gives up when its tries are used up.
pub(crate) fn self_test(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    let mut tries = turn.next.record.tries(&unit.name, digest);
    let most = budget(&order.wanted.policy);
    if tries.self_tests >= most {
        fail_and_block(
            unit,
            &format!("its self-test was begun {most} times and never ended"),
            turn,
        );
        return;
    }
    tries.self_tests += 1;
    turn.next.record.spend(tries);
    unit.enter(
        State::Staged,
        Some(turn.ctx.mono_ms + SELF_TEST_DEADLINE_MS),
    );
    turn.effect(Effect::SelfTest {
        model: unit.name.clone(),
        digest,
    });
    turn.report_job(unit);
}

fn self_test_broke(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    let spent = turn.next.record.tries(&unit.name, digest).self_tests;
    if spent >= budget(&order.wanted.policy) {
        fail_and_block(
            unit,
            &format!("self-test broke {spent} times: {reason}"),
            turn,
        );
        return;
    }
    wait_for_next_try(
        unit,
        State::Staged,
        spent,
        &format!("self-test broke: {reason}"),
        turn,
    );
}

/// Activates when everything allows it; otherwise says once what it waits for.
pub(crate) fn activate(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    let rollback = order.wanted.rollback;
    if unit.held(turn) || hold_for_pause(unit, rollback, turn) {
        return;
    }
    // A return to an earlier version needs no lease: nobody stops a rollback for being unsafe.
    let lease_ms = u64::from(order.wanted.policy.lease_s) * 1_000;
    let heard = turn
        .next
        .heard_mono_ms
        .is_some_and(|at| turn.ctx.mono_ms.saturating_sub(at) <= lease_ms);
    if !rollback && !heard {
        let why = format!(
            "the server was not heard within {} s: the order may have been stopped",
            lease_ms / 1_000
        );
        hold(unit, "lease", &why, turn);
        return;
    }
    if !turn.next.child_up {
        hold(unit, "child", "the serving process is not up", turn);
        return;
    }
    let mut tries = turn.next.record.tries(&unit.name, digest);
    let most = budget(&order.wanted.policy);
    if tries.activations >= most {
        fail_and_block(
            unit,
            &format!("its activation was begun {most} times and never ended well"),
            turn,
        );
        return;
    }
    tries.activations += 1;
    turn.next.record.spend(tries);
    unit.enter(State::Activating, Some(turn.ctx.mono_ms + LOAD_DEADLINE_MS));
    turn.effect(Effect::Load {
        model: unit.name.clone(),
        version,
        digest,
    });
    turn.report_job(unit);
}

fn activation_broke(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    if turn.next.child_up {
        turn.effect(Effect::Unload {
            model: unit.name.clone(),
            digest,
        });
    }
    let spent = turn.next.record.tries(&unit.name, digest).activations;
    if spent >= budget(&order.wanted.policy) {
        fail_and_block(
            unit,
            &format!("activation failed {spent} times: {reason}"),
            turn,
        );
        return;
    }
    wait_for_next_try(
        unit,
        State::SelfTested,
        spent,
        &format!("activation failed: {reason}"),
        turn,
    );
}

fn wait_for_next_try(unit: &mut Unit, state: State, spent: u32, reason: &str, turn: &mut Turn) {
    let delay = backoff_ms(spent, turn.ctx.seed);
    unit.enter(state, None);
    unit.volatile.hold_until = Some(turn.ctx.mono_ms + delay);
    unit.volatile.told = Some("retry");
    turn.report_job_because(
        unit,
        &format!("{reason}; next try in {} s", delay.div_ceil(1_000)),
    );
}

/// The new version becomes the active one. Kept to return to: the newest version that passed a trial.
fn flip(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    let previous = unit.record.previous.take();
    let known_good = order.wanted.rollback && previous.as_ref().is_some_and(|p| p.digest == digest);
    let last_proven = unit
        .record
        .active
        .take()
        .filter(|a| a.trial_passed)
        .or(previous);
    unit.record.previous = last_proven.filter(|p| p.digest != digest);
    unit.record.active = Some(Installed {
        version,
        digest,
        trial_passed: known_good,
    });
    unit.enter(State::Probation, Some(turn.ctx.mono_ms + SERVE_DEADLINE_MS));
    unit.volatile.loaded.insert(digest);
    turn.effect(Effect::Serve {
        model: unit.name.clone(),
        digest,
    });
    turn.report_job(unit);
}

/// Starts the trial's clock. A version that returned by an order to roll back has had its trial.
pub(crate) fn start_trial(unit: &mut Unit, turn: &mut Turn) {
    unit.volatile.deadline = None;
    if unit.trial_passed() {
        pass(unit, None, turn);
    } else if unit.volatile.trial_ends.is_none() {
        let trial_s = unit
            .record
            .order
            .as_ref()
            .map_or(0, |o| o.wanted.policy.trial_s);
        unit.volatile.trial_ends = Some(turn.ctx.mono_ms + u64::from(trial_s) * 1_000);
    }
}

fn end_trial(unit: &mut Unit, over: bool, turn: &mut Turn) {
    let Some(order) = &unit.record.order else {
        return;
    };
    let (requests, failed) = unit.volatile.trial_seen;
    match judge(&order.wanted.policy, requests, failed, over) {
        Verdict::Open => {}
        Verdict::Bad(reason) => roll_back(unit, &reason, turn),
        Verdict::Passed(remark) => pass(unit, remark, turn),
    }
}

fn pass(unit: &mut Unit, remark: Option<String>, turn: &mut Turn) {
    let Some(active) = &mut unit.record.active else {
        return;
    };
    active.trial_passed = true;
    let digest = active.digest;
    turn.next.record.forget_tries(&unit.name, digest);
    turn.effect(Effect::MarkProven {
        digest,
        generation: turn.next.record.generation,
    });
    unit.enter(State::Active, None);
    match remark {
        Some(remark) => turn.report_job_because(unit, &remark),
        None => turn.report_job(unit),
    }
}

/// Returns to the previous version, or to none on a device that had none: what was found bad does not go on.
pub(crate) fn roll_back(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some(bad) = unit.record.active.take() else {
        return;
    };
    turn.block(unit, bad.digest, reason);
    replace_active(unit, &bad, turn);
    let back = unit
        .record
        .active
        .as_ref()
        .map_or("nothing, for nothing ran before".to_owned(), |a| {
            format!("{} ({:?})", a.version, a.digest)
        });
    let text = format!(
        "{} {} ({:?}) was rolled back to {back}: {reason}",
        unit.name, bad.version, bad.digest
    );
    turn.report_event(
        Severity::Alarm,
        "rolled_back",
        &text,
        Some(&unit.name),
        Some(bad.digest),
    );
    if unit.record.ordered() == Some(bad.digest) {
        unit.enter(
            State::RolledBack {
                reason: kept(reason),
            },
            None,
        );
        turn.report_job(unit);
    }
}

/// Serves the previous version instead of one that leaves.
fn replace_active(unit: &mut Unit, bad: &Installed, turn: &mut Turn) {
    unit.record.active = unit.record.previous.take();
    unit.volatile.trial_ends = None;
    unit.volatile.trial_seen = (0, 0);
    unit.volatile.reloads = 0;
    match &unit.record.active {
        Some(back) => {
            let digest = back.digest;
            turn.effect(Effect::MarkProven {
                digest,
                generation: turn.next.record.generation,
            });
            load_active(unit, turn);
        }
        None if turn.next.child_up => {
            unit.volatile.loaded.remove(&bad.digest);
            turn.effect(Effect::Unload {
                model: unit.name.clone(),
                digest: bad.digest,
            });
        }
        None => {}
    }
}

fn rollback_asked(unit: &mut Unit, turn: &mut Turn) -> Result<(), Refused> {
    let refusal = |unit: &Unit, why: &str| Err(unit.refusal("rollback_asked", why));
    let Some(previous) = &unit.record.previous else {
        return refusal(unit, "there is no previous version on this device");
    };
    let revoked = unit
        .record
        .order
        .as_ref()
        .is_some_and(|o| o.wanted.blocked.contains(&previous.digest));
    if revoked
        || turn
            .next
            .record
            .blocked(&unit.name, previous.digest)
            .is_some()
    {
        return refusal(unit, "the previous version is blocked");
    }
    roll_back(unit, "an operator asked for it on the device", turn);
    Ok(())
}

/// The active version has served before and now does not load.
fn reload(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some(active) = unit.record.active.clone() else {
        return;
    };
    unit.volatile.reloads = unit.volatile.reloads.saturating_add(1);
    let text = format!(
        "{} {} ({:?}) does not load: {reason}",
        unit.name, active.version, active.digest
    );
    turn.report_event(
        Severity::Alarm,
        "serve.load_failed",
        &text,
        Some(&unit.name),
        Some(active.digest),
    );
    if unit.volatile.reloads < RELOADS || unit.record.previous.is_none() {
        let delay = backoff_ms(unit.volatile.reloads, turn.ctx.seed);
        unit.volatile.reload_at = Some(turn.ctx.mono_ms + delay);
        return;
    }
    roll_back(
        unit,
        &format!("it failed to load {RELOADS} times in a row: {reason}"),
        turn,
    );
}

/// Orders the active version into the child. Does nothing while the child is down: its start does the same.
fn load_active(unit: &mut Unit, turn: &mut Turn) {
    unit.volatile.reload_at = None;
    let Some(active) = unit.record.active.clone().filter(|_| turn.next.child_up) else {
        return;
    };
    if unit.record.state == State::Probation {
        unit.volatile.deadline = Some(turn.ctx.mono_ms + SERVE_DEADLINE_MS);
    }
    let (model, digest) = (unit.name.clone(), active.digest);
    turn.effect(if unit.volatile.loaded.contains(&digest) {
        Effect::Serve { model, digest }
    } else {
        Effect::Load {
            model,
            version: active.version,
            digest,
        }
    });
}

fn unload_others(unit: &mut Unit, turn: &mut Turn) {
    let Some(active) = unit.record.active.as_ref().map(|a| a.digest) else {
        return;
    };
    let candidate = unit
        .record
        .ordered()
        .filter(|_| unit.record.state == State::Activating);
    let others: Vec<Digest> = unit
        .volatile
        .loaded
        .iter()
        .copied()
        .filter(|d| *d != active && Some(*d) != candidate)
        .collect();
    for digest in others {
        unit.volatile.loaded.remove(&digest);
        turn.effect(Effect::Unload {
            model: unit.name.clone(),
            digest,
        });
    }
}

fn cancel(unit: &Unit, turn: &mut Turn) {
    if let Some(digest) = unit.record.ordered() {
        turn.effect(Effect::Cancel {
            model: unit.name.clone(),
            digest,
        });
    }
}

/// The order ends without the version ever having run. A newer order may try again.
pub(crate) fn fail(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    unit.enter(
        State::Failed {
            reason: kept(reason),
        },
        None,
    );
    turn.report_job(unit);
}

/// As [`fail`], and this device will not try it again unless an order raises its attempt.
pub(crate) fn fail_and_block(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    if let Some(digest) = unit.record.ordered() {
        turn.block(unit, digest, reason);
    }
    fail(unit, reason, turn);
}

/// A pause holds every update but a return to an earlier version.
fn hold_for_pause(unit: &mut Unit, rollback: bool, turn: &mut Turn) -> bool {
    let paused = turn.next.record.paused && !rollback;
    if paused {
        hold(unit, "pause", "updates of the fleet are paused", turn);
    }
    paused
}

/// Says once what the unit waits for.
fn hold(unit: &mut Unit, kind: &'static str, why: &str, turn: &mut Turn) {
    unit.volatile.hold_until = None;
    if unit.volatile.told != Some(kind) {
        unit.volatile.told = Some(kind);
        turn.report_job_because(unit, why);
    }
}
