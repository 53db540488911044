//! Weighing: what the readings of canaries and controls prove.

use plimsoll_protocol::api::{OutputEvidence, OutputGate};
use plimsoll_protocol::drift::evidence::{BeforeAfter, SmallFleet, small_fleet};

use super::words::{NAMED, bars, listed, odds, told, told_of_others};
use super::{Compared, GATE, Side, Weighed};
use crate::gate::{Reading, Verdict, percent};

/// Devices whose exact e-values are averaged, and that are listed: the first by name, so that the choice owes
/// nothing to what they answered.
const LISTED: usize = 24;
/// Counts of one device that the exact e-value believes in; more are halved until they fit, which weakens only. 1,024
/// make an e-value of e^100 and more for a fall of a half, in about a millisecond.
const EXACT_COUNTS: u64 = 1_024;

pub(super) struct Scale<'a> {
    pub gate: &'a OutputGate,
    pub canaries: Vec<Compared>,
    pub controls: Vec<Compared>,
}

/// The numbers of a comparison of at least one canary.
pub(super) struct Measured {
    pub means: (f64, f64),
    pub fall: f64,
    /// What the fall may err by, at the budget of this look.
    pub margin: f64,
    pub controls: Option<(f64, f64)>,
    pub looks: u64,
    /// Error that this look may make.
    pub budget: f64,
    /// Factor by which looking so often makes chance more likely.
    pub again: f64,
}

impl Scale<'_> {
    fn enough<'c>(&self, devices: &'c [Compared]) -> Vec<&'c Compared> {
        let least = u64::from(self.gate.min_readings);
        devices.iter().filter(|d| d.before.n >= least && d.after.n >= least).collect()
    }

    pub fn weigh(&self) -> Weighed {
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
            self.canaries.iter().filter(|c| c.has_it && c.before.n >= u64::from(self.gate.min_readings));
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
