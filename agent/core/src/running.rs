//! The version that runs: its trial, the return to the one before, and keeping it loaded.

use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{Digest, ModelName};

use crate::event::Death;
use crate::outcome::{Effect, Refused};
use crate::policy::{RELOADS, SERVE_DEADLINE_MS, Swap, Verdict, judge, swap};
use crate::record::{Installed, State, kept};
use crate::retry::backoff_ms;
use crate::shadow;
use crate::turn::{Turn, Unit};

/// Starts the trial's clock, once. A version that returned by an order to roll back has had its trial.
pub(crate) fn start_trial(unit: &mut Unit, turn: &mut Turn) {
    if unit.record.state == State::Probation {
        unit.volatile.deadline = None;
    }
    if unit.trial_passed() {
        if unit.record.state == State::Probation {
            pass(unit, None, turn);
        }
    } else if unit.volatile.trial_ends.is_none() {
        unit.volatile.trial_seen = (0, 0);
        let trial_s = unit.record.order.as_ref().map_or(0, |o| o.wanted.policy.trial_s);
        unit.volatile.trial_ends = Some(turn.ctx.mono_ms + u64::from(trial_s) * 1_000);
    }
}

/// Judges a death of the serving process in the trial of the version that runs. Unless another bundle is known to have
/// taken the process along, the newest version is the suspect.
pub(crate) fn died_on_trial(unit: &mut Unit, death: &Death, turn: &mut Turn) {
    let runs = unit.record.active.as_ref().map(|active| active.digest);
    let is_another = |(model, digest): &(ModelName, Digest)| *model != unit.name || Some(*digest) != runs;
    if !death.blamed.as_ref().is_some_and(is_another) {
        let reason = format!("the serving process died before it had passed its trial: {}", death.reason);
        roll_back(unit, &reason, turn);
    }
}

pub(crate) fn end_trial(unit: &mut Unit, over: bool, turn: &mut Turn) {
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
    turn.effect(Effect::MarkProven { digest, generation: turn.next.record.generation });
    unit.volatile.trial_ends = None;
    if unit.record.state != State::Probation {
        return; // a newer order is under way, and reports for itself
    }
    unit.enter(State::Active, None);
    match remark {
        Some(remark) => turn.report_job_because(unit, &remark),
        None => turn.report_job(unit),
    }
}

/// Returns to the previous version, or to none on a device that had none: what was found bad does not go on.
pub(crate) fn roll_back(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    if unit.record.state == State::Shadowing {
        shadow::interrupt(unit, turn); // what it is compared with goes
    }
    let Some(bad) = unit.record.active.take() else {
        return;
    };
    turn.block(unit, bad.digest, reason);
    replace_active(unit, &bad, turn);
    let back =
        unit.record.active.as_ref().map_or("nothing, for nothing ran before".to_owned(), |a| {
            format!("{} ({:?})", a.version, a.digest)
        });
    let text =
        format!("{} {} ({:?}) was rolled back to {back}: {reason}", unit.name, bad.version, bad.digest);
    turn.report_event(Severity::Alarm, "rolled_back", &text, Some(&unit.name), Some(bad.digest));
    if unit.record.ordered() == Some(bad.digest) {
        unit.enter(State::RolledBack { reason: kept(reason) }, None);
        turn.report_job(unit);
    } else {
        arrived(unit, turn);
    }
}

/// Ends an order whose version runs already: what an order to return was on its way to do, a rollback by the device
/// itself may have done before.
pub(crate) fn arrived(unit: &mut Unit, turn: &mut Turn) {
    let Some(active) = &unit.record.active else { return };
    let there = unit.record.ordered() == Some(active.digest) && active.trial_passed;
    if there && unit.record.state.in_flight() && unit.record.state != State::Probation {
        unit.enter(State::Active, None);
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
            turn.effect(Effect::MarkProven { digest, generation: turn.next.record.generation });
            load_active(unit, turn);
        }
        None if turn.next.child_up => {
            unit.volatile.loaded.remove(&bad.digest);
            turn.effect(Effect::Unload { model: unit.name.clone(), digest: bad.digest });
        }
        None => {}
    }
}

