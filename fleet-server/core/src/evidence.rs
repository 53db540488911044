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
//! - **not chance**: the averaged two-sample e-value of the canaries' bins ([`small_fleet`]) crosses too, which no
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

use std::collections::BTreeMap;

use plimsoll_protocol::api::{DeviceOutputs, OutputEvidence, OutputGate, RolloutStatus};
use plimsoll_protocol::drift::evidence::{BeforeAfter, SmallFleet, small_fleet};
use plimsoll_protocol::drift::{Baseline, Bins, Source};
use plimsoll_protocol::wire::v1::{DriftReport, JobPhase};
use plimsoll_protocol::{DeviceId, Digest, UnixMillis};

use crate::gate::{Reading, Verdict, percent};
use crate::rollout::{Member, Rollout};
use crate::view::DeviceView;

/// Name of the gate.
pub const GATE: &str = "outputs";
/// Windows kept of a bundle on a device: 16 hourly ones are 8 before and 8 after an order. At 180 bytes each, and
/// with [`BUNDLES_KEPT`], a device takes 9 KB: 9 MB for a fleet of 1,000.
pub const WINDOWS_KEPT: usize = 16;
/// Bundles of a device whose windows are kept: the one before, the one on trial, and one of another model.
pub const BUNDLES_KEPT: usize = 3;
/// Devices whose exact e-values are averaged, and that are listed: the first by name, so that the choice owes
/// nothing to what they answered.
const LISTED: usize = 24;
/// Counts of one device that the exact e-value believes in; more are halved until they fit, which weakens only. 1,024
/// make an e-value of e^100 and more for a fall of a half, in about a millisecond.
const EXACT_COUNTS: u64 = 1_024;
/// Names in a sentence.
const NAMED: usize = 4;
/// A difference that two decimals hardly show.
const UNCHANGED: f64 = 0.015;

/// The answers of one closed window.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputWindow {
    /// Index of the window: rises with every window of the bundle on the device.
    pub index: u64,
    /// Server time at which it came.
    pub at_ms: UnixMillis,
    /// Counts of the bins of confidence.
    pub cells: Box<[u32]>,
    /// Sum of the confidence of all readings.
    pub sum: f64,
    /// Independent readings that one reading is worth, 0 to 1.
    pub worth: f64,
}

impl OutputWindow {
    /// Reduces a report to what versions share. `None` when it says nothing about confidence, or says it in a way
    /// that no device of ours would: what a device sends is not believed unseen.
    pub fn of(report: &DriftReport, baseline: &Baseline, at_ms: UnixMillis) -> Option<Self> {
        let features = baseline.features();
        let at = features.iter().position(|f| matches!(f.source, Source::Confidence { .. }))?;
        let feature = features.get(at)?;
        let window = &report.window;
        let counts = window.features.iter().find(|f| f.feature as usize == at)?;
        let total = counts.counts.iter().try_fold(0_u64, |sum, c| sum.checked_add(*c))?;
        let fits = window.schema == baseline.schema() && counts.counts.len() == feature.bins.cells();
        if !fits || total != window.samples {
            return None;
        }
        let cells: Option<Box<[u32]>> =
            counts.values(feature).iter().map(|c| u32::try_from(*c).ok()).collect();
        let cells = cells?;
        let n: u64 = cells.iter().map(|c| u64::from(*c)).sum();
        let mean = counts.mean(feature).unwrap_or(0.0).clamp(0.0, 1.0);
        let worth = feature.n_eff(1).clamp(0.0, 1.0);
        Some(Self { index: report.index, at_ms, cells, sum: mean * n as f64, worth })
    }
}

/// The newest closed windows of one device, by bundle.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs(BTreeMap<Digest, Vec<OutputWindow>>);

impl Outputs {
    /// Takes a window over; the oldest go. One that is known already replaces itself.
    pub fn add(&mut self, digest: Digest, window: OutputWindow) {
        let windows = self.0.entry(digest).or_default();
        let at = windows.partition_point(|w| w.index < window.index);
        match windows.get_mut(at).filter(|w| w.index == window.index) {
            Some(known) => *known = window,
            None => windows.insert(at, window),
        }
        let old = windows.len().saturating_sub(WINDOWS_KEPT);
        windows.drain(..old);
        if self.0.len() > BUNDLES_KEPT {
            let newest = |w: &Vec<OutputWindow>| w.iter().map(|w| w.at_ms).max();
            let stale = self.0.iter().min_by_key(|(_, w)| newest(w)).map(|(digest, _)| *digest);
            stale.map(|digest| self.0.remove(&digest));
        }
    }

