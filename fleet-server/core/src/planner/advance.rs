//! Forwards: fill the open stage, finish it, start the next; or stop.

use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{OnBreach, OutputEvidence, RolloutStatus};

use super::recall;
use super::work::{Census, StageCensus, Work};
use crate::cohort;
use crate::evidence::{self, Weighed};
use crate::gate::{self, Reading, Verdict, devices};
use crate::rollout::StageState;
use crate::spec::{reach, stage_name};
use crate::view::Now;

/// Names listed in a decision; the others are counted.
const NAMED: usize = 5;

pub(super) fn advance(work: &mut Work<'_>) {
    let census = work.census();
    let open = census.stages.last().map(|s| s.tally).unwrap_or_default();
    // First, so that a device which stopped itself for it is told in its words and not as "1 of 1 failed".
    let mut readings: Vec<Reading> =
        work.view.shadow.iter().filter_map(|shadow| shadow.reading.clone()).collect();
    readings.extend(gate::judge(&work.next.spec.gate, &census.all, &open));
    readings.extend(work.view.readings.iter().cloned());
    readings.extend(work.view.outputs.iter().map(|outputs| outputs.reading.clone()));
    let worst = gate::worst(&readings).cloned();
    if let Some(breach) = worst.as_ref().filter(|r| r.verdict == Verdict::Breach)
        && stop(work, breach)
    {
        return;
    }
    if work.next.status == RolloutStatus::Paused {
        work.because(work.next.reason.clone());
        return;
    }
    let doubt = worst.filter(|r| r.verdict == Verdict::Doubt);
    match work.next.stages.len().checked_sub(1) {
        None => start(work, 0, &census, None),
        Some(stage) => serve(work, stage, &census, doubt),
    }
}

/// After completion: the version is the standing goal of the selector.
pub(super) fn serve_newcomers(work: &mut Work<'_>) {
    let Some(last) = work.next.stages.len().checked_sub(1) else { return };
    let newcomers = fill(work, last, u64::MAX);
    if !newcomers.is_empty() {
        work.decide(format!("{} joined: {}", devices(newcomers.len() as u64), names(&newcomers)));
    }
}

/// Acts on a breach. `false` when a person has to act and was already told so.
fn stop(work: &mut Work<'_>, breach: &Reading) -> bool {
    if work.next.spec.on_breach == OnBreach::Rollback || work.next.status != RolloutStatus::Paused {
        keep_evidence(work, breach.gate == evidence::GATE);
    }
    match work.next.spec.on_breach {
        OnBreach::Rollback => {
            work.next.status = RolloutStatus::RollingBack;
            recall::begin(work, &breach.text);
            true
        }
        OnBreach::Pause if work.next.status == RolloutStatus::Paused => false,
        OnBreach::Pause => {
            work.next.status = RolloutStatus::Paused;
            work.decide(format!(
                "paused by the gate: {}; resume to accept this and go on, or abort",
                breach.text
            ));
            true
        }
    }
}

/// Windows go with time; what was decided on stays with the rollout.
fn keep_evidence(work: &mut Work<'_>, stopped: bool) {
    if let Some(outputs) = &work.view.outputs {
        // Once stopped on, also after a person resumed: what was accepted then is not asked again.
        let stopped = stopped || work.next.evidence.as_ref().is_some_and(|e| e.stopped);
        work.next.evidence = Some(OutputEvidence { stopped, ..outputs.evidence.clone() });
    }
}

fn serve(work: &mut Work<'_>, stage: usize, census: &Census, doubt: Option<Reading>) {
    let done = work.next.stages.get(stage).is_some_and(|s| s.done_ms.is_some());
    if !done {
        let unfilled = top_up(work, stage, census);
        let Some(counts) = census.stages.get(stage) else { return };
        if unfilled.ordered {
            work.because(format!("{}: orders just went out", stage_name(&work.next.spec, stage)));
            return;
        }
        match hold(work, stage, counts, unfilled.places) {
            Some(reason) => {
                work.because(reason);
                return;
            }
            None => finish_stage(work, stage, &counts.clone()),
        }
    }
    if work.next.is_last(stage) {
        complete(work, census, doubt);
    } else {
        let idle = census.stages.get(stage).and_then(|c| nobody_runs_it(work, stage, c));
        start(work, stage + 1, census, doubt.map(|r| r.text).or(idle));
    }
}

