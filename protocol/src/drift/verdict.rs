//! Effect and evidence together, in words.
//!
//! A difference is a verdict only when it is both **large** (PSI above 0.1, above what chance does, above what this
//! feature does to itself) in two of the last three measurements, and **proven** (Shiryaev-Roberts above its
//! threshold). Large alone is a small sample; proven alone is a large sample of nothing. Faults are told apart first
//! and never enter either.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::baseline::{Baseline, FeatureBaseline, Schema};
use super::bins::{Bins, short};
use super::compare::{CompareError, Comparison};
use super::evidence::{ShiryaevRoberts, THRESHOLD, ln_e_window};
use super::window::{FeatureCounts, Window, WindowError};

/// Smallest PSI that anyone should act on.
pub const MIN_PSI: f64 = 0.1;
/// Independent samples before a verdict. At 300 chance alone reaches a PSI of 0.096 once in a thousand with ten
/// bins: below that, [`MIN_PSI`] would mean nothing.
pub const MIN_N_EFF: f64 = 300.0;
/// A gross change does not wait for [`MIN_N_EFF`]: from here on, counts that are large for their own size are measured
/// as they are. Five values a cell in twelve cells are the least at which a chi-square says what chance reaches. The
/// extra looks cost no honesty: the evidence is an e-value, which may be taken at any time.
pub const MIN_GROSS_N_EFF: f64 = 60.0;
/// A share of missing or unreadable values so much above the reference's is a fault …
const FAULT_EXCESS: f64 = 0.05;
/// … once so many values were due: five faults of a hundred are no accident, one of three may be.
const FAULT_SAMPLES: u64 = 20;

/// How far one feature has moved, with everything that is reported about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    /// Feature.
    pub feature: String,
    /// Values compared.
    pub n: u64,
    /// Independent samples that they are worth.
    pub n_eff: f64,
    /// Population stability index.
    pub psi: f64,
    /// PSI that counts as large here: the highest of 0.1, of what chance reaches, and of the feature's own wandering.
    pub psi_needed: f64,
    /// Jensen-Shannon distance, nats.
    pub js_distance_nats: f64,
    /// Hellinger distance.
    pub hellinger: f64,
    /// Wasserstein-1 distance in reference standard deviations; absent for categories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasserstein_std: Option<f64>,
    /// Mean of the reference and now; absent for categories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub means: Option<(f64, f64)>,
    /// The cell whose share changed most: in words, share of the reference, share now.
    pub largest_change: (String, f64, f64),
}

impl Shift {
    /// Compares one feature's counts with its reference.
    pub fn of(feature: &FeatureBaseline, counts: &FeatureCounts) -> Result<Self, CompareError> {
        let (reference, current) = (feature.values(), counts.values(feature));
        let comparison = Comparison::of(reference, current)?;
        let n: u64 = current.iter().sum();
        let n_eff = feature.n_eff(n);
        let own = feature
            .block_psi
            .iter()
            .filter(|(block, _)| u64::from(*block) <= n)
            .map(|(_, q)| f64::from(*q))
            .next_back();
        let positions: Option<Vec<f64>> =
            (0..feature.bins.value_cells()).map(|c| feature.bins.position(c)).collect();
        let work = positions.and_then(|p| comparison.wasserstein_1(&p));
        let total: u64 = reference.iter().sum();
        let share = |c: &u64, n: u64| *c as f64 / n as f64;
        let changes = reference.iter().zip(current).map(|(p, q)| (share(p, total), share(q, n)));
        let (cell, (before, now)) = changes
            .enumerate()
            .max_by(|(_, a), (_, b)| f64::abs(a.1 - a.0).total_cmp(&f64::abs(b.1 - b.0)))
            .unwrap_or((0, (0.0, 0.0)));
        Ok(Self {
            feature: feature.name.clone(),
            n,
            n_eff,
            psi: comparison.psi(),
            psi_needed: MIN_PSI.max(comparison.psi_noise(n_eff)).max(own.unwrap_or(0.0)),
            js_distance_nats: comparison.js_distance_nats(),
            hellinger: comparison.hellinger(),
            wasserstein_std: work.filter(|_| feature.std > 0.0).map(|w| w / f64::from(feature.std)),
            means: counts.mean(feature).map(|now| (f64::from(feature.mean), now)),
            largest_change: (feature.bins.label(cell), before, now),
        })
    }

