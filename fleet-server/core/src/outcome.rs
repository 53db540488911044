//! What became of an order on one device, as far as is known now.
//!
//! An end that the device reported stands. Before that, time decides between "under way" and "silent", and only
//! for a device that was seen connected since the order: one that was switched off all along never heard of it, has
//! nothing of the new version, and says nothing about it.

use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::wire::v1::JobPhase;

use crate::rollout::{Answer, Member, RolloutState};
use crate::view::{DeviceView, JobView, Now};

/// A device that is connected and has reported a phase gets this many times `silent_after_s` for it, since it is
/// plainly alive: with the default of 15 minutes an hour, in which 100 MB come through a line of 220 kbit/s.
pub const ALIVE_FACTOR: i64 = 4;

/// Where an order stands on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its trial passed and it runs the version.
    Active {
        /// Server time.
        at_ms: UnixMillis,
    },
    /// It failed, or the device went back by itself.
    Failed {
        /// Server time.
        at_ms: UnixMillis,
        /// The device's words.
        reason: Option<String>,
    },
    /// It cannot run there; nothing was fetched.
    NotApplicable,
    /// The device heard of the order (or could have) and gave no end to it in time.
    Silent {
        /// Since when that is so.
        since_ms: UnixMillis,
    },
    /// In time.
    UnderWay {
        /// The phase last reported, if any.
        phase: Option<JobPhase>,
        /// When it will count as silent; `None` while a connected device says that it waits.
        until_ms: Option<UnixMillis>,
    },
    /// Not connected since the order, or waiting when it left, or recalled before it answered.
    Away,
    /// No longer a device of this fleet.
    Gone,
}

/// Where the order of `member` stands. `seen` is `None` for a device that is no longer in the fleet.
pub fn outcome(state: &RolloutState, member: &Member, seen: Option<&DeviceView>, now: Now) -> Outcome {
    let Some(seen) = seen else { return Outcome::Gone };
    if let Some(answer) = answer(state, member, seen, now.ms) {
        return match answer.phase {
            JobPhase::Active => Outcome::Active { at_ms: answer.at_ms },
            JobPhase::NotApplicable => Outcome::NotApplicable,
            _ => Outcome::Failed { at_ms: answer.at_ms, reason: answer.reason },
        };
    }
    without_answer(state, member, seen, now)
}

/// The end of the order: the newest that the device shows, else the one remembered. "Active" holds only as long as
/// the device does not say that it runs something else; a device that a newer rollout has taken over keeps it.
pub fn answer(
    state: &RolloutState,
    member: &Member,
    seen: &DeviceView,
    now_ms: UnixMillis,
) -> Option<Answer> {
    let target = &state.target.digest;
    let contradicted =
        member.recalled.is_none() && seen.matches && seen.running.is_some() && !seen.runs(target);
    let stands = |a: &Answer| a.phase != JobPhase::Active || !contradicted;
    let reported = current_job(state, member, seen)
        .filter(|j| j.phase.is_end() && j.phase != JobPhase::Superseded)
        .map(|j| Answer { phase: j.phase, at_ms: j.at_ms.min(now_ms), reason: j.reason.clone() });
    let remembered = member.answer.clone().filter(stands);
    let runs_it = seen.running.as_ref().is_some_and(|r| r.bundle.digest == *target && r.trial_passed);
    if runs_it {
        let active = Answer { phase: JobPhase::Active, at_ms: now_ms, reason: None };
        let known = [remembered, reported].into_iter().flatten().find(|a| a.phase == JobPhase::Active);
        return Some(known.unwrap_or(active));
    }
    match (reported.filter(stands), remembered) {
        (Some(new), Some(old)) if new.phase == old.phase => Some(old),
        (new, old) => new.or(old),
    }
}

/// The device's newest report if it is about this order, and not about an earlier one of the same version.
fn current_job<'a>(state: &RolloutState, member: &Member, seen: &'a DeviceView) -> Option<&'a JobView> {
    seen.job.as_ref().filter(|j| match &j.rollout {
        Some(rollout) => *rollout == state.id,
        None => j.at_ms >= member.ordered_ms,
    })
}

fn without_answer(state: &RolloutState, member: &Member, seen: &DeviceView, now: Now) -> Outcome {
    let Some(reached_ms) = member.reached_ms else { return Outcome::Away };
    if let Some(recall) = &member.recalled {
        // Nothing is awaited of the order any more; until the device is back, the way back is.
        return match recall.done_ms {
            Some(_) => Outcome::Away,
            None => Outcome::UnderWay { phase: None, until_ms: None },
        };
    }
    let job = current_job(state, member, seen).filter(|j| !j.phase.is_end());
    let phase = job.map(|j| j.phase);
    let last_ms =
        now.heard_from(job.map_or(reached_ms, |j| j.at_ms.clamp(reached_ms, now.ms.max(reached_ms))));
    let silent_ms = i64::from(state.spec.gate.silent_after_s) * 1_000;
    let allowed_ms = match phase {
        Some(JobPhase::Waiting) if seen.online => return Outcome::UnderWay { phase, until_ms: None },
        Some(JobPhase::Probation) => silent_ms + i64::from(state.spec.policy.trial_s) * 1_000,
        Some(JobPhase::Shadowing) => {
            let shadow_s = state.spec.policy.shadow.as_ref().map_or(0, |p| p.seconds);
            silent_ms * ALIVE_FACTOR + i64::from(shadow_s) * 1_000
        }
        Some(_) if seen.online => silent_ms * ALIVE_FACTOR,
        _ => silent_ms,
    };
    let until_ms = last_ms.saturating_add(allowed_ms);
    match phase {
        _ if now.ms < until_ms => Outcome::UnderWay { phase, until_ms: Some(until_ms) },
        Some(JobPhase::Waiting) => Outcome::Away,
        _ => Outcome::Silent { since_ms: until_ms },
    }
}