/// Why a stage is not done, in words; `None` when it is.
pub(super) fn hold(work: &Work<'_>, stage: usize, counts: &StageCensus, unfilled: u64) -> Option<String> {
    holding(&work.next, stage, counts, unfilled, work.view.outputs.as_ref(), work.now)
}

/// Why `stage` is not done, in words; `None` when it is. `unfilled` of its places have no device.
pub(crate) fn holding(
    state: &crate::RolloutState,
    stage: usize,
    counts: &StageCensus,
    unfilled: u64,
    outputs: Option<&Weighed>,
    now: Now,
) -> Option<String> {
    let opened = state.stages.get(stage)?;
    let tally = &counts.tally;
    let patience_ms = i64::from(state.spec.gate.silent_after_s) * 1_000;
    let of = |n: u64| format!("{n} of {}", devices(tally.filling()));
    if tally.under_way > 0 {
        return Some(format!("{} active, {} under way", of(tally.active), tally.under_way));
    }
    let now_ms = now.ms;
    let last_ordered_ms = counts.last_ordered_ms.unwrap_or(opened.opened_ms);
    let patient_until_ms = now.heard_from(last_ordered_ms).saturating_add(patience_ms);
    if tally.away > 0 && now_ms < patient_until_ms {
        return Some(format!(
            "{} active; {} not connected since the order, waited for {} more",
            of(tally.active),
            tally.away,
            duration(patient_until_ms - now_ms),
        ));
    }
    let fill_until_ms = now.heard_from(opened.opened_ms).saturating_add(patience_ms);
    if unfilled > 0 && now_ms < fill_until_ms {
        return Some(format!(
            "{} of {} places filled; no other matching device is connected",
            tally.filling(),
            opened.places,
        ));
    }
    let soak_ms = state.spec.stages.get(stage).map_or(0, |s| i64::from(s.soak_s) * 1_000);
    let since_ms = counts.last_active_ms.unwrap_or(opened.opened_ms);
    let soaked_ms = since_ms.saturating_add(soak_ms);
    if now_ms < soaked_ms {
        let left = duration(soaked_ms - now_ms);
        return Some(format!("{} active; stage wait ends in {left}", of(tally.active)));
    }
    let wanting = outputs.and_then(|o| o.wanting.as_ref())?;
    let until_ms = since_ms.saturating_add(i64::from(state.spec.gate.outputs.max_wait_s) * 1_000);
    (now_ms < until_ms).then(|| {
        let left = duration(until_ms - now_ms);
        format!("{} active; {wanting}; goes on without in {left}", of(tally.active))
    })
}

struct TopUp {
    /// Places that no device fills.
    places: u64,
    ordered: bool,
}

/// Fills free places: of devices that cannot run the version or left the fleet, and of the last stage, which is
/// open to all.
fn top_up(work: &mut Work<'_>, stage: usize, census: &Census) -> TopUp {
    let filling = census.stages.get(stage).map_or(0, |c| c.tally.filling());
    let places = work.next.stages.get(stage).map_or(0, |s| s.places);
    let free = if work.next.is_last(stage) { u64::MAX } else { places.saturating_sub(filling) };
    let new = fill(work, stage, free);
    if !new.is_empty() {
        let text = format!(
            "{}: {} added: {}",
            stage_name(&work.next.spec, stage),
            devices(new.len() as u64),
            names(&new)
        );
        work.decide(text);
    }
    TopUp { places: places.saturating_sub(filling + new.len() as u64), ordered: !new.is_empty() }
}

/// Orders up to `free` candidates of the lowest rank. But for the last stage they must be connected: a stage that
/// waits for a device in a drawer teaches nothing.
fn fill(work: &mut Work<'_>, stage: usize, free: u64) -> Vec<DeviceId> {
    if free == 0 {
        return Vec::new();
    }
    let any = work.next.is_last(stage);
    let ready = work.candidates().filter(|(_, seen)| any || seen.online).map(|(device, _)| device);
    let queue = cohort::queue(work.next.seed, ready);
    let free = usize::try_from(free).unwrap_or(usize::MAX);
    let chosen: Vec<DeviceId> = queue.into_iter().take(free).cloned().collect();
    chosen.iter().for_each(|device| work.order(device, stage));
    chosen
}

/// A stage that ended without one device that runs the version has proven nothing.
fn nobody_runs_it(work: &Work<'_>, stage: usize, counts: &StageCensus) -> Option<String> {
    let tally = &counts.tally;
    let places = work.next.stages.get(stage).map_or(0, |s| s.places);
    (places > 0 && tally.active == 0 && tally.accepted() == 0).then(|| {
        format!(
            "no device of {} runs the version ({} cannot run it, {} not connected)",
            stage_name(&work.next.spec, stage),
            tally.not_applicable,
            tally.away,
        )
    })
}