    /// The windows of one bundle, oldest first.
    pub fn of(&self, digest: &Digest) -> &[OutputWindow] {
        self.0.get(digest).map_or(&[], Vec::as_slice)
    }
}

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
    let runs =
        seen.and_then(|s| s.running.as_ref()).is_some_and(|r| r.bundle.digest == *target && r.trial_passed);
    let passed = member.answer.as_ref().is_some_and(|a| a.phase == JobPhase::Active);
    Some(Compared {
        device: device.clone(),
        before: Side::of(old.iter()),
        after: Side::of(since()),
        looks: late + closed,
        windows: old.len() + since().count(),
        is_active: (passed || runs) && member.recalled.is_none(),
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
        is_active: false,
    })
}

struct Scale<'a> {
    gate: &'a OutputGate,
    canaries: Vec<Compared>,
    controls: Vec<Compared>,
}

/// The numbers of a comparison of at least one canary.
struct Measured {
    means: (f64, f64),
    fall: f64,
    /// What the fall may err by, at the budget of this look.
    margin: f64,
    controls: Option<(f64, f64)>,
    looks: u64,
    /// Error that this look may make.
    budget: f64,
    /// Factor by which looking so often makes chance more likely.
    again: f64,
}

impl Scale<'_> {
    fn enough<'c>(&self, devices: &'c [Compared]) -> Vec<&'c Compared> {
        let least = u64::from(self.gate.min_readings);
        devices.iter().filter(|d| d.before.n >= least && d.after.n >= least).collect()
    }

    fn weigh(&self) -> Weighed {
        let (canaries, controls) = (self.enough(&self.canaries), self.enough(&self.controls));
        let mut evidence = OutputEvidence {
            canaries: self.canaries.iter().take(LISTED).map(listed).collect(),
            controls: self.controls.iter().take(LISTED).map(listed).collect(),
            compared: canaries.len() as u64,
            controls_compared: controls.len() as u64,
            allowed: self.gate.max_confidence_drop,
            bars: bars(&canaries),
            ..OutputEvidence::default()
        };
        let gathering = self.gathering();
        let Some(measured) = self.measure(&canaries, &controls) else {
            let why = gathering.clone().unwrap_or_else(|| {
                "no device that has it answered enough requests with the version before".to_owned()
            });
            let text = format!("confidence is not compared: {why}");
            return finish(evidence, Verdict::Pass, text, gathering);
        };
        evidence.means = Some(measured.means);
        evidence.control_means = measured.controls;
        evidence.looks = measured.looks;
        let (verdict, tail) = self.verdict(&canaries, &controls, &measured, &mut evidence);
        let text = format!("{}; {tail}", told(&canaries, &measured));
        let more = (verdict == Verdict::Doubt && !evidence.vetoed).then(|| text.clone());
        finish(evidence, verdict, text, gathering.or(more))
    }

    /// Who is waited for: devices that served the version before and have not served this one enough.
    fn gathering(&self) -> Option<String> {
        let least = u64::from(self.gate.min_readings);
        let wanted = self.canaries.iter().filter(|c| c.is_active && c.before.n >= least && c.after.n < least);
        let mut few: Vec<String> =
            wanted.map(|c| format!("{} has {} of {least} readings", c.device, c.after.n)).collect();
        let more = few.len().saturating_sub(NAMED);
        few.truncate(NAMED);
        let tail = if more > 0 { format!(" and {more} more have too few") } else { String::new() };
        (!few.is_empty()).then(|| format!("{}{tail}", few.join(", ")))
    }

    fn measure(&self, canaries: &[&Compared], controls: &[&Compared]) -> Option<Measured> {
        let (means, controls) = (means(canaries)?, means(controls));
        let k = canaries.len() as f64;
        let spread = |side: &Side| 1.0 / side.n_eff.max(f64::MIN_POSITIVE);
        let s: f64 = canaries.iter().map(|c| (spread(&c.before) + spread(&c.after)) / (k * k)).sum();
        let looks = canaries.iter().map(|c| c.looks).sum::<u64>().max(1);
        let again = looks as f64 * (looks as f64 + 1.0);
        let budget = (1.0 - self.gate.confidence) / again;
        let margin = (s * -budget.ln() / 2.0).sqrt();
        Some(Measured { means, fall: means.0 - means.1, margin, controls, looks, budget, again })
    }

    fn verdict(
        &self,
        canaries: &[&Compared],
        controls: &[&Compared],
        m: &Measured,
        evidence: &mut OutputEvidence,
    ) -> (Verdict, String) {
        let allowed = self.gate.max_confidence_drop;
        let at_least = m.fall - m.margin;
        evidence.at_least = Some(at_least);
        let others = told_of_others(controls.len(), self.controls.len(), m.controls);
        if m.fall < allowed {
            let would = allowed + m.margin;
            let sees = match would < 1.0 {
                true => format!("a fall of {would:.2} would be proven by now"),
                false => "too few readings yet to prove any fall".to_owned(),
            };
            return (Verdict::Pass, format!("{others}; {allowed} less is allowed, {sees}"));
        }
        let sure = percent(self.gate.confidence * 100.0);
        let exact = (at_least > allowed).then(|| exact(canaries, controls, m.budget));
        // Without the veto of `small_fleet`, which is weighed by its size here.
        let Some(exact) = exact.filter(|e| e.ln_e_canaries >= e.ln_needed) else {
            let excess = (m.fall - allowed).max(0.005);
            let needed = 2.0 / canaries.len() as f64 * -m.budget.ln() / (2.0 * excess * excess);
            let text = format!(
                "{others}; more than the {allowed} that is allowed, but not proven at {sure} confidence: about \
                 {needed:.0} readings before and after on each device would do"
            );
            return (Verdict::Doubt, text);
        };
        let served =
            self.canaries.iter().filter(|c| c.is_active && c.before.n >= u64::from(self.gate.min_readings));
        let served = served.count();
        if canaries.len() * 2 <= served {
            let text = format!(
                "by at least {at_least:.2}, where {allowed} is allowed; {} of {served} devices that have it answered \
                 enough, which is no majority",
                canaries.len()
            );
            return (Verdict::Doubt, text);
        }
        let expected =
            self.controls.iter().filter(|c| c.before.n >= u64::from(self.gate.min_readings)).count();
        if controls.len() * 2 < expected {
            let text = format!(
                "by at least {at_least:.2}, where {allowed} is allowed; {} of {expected} others have enough readings \
                 since, so the world is not ruled out",
                controls.len()
            );
            return (Verdict::Doubt, text);
        }
        let chance = (m.again * (-exact.ln_e_canaries).exp()).min(1.0);
        evidence.chance = Some(chance);
        let world = m.controls.map_or(0.0, |(before, after)| (before - after).max(0.0));
        if at_least - world <= allowed {
            evidence.vetoed = true;
            let text = format!("{others}: it may be the world and not the version, so a person decides");
            return (Verdict::Doubt, text);
        }
        let text = format!(
            "at {sure} confidence by at least {at_least:.2}, where {allowed} is allowed; {others}; chance of this if \
             nothing changed: {}; these devices only",
            odds(chance)
        );
        (Verdict::Breach, text)
    }
}

