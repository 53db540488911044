//! One decision while it is being made: the copy of the core it works on and what it has ordered so far.

use plimsoll_protocol::wire::v1::{self as wire, JobPhase, JobReport, Severity};
use plimsoll_protocol::{Digest, ModelName};

use crate::core::{Core, Volatile};
use crate::event::{Ctx, Event};
use crate::outcome::{After, Effect, Outcome, Refused, Report};
use crate::policy::SERVE_DEADLINE_MS;
use crate::record::{Blocked, ModelRecord, Order, State, kept};

/// One model, taken out of the core while it is worked on.
#[derive(Debug)]
pub(crate) struct Unit {
    pub name: ModelName,
    pub record: ModelRecord,
    pub volatile: Volatile,
}

impl Unit {
    /// Changes the state. Holds, deadlines and what was told of them belong to the state before; a trial belongs to
    /// the version that runs, and goes on.
    pub fn enter(&mut self, state: State, deadline: Option<u64>) {
        self.record.state = state;
        self.volatile.deadline = deadline;
        self.volatile.hold_until = None;
        self.volatile.recheck_at = None;
        self.volatile.told = None;
        self.volatile.why = None;
        self.volatile.comparing = None;
        self.volatile.waits_since = None;
        if matches!(self.record.state, State::Fetching | State::Activating) {
            self.volatile.not_now_since = None;
        }
    }

    /// The order with its version and digest.
    pub fn wanted(&self) -> Option<(Order, semver::Version, Digest)> {
        let order = self.record.order.clone()?;
        let (version, digest) = (order.wanted.version.clone(), order.wanted.digest);
        Some((order, version, digest))
    }

    /// Whether what runs has passed its trial; nothing running has nothing to prove.
    pub fn trial_passed(&self) -> bool {
        self.record.active.as_ref().is_none_or(|a| a.trial_passed)
    }

    pub fn trial_over(&self, turn: &Turn) -> bool {
        self.volatile.trial_ends.is_some_and(|at| at <= turn.ctx.mono_ms)
    }

    pub fn overdue(&self, turn: &Turn) -> bool {
        self.volatile.deadline.is_some_and(|at| at <= turn.ctx.mono_ms)
    }

    pub fn held(&self, turn: &Turn) -> bool {
        self.volatile.hold_until.is_some_and(|at| at > turn.ctx.mono_ms)
    }

    /// Whether the running version has had its time to answer, since the candidate first waited for it.
    pub fn waited_long_enough(&self, turn: &Turn) -> bool {
        self.volatile.waits_since.is_some_and(|at| turn.ctx.mono_ms.saturating_sub(at) >= SERVE_DEADLINE_MS)
    }

    /// Notes that the running version answers. `false` when it was ordered out of memory after it had been ordered to
    /// serve: then it answered for a moment only.
    pub fn serves(&mut self) -> bool {
        let digest = self.record.active.as_ref().map(|a| a.digest);
        if !digest.is_some_and(|digest| self.volatile.loaded.contains(&digest)) {
            return false;
        }
        self.volatile.serving = digest;
        self.volatile.reloads = 0;
        true
    }

    /// The serving child is gone, and everything in it.
    pub fn child_lost(&mut self) {
        self.volatile.loaded.clear();
        self.volatile.serving = None;
        self.volatile.trial_ends = None; // a trial is of a version that serves: it begins anew
    }

    pub fn refusal(&self, event: &'static str, why: &str) -> Refused {
        let model = Some(self.name.clone());
        Refused { model, state: self.record.state.name(), event, why: why.to_owned() }
    }
}

/// One decision.
#[derive(Debug)]
pub(crate) struct Turn {
    pub next: Core,
    pub ctx: Ctx,
    pub after: After,
}

impl Turn {
    pub fn new(core: &Core, ctx: Ctx) -> Self {
        Self { next: core.clone(), ctx, after: After::default() }
    }

    /// Works on one model; says whether there is such a model.
    pub fn with(
        &mut self,
        model: &ModelName,
        work: impl FnOnce(&mut Unit, &mut Self) -> Result<(), Refused>,
    ) -> bool {
        let Some(record) = self.next.record.models.remove(model) else {
            return false;
        };
        let volatile = self.next.volatile.remove(model).unwrap_or_default();
        let mut unit = Unit { name: model.clone(), record, volatile };
        if let Err(refused) = work(&mut unit, self) {
            self.refuse(refused);
        }
        self.next.record.models.insert(unit.name.clone(), unit.record);
        self.next.volatile.insert(unit.name, unit.volatile);
        true
    }

