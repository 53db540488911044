//! The core: every model of a device, and the events that concern them all.
//!
//! Deciding is a function: [`Core::decide`] works on a copy and does not touch `self`. Only
//! [`crate::Outcome::commit`] makes the copy real, after it was persisted.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::wire::v1::{JobReport, RunningModel};
use plimsoll_protocol::{Digest, Generation, ModelName};

use crate::candidate::HOLD_OTHER;
use crate::event::{Ctx, Event, ModelEvent};
use crate::holds::{HOLD_SERVING, Rules};
use crate::lifecycle::{Step, step};
use crate::orders;
use crate::outcome::{Outcome, Refused};
use crate::record::{Persistent, State};
use crate::shadow::Comparing;
use crate::trust;
use crate::turn::{Turn, Unit, job_report};

/// Most events kept while the disk refuses to write: a life of the child is four events a model, and what a later
/// one says of the child makes the earlier ones worthless.
const MAX_MISSED: usize = 64;

/// The state of a device's models.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Core {
    pub(crate) record: Persistent,
    pub(crate) volatile: BTreeMap<ModelName, Volatile>,
    /// Whether the serving child is up.
    pub(crate) child_up: bool,
    /// When the server was last heard, on the monotonic clock. Not persisted: after a restart a device hears the
    /// server once before it activates anything.
    pub(crate) heard_mono_ms: Option<u64>,
    /// The device's own settings. Not persisted: the shell says them at every start.
    pub(crate) rules: Rules,
    /// Until when the application says "not now", on the monotonic clock. A restart ends it: the application asks
    /// again, or is gone too.
    pub(crate) not_now_until: Option<u64>,
    /// Events whose decisions could not be written, oldest first: decided again, in order, before the next one.
    pub(crate) missed: Vec<Event>,
}

/// What a model's state needs besides the record, and may lose in a crash.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Volatile {
    /// Not before: end of jitter or backoff.
    pub hold_until: Option<u64>,
    /// The present state must have ended by then.
    pub deadline: Option<u64>,
    /// End of the trial; set when requests reach the new version.
    pub trial_ends: Option<u64>,
    /// When a hold that is not a delay is looked at again.
    pub recheck_at: Option<u64>,
    /// Since when the application puts this activation off.
    pub not_now_since: Option<u64>,
    /// Latest counters of the trial.
    pub trial_seen: (u64, u64),
    /// Transient failures in a row.
    pub failures: u32,
    /// The hold that was reported last, so that it is reported once.
    pub told: Option<&'static str>,
    /// The last remark about the present state.
    pub why: Option<String>,
    /// When the active version, which failed to load, is loaded again.
    pub reload_at: Option<u64>,
    /// Failures to load the active version in a row.
    pub reloads: u32,
    /// What the serving child holds.
    pub loaded: BTreeSet<Digest>,
    /// What it answers with.
    pub serving: Option<Digest>,
    /// What the candidate's shadow has seen; `None` while it is being loaded for it.
    pub comparing: Option<Comparing>,
    /// Since when a version on its way waits for the running one to answer.
    pub waits_since: Option<u64>,
}

impl Core {
    /// What has to survive a crash.
    pub const fn record(&self) -> &Persistent {
        &self.record
    }

    /// Of the newest order accepted.
    pub const fn generation(&self) -> Generation {
        self.record.generation
    }

    /// What is served, for births and health reports.
    pub fn running(&self) -> Vec<RunningModel> {
        let running = |(model, record): (&ModelName, &crate::ModelRecord)| {
            record.active.as_ref().map(|a| RunningModel {
                model: model.clone(),
                version: a.version.clone(),
                digest: a.digest,
                trial_passed: a.trial_passed,
            })
        };
        self.record.models.iter().filter_map(running).collect()
    }

    /// Where every order stands, as it would be reported now.
    pub fn jobs(&self) -> Vec<JobReport> {
        let job = |(model, record): (&ModelName, &crate::ModelRecord)| {
            let volatile = self.volatile.get(model);
            let mut job = job_report(model, record, volatile.is_some_and(|v| v.told.is_some()))?;
            job.reason = job.reason.or_else(|| volatile.and_then(|v| v.why.clone()));
            Some(job)
        };
        self.record.models.iter().filter_map(job).collect()
    }

    /// Bundles that are on their way to this device now.
    pub fn in_flight(&self) -> BTreeSet<Digest> {
        let under_way = self.record.models.values().filter(|record| record.state.in_flight());
        under_way.filter_map(crate::ModelRecord::ordered).collect()
    }

    /// Whether a version is compared with the one that runs.
    pub fn is_shadowing(&self) -> bool {
        self.record.models.values().any(|record| record.state == State::Shadowing)
    }

    /// For how long the application still says "not now", milliseconds.
    pub fn not_now_ms(&self, now_mono_ms: u64) -> u64 {
        self.not_now_until.map_or(0, |until| until.saturating_sub(now_mono_ms))
    }

