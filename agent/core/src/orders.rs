//! Taking orders: the server's goal state against what the device knows.

use std::collections::BTreeSet;

use plimsoll_protocol::wire::v1::{Desired, DesiredModel, JobPhase, Severity, UpdatePolicy};
use plimsoll_protocol::{Digest, ModelName};

use crate::candidate;
use crate::lifecycle::{Step, step};
use crate::outcome::{Effect, Refused, Report};
use crate::record::{MAX_MODELS, MAX_ORDER_BLOCKED, MAX_VERSION, Order, State, kept};
use crate::retry::{mix, uniform_ms};
use crate::running;
use crate::shadow;
use crate::turn::{Turn, Unit, job_report};

/// Takes a whole document, or refuses it whole.
pub(crate) fn accept(desired: Desired, turn: &mut Turn) {
    let known = turn.next.record.generation;
    let got = desired.generation;
    if got < known {
        let text =
            format!("an order of generation {got} was refused: this device works by generation {known}");
        refuse(turn, "order.stale", text);
        return;
    }
    if got == known {
        return; // the same goal again: a retained message after a reconnect
    }
    if let Err(why) = check(&desired, turn) {
        refuse(turn, "order.invalid", format!("the order of generation {got} was refused: {why}"));
        return;
    }
    turn.next.record.generation = got;
    forget_empty(&desired, turn);
    for mut wanted in desired.models {
        let model = wanted.model.clone();
        wanted.blocked.truncate(MAX_ORDER_BLOCKED);
        turn.next.record.models.entry(model.clone()).or_default();
        let order = Box::new(Order { generation: got, wanted, local: false });
        turn.with(&model, |unit, turn| step(unit, Step::Ordered(order), turn));
    }
}

fn refuse(turn: &mut Turn, code: &str, text: String) {
    turn.report_event(Severity::Warning, code, &text, None, None);
    turn.refuse(Refused { model: None, state: "any", event: "desired", why: text });
}

fn check(desired: &Desired, turn: &Turn) -> Result<(), String> {
    if desired.v != 1 {
        return Err(format!("it has version {}; this agent reads version 1: update the agent", desired.v));
    }
    let named: BTreeSet<&ModelName> = desired.models.iter().map(|m| &m.model).collect();
    if named.len() != desired.models.len() {
        return Err("it names a model twice".into());
    }
    let running = turn.next.record.models.iter().filter(|(_, r)| r.active.is_some()).map(|(m, _)| m);
    let all: BTreeSet<&ModelName> = running.chain(named).collect();
    if all.len() > MAX_MODELS {
        return Err(format!("it would make {} models; a device runs at most {MAX_MODELS}", all.len()));
    }
    for wanted in &desired.models {
        if wanted.version.to_string().len() > MAX_VERSION {
            return Err(format!("the version of {} is longer than {MAX_VERSION} characters", wanted.model));
        }
    }
    Ok(())
}

/// A model that is not ordered any more and does not run leaves no trace; one that runs goes on.
fn forget_empty(desired: &Desired, turn: &mut Turn) {
    let Turn { next, after, .. } = turn;
    next.record.models.retain(|model, record| {
        let keep = record.active.is_some() || desired.models.iter().any(|m| m.model == *model);
        if let Some(digest) = record.ordered().filter(|_| !keep && record.state.in_flight()) {
            after.effects.push(Effect::Cancel { model: model.clone(), digest });
        }
        keep
    });
    next.volatile.retain(|model, _| next.record.models.contains_key(model));
}

/// Takes one model's order.
pub(crate) fn take(unit: &mut Unit, order: Order, turn: &mut Turn) {
    let same = unit.record.ordered() == Some(order.wanted.digest);
    if !same {
        supersede(unit, turn);
    }
    turn.next.record.lift(&unit.name, order.wanted.digest, order.wanted.attempt);
    let is_hurried = unit.record.state == State::Shadowing && shadow::asked(&order).is_none();
    unit.record.order = Some(order);
    if same && is_hurried {
        shadow::interrupt(unit, turn); // it goes on without one
    }
    if same && unit.record.state == State::Activating {
        shadow::catch_up(unit, turn);
    }
    let goes_on = same && (unit.record.state.in_flight() || unit.record.state == State::Active);
    if goes_on {
        turn.report_job(unit); // under its new generation, rollout and policy
    } else {
        begin(unit, turn);
    }
}

