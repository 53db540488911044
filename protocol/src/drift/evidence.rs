//! Whether a difference could be chance.
//!
//! Evidence is an **e-value**: a number whose mean is at most 1 when nothing has changed. An e-value of 100 is at
//! most a one-in-a-hundred accident (Markov), means of e-values are e-values whatever hangs together with what, and
//! products over time may be looked at after every window. A p-value allows none of this. What is assumed is that
//! samples are exchangeable; `n_eff` tempers the counts of features that are known to be slow, and a reference of
//! finite size is tempered too.
//!
//! Everything is in logarithms: an e-value of 1,000 plainly shifted samples does not fit a float.

use serde::{Deserialize, Serialize};
use statrs::function::gamma::ln_gamma;

/// Concentrations of the alternatives that are mixed: K = 30 expects gross change, 1,000 slight change. A uniform
/// prior over 15 cells would spend its belief on distributions nobody meets and have no power.
pub const CONCENTRATIONS: [f64; 4] = [30.0, 100.0, 300.0, 1000.0];

/// Shiryaev-Roberts statistic at which a feature is in alarm: 64 features x 1,000 devices x 168 hourly windows =
/// 10,752,000, so about one false alarm in a week of such a fleet.
pub const THRESHOLD: f64 = 1.1e7;

/// ln of the e-value of counts against fixed shares, for one Dirichlet(`alpha`) alternative:
/// B(alpha + x) / B(alpha) / prod p^x. Cells with p = 0 must have no counts. Counts may be fractions (tempered).
pub fn ln_e_dirichlet(counts: &[f64], shares: &[f64], alpha: &[f64]) -> f64 {
    let (mut total, mut mass, mut ln_e) = (0.0, 0.0, 0.0);
    for ((x, p), a) in counts.iter().zip(shares).zip(alpha) {
        if *x > 0.0 {
            ln_e += ln_gamma(a + x) - ln_gamma(*a) - x * p.ln();
        }
        total += x;
        mass += a;
    }
    ln_e + ln_gamma(mass) - ln_gamma(mass + total)
}

/// ln of the mean of e-values given as logarithms; the mean of e-values is one, however they depend on each other.
pub fn ln_mean(ln_values: &[f64]) -> f64 {
    let largest = ln_values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return 0.0; // no evidence at all counts as e = 1
    }
    let sum: f64 = ln_values.iter().map(|l| (l - largest).exp()).sum();
    largest + (sum / ln_values.len() as f64).ln()
}

/// ln of the e-value of one window against the reference: the mean over [`CONCENTRATIONS`] of Dirichlet(K p).
///
/// `n_eff` is how many independent samples the counts are worth. The reference's shares are those of the next value
/// after N (a count more for each cell: beyond the largest of N values lies the next one once in N + 1 times).
/// Tempering, x -> c x with c <= 1, keeps an e-value one (Jensen); c = n_eff/n x N/(N + n_eff) shrinks the counts to
/// what they are worth beside a reference that is itself a sample.
pub fn ln_e_window(reference: &[u64], current: &[u64], n_eff: f64) -> f64 {
    let n: f64 = current.iter().map(|c| *c as f64).sum();
    let n_reference: f64 = reference.iter().map(|c| *c as f64).sum();
    if n == 0.0 || n_reference == 0.0 || n_eff <= 0.0 {
        return 0.0;
    }
    let temper = (n_eff / n).min(1.0) * n_reference / (n_reference + n_eff.min(n));
    let cells = reference.len() as f64;
    let shares: Vec<f64> = reference.iter().map(|c| (*c as f64 + 1.0) / (n_reference + cells)).collect();
    let counts: Vec<f64> = current.iter().map(|c| *c as f64 * temper).collect();
    let each = CONCENTRATIONS.map(|k| {
        let alpha: Vec<f64> = shares.iter().map(|p| k * p).collect();
        ln_e_dirichlet(&counts, &shares, &alpha)
    });
    ln_mean(&each)
}

/// Evidence accumulated over windows, Shiryaev-Roberts style: M <- (M + 1) e. It forgets a long quiet past instead of
/// drowning in it, and alarms at M >= T come at most once in T windows on average when nothing changes. M itself is
/// *not* an e-value: what feeds [`e_bh`] is a mean of window e-values over a span fixed beforehand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ShiryaevRoberts(f64);

