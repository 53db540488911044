//! The core: every model of a device, and the events that concern them all.
//!
//! Deciding is a function: [`Core::decide`] works on a copy and does not touch `self`. Only
//! [`crate::Outcome::commit`] makes the copy real, after it was persisted.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::wire::v1::{JobReport, RunningModel};
use plimsoll_protocol::{Digest, Generation, ModelName};

use crate::event::{Ctx, Event, ModelEvent};
use crate::lifecycle::{Step, step};
use crate::orders;
use crate::outcome::{Outcome, Refused};
use crate::record::Persistent;
use crate::turn::{Turn, job_report};

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
    /// Latest counters of the trial.
    pub trial_seen: (u64, u64),
    /// Transient failures in a row.
    pub failures: u32,
    /// The hold that was reported last, so that it is reported once.
    pub told: Option<&'static str>,
    /// When the active version, which failed to load, is loaded again.
    pub reload_at: Option<u64>,
    /// Failures to load the active version in a row.
    pub reloads: u32,
    /// What the serving child holds.
    pub loaded: BTreeSet<Digest>,
    /// What it answers with.
    pub serving: Option<Digest>,
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
            let held = self.volatile.get(model).is_some_and(|v| v.told.is_some());
            job_report(model, record, held)
        };
        self.record.models.iter().filter_map(job).collect()
    }

    /// The earliest hold, deadline or end of a trial.
    pub(crate) fn next_wake_mono_ms(&self) -> Option<u64> {
        let times = |v: &Volatile| [v.hold_until, v.deadline, v.trial_ends, v.reload_at];
        self.volatile.values().flat_map(times).flatten().min()
    }

    /// Decides what an event means. Does not change the core; [`Outcome::commit`] does.
    pub fn decide(&self, event: Event, ctx: &Ctx) -> Outcome {
        let mut turn = Turn::new(self, *ctx);
        match event {
            Event::Desired(desired) => {
                // An order is also a sign of life.
                turn.next.heard_mono_ms = Some(ctx.mono_ms);
                orders::accept(desired, &mut turn);
                turn.each(|unit, turn| step(unit, Step::Tick, turn));
            }
            Event::Tick => turn.each(|unit, turn| step(unit, Step::Tick, turn)),
            Event::ServerHeard => {
                turn.next.heard_mono_ms = Some(ctx.mono_ms);
                turn.each(|unit, turn| step(unit, Step::Tick, turn));
            }
            Event::Paused(paused) => {
                turn.next.record.paused = paused;
                turn.each(|unit, turn| step(unit, Step::Tick, turn));
            }
            Event::ServeStarted => {
                turn.next.child_up = true;
                turn.each(|unit, turn| step(unit, Step::ServeStarted, turn));
            }
            Event::ServeDied { reason } => {
                // A child that never came up holds no model, so none is to blame.
                if std::mem::replace(&mut turn.next.child_up, false) {
                    turn.each(|unit, turn| step(unit, Step::ServeDied(reason.clone()), turn));
                }
            }
            Event::RollbackAsked { model } => {
                if !turn.with(&model, |unit, turn| step(unit, Step::RollbackAsked, turn)) {
                    turn.refuse(unknown(&model, "rollback_asked"));
                }
            }
            Event::Of { model, digest, what } => {
                if !turn.with(&model, |unit, turn| step(unit, classify(unit, digest, what), turn)) {
                    turn.refuse(unknown(&model, "event"));
                }
            }
        }
        turn.finish(self)
    }
}

fn unknown(model: &ModelName, event: &'static str) -> Refused {
    let why = "this device has no such model".to_owned();
    Refused { model: Some(model.clone()), state: "none", event, why }
}

/// Whether an event is about the version that runs, the version that is on its way, or one that no longer matters.
fn classify(unit: &crate::turn::Unit, digest: Digest, what: ModelEvent) -> Step {
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