fn finish_stage(work: &mut Work<'_>, stage: usize, counts: &StageCensus) {
    let now_ms = work.now_ms;
    if let Some(state) = work.next.stages.get_mut(stage) {
        state.done_ms = Some(now_ms);
    }
    keep_evidence(work, false);
    let outputs = work.view.outputs.as_ref().map(|o| format!("; {}", o.reading.text)).unwrap_or_default();
    let name = stage_name(&work.next.spec, stage);
    work.decide(format!("{name} is done: {}{outputs}", tally_words(&counts.tally)));
}

/// The last stage is done. There is nobody left to protect, so a doubt is said and not asked about.
fn complete(work: &mut Work<'_>, census: &Census, doubt: Option<Reading>) {
    work.next.status = RolloutStatus::Completed;
    work.next.ended_ms = Some(work.now_ms);
    let doubt = doubt.map(|r| format!(" (look at them: {})", r.text)).unwrap_or_default();
    work.decide(format!(
        "completed: {}{doubt}; it stays the goal of every device that matches",
        tally_words(&census.all)
    ));
}

/// Starts a stage, or says what it waits for. `doubt` is why a person has to agree even when the spec does not ask.
fn start(work: &mut Work<'_>, stage: usize, census: &Census, doubt: Option<String>) {
    let Some(spec) = work.next.spec.stages.get(stage).cloned() else { return };
    let name = stage_name(&work.next.spec, stage);
    if (spec.approval || doubt.is_some()) && work.next.approved <= stage {
        let why = doubt.unwrap_or_else(|| "the rollout asks for it".to_owned());
        let text = format!("{name} waits for approval: {why}");
        if work.next.status != RolloutStatus::WaitingForApproval || work.next.reason != text {
            work.next.status = RolloutStatus::WaitingForApproval;
            work.decide(text.clone());
        }
        work.because(text);
        return;
    }
    let in_fleet = census.all.filling();
    let fleet = in_fleet + work.candidates().count() as u64;
    let last = work.next.is_last(stage);
    let places = reach(&spec, fleet).saturating_sub(in_fleet);
    if fleet == 0 && work.members().next().is_none() {
        work.because(format!("{name} has not started: no device matches"));
        return;
    }
    if !last && places > 0 && !work.candidates().any(|(_, seen)| seen.online) {
        work.because(format!("{name} has not started: no matching device without the version is connected"));
        return;
    }
    work.next.status = RolloutStatus::Running;
    work.next.stages.push(StageState { places, opened_ms: work.now_ms, done_ms: None });
    let new = fill(work, stage, if last { u64::MAX } else { places });
    let text = if new.is_empty() {
        format!("{name} starts: the stages before it already reach {in_fleet} of {}", devices(fleet))
    } else {
        format!("{name} starts: {} of {fleet} matching: {}", devices(new.len() as u64), names(&new))
    };
    work.decide(text);
}

fn tally_words(tally: &gate::Tally) -> String {
    let parts = [
        (tally.active, "active"),
        (tally.failed, "failed"),
        (tally.silent, "silent"),
        (tally.accepted(), "failed or silent and accepted"),
        (tally.not_applicable, "not applicable"),
        (tally.away, "not connected"),
        (tally.under_way, "under way"),
    ];
    let shown: Vec<String> = parts
        .iter()
        .enumerate()
        .filter(|(i, (n, _))| *i == 0 || *n > 0)
        .map(|(_, (n, what))| format!("{n} {what}"))
        .collect();
    shown.join(", ")
}

pub(super) fn names(devices: &[DeviceId]) -> String {
    let mut shown: Vec<&str> = devices.iter().take(NAMED).map(DeviceId::as_str).collect();
    shown.sort_unstable();
    let more = devices.len().saturating_sub(NAMED);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// `8 s`, `12 min`, `3 h 20 min`, `2 d 4 h`; rounded up, so that a wait is never shown as over.
pub(crate) fn duration(ms: i64) -> String {
    let s = (ms.max(0) + 999) / 1_000;
    let pair = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a} {unit_a}") } else { format!("{a} {unit_a} {b} {unit_b}") }
    };
    match s {
        0..=119 => format!("{s} s"),
        120..=7_199 => format!("{} min", (s + 59) / 60),
        7_200..=172_799 => pair(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => pair(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}