    /// Whether it is large, proven or not.
    pub fn is_large(&self) -> bool {
        self.psi >= self.psi_needed
    }
}

impl fmt::Display for Shift {
    /// `confidence fell from 0.93 to 0.71 on average; PSI 1.2 over 400 samples`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cell, before, now) = &self.largest_change;
        match self.means {
            // A change of shape is not told by the means: below a tenth of a bin's width nobody sees them move.
            Some((was, is)) if short(was as f32) != short(is as f32) => {
                let verb = if is < was { "fell" } else { "rose" };
                write!(
                    f,
                    "{} {verb} from {} to {} on average",
                    self.feature,
                    short(was as f32),
                    short(is as f32)
                )?;
            }
            _ => write!(
                f,
                "{}: {cell} went from {:.0} % to {:.0} %",
                self.feature,
                before * 100.0,
                now * 100.0
            )?,
        }
        write!(f, "; PSI {} over {} samples", short(self.psi as f32), self.n)
    }
}

/// What is known about a feature after a window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    /// Too few independent samples so far; more windows are added up.
    Gathering {
        /// Independent samples so far.
        n_eff: f64,
        /// Values still needed for a verdict, at this feature's slowness.
        values_needed: u64,
    },
    /// No difference that is both large and proven.
    Quiet(Shift),
    /// Large, but not often enough or not proven.
    Watch(Shift),
    /// Large and proven.
    Drift(Shift),
    /// Values are missing or unreadable: the sensor or the caller, not the distribution.
    Fault {
        /// Share of values that are none, now.
        share: f64,
        /// And in the reference.
        reference: f64,
    },
}

impl Standing {
    /// What one window says by itself, without the memory of a [`Judge`]: for a page, never an alarm of drift.
    pub fn of(feature: &FeatureBaseline, counts: &FeatureCounts) -> Self {
        fault(feature, counts).unwrap_or_else(|| Self::measured(feature, counts))
    }

    /// Faults aside: gathering, watch or quiet.
    fn measured(feature: &FeatureBaseline, counts: &FeatureCounts) -> Self {
        let n_eff = feature.n_eff(counts.values(feature).iter().sum());
        let shift = if n_eff < MIN_GROSS_N_EFF { None } else { Shift::of(feature, counts).ok() };
        match shift.filter(|shift| n_eff >= MIN_N_EFF || shift.is_large()) {
            Some(shift) if shift.is_large() => Self::Watch(shift),
            Some(shift) => Self::Quiet(shift),
            None => {
                let worth = feature.n_eff(1).max(f64::MIN_POSITIVE);
                let values_needed = ((MIN_N_EFF - n_eff) / worth).ceil().max(0.0) as u64;
                Self::Gathering { n_eff, values_needed }
            }
        }
    }
}

/// A feature's standing and the evidence behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Feature.
    pub feature: String,
    /// What is known. Not flattened: a shift names its feature too.
    pub standing: Standing,
    /// Shiryaev-Roberts statistic; [`THRESHOLD`] is an alarm.
    pub evidence: f64,
}

impl Verdict {
    /// Whether somebody should be told.
    pub const fn is_alarm(&self) -> bool {
        matches!(self.standing, Standing::Drift(_) | Standing::Fault { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.standing {
            Standing::Gathering { n_eff, values_needed } => write!(
                f,
                "{}: {n_eff:.0} independent samples of {MIN_N_EFF:.0}; about {values_needed} more values are needed",
                self.feature
            ),
            Standing::Quiet(shift) => {
                write!(f, "{}: as the reference; PSI {}", self.feature, short(shift.psi as f32))
            }
            Standing::Watch(shift) => write!(f, "{shift}; not proven yet"),
            Standing::Drift(shift) => write!(f, "{shift}"),
            Standing::Fault { share, reference } => write!(
                f,
                "{}: {:.0} % of the values are missing or unreadable, {:.0} % in the reference data: check the \
                 sensor or the caller",
                self.feature,
                share * 100.0,
                reference * 100.0
            ),
        }
    }
}

/// One feature's memory between windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Memory {
    evidence: ShiryaevRoberts,
    /// Whether the last measurements were large, newest in the lowest bit.
    large: u8,
    /// Counts of windows that were too small to judge alone.
    pending: Option<FeatureCounts>,
}

/// Judges the windows of one model version on one device, one after the other. Survives a restart as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    schema: Schema,
    features: Vec<Memory>,
}

