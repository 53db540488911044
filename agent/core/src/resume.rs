//! After any crash, at any instruction: what a device does first.
//!
//! The record says what was decided, the slots say what is there. Whatever the record says was under way is
//! repeated from the last durable point; what was served is served again, the active version if its slot is whole,
//! else the previous one.

use std::collections::BTreeMap;

use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{Digest, Generation, ModelName};

use crate::candidate::self_test;
use crate::core::Core;
use crate::event::Ctx;
use crate::orders::wait;
use crate::outcome::{Effect, Outcome};
use crate::policy::budget;
use crate::record::{Installed, MAX_MODELS, ModelRecord, Persistent, State};
use crate::running::{arrived, roll_back};
use crate::turn::{Turn, Unit};

/// A whole slot: its manifest has the digest that names it, and its files are those of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Model, from its manifest.
    pub model: ModelName,
    /// Version, from its manifest.
    pub version: semver::Version,
    /// The newest [`Effect::MarkProven`] of the slot.
    pub proven: Option<Generation>,
}

/// What the shell found on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whole slots. One that is damaged is not listed.
    pub slots: BTreeMap<Digest, SlotFacts>,
    /// Slots that are there and damaged; they are deleted when nothing wants them, and fetched again when something
    /// does.
    pub damaged: Vec<Digest>,
}

impl Core {
    /// The core after a start of the agent, and what it does first. Loads are ordered when the child is up.
    ///
    /// The core is usable even when the outcome cannot be committed: it then serves what the record says.
    pub fn resume(record: Persistent, observed: &Observed, ctx: &Ctx) -> (Self, Outcome) {
        let core = Self { record, ..Self::default() };
        let mut turn = Turn::new(&core, *ctx);
        turn.each(|unit, turn| {
            keep_what_is_there(unit, observed, turn);
            retry_trial(unit, turn);
            arrived(unit, turn);
            go_on(unit, observed, turn);
            turn.report_job(unit);
            Ok(())
        });
        let needed = turn.next.record.slots();
        let there = observed.slots.keys().chain(&observed.damaged);
        for digest in there.filter(|d| !needed.contains(*d)) {
            turn.effect(Effect::DeleteSlot { digest: *digest });
        }
        let outcome = turn.finish(&core, None);
        (core, outcome)
    }
}

/// Drops versions whose slot is gone or damaged; the next best takes their place.
fn keep_what_is_there(unit: &mut Unit, observed: &Observed, turn: &mut Turn) {
    let whole = |i: &Installed| observed.slots.contains_key(&i.digest);
    unit.record.previous = unit.record.previous.take().filter(whole);
    let Some(active) = unit.record.active.take() else {
        return;
    };
    if whole(&active) {
        if active.trial_passed {
            let generation = turn.next.record.generation;
            turn.effect(Effect::MarkProven { digest: active.digest, generation });
        }
        unit.record.active = Some(active);
        return;
    }
    unit.record.active = unit.record.previous.take();
    let instead = unit.record.active.as_ref().map_or("nothing".to_owned(), |p| p.version.to_string());
    let text = format!(
        "the slot of {} {} ({:?}) is missing or damaged; {instead} is served until it is fetched again",
        unit.name, active.version, active.digest
    );
    turn.report_event(Severity::Alarm, "slot.lost", &text, Some(&unit.name), Some(active.digest));
    if unit.record.ordered() == Some(active.digest) {
        wait(unit, turn);
    }
}

/// Takes the order up again from its last durable point.
fn go_on(unit: &mut Unit, observed: &Observed, turn: &mut Turn) {
    let whole = unit.record.ordered().is_some_and(|d| observed.slots.contains_key(&d));
    match unit.record.state {
        // Holds and fetches start again, spread like the first time: power returns to a whole fleet at once.
        State::Waiting if unit.volatile.hold_until.is_some() => {}
        State::Waiting | State::Fetching => wait(unit, turn),
        // The rename may have been the last thing that happened.
        State::Verified | State::Staged if whole => self_test(unit, turn),
        // A load that was cut off was counted when it began; the next one is counted again.
        // So was a shadow, which starts again.
        State::Shadowing | State::Activating | State::SelfTested if whole => {
            unit.enter(State::SelfTested, None);
        }
        State::Verified | State::Staged | State::SelfTested | State::Shadowing | State::Activating => {
            wait(unit, turn);
        }
        State::Probation
        | State::Idle
        | State::Active
        | State::Failed { .. }
        | State::RolledBack { .. }
        | State::NotApplicable { .. } => {}
    }
}

/// The trial starts again when its version serves, for one more try: what stopped the agent may have been it.
fn retry_trial(unit: &mut Unit, turn: &mut Turn) {
    let Some(active) = unit.record.active.clone().filter(|a| !a.trial_passed) else { return };
    let mut tries = turn.next.record.tries(&unit.name, active.digest);
    let most = unit.record.order.as_ref().map_or(1, |o| budget(&o.wanted.policy));
    if tries.activations >= most {
        roll_back(unit, &format!("the agent was stopped {most} times while it was on trial"), turn);
        return;
    }
    tries.activations += 1;
    turn.next.record.spend(tries);
}

impl Persistent {
    /// A record for a device that lost its anchor: every model's newest proven slot is active, the one before it is
    /// previous, and nothing that was not proven is believed.
    pub fn rebuild(observed: &Observed) -> Self {
        let mut proven: Vec<(Generation, Digest, &SlotFacts)> =
            observed.slots.iter().filter_map(|(d, s)| s.proven.map(|g| (g, *d, s))).collect();
        proven.sort_by_key(|(generation, digest, _)| (std::cmp::Reverse(*generation), *digest));
        // One below the newest mark, so that the order that made it, still retained at the broker, is taken again.
        let generation = proven.first().map_or(0, |(generation, ..)| generation.saturating_sub(1));
        let mut record = Self { generation, ..Self::default() };
        for (_, digest, facts) in proven {
            if record.models.len() == MAX_MODELS && !record.models.contains_key(&facts.model) {
                continue;
            }
            let installed =
                Installed { version: facts.version.clone(), digest, trial_passed: true, ram_bytes: 0 };
            let model: &mut ModelRecord = record.models.entry(facts.model.clone()).or_default();
            if model.active.is_none() {
                model.active = Some(installed);
            } else if model.previous.is_none() {
                model.previous = Some(installed);
            }
        }
        record
    }
}