    /// The earliest hold, deadline or end of a trial.
    pub(crate) fn next_wake_mono_ms(&self) -> Option<u64> {
        let times = |v: &Volatile| [v.hold_until, v.deadline, v.trial_ends, v.reload_at, v.recheck_at];
        self.volatile.values().flat_map(times).flatten().min()
    }

    /// Decides what an event means. Does not change the core; [`Outcome::commit`] does.
    pub fn decide(&self, event: Event, ctx: &Ctx) -> Outcome {
        let mut turn = Turn::new(self, *ctx);
        for missed in std::mem::take(&mut turn.next.missed) {
            one(missed, &mut turn);
        }
        one(event.clone(), &mut turn);
        // What another model waited for (the end of a trial), or this one (an answer), may have just come.
        turn.each(|unit, turn| match unit.volatile.told {
            Some(HOLD_OTHER | HOLD_SERVING) => step(unit, Step::Tick, turn),
            _ => Ok(()),
        });
        turn.finish(self, Some(event))
    }

    /// Keeps an event whose decision could not be written. Ticks and counters come again by themselves.
    pub(crate) fn keep_for_later(&mut self, event: Event) {
        let comes_again = matches!(
            event,
            Event::Tick | Event::ServerHeard | Event::Of { what: ModelEvent::TrialSample { .. }, .. }
        );
        if !comes_again {
            self.missed.push(event);
            let over = self.missed.len().saturating_sub(MAX_MISSED);
            self.missed.drain(..over);
        }
    }
}

fn one(event: Event, turn: &mut Turn) {
    let now = turn.ctx.mono_ms;
    match event {
        Event::Desired(desired) => {
            turn.next.heard_mono_ms = Some(now); // an order is also a sign of life
            orders::accept(desired, turn);
            turn.each(tick);
        }
        Event::Tick => turn.each(tick),
        Event::ServerHeard => {
            turn.next.heard_mono_ms = Some(now);
            turn.each(tick);
        }
        Event::Paused(paused) => {
            turn.next.record.paused = paused;
            turn.each(tick);
        }
        Event::PausedHere(paused) => {
            turn.next.record.paused_here = paused;
            turn.each(tick);
        }
        Event::Rules(rules) => {
            turn.next.rules = rules;
            turn.each(tick);
        }
        Event::NotNow { for_ms } => {
            turn.next.not_now_until = (for_ms > 0).then(|| now.saturating_add(for_ms));
            turn.each(tick);
        }
        Event::ServeStarted => {
            turn.next.child_up = true;
            turn.each(|unit, turn| step(unit, Step::ServeStarted, turn));
        }
        Event::ServeDied(death) => {
            // What this decision has ordered for it so far has nobody to obey it.
            turn.after.effects.retain(|e| !e.is_for_child());
            // A child that never came up holds no model, so none is to blame.
            if std::mem::replace(&mut turn.next.child_up, false) {
                turn.each(|unit, turn| step(unit, Step::ServeDied(death.clone()), turn));
            }
        }
        Event::Revoked(revoked) => {
            trust::take(revoked, turn);
            turn.each(tick);
        }
        Event::Imported { model, version, digest } => orders::import(model, version, digest, turn),
        Event::RollbackAsked { model } => {
            if !turn.with(&model, |unit, turn| step(unit, Step::RollbackAsked, turn)) {
                turn.refuse(unknown(&model, "rollback_asked"));
            }
        }
        Event::Of { model, digest, what } => {
            let name = what.name();
            if !turn.with(&model, |unit, turn| step(unit, classify(unit, digest, what), turn)) {
                turn.refuse(unknown(&model, name));
            }
        }
    }
}

/// What time does to one model: to the version that runs, then to the order.
fn tick(unit: &mut Unit, turn: &mut Turn) -> Result<(), Refused> {
    if unit.volatile.recheck_at.is_some_and(|at| at <= turn.ctx.mono_ms) {
        unit.volatile.recheck_at = None;
    }
    if unit.trial_over(turn) {
        step(unit, Step::TrialOver, turn)?;
    }
    if unit.volatile.reload_at.is_some_and(|at| at <= turn.ctx.mono_ms) {
        step(unit, Step::ReloadDue, turn)?;
    }
    step(unit, Step::Tick, turn)
}

fn unknown(model: &ModelName, event: &'static str) -> Refused {
    let why = "this device has no such model".to_owned();
    Refused { model: Some(model.clone()), state: "none", event, why }
}

/// Whether an event is about the version that runs, the version that is on its way, or one that no longer matters.
fn classify(unit: &Unit, digest: Digest, what: ModelEvent) -> Step {
    let active = unit.record.active.as_ref().is_some_and(|a| a.digest == digest);
    let candidate = unit.record.state.in_flight() && unit.record.ordered() == Some(digest);
    match what {
        ModelEvent::Loaded
        | ModelEvent::LoadFailed { .. }
        | ModelEvent::Serving
        | ModelEvent::Fault { .. }
            if active =>
        {
            Step::Running(what)
        }
        ModelEvent::TrialSample { requests, failed } if active => Step::Sample { requests, failed },
        what if candidate => Step::Candidate(what),
        what => Step::Stale { digest, what },
    }
}
