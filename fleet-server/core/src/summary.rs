//! Where a rollout stands, in words: each stage counted, and why a device has what it has.

use plimsoll_protocol::api::{RolloutStatus, StageInfo};
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_protocol::{DeviceId, UnixMillis};

use crate::cohort;
use crate::outcome::{self, Outcome};
use crate::planner::{self, Census, duration, holding};
use crate::rollout::{Member, Rollout};
use crate::spec::{reach, stage_name};
use crate::view::{FleetView, Now};

/// One a stage of the spec, started or not.
pub fn stage_infos(view: &FleetView, rollout: &Rollout, now: impl Into<Now>) -> Vec<StageInfo> {
    let now = now.into();
    let census = planner::census(view, rollout, now);
    let waiting =
        view.devices.iter().filter(|(d, s)| s.matches && !rollout.members.contains_key(*d)).count() as u64;
    let spec = &rollout.state.spec;
    (0..spec.stages.len())
        .map(|stage| match rollout.state.stages.get(stage) {
            Some(_) => started(view, rollout, &census, stage, now),
            None => ahead(rollout, &census, stage, waiting),
        })
        .collect()
}

fn started(view: &FleetView, rollout: &Rollout, census: &Census, stage: usize, now: Now) -> StageInfo {
    let counts = census.stages.get(stage).cloned().unwrap_or_default();
    let tally = counts.tally;
    let ordered = tally.filling() + tally.not_applicable;
    let places = rollout.state.stages.get(stage).map_or(0, |s| s.places);
    let is_last = rollout.state.is_last(stage);
    let unfilled = if is_last { 0 } else { places.saturating_sub(tally.filling()) };
    let done = rollout.state.stages.get(stage).is_some_and(|s| s.done_ms.is_some());
    let held = if done {
        None
    } else {
        holding(&rollout.state, stage, &counts, unfilled, view.outputs.as_ref(), now)
    };
    let busy = tally.under_way + tally.away > 0 || unfilled > 0;
    let state = match (done, busy, rollout.state.status) {
        (true, ..) => "done",
        (_, _, RolloutStatus::Paused | RolloutStatus::WaitingForApproval) => "waiting",
        (_, _, status) if status.is_end() || status == RolloutStatus::RollingBack => "stopped",
        (_, true, _) => "running",
        (_, false, _) => "soaking",
    };
    StageInfo {
        name: stage_name(&rollout.state.spec, stage),
        devices: if is_last { ordered } else { places.max(ordered) },
        ordered,
        active: tally.active,
        failed: tally.failed + tally.accepted_failed,
        not_applicable: tally.not_applicable,
        silent: tally.silent + tally.accepted_silent,
        in_progress: tally.under_way,
        state: state.to_owned(),
        waiting_for: if state == "stopped" { None } else { held },
    }
}

fn ahead(rollout: &Rollout, census: &Census, stage: usize, waiting: u64) -> StageInfo {
    let spec = &rollout.state.spec;
    let have = census.all.filling();
    let sizes = |i: usize| spec.stages.get(i).map_or(0, |s| reach(s, have + waiting)).max(have);
    let before = if stage > rollout.state.stages.len() { sizes(stage - 1) } else { have };
    let over = rollout.state.status.is_end() || rollout.state.status == RolloutStatus::RollingBack;
    let next = stage == rollout.state.stages.len();
    let waiting_for = match rollout.state.status {
        _ if over => None,
        RolloutStatus::WaitingForApproval | RolloutStatus::Paused if next => {
            Some(rollout.state.reason.clone())
        }
        _ if stage == 0 => Some("a matching device that is connected".to_owned()),
        _ => Some(stage_name(spec, stage - 1)),
    };
    StageInfo {
        name: stage_name(spec, stage),
        devices: sizes(stage).saturating_sub(before),
        state: if over { "not started" } else { "waiting" }.to_owned(),
        waiting_for,
        ..StageInfo::default()
    }
}

