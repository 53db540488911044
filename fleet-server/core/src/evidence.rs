//! Does the new version answer as surely as the one before did, on the same devices?
//!
//! A version can pass its expected outputs and its trial and still be lost in the field: trained on wrongly scaled
//! pixels, it answers every request in time and knows nothing. What shows is its confidence, the highest class
//! probability, whose 20 bins are the same for every version. (Entropy says the same of class scores again and would
//! only cost error budget; class counts move with what is photographed; a number that a regression answers has bins
//! of its own in every version. None of them stops a rollout.)
//!
//! A rank test over devices cannot fire in a small fleet: two canaries against four controls bottom out at 1 in 15.
//! So each canary is its own comparison, its windows of the version before against those since its order, and the
//! controls, devices without the version over the same days, say what the world did meanwhile. Stopped is what is
//! all of this:
//!
//! - **harmful**: the mean confidence fell; a rise is told and never stops;
//! - **large and proven**: with n readings before and m after on each of K canaries, every reading between 0 and 1, the
//!   mean fall over the canaries errs by more than t with probability exp(-2 t² / S), S = sum (1/n + 1/m) / K²
//!   (Hoeffding). Proven is the fall less t, and that must exceed what is allowed: a version whose true fall is
//!   within the limit is stopped wrongly with at most the stated probability, not only one that changed nothing;
//! - **common**: most of the canaries that served the version before have answered enough, so that one odd device is
//!   not taken for the version;
//! - **not chance**: the averaged two-sample e-value of the canaries' bins ([`small_fleet`](plimsoll_protocol::drift::evidence::small_fleet)) crosses too, which no
//!   single wild reading can make it do;
//! - **not the world**: the fall of the controls is taken off. A proven fall that the controls explain is a veto: the
//!   rollout does not go on by itself, a person decides. Controls that answered before are waited for: half of them
//!   must have been heard.
//!
//! It may be looked at on every tick. What is looked at changes only when a canary closes a window, so there is one
//! look a window; look k may err with 1/(k (k+1)) of the budget, and these shares add up to 1 over any number of
//! looks. The price is small: the twentieth look needs ln(420) = 6 more of evidence than the budget itself.
//!
//! The conclusion is about these devices only. Slow readings count for what they are worth (n_eff of the baseline).

mod scale;
mod windows;
mod words;

use std::collections::BTreeMap;

use plimsoll_protocol::api::{OutputEvidence, RolloutStatus};
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_protocol::{DeviceId, Digest, UnixMillis};

use self::scale::Scale;
pub use self::windows::{BUNDLES_KEPT, LabelWindow, OutputWindow, Outputs, WINDOWS_KEPT};
use crate::gate::Reading;
use crate::rollout::{Member, Rollout};
use crate::view::DeviceView;

/// Name of the gate.
pub const GATE: &str = "outputs";

/// What the answers say, for the gate, for the stage that waits, and for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// For the planner.
    pub reading: Reading,
    /// Why a stage should wait for more, in words.
    pub wanting: Option<String>,
    /// With its numbers.
    pub evidence: OutputEvidence,
}