fn exact(canaries: &[&Compared], controls: &[&Compared], budget: f64) -> SmallFleet {
    let side =
        |devices: &[&Compared]| devices.iter().take(LISTED).map(|d| before_after(d)).collect::<Vec<_>>();
    small_fleet(&side(canaries), &side(controls), 1.0 - budget)
}

fn before_after(device: &Compared) -> BeforeAfter {
    let (before, after) = (&device.before, &device.after);
    let halvings = (0..64).find(|h| (before.n + after.n) >> h <= EXACT_COUNTS).unwrap_or(0);
    let thin = |side: &Side| side.cells.iter().map(|c| c >> halvings).collect::<Vec<u64>>();
    let temper = ((before.n_eff + after.n_eff) / (before.n + after.n).max(1) as f64).min(1.0);
    BeforeAfter { statistics: vec![(thin(before), thin(after))], temper }
}

fn finish(mut evidence: OutputEvidence, verdict: Verdict, text: String, wanting: Option<String>) -> Weighed {
    evidence.text.clone_from(&text);
    Weighed { reading: Reading { gate: GATE.to_owned(), verdict, text }, wanting, evidence }
}

/// Mean of the devices' means: a busy device counts no more than a quiet one.
fn means(devices: &[&Compared]) -> Option<(f64, f64)> {
    let each: Vec<(f64, f64)> =
        devices.iter().filter_map(|d| Some((d.before.mean()?, d.after.mean()?))).collect();
    let k = each.len() as f64;
    let sum = each.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (!each.is_empty()).then(|| (sum.0 / k, sum.1 / k))
}