/// What the rollout waits for at this instant, in words; `None` when it has ended or nothing holds it.
pub fn waiting(view: &FleetView, rollout: &Rollout, now: impl Into<Now>) -> Option<String> {
    let reasons = planner::plan(view, rollout, now).reasons;
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Why `device` has what it has, or does not have it yet, in words. `None` when the rollout has nothing to do
/// with it.
pub fn why(view: &FleetView, rollout: &Rollout, device: &DeviceId, now: impl Into<Now>) -> Option<String> {
    let now = now.into();
    let now_ms = now.ms;
    let seen = view.devices.get(device);
    let version = &rollout.state.target.version;
    let Some(member) = rollout.members.get(device) else {
        let matches = seen.is_some_and(|s| s.matches) && rollout.state.is_open();
        return matches.then(|| not_yet(view, rollout, device));
    };
    let stage = stage_name(&rollout.state.spec, member.stage);
    if member.recalled.is_some() {
        return Some(recalled(rollout, member));
    }
    Some(match outcome::outcome(&rollout.state, member, seen, now) {
        Outcome::Active { .. } => format!("runs {version} since {stage}"),
        Outcome::Failed { reason, .. } => {
            format!("{version} failed here: {}", reason.as_deref().unwrap_or("the device gave no reason"))
        }
        Outcome::NotApplicable => format!(
            "cannot run {version}: {}",
            member.answer.as_ref().and_then(|a| a.reason.as_deref()).unwrap_or("the device gave no reason")
        ),
        Outcome::Silent { since_ms } => {
            format!(
                "was ordered {version} in {stage} and counts as silent for {}",
                duration(now_ms - since_ms)
            )
        }
        Outcome::Away => format!("was ordered {version} in {stage}; gets it when it connects"),
        Outcome::Gone => "is no longer in the fleet".to_owned(),
        Outcome::UnderWay { phase, until_ms } => under_way(rollout, seen, phase, until_ms, now_ms),
    })
}

fn under_way(
    rollout: &Rollout,
    seen: Option<&crate::DeviceView>,
    phase: Option<JobPhase>,
    until_ms: Option<UnixMillis>,
    now_ms: UnixMillis,
) -> String {
    let version = &rollout.state.target.version;
    let doing = match phase {
        None => "has not answered yet",
        Some(JobPhase::Waiting) => "waits",
        Some(JobPhase::Fetching) => "fetches",
        Some(JobPhase::SelfTesting) => "tests itself",
        Some(JobPhase::Shadowing) => "is compared with the running version",
        Some(JobPhase::Activating) => "takes over",
        Some(JobPhase::Probation) => "is on trial",
        Some(_) => "works on it",
    };
    let said = seen.and_then(|s| s.job.as_ref()).and_then(|j| j.reason.as_deref());
    let said = said.map(|r| format!(" ({r})")).unwrap_or_default();
    let limit =
        until_ms.map(|t| format!("; counts as silent in {}", duration(t - now_ms))).unwrap_or_default();
    format!("{version} ordered, {doing}{said}{limit}")
}

fn recalled(rollout: &Rollout, member: &Member) -> String {
    let version = &rollout.state.target.version;
    let back = member.recalled.as_ref().is_some_and(|r| r.done_ms.is_some());
    match &member.previous {
        None => format!("{version} was taken back, but there is no other version to run here"),
        Some(previous) if back => format!("went back from {version} to {}", previous.version),
        Some(previous) => format!("is ordered back from {version} to {}", previous.version),
    }
}

fn not_yet(view: &FleetView, rollout: &Rollout, device: &DeviceId) -> String {
    let spec = &rollout.state.spec;
    let ready =
        view.devices.iter().filter(|(d, s)| s.matches && !rollout.members.contains_key(*d)).map(|(d, _)| d);
    let queue = cohort::queue(rollout.state.seed, ready);
    let place = queue.iter().position(|d| *d == device).unwrap_or(0) as u64;
    let have = rollout.members.len() as u64;
    let fleet = have + queue.len() as u64;
    let from = rollout.state.stages.len();
    let stage = (from..spec.stages.len())
        .find(|i| spec.stages.get(*i).is_some_and(|s| reach(s, fleet) > have + place))
        .unwrap_or(spec.stages.len().saturating_sub(1));
    format!("gets {} in {}; {}", rollout.state.target.version, stage_name(spec, stage), rollout.state.reason)
}
