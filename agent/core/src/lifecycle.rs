//! The lifecycle of one model: one match over (state, event). Every legal edge has its comment; everything else is
//! refused by name.
//!
//! Two rules hold everywhere. What runs is not touched before a replacement has passed its self-test, and stays in
//! memory until the replacement is loaded, where memory holds both. A try is spent in the same decision that orders
//! the risky step, so it is durable before the step.

use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::Severity;

use crate::candidate::{
    activate, activation_broke, cancel, discard, fail, fail_and_block, flip, interrupt_fetch, leave_waiting,
    retry_fetch, self_test, self_test_broke, stage,
};
use crate::event::{Death, Failure, ModelEvent};
use crate::holds::must_wait;
use crate::orders;
use crate::outcome::{Effect, Refused};
use crate::record::{Order, State, kept};
use crate::running::{
    died_on_trial, end_trial, load_active, reload, roll_back, rollback_asked, start_trial, unload_others,
};
use crate::shadow;
use crate::turn::{Turn, Unit};

/// An event as one model sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// A newer order for this model.
    Ordered(Box<Order>),
    /// A bundle brought by hand: verified, and in the staging folder.
    Imported(Box<Order>),
    /// Time passed, or something that a state waits for may have changed.
    Tick,
    /// The time of the running version's trial is over.
    TrialOver,
    /// The running version failed to load and is to be loaded again.
    ReloadDue,
    /// The serving child is up and empty.
    ServeStarted,
    /// The serving child was up and died.
    ServeDied(Death),
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
        // So is one that somebody at the device gives, who brought the bundle.
        (_, Step::Imported(order)) => return orders::take_import(unit, *order, turn),

        // ---- a version on its way ----
        // Jitter or backoff ended, and nothing pauses the fleet: fetch (or take the slot that is there).
        (S::Waiting, Step::Tick) => leave_waiting(unit, turn),
        // Everything verified against the signed manifest: make it durable.
        (S::Fetching, Step::Candidate(M::FetchDone)) => {
            stage(unit, turn);
        }
        // The manifest asks for what this device does not have.
        (S::Fetching, Step::Candidate(M::NotApplicable { reason })) => {
            cancel(unit, turn);
            unit.enter(S::NotApplicable { reason: kept(&reason) }, None);
            turn.report_job(unit);
        }
        // The network or the server failed: the partial fetch stays, and is resumed after a backoff.
        (
            S::Fetching,
            Step::Candidate(M::FetchFailed { failure: Failure::Transient, reason, retry_after_ms }),
        ) => {
            retry_fetch(unit, &reason, retry_after_ms, turn);
        }
        // A signature, a digest, a limit: not a byte of it is kept.
        (S::Fetching, Step::Candidate(M::FetchFailed { failure: Failure::Permanent, reason, .. })) => {
            discard(unit, turn);
            fail(unit, &reason, turn);
        }
        // Durable: on to the golden samples.
        (S::Verified, Step::Candidate(M::Staged)) => {
            unit.enter(S::Staged, None);
            self_test(unit, turn);
        }
        // A full or failing disk may recover.
        (S::Verified, Step::Candidate(M::StageFailed { failure: Failure::Transient, reason })) => {
            retry_fetch(unit, &reason, None, turn);
        }
        // What was staged is not what was verified.
        (S::Verified, Step::Candidate(M::StageFailed { failure: Failure::Permanent, reason })) => {
            discard(unit, turn);
            fail(unit, &reason, turn);
        }
        // Its maintenance hours ended, or a person paused this device: the partial fetch stays.
        (S::Fetching, Step::Tick) if must_wait(unit, turn) => interrupt_fetch(unit, turn),
        // The effect never answered.
        (S::Fetching | S::Verified, Step::Tick) if unit.overdue(turn) => {
            cancel(unit, turn);
            retry_fetch(unit, "it did not end within its deadline", None, turn);
        }
        // It answers as the notebook does, on this hardware.
        (S::Staged, Step::Candidate(M::SelfTestPassed { peak_rss_bytes })) => {
            if let Some(digest) = unit.record.ordered() {
                turn.next.record.measured(&unit.name, digest, peak_rss_bytes);
            }
            unit.enter(S::SelfTested, None);
            activate(unit, turn);
        }
        // It answers wrongly: no number of tries makes that right.
        (S::Staged, Step::Candidate(M::SelfTestFailed { failure: Failure::Permanent, reason })) => {
            fail_and_block(unit, &format!("self-test failed: {reason}"), turn);
        }
        // The child crashed or ran out of time: again, while there are tries.
        (S::Staged, Step::Candidate(M::SelfTestFailed { failure: Failure::Transient, reason })) => {
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
        // Loaded beside the running one: compare, on the same requests.
        (S::Shadowing, Step::Candidate(M::Loaded)) => shadow::compare(unit, turn),
        // Told, and judged by what is proven.
        (S::Shadowing, Step::Candidate(M::ShadowSample { totals })) => shadow::count(unit, totals, turn),
        // The two answer different questions: there is nothing to compare.
        (S::Shadowing, Step::Candidate(M::ShadowRefused { reason })) => shadow::refused(unit, &reason, turn),
        // Memory may have been short.
        (S::Shadowing, Step::Candidate(M::LoadFailed { reason })) => shadow::broke(unit, &reason, turn),
        // It panicked on a request that the running one answered.
        (S::Shadowing, Step::Candidate(M::Fault { reason })) => shadow::condemn(unit, &reason, turn),
        // One suspect: no other version is at risk, and the running one has passed its trial.
        (S::Shadowing, Step::ServeDied(death)) => {
            unit.child_lost();
            shadow::broke(unit, &format!("the serving process died meanwhile: {}", death.reason), turn);
        }
        // Its time is over, or that of loading it.
        (S::Shadowing, Step::Tick) if unit.overdue(turn) => shadow::time_over(unit, turn),
        // Loaded beside the running one: flip the record, then swap.
        (S::Activating, Step::Candidate(M::Loaded)) => flip(unit, turn),
        // The running one still runs; the try is already spent.
        (S::Activating, Step::Candidate(M::LoadFailed { reason } | M::Fault { reason })) => {
            activation_broke(unit, &reason, turn);
        }
        // Two suspects, when a newer order came during a trial: the one on trial goes, the newer one is tried again.
        (S::Activating, Step::ServeDied(death)) => {
            unit.child_lost();
            if !unit.trial_passed() {
                died_on_trial(unit, &death, turn);
            }
            activation_broke(
                unit,
                &format!("the serving process died while loading it: {}", death.reason),
                turn,
            );
        }
        (S::Activating, Step::Tick) if unit.overdue(turn) => {
            activation_broke(unit, "it did not load within its deadline", turn);
        }

        // ---- the version that runs, until it has passed its trial (whatever became of the order) ----
        // Requests reach it: the trial's clock starts, and what it replaced leaves memory (not the disk).
        (_, Step::Running(M::Serving)) => {
            if unit.serves() {
                unload_others(unit, turn);
                start_trial(unit, turn);
            }
        }
        // Counters count from the start of the trial on.
        (_, Step::Sample { requests, failed }) if !unit.trial_passed() => {
            unit.volatile.trial_seen = (requests, failed);
            if unit.volatile.trial_ends.is_some() {
                end_trial(unit, false, turn);
            }
        }
        (_, Step::TrialOver) => end_trial(unit, true, turn),
        // It was loaded and yet no request ever reached it.
        (S::Probation, Step::Tick) if unit.overdue(turn) => {
            roll_back(unit, "it did not begin to serve within its deadline", turn);
        }
        (_, Step::ServeDied(death)) if !unit.trial_passed() => {
            unit.child_lost();
            died_on_trial(unit, &death, turn);
        }
        (_, Step::Running(M::LoadFailed { reason } | M::Fault { reason })) if !unit.trial_passed() => {
            roll_back(unit, &reason, turn);
        }

        // ---- the version that runs, proven ----
        // A load ordered by a start of the child, or by a return to this version, ended.
        (_, Step::Running(M::Loaded)) => {
            if let Some(active) = &unit.record.active {
                let digest = active.digest;
                unit.volatile.loaded.insert(digest);
                turn.effect(Effect::Serve { model: unit.name.clone(), digest });
            }
        }
        // It has served before: memory may be short, so it is loaded again before anything else is believed.
        (_, Step::Running(M::LoadFailed { reason })) => reload(unit, &reason, turn),
        // A proven version misbehaves once: told, not judged; the fleet's gates judge.
        (_, Step::Running(M::Fault { reason })) => {
            let digest = unit.record.active.as_ref().map(|a| a.digest);
            turn.report_event(Severity::Warning, "serve.fault", &reason, Some(&unit.name), digest);
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
            return Err(
                unit.refusal("rollback_asked", "another version is being loaded: ask again in a minute")
            );
        }
        (_, Step::RollbackAsked) => return rollback_asked(unit, turn),
        // Its backoff after a failed load ended.
        (_, Step::ReloadDue) => load_active(unit, turn),
        // Nothing waits for the time.
        (_, Step::Tick) => {}

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
