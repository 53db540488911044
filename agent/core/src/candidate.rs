//! A version on its way: fetched, staged, self-tested, activated, or given up. Its shadow is in [`shadow`].

use crate::holds::{hold, hold_for_answer, hold_for_application, hold_for_people, watch_hours};
use crate::outcome::Effect;
use crate::policy::{
    FETCH_DEADLINE_MS, LOAD_DEADLINE_MS, RETRY_AFTER_CAP_MS, SELF_TEST_DEADLINE_MS, SERVE_DEADLINE_MS,
    STAGE_DEADLINE_MS, budget,
};
use crate::record::{Installed, State, kept};
use crate::retry::backoff_ms;
use crate::running::{load_active, make_room};
use crate::shadow;
use crate::trust;
use crate::turn::{Turn, Unit};

/// The hold that ends when another model's trial does.
pub(crate) const HOLD_OTHER: &str = "other";

pub(crate) fn leave_waiting(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    if unit.held(turn) || hold_for_people(unit, turn) {
        return;
    }
    if unit.record.previous.as_ref().is_some_and(|p| p.digest == digest) {
        // It is in its slot, was verified when it was put there and has passed a trial on this device.
        unit.enter(State::SelfTested, None);
        activate(unit, turn);
        return;
    }
    unit.enter(State::Fetching, Some(turn.ctx.mono_ms + FETCH_DEADLINE_MS));
    if !order.wanted.rollback {
        watch_hours(unit, turn);
    }
    turn.effect(Effect::Fetch { model: unit.name.clone(), version, digest });
    turn.report_job(unit);
}

pub(crate) fn retry_fetch(unit: &mut Unit, reason: &str, retry_after_ms: Option<u64>, turn: &mut Turn) {
    unit.volatile.failures = unit.volatile.failures.saturating_add(1);
    let asked = retry_after_ms.unwrap_or(0).min(RETRY_AFTER_CAP_MS);
    let delay = asked + backoff_ms(unit.volatile.failures, turn.ctx.seed);
    unit.enter(State::Waiting, None);
    unit.volatile.hold_until = Some(turn.ctx.mono_ms + delay);
    turn.report_job_because(unit, &format!("{reason}; next try in {} s", delay.div_ceil(1_000)));
}

/// Makes durable what lies verified in the staging folder.
pub(crate) fn stage(unit: &mut Unit, turn: &mut Turn) {
    unit.enter(State::Verified, Some(turn.ctx.mono_ms + STAGE_DEADLINE_MS));
    if let Some((_, _, digest)) = unit.wanted() {
        turn.effect(Effect::Stage { model: unit.name.clone(), digest });
    }
}

/// Stops a fetch whose maintenance hours have ended, or that a person paused; what was fetched stays.
pub(crate) fn interrupt_fetch(unit: &mut Unit, turn: &mut Turn) {
    cancel(unit, turn);
    unit.enter(State::Waiting, None);
    leave_waiting(unit, turn);
}

/// Begins a self-test, or gives up when its tries are used up.
pub(crate) fn self_test(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    let mut tries = turn.next.record.tries(&unit.name, digest);
    let most = budget(&order.wanted.policy);
    if tries.self_tests >= most {
        fail_and_block(unit, &format!("its self-test was begun {most} times and never ended"), turn);
        return;
    }
    tries.self_tests += 1;
    tries.attempt = order.wanted.attempt;
    turn.next.record.spend(tries);
    unit.enter(State::Staged, Some(turn.ctx.mono_ms + SELF_TEST_DEADLINE_MS));
    turn.effect(Effect::SelfTest { model: unit.name.clone(), digest });
    turn.report_job(unit);
}

pub(crate) fn self_test_broke(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    let spent = turn.next.record.tries(&unit.name, digest).self_tests;
    if spent >= budget(&order.wanted.policy) {
        fail_and_block(unit, &format!("self-test broke {spent} times: {reason}"), turn);
        return;
    }
    wait_for_next_try(unit, State::Staged, spent, &format!("self-test broke: {reason}"), turn);
}

