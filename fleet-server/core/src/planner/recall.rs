//! Backwards: devices that have the version, or were ordered it, get their previous one as a newer goal.

use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::RolloutStatus;

use super::work::Work;
use crate::gate::devices;
use crate::outcome::{ALIVE_FACTOR, Outcome};
use crate::rollout::{Member, Recall};

/// The version was revoked: whatever the spec says about breaches, and also when the rollout was completed, nobody
/// keeps a version that nobody signs for.
pub(super) fn withdraw(work: &mut Work<'_>) {
    work.next.status = RolloutStatus::RollingBack;
    work.next.ended_ms = None;
    begin(work, "it was revoked, nobody signs for it any more");
}

/// Takes every order back: first of devices that run the version, then of those that may come to, then of the rest,
/// whose goal must not stay on it either.
pub(super) fn begin(work: &mut Work<'_>, why: &str) {
    work.next.stopped_for = Some(why.to_owned());
    work.leave_revoked();
    let mut queue: Vec<(u8, DeviceId)> =
        work.members().map(|(device, member)| (urgency(work, device, member), device.clone())).collect();
    queue.sort_unstable();
    let homeless = work.members().filter(|(_, m)| m.previous.is_none()).count() as u64;
    queue.iter().for_each(|(_, device)| work.recall(device));
    let nowhere = match homeless {
        0 => String::new(),
        n => format!("; no other version was there before on {}: what runs stays", devices(n)),
    };
    let back = queue.len() as u64 - homeless;
    let verb = if back == 1 { "goes" } else { "go" };
    work.decide(format!(
        "rolling back {}: {why}; {} {verb} back to the version before{nowhere}",
        work.next.target.version,
        devices(back),
    ));
}

fn urgency(work: &Work<'_>, device: &DeviceId, member: &Member) -> u8 {
    let runs = work.view.devices.get(device).is_some_and(|s| s.runs(&work.next.target.digest));
    match work.outcome(device, member) {
        _ if runs => 0,
        Outcome::UnderWay { .. } | Outcome::Silent { .. } => 1,
        _ => 2,
    }
}

/// Where a recall stands.
pub(crate) enum Returning {
    /// It runs something else, and nothing of the version is under way.
    Back,
    /// There is nothing to go back to.
    Nowhere,
    /// In time.
    UnderWay,
    /// Gave no answer in time, or was not connected.
    Silent,
}

/// Follows the devices home; the rollout has ended when each is back or silent.
pub(super) fn follow(work: &mut Work<'_>) {
    let (mut back, mut under_way, mut silent, mut nowhere) = (Vec::new(), 0_u64, 0_u64, 0_u64);
    for (device, member) in work.members() {
        let Some(recall) = &member.recalled else { continue };
        match returning(work, device, member, recall) {
            Returning::Back => back.push((device.clone(), recall.done_ms.is_none())),
            Returning::UnderWay => under_way += 1,
            Returning::Silent => silent += 1,
            Returning::Nowhere => nowhere += 1,
        }
    }
    for (device, _) in back.iter().filter(|(_, news)| *news) {
        work.mark_returned(device);
    }
    let counted = format!(
        "{} of {} back on the version before",
        back.len(),
        devices(back.len() as u64 + under_way + silent)
    );
    if under_way > 0 {
        work.because(format!("rolling back: {counted}, {under_way} under way, {silent} silent"));
        return;
    }
    work.next.status = RolloutStatus::RolledBack;
    work.next.ended_ms = Some(work.now_ms);
    let mut text = format!("rolled back {}: {counted}", work.next.target.version);
    if silent > 0 {
        text.push_str(&format!("; {} did not answer, the order waits for them", devices(silent)));
    }
    if nowhere > 0 {
        text.push_str(&format!("; no other version was there before on {}", devices(nowhere)));
    }
    if let Some(why) = &work.next.stopped_for {
        text.push_str(&format!("; it was stopped because {why}"));
    }
    work.decide(text);
}

fn returning(work: &Work<'_>, device: &DeviceId, member: &Member, recall: &Recall) -> Returning {
    if member.previous.is_none() {
        return Returning::Nowhere;
    }
    let Some(seen) = work.view.devices.get(device) else { return Returning::Back };
    if recall.done_ms.is_some() {
        return Returning::Back;
    }
    let runs_it = seen.runs(&work.next.target.digest);
    let ended = member.answer.is_some()
        || seen.back
        || seen.job.as_ref().is_some_and(|j| j.phase.is_end() && j.rollout.as_ref() == Some(&work.next.id));
    if !runs_it && ended && seen.running.is_some() {
        return Returning::Back;
    }
    let silent_ms = i64::from(work.next.spec.gate.silent_after_s) * 1_000;
    let allowed_ms = if seen.online && runs_it { silent_ms * ALIVE_FACTOR } else { silent_ms };
    let since_ms = work.now.heard_from(recall.reached_ms.unwrap_or(recall.at_ms));
    if work.now_ms < since_ms.saturating_add(allowed_ms) { Returning::UnderWay } else { Returning::Silent }
}