pub(crate) fn rollback_asked(unit: &mut Unit, turn: &mut Turn) -> Result<(), Refused> {
    let refusal = |unit: &Unit, why: &str| Err(unit.refusal("rollback_asked", why));
    let Some(previous) = &unit.record.previous else {
        return refusal(unit, "there is no previous version on this device");
    };
    if turn.next.record.revoked.contains(&previous.digest) {
        return refusal(unit, "the previous version was revoked, and something else runs");
    }
    let by_order = unit.record.order.as_ref().is_some_and(|o| o.wanted.blocked.contains(&previous.digest));
    if by_order || turn.next.record.blocked(&unit.name, previous.digest).is_some() {
        return refusal(unit, "the previous version is blocked");
    }
    roll_back(unit, "an operator asked for it on the device", turn);
    Ok(())
}

/// The active version has served before and now does not load.
pub(crate) fn reload(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some(active) = unit.record.active.clone() else {
        return;
    };
    unit.volatile.reloads = unit.volatile.reloads.saturating_add(1);
    let text = format!("{} {} ({:?}) does not load: {reason}", unit.name, active.version, active.digest);
    turn.report_event(Severity::Alarm, "serve.load_failed", &text, Some(&unit.name), Some(active.digest));
    if unit.volatile.reloads < RELOADS || unit.record.previous.is_none() {
        let delay = backoff_ms(unit.volatile.reloads, turn.ctx.seed);
        unit.volatile.reload_at = Some(turn.ctx.mono_ms + delay);
        return;
    }
    roll_back(unit, &format!("it failed to load {RELOADS} times in a row: {reason}"), turn);
}

/// Orders the active version into the child. Does nothing while the child is down: its start does the same.
pub(crate) fn load_active(unit: &mut Unit, turn: &mut Turn) {
    unit.volatile.reload_at = None;
    let Some(active) = unit.record.active.clone().filter(|_| turn.next.child_up) else {
        return;
    };
    if unit.record.state == State::Probation {
        unit.volatile.deadline = Some(turn.ctx.mono_ms + SERVE_DEADLINE_MS);
    }
    let (model, digest) = (unit.name.clone(), active.digest);
    if !unit.volatile.loaded.contains(&digest) && unit.record.state != State::Activating {
        make_room(unit, digest, active.ram_bytes, turn);
    }
    turn.effect(if unit.volatile.loaded.contains(&digest) {
        Effect::Serve { model, digest }
    } else {
        Effect::Load { model, version: active.version, digest }
    });
}

/// Takes out of memory what the model holds there, when `wanted` does not fit beside it; says so. Until `wanted`
/// serves, the model does not answer: that is the price of a device that cannot hold two.
pub(crate) fn make_room(unit: &mut Unit, wanted: Digest, ram_bytes: u64, turn: &mut Turn) -> Option<String> {
    if unit.volatile.loaded.contains(&wanted) {
        return None; // its memory is taken already
    }
    let others: Vec<Digest> = unit.volatile.loaded.iter().copied().collect();
    let available = turn.ctx.ram_available_bytes?;
    if others.is_empty() || swap(ram_bytes, Some(available)) == Swap::Overlap {
        return None;
    }
    for digest in others {
        unit.volatile.loaded.remove(&digest);
        turn.effect(Effect::Unload { model: unit.name.clone(), digest });
    }
    unit.volatile.serving = unit.volatile.serving.filter(|d| *d == wanted);
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    let (needs, has) = (mib(ram_bytes), mib(available));
    Some(format!(
        "it needs {needs} MiB of memory and {has} MiB are free: the running version leaves memory first"
    ))
}

pub(crate) fn unload_others(unit: &mut Unit, turn: &mut Turn) {
    let Some(active) = unit.record.active.as_ref().map(|a| a.digest) else {
        return;
    };
    let candidate = unit.record.ordered().filter(|_| unit.record.at_risk());
    let others: Vec<Digest> =
        unit.volatile.loaded.iter().copied().filter(|d| *d != active && Some(*d) != candidate).collect();
    for digest in others {
        unit.volatile.loaded.remove(&digest);
        turn.effect(Effect::Unload { model: unit.name.clone(), digest });
    }
}