fn listed(compared: &Compared) -> DeviceOutputs {
    let Compared { device, before, after, .. } = compared;
    DeviceOutputs {
        device: device.clone(),
        before_readings: before.n,
        before: before.mean(),
        after_readings: after.n,
        after: after.mean(),
    }
}

/// Shares of the bins over the canaries, in steps of 1/10,000, which is finer than a picture.
fn bars(canaries: &[&Compared]) -> Vec<(String, f64, f64)> {
    let bins = Bins::unit();
    let total = |side: fn(&Compared) -> &Side| canaries.iter().map(|c| side(c).n).sum::<u64>().max(1) as f64;
    let (of_before, of_after) = (total(|c| &c.before), total(|c| &c.after));
    let count = |side: &Side, cell: usize| side.cells.get(cell).copied().unwrap_or(0);
    let round = |share: f64| (share * 1e4).round() / 1e4;
    let shares = (0..bins.value_cells()).map(|cell| {
        let before: u64 = canaries.iter().map(|c| count(&c.before, cell)).sum();
        let after: u64 = canaries.iter().map(|c| count(&c.after, cell)).sum();
        (bins.label(cell), round(before as f64 / of_before), round(after as f64 / of_after))
    });
    let last = bins.value_cells().saturating_sub(1);
    let is_drawn = |at: usize, bar: &(String, f64, f64)| bar.1 + bar.2 > 0.0 || (at != 0 && at != last);
    if canaries.is_empty() {
        return Vec::new();
    }
    shares.enumerate().filter(|(at, bar)| is_drawn(*at, bar)).map(|(_, bar)| bar).collect()
}

/// `confidence on camera-4 and camera-6 fell from 0.97 to 0.23 (212 readings each before, 95 since)`
fn told(canaries: &[&Compared], m: &Measured) -> String {
    let each = |side: fn(&Compared) -> &Side| {
        canaries.iter().map(|c| side(c).n).sum::<u64>() / (canaries.len() as u64).max(1)
    };
    let verb = match m.fall {
        fall if fall > UNCHANGED => "fell",
        fall if fall < -UNCHANGED => "rose",
        _ => "went",
    };
    let names: Vec<&str> = canaries.iter().map(|c| c.device.as_str()).collect();
    format!(
        "confidence on {} {verb} from {:.2} to {:.2} (mean of {} readings each before, {} since)",
        list(&names),
        m.means.0,
        m.means.1,
        each(|c| &c.before),
        each(|c| &c.after),
    )
}

fn told_of_others(n: usize, all: usize, means: Option<(f64, f64)>) -> String {
    let others = if n == 1 { "the other device".to_owned() } else { format!("the {n} others") };
    match means {
        None if all > 0 => "the others have too few readings to compare".to_owned(),
        None => "there are no others to compare with".to_owned(),
        Some((before, after)) if (before - after).abs() <= UNCHANGED => format!("{others} did not change"),
        Some((before, after)) => format!("{others} went from {before:.2} to {after:.2}"),
    }
}

/// `camera-4 and camera-6`; of many the first and how many more.
fn list(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let head = names.get(..names.len().min(NAMED)).unwrap_or_default();
    match (head.split_last(), more) {
        (None, _) => "no device".to_owned(),
        (Some((last, [])), 0) => (*last).to_owned(),
        (Some((last, rest)), 0) => format!("{} and {last}", rest.join(", ")),
        (Some(_), more) => format!("{} and {more} more", head.join(", ")),
    }
}

/// A power of ten that the chance lies below.
fn odds(chance: f64) -> String {
    let powers = ["1,000,000", "100,000", "10,000", "1,000", "100", "10"];
    let limit = |at: usize| 10_f64.powi(at as i32 - 6);
    let found = powers.iter().enumerate().find(|(at, _)| chance < limit(*at));
    found.map_or_else(|| "not small".to_owned(), |(_, text)| format!("below 1 in {text}"))
}

#[cfg(test)]
mod tests;