/// Weighs the answers of `rollout`'s version. `None` when the gate is off, the rollout needs no more judging, or no
/// device that has the version ever measured a confidence: then there is nothing to say.
pub fn weigh<'a>(
    rollout: &Rollout,
    seen: &BTreeMap<DeviceId, DeviceView>,
    outputs: impl Fn(&DeviceId) -> Option<&'a Outputs>,
) -> Option<Weighed> {
    let state = &rollout.state;
    let gate = &state.spec.gate.outputs;
    let is_judged = matches!(
        state.status,
        RolloutStatus::Running | RolloutStatus::WaitingForApproval | RolloutStatus::Paused
    );
    let first_order_ms = rollout.members.values().map(|m| m.ordered_ms).min()?;
    if !is_judged || gate.max_confidence_drop >= 1.0 {
        return None;
    }
    // A person who resumes after this gate paused the rollout accepts what the devices of that time answer.
    let accepted_ms = state.accepted_ms.filter(|_| state.evidence.as_ref().is_some_and(|e| e.stopped));
    let canaries = rollout.members.iter().filter(|(_, m)| accepted_ms.is_none_or(|t| m.ordered_ms > t));
    let canaries: Vec<Compared> = canaries
        .filter_map(|(device, member)| {
            canary(device, member, seen.get(device), &state.target.digest, outputs(device)?)
        })
        .collect();
    if canaries.iter().all(|c| c.windows == 0) {
        return None;
    }
    let others = seen.iter().filter(|(_, view)| view.matches);
    let controls = others.filter_map(|(device, view)| {
        let member = rollout.members.get(device);
        let digest = match member {
            Some(member) if member.ordered_ms > first_order_ms => member.previous.as_ref()?.digest,
            Some(_) => return None,
            None => view.running.as_ref()?.bundle.digest,
        };
        (digest != state.target.digest).then(|| control(device, &digest, first_order_ms, outputs(device)?))
    });
    let controls: Vec<Compared> = controls.flatten().collect();
    Some(Scale { gate, canaries, controls }.weigh())
}

/// One device's readings of both sides.
struct Compared {
    device: DeviceId,
    before: Side,
    after: Side,
    /// Windows that came since the order: the looks.
    looks: u64,
    /// All windows, empty ones too.
    windows: usize,
    /// It runs the version, on trial or not.
    has_it: bool,
    /// It runs the version, trial passed: a stage may wait for its readings.
    is_active: bool,
}

#[derive(Debug, Clone, Default)]
struct Side {
    cells: Vec<u64>,
    n: u64,
    sum: f64,
    n_eff: f64,
}

impl Side {
    fn of<'w>(windows: impl Iterator<Item = &'w OutputWindow>) -> Self {
        let mut side = Self::default();
        for window in windows {
            side.cells.resize(side.cells.len().max(window.cells.len()), 0);
            let mut n = 0;
            for (sum, count) in side.cells.iter_mut().zip(&window.cells) {
                *sum += u64::from(*count);
                n += u64::from(*count);
            }
            side.n += n;
            side.sum += window.sum;
            side.n_eff += n as f64 * window.worth;
        }
        side
    }

    fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

fn canary(
    device: &DeviceId,
    member: &Member,
    seen: Option<&DeviceView>,
    target: &Digest,
    outputs: &Outputs,
) -> Option<Compared> {
    let previous = member.previous.as_ref().filter(|p| p.digest != *target)?;
    let (old, new) = (outputs.of(&previous.digest), outputs.of(target));
    let since = || new.iter().filter(|w| w.at_ms >= member.ordered_ms);
    let late = old.iter().filter(|w| w.at_ms >= member.ordered_ms).count() as u64;
    // By the index and not by what is kept, which stops growing.
    let closed = since().map(|w| w.index + 1).max().unwrap_or(0);
    // What the device says now counts as much as what was written down: this may be the tick that learns of it.
    let running = seen.and_then(|s| s.running.as_ref()).filter(|r| r.bundle.digest == *target);
    let passed = member.answer.as_ref().is_some_and(|a| a.phase == JobPhase::Active);
    Some(Compared {
        device: device.clone(),
        before: Side::of(old.iter()),
        after: Side::of(since()),
        looks: late + closed,
        windows: old.len() + since().count(),
        has_it: passed || running.is_some(),
        is_active: passed || running.is_some_and(|r| r.trial_passed),
    })
}

fn control(device: &DeviceId, digest: &Digest, since_ms: UnixMillis, outputs: &Outputs) -> Option<Compared> {
    let windows = outputs.of(digest);
    let split = windows.partition_point(|w| w.at_ms < since_ms);
    let (before, after) = windows.split_at(split);
    Some(Compared {
        device: device.clone(),
        before: Side::of(before.iter()),
        after: Side::of(after.iter()),
        looks: 0,
        windows: windows.len(),
        has_it: false,
        is_active: false,
    })
}

#[cfg(test)]
mod tests;