/// An order given at the device, for a bundle that lies verified in the staging folder.
pub(crate) fn import(model: ModelName, version: semver::Version, digest: Digest, turn: &mut Turn) {
    let record = &turn.next.record;
    if !record.models.contains_key(&model) && record.models.len() >= MAX_MODELS {
        let why = format!("{model} would be one model more than the {MAX_MODELS} that a device runs");
        turn.refuse(Refused { model: Some(model), state: "none", event: "imported", why });
        return;
    }
    let before = record.models.get(&model).and_then(|m| m.order.as_ref());
    let wanted = DesiredModel {
        model: model.clone(),
        version,
        digest,
        rollout: None,
        policy: UpdatePolicy { jitter_s: 0, ..UpdatePolicy::default() },
        rollback: false,
        blocked: before.map_or_else(Vec::new, |o| o.wanted.blocked.clone()),
        attempt: before.map_or(0, |o| o.wanted.attempt),
    };
    let order = Box::new(Order { generation: record.generation, wanted, local: true });
    turn.next.record.models.entry(model.clone()).or_default();
    turn.with(&model, |unit, turn| step(unit, Step::Imported(order), turn));
}

/// Takes it, unless this device knows better. It goes the way of every version from there on: durable, self-tested,
/// on trial.
pub(crate) fn take_import(unit: &mut Unit, order: Order, turn: &mut Turn) -> Result<(), Refused> {
    let digest = order.wanted.digest;
    let refusal = |unit: &Unit, why: &str| Err(unit.refusal("imported", why));
    if unit.record.active.as_ref().is_some_and(|a| a.digest == digest) {
        return refusal(unit, "this version runs already");
    }
    if let Some(blocked) = turn.next.record.blocked(&unit.name, digest) {
        return refusal(unit, &format!("this version is blocked on this device: {}", blocked.reason));
    }
    if order.wanted.blocked.contains(&digest) {
        return refusal(unit, "the fleet's server has blocked this version on this device");
    }
    if unit.record.ordered() != Some(digest) {
        supersede(unit, turn);
    } else if unit.record.state.in_flight() {
        return refusal(unit, "this version is on its way already");
    }
    unit.record.order = Some(order);
    candidate::stage(unit, turn);
    turn.report_job(unit);
    Ok(())
}

/// Ends the work on the order before. What runs, on trial or not, is not touched.
fn supersede(unit: &mut Unit, turn: &mut Turn) {
    let Some(digest) = unit.record.ordered().filter(|_| unit.record.state.in_flight()) else {
        return;
    };
    let model = unit.name.clone();
    match unit.record.state {
        State::Waiting | State::Fetching | State::Verified | State::Staged => {
            turn.effect(Effect::Cancel { model, digest });
            turn.effect(Effect::Discard { digest });
        }
        State::Shadowing => shadow::leave(unit, turn),
        State::Activating if turn.next.child_up => {
            turn.effect(Effect::Unload { model, digest });
            candidate::bring_back(unit, turn);
        }
        _ => {}
    }
    if let Some(mut job) = job_report(&unit.name, &unit.record, false) {
        job.phase = JobPhase::Superseded;
        turn.after.reports.push(Report::Job(job));
    }
}

/// Starts from what the device already has.
pub(crate) fn begin(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, version, digest)) = unit.wanted() else {
        return;
    };
    unit.volatile.failures = 0;
    if unit.record.active.as_ref().is_some_and(|a| a.digest == digest) {
        resume_active(unit, turn);
        return;
    }
    if let Some(blocked) = turn.next.record.blocked(&unit.name, digest) {
        let reason = format!("{version} is blocked on this device: {}", blocked.reason);
        candidate::fail(unit, &kept(&reason), turn);
        return;
    }
    if order.wanted.blocked.contains(&digest) {
        candidate::fail(unit, &format!("the order names {version} and blocks it"), turn);
        return;
    }
    wait(unit, turn);
}

/// Waits for the device's share of the jitter, which spreads a stage (and a fleet whose power came back).
pub(crate) fn wait(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else {
        return;
    };
    unit.enter(State::Waiting, None);
    let jitter_ms = if order.wanted.rollback { 0 } else { u64::from(order.wanted.policy.jitter_s) * 1_000 };
    // The digest's first bytes keep two models that were ordered together from starting together.
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    let seed = mix(turn.ctx.seed) ^ u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let delay = uniform_ms(jitter_ms, seed);
    if delay > 0 {
        unit.volatile.hold_until = Some(turn.ctx.mono_ms + delay);
        let text = format!(
            "starts in {} s, its share of a spread of {} s",
            delay.div_ceil(1_000),
            jitter_ms / 1_000
        );
        turn.report_job_because(unit, &text);
    }
}

/// What is ordered runs already: its trial ended, goes on, or starts again.
fn resume_active(unit: &mut Unit, turn: &mut Turn) {
    if unit.trial_passed() {
        unit.enter(State::Active, None);
        turn.report_job(unit);
        return;
    }
    let serving = unit.volatile.serving == unit.record.ordered();
    unit.enter(State::Probation, None);
    turn.report_job(unit);
    if serving && unit.volatile.trial_ends.is_none() {
        running::start_trial(unit, turn);
    }
}