    /// Works on every model, in the order of their names.
    pub fn each(&mut self, mut work: impl FnMut(&mut Unit, &mut Self) -> Result<(), Refused>) {
        let models: Vec<ModelName> = self.next.record.models.keys().cloned().collect();
        for model in models {
            self.with(&model, &mut work);
        }
    }

    pub fn effect(&mut self, effect: Effect) {
        self.after.effects.push(effect);
    }

    pub fn refuse(&mut self, refused: Refused) {
        self.after.refused.push(refused);
    }

    /// Reports where the unit's order stands.
    pub fn report_job(&mut self, unit: &Unit) {
        if let Some(job) = job_report(&unit.name, &unit.record, unit.volatile.told.is_some()) {
            self.after.reports.push(Report::Job(job));
        }
    }

    /// Reports where the unit's order stands, with a remark, which its status repeats until the state changes.
    pub fn report_job_because(&mut self, unit: &mut Unit, reason: &str) {
        unit.volatile.why = Some(kept(reason));
        if let Some(mut job) = job_report(&unit.name, &unit.record, unit.volatile.told.is_some()) {
            job.reason = Some(kept(reason));
            self.after.reports.push(Report::Job(job));
        }
    }

    pub fn report_event(
        &mut self,
        severity: Severity,
        code: &str,
        text: &str,
        model: Option<&ModelName>,
        digest: Option<Digest>,
    ) {
        let (code, model) = (code.to_owned(), model.cloned());
        self.after.reports.push(Report::Event(wire::Event {
            severity,
            code,
            text: kept(text),
            model,
            digest,
        }));
    }

    /// Remembers a bundle as bad, under the attempt of the order that is at work on it.
    pub fn block(&mut self, unit: &Unit, digest: Digest, reason: &str) {
        let order = unit.record.order.as_ref().filter(|o| o.wanted.digest == digest);
        let attempt = order.map_or(0, |o| o.wanted.attempt);
        self.next.record.block(Blocked { model: unit.name.clone(), digest, reason: kept(reason), attempt });
        self.next.record.forget_tries(&unit.name, digest);
    }

    /// Ends the decision: slots that nobody needs any more are given up, and the wake-up is set.
    pub fn finish(mut self, before: &Core, event: Option<Event>) -> Outcome {
        let kept = self.next.record.slots();
        for digest in before.record.slots().difference(&kept) {
            self.after.effects.push(Effect::DeleteSlot { digest: *digest });
        }
        self.after.wake_mono_ms = self.next.next_wake_mono_ms();
        let changed = self.next.record != before.record;
        Outcome { next: self.next, changed, after: self.after, event }
    }
}

/// The report of a model's order, or nothing without an order.
pub(crate) fn job_report(model: &ModelName, record: &ModelRecord, held: bool) -> Option<JobReport> {
    let order = record.order.as_ref()?;
    let phase = match record.state {
        State::Idle => return None,
        State::Waiting => JobPhase::Waiting,
        State::Fetching | State::Verified => JobPhase::Fetching,
        State::Staged | State::SelfTested if held => JobPhase::Waiting,
        State::Staged | State::SelfTested => JobPhase::SelfTesting,
        State::Shadowing => JobPhase::Shadowing,
        State::Activating => JobPhase::Activating,
        State::Probation => JobPhase::Probation,
        State::Active => JobPhase::Active,
        State::Failed { .. } => JobPhase::Failed,
        State::RolledBack { .. } => JobPhase::RolledBack,
        State::NotApplicable { .. } => JobPhase::NotApplicable,
    };
    let reason = match &record.state {
        State::Failed { reason } | State::RolledBack { reason } | State::NotApplicable { reason } => {
            Some(reason.clone())
        }
        _ => None,
    };
    Some(JobReport {
        generation: order.generation,
        rollout: order.wanted.rollout.clone(),
        model: model.clone(),
        version: order.wanted.version.clone(),
        digest: order.wanted.digest,
        phase,
        reason,
        running: record.active.as_ref().map(|a| a.digest),
    })
}