impl Judge {
    /// Knows nothing yet.
    pub fn new(baseline: &Baseline) -> Self {
        let memory = |_| Memory { evidence: ShiryaevRoberts::default(), large: 0, pending: None };
        Self { schema: baseline.schema(), features: baseline.features().iter().map(memory).collect() }
    }

    /// Takes a closed, whole window; a verdict for each feature, in the baseline's order. A refused window changes
    /// nothing.
    pub fn judge(&mut self, baseline: &Baseline, window: &Window) -> Result<Vec<Verdict>, WindowError> {
        window.check(baseline)?;
        if self.schema != baseline.schema() || self.features.len() != baseline.features().len() {
            return Err(WindowError::Schema { expected: self.schema, found: baseline.schema() });
        }
        let features = baseline.features().iter().zip(&window.features).zip(&mut self.features);
        Ok(features.map(|((feature, counts), memory)| memory.judge(feature, counts)).collect())
    }
}

impl Memory {
    fn judge(&mut self, feature: &FeatureBaseline, counts: &FeatureCounts) -> Verdict {
        let standing = fault(feature, counts).unwrap_or_else(|| self.measure(feature, counts));
        Verdict { feature: feature.name.clone(), standing, evidence: self.evidence.value() }
    }

    fn measure(&mut self, feature: &FeatureBaseline, counts: &FeatureCounts) -> Standing {
        let counts = match self.pending.take() {
            Some(mut sum) if sum.counts.len() == counts.counts.len() => {
                for (a, b) in sum.counts.iter_mut().zip(counts.counts.iter()) {
                    *a = a.saturating_add(*b);
                }
                sum.steps = sum.steps.wrapping_add(counts.steps);
                sum
            }
            _ => counts.clone(),
        };
        let standing = Standing::measured(feature, &counts);
        let shift = match standing {
            Standing::Watch(shift) | Standing::Quiet(shift) => shift,
            gathering => {
                self.pending = Some(counts);
                return gathering;
            }
        };
        self.evidence.add(ln_e_window(feature.values(), counts.values(feature), shift.n_eff));
        self.large = (self.large << 1 | u8::from(shift.is_large())) & 0b111;
        let often = self.large.count_ones() >= 2;
        if self.large == 0 && self.evidence.value() >= THRESHOLD {
            // A change that is over must not vouch for the next one.
            self.evidence = ShiryaevRoberts::default();
        }
        match (shift.is_large(), often && self.evidence.value() >= THRESHOLD) {
            (_, true) => Standing::Drift(shift),
            (true, false) => Standing::Watch(shift),
            (false, false) => Standing::Quiet(shift),
        }
    }
}

/// A share of faults clearly above the reference's.
fn fault(feature: &FeatureBaseline, counts: &FeatureCounts) -> Option<Standing> {
    let share = |values: u64, faults: u64| faults as f64 / (values + faults).max(1) as f64;
    let faults: u64 = counts.faults(feature).iter().sum();
    let values: u64 = counts.values(feature).iter().sum();
    let all: u64 = feature.counts.iter().sum();
    let reference_values: u64 = feature.values().iter().sum();
    let (now, reference) = (share(values, faults), share(reference_values, all - reference_values));
    let is_fault = values + faults >= FAULT_SAMPLES && now > reference + FAULT_EXCESS;
    is_fault.then_some(Standing::Fault { share: now, reference })
}

/// The bins of a baseline as a picture needs them: a label, the reference's share and the window's, for each value
/// cell. Empty when either side has no values.
pub fn histogram(feature: &FeatureBaseline, counts: &FeatureCounts) -> Vec<(String, f64, f64)> {
    let (reference, current) = (feature.values(), counts.values(feature));
    let (total, n): (u64, u64) = (reference.iter().sum(), current.iter().sum());
    if total == 0 || n == 0 {
        return Vec::new();
    }
    let cells = reference.iter().zip(current).enumerate();
    let open_ends = matches!(feature.bins, Bins::Numeric { .. });
    let last = reference.len().saturating_sub(1);
    cells
        // An open end that nobody fell into is not drawn.
        .filter(|(at, (p, q))| **p + **q > 0 || !(open_ends && (*at == 0 || *at == last)))
        .map(|(at, (p, q))| (feature.bins.label(at), *p as f64 / total as f64, *q as f64 / n as f64))
        .collect()
}

#[cfg(test)]
mod tests;