impl ShiryaevRoberts {
    /// Largest M that is kept: far above any threshold, far from infinity, which JSON cannot say.
    const MOST: f64 = 1e300;

    /// Adds a window.
    pub fn add(&mut self, ln_e: f64) {
        let ln_m = (self.0 + 1.0).ln() + ln_e;
        self.0 = if ln_m >= Self::MOST.ln() { Self::MOST } else { ln_m.exp() };
    }

    /// M.
    pub const fn value(&self) -> f64 {
        self.0
    }
}

/// e-BH (Wang and Ramdas): which of these hypotheses to reject so that at most a share `level` of the rejected are
/// false on average, whatever depends on what. Takes logarithms of e-values; gives their positions, strongest first.
pub fn e_bh(ln_e: &[f64], level: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ln_e.len()).collect();
    let value = |i: usize| ln_e.get(i).copied().unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
    let m = ln_e.len() as f64;
    let reject = (1..=order.len()).rev().find(|k| {
        let needed = (m / (level * *k as f64)).ln();
        order.get(k - 1).is_some_and(|i| value(*i) >= needed)
    });
    order.truncate(reject.unwrap_or(0));
    order
}

/// Odds ratios that [`ln_e_two_samples`] considers at every split, beside "no difference": from a tenth more to
/// thirty times as much, either way.
const LN_ODDS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.5, -0.1, -0.25, -0.5, -1.0, -2.0, -3.5];

/// ln of the e-value of "both samples come from one distribution", neither taken as exact.
///
/// Given the pooled counts, how the first sample shares in them is hypergeometric, whatever the distribution is. The
/// cells are halved, then each half again, so that neighbours stay together (a shift of the whole distribution shows
/// at the first cut); every cut is a 2x2 table whose exact conditional likelihood ratio is averaged over
/// a fixed set and 1. Each cut's ratio has mean 1 given the cuts above it, so the product is an e-value for any
/// sizes. `temper` <= 1 is how much of an independent sample each count is worth.
///
/// Beyond a million counts both samples are thinned alike by halving, which can only weaken the evidence: shares keep
/// the precision of all counts while the likelihood believes in fewer.
pub fn ln_e_two_samples(first: &[u64], second: &[u64], temper: f64) -> f64 {
    let total: u128 = first.iter().chain(second).map(|c| u128::from(*c)).sum();
    let halvings = (0..128).find(|h| total >> h <= u128::from(Factorials::MOST)).unwrap_or(0);
    let thin =
        |counts: &[u64]| counts.iter().map(|c| c.checked_shr(halvings).unwrap_or(0)).collect::<Vec<_>>();
    let cells: Vec<(u64, u64)> = thin(first).into_iter().zip(thin(second)).collect();
    let factorials = Factorials::new(cells.iter().map(|(a, b)| a + b).sum());
    temper.clamp(0.0, 1.0) * cut(&cells, &factorials)
}

fn cut(cells: &[(u64, u64)], factorials: &Factorials) -> f64 {
    if cells.len() < 2 {
        return 0.0;
    }
    let (left, right) = cells.split_at(cells.len() / 2);
    let sum = |part: &[(u64, u64)]| part.iter().fold((0, 0), |(a, b), (x, y)| (a + x, b + y));
    ln_e_table(sum(left), sum(right), factorials) + cut(left, factorials) + cut(right, factorials)
}

/// One 2x2 table: ln of the mean over odds ratios of P(a | margins, odds) / P(a | margins, 1).
fn ln_e_table(left: (u64, u64), right: (u64, u64), factorials: &Factorials) -> f64 {
    let (a, n_left, n_right, n_first) = (left.0, left.0 + left.1, right.0 + right.1, left.0 + right.0);
    let (low, high) = (n_first.saturating_sub(n_right), n_first.min(n_left));
    if low == high {
        return 0.0; // the margins leave nothing to chance
    }
    let ln_weight = |k: u64| factorials.ln_choose(n_left, k) + factorials.ln_choose(n_right, n_first - k);
    let weights: Vec<(f64, f64)> = (low..=high).map(|k| (k as f64, ln_weight(k))).collect();
    let ln_total = |ln_odds: f64| {
        let largest = weights.iter().map(|(k, w)| w + k * ln_odds).fold(f64::NEG_INFINITY, f64::max);
        largest + weights.iter().map(|(k, w)| (w + k * ln_odds - largest).exp()).sum::<f64>().ln()
    };
    let null = ln_total(0.0);
    let alternatives = LN_ODDS.map(|ln_odds| a as f64 * ln_odds - (ln_total(ln_odds) - null));
    ln_mean(&[0.0, ln_mean(&alternatives)])
}