/// Activates when everything allows it; otherwise says once what it waits for.
pub(crate) fn activate(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    if turn.next.record.revoked.contains(&digest) {
        fail(unit, &format!("{version} was revoked: {}", trust::REVOKED), turn);
        return;
    }
    let rollback = order.wanted.rollback;
    if unit.held(turn) || hold_for_people(unit, turn) {
        return;
    }
    // A return to an earlier version needs no lease: nobody stops a rollback for being unsafe. Nor does an order that
    // was given at the device: who gave it is there.
    let lease_ms = u64::from(order.wanted.policy.lease_s) * 1_000;
    let heard = turn.next.heard_mono_ms.is_some_and(|at| turn.ctx.mono_ms.saturating_sub(at) <= lease_ms);
    if !rollback && !order.local && !heard {
        let why = format!(
            "the server was not heard within {} s: the order may have been stopped",
            lease_ms / 1_000
        );
        hold(unit, "lease", &why, turn);
        return;
    }
    // All models share one serving process: with one version on trial at a time, its death has one suspect. A return
    // to a version that is proven here puts nothing at risk.
    let proven = rollback && unit.record.previous.as_ref().is_some_and(|p| p.digest == digest);
    let other =
        turn.next.record.models.iter().find(|(_, record)| record.at_risk()).map(|(name, _)| name.clone());
    if let Some(other) = other.filter(|_| !proven) {
        hold(unit, HOLD_OTHER, &format!("a version of {other} is on trial; one at a time"), turn);
        return;
    }
    if !turn.next.child_up {
        hold(unit, "child", "the serving process is not up", turn);
        return;
    }
    // Nor may a version on trial be about to answer for the first time: if that kills the process, the suspect is it.
    let unproven = unit.record.active.as_ref().filter(|a| !a.trial_passed).map(|a| a.digest);
    let silent = unproven.is_some_and(|digest| unit.volatile.serving != Some(digest));
    if silent && !unit.waited_long_enough(turn) {
        hold_for_answer(unit, "waits until the version on trial answers, or is gone", turn);
        return;
    }
    if shadow::comes_first(unit, turn) {
        return;
    }
    let mut tries = turn.next.record.tries(&unit.name, digest);
    let most = budget(&order.wanted.policy);
    if tries.activations >= most {
        fail_and_block(unit, &format!("its activation was begun {most} times and never ended well"), turn);
        return;
    }
    if !rollback && hold_for_application(unit, turn) {
        return;
    }
    let known = unit.record.previous.as_ref().filter(|p| p.digest == digest).map_or(0, |p| p.ram_bytes);
    let ram_bytes = tries.ram_bytes.max(known);
    tries.activations += 1;
    tries.attempt = order.wanted.attempt;
    turn.next.record.spend(tries);
    unit.enter(State::Activating, Some(turn.ctx.mono_ms + LOAD_DEADLINE_MS));
    let remark = make_room(unit, digest, ram_bytes, turn);
    turn.effect(Effect::Load { model: unit.name.clone(), version, digest });
    match remark {
        Some(remark) => turn.report_job_because(unit, &remark),
        None => turn.report_job(unit),
    }
}

pub(crate) fn activation_broke(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    if turn.next.child_up {
        turn.effect(Effect::Unload { model: unit.name.clone(), digest });
    }
    bring_back(unit, turn);
    let spent = turn.next.record.tries(&unit.name, digest).activations;
    if spent >= budget(&order.wanted.policy) {
        fail_and_block(unit, &format!("activation failed {spent} times: {reason}"), turn);
        return;
    }
    wait_for_next_try(unit, State::SelfTested, spent, &format!("activation failed: {reason}"), turn);
}

/// Loads what had to leave memory for a version that is not loaded after all.
pub(crate) fn bring_back(unit: &mut Unit, turn: &mut Turn) {
    if unit.record.active.as_ref().is_some_and(|a| !unit.volatile.loaded.contains(&a.digest)) {
        load_active(unit, turn);
    }
}

pub(crate) fn wait_for_next_try(unit: &mut Unit, state: State, spent: u32, reason: &str, turn: &mut Turn) {
    let delay = backoff_ms(spent, turn.ctx.seed);
    unit.enter(state, None);
    unit.volatile.hold_until = Some(turn.ctx.mono_ms + delay);
    unit.volatile.told = Some("retry");
    turn.report_job_because(unit, &format!("{reason}; next try in {} s", delay.div_ceil(1_000)));
}

/// The new version becomes the active one. Kept to return to: the newest version that passed a trial and was
/// not revoked.
pub(crate) fn flip(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    let previous = unit.record.previous.take();
    let tested = turn.next.record.tries(&unit.name, digest).ram_bytes;
    let ram_bytes =
        previous.as_ref().filter(|p| p.digest == digest).map_or(tested, |p| p.ram_bytes.max(tested));
    let known_good = order.wanted.rollback && previous.as_ref().is_some_and(|p| p.digest == digest);
    let proven = [unit.record.active.take().filter(|a| a.trial_passed), previous].into_iter().flatten();
    let revoked = &turn.next.record.revoked;
    // The newest first; a version that was revoked only when there is no other.
    unit.record.previous = proven.filter(|p| p.digest != digest).min_by_key(|p| revoked.contains(&p.digest));
    unit.record.active = Some(Installed { version, digest, trial_passed: known_good, ram_bytes });
    unit.enter(State::Probation, Some(turn.ctx.mono_ms + SERVE_DEADLINE_MS));
    unit.volatile.loaded.insert(digest);
    turn.effect(Effect::Serve { model: unit.name.clone(), digest });
    turn.report_job(unit);
}

pub(crate) fn cancel(unit: &Unit, turn: &mut Turn) {
    if let Some(digest) = unit.record.ordered() {
        turn.effect(Effect::Cancel { model: unit.name.clone(), digest });
    }
}

/// Nothing of what was fetched is kept.
pub(crate) fn discard(unit: &Unit, turn: &mut Turn) {
    if let Some(digest) = unit.record.ordered() {
        turn.effect(Effect::Discard { digest });
    }
}

/// The order ends without the version ever having run. A newer order may try again.
pub(crate) fn fail(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    unit.enter(State::Failed { reason: kept(reason) }, None);
    turn.report_job(unit);
}

/// As [`fail`], and this device will not try it again unless an order raises its attempt.
pub(crate) fn fail_and_block(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    if let Some(digest) = unit.record.ordered() {
        turn.block(unit, digest, reason);
    }
    fail(unit, reason, turn);
}