/// ln k! for all k that occur: one table instead of millions of ln-gammas.
struct Factorials(Vec<f64>);

impl Factorials {
    /// Most counts of one comparison: the table has 8 MB then, and a canary's window thousands.
    const MOST: u64 = 1 << 20;

    fn new(most: u64) -> Self {
        let mut sum = 0.0;
        let rest = (1..=most.min(Self::MOST)).map(|k| {
            sum += (k as f64).ln();
            sum
        });
        Self(std::iter::once(0.0).chain(rest).collect())
    }
    fn ln(&self, k: u64) -> f64 {
        self.0.get(k as usize).copied().unwrap_or_else(|| ln_gamma(k as f64 + 1.0))
    }
    fn ln_choose(&self, n: u64, k: u64) -> f64 {
        self.ln(n) - self.ln(k) - self.ln(n - k)
    }
}

/// One device of a small fleet: its counts of the statistics named before the rollout, before and after the instant
/// at which the canaries switched. A statistic's two vectors have the same cells.
#[derive(Debug, Clone, PartialEq)]
pub struct BeforeAfter {
    /// `(before, after)` of each statistic: confidence, entropy, classes, failed requests, …
    pub statistics: Vec<(Vec<u64>, Vec<u64>)>,
    /// What a count is worth, 0 to 1 (n_eff / n of its slowest statistic).
    pub temper: f64,
}

impl BeforeAfter {
    /// ln of this device's e-value: the mean over its statistics.
    pub fn ln_e(&self) -> f64 {
        let each: Vec<f64> = self
            .statistics
            .iter()
            .map(|(before, after)| ln_e_two_samples(before, after, self.temper))
            .collect();
        ln_mean(&each)
    }
}

/// What the windows of a small fleet say about a new version.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmallFleet {
    /// ln of the mean e-value of the canaries.
    pub ln_e_canaries: f64,
    /// ln of the mean e-value of the controls over the same instants; 0 without controls.
    pub ln_e_controls: f64,
    /// ln of the evidence that was asked for: ln(1 / (1 - confidence)).
    pub ln_needed: f64,
    /// Whether the canaries changed and the controls did not.
    pub canaries_changed: bool,
    /// Whether the controls changed too: then it is the world, not the version.
    pub vetoed: bool,
}

/// Before against after, each device its own comparison, for fleets too small for a rank test over devices (two
/// canaries against four controls bottom out at 1 in 15, whatever happens).
///
/// The canaries' e-values are averaged: the mean is an e-value even though all canaries live through the same hour.
/// Controls that changed by the same measure veto. The conclusion is about *these devices* only. With eight statistics
/// registered beforehand that share an error of 1 %, `confidence` is 1 - 0.01 / 8. Two versions have two baselines:
/// statistics that are compared across the switch must have the same cells in both, as confidence and entropy always
/// do.
pub fn small_fleet(canaries: &[BeforeAfter], controls: &[BeforeAfter], confidence: f64) -> SmallFleet {
    let mean = |devices: &[BeforeAfter]| ln_mean(&devices.iter().map(BeforeAfter::ln_e).collect::<Vec<_>>());
    let (ln_e_canaries, ln_e_controls) = (mean(canaries), mean(controls));
    let ln_needed = -(1.0 - confidence.clamp(0.0, 1.0 - 1e-12)).ln();
    let (crossed, vetoed) = (ln_e_canaries >= ln_needed, ln_e_controls >= ln_needed);
    SmallFleet { ln_e_canaries, ln_e_controls, ln_needed, canaries_changed: crossed && !vetoed, vetoed }
}

#[cfg(test)]
mod tests;
