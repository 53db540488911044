//! How far two sets of counts over the same cells are apart.
//!
//! Every score is a finite number: cells that are empty on both sides say nothing and are left out; when a cell is
//! empty on one side only, every remaining cell gets half a count on both sides (Jeffreys' prior), which makes
//! "never seen so far" rare rather than impossible. (Flooring an empty cell at the smallest float instead makes a
//! PSI of hundreds out of one missing bin.)

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Half a count for each cell, where one is empty.
const JEFFREYS: f64 = 0.5;

/// Counts that cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// One side has nothing.
    #[error("there is nothing to compare: one side has no counts")]
    Empty,
    /// Different cells.
    #[error("{0} cells cannot be compared with {1}")]
    Length(usize, usize),
}

/// Two distributions over the same cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Shares as counted.
    exact: Vec<(f64, f64)>,
    /// Shares, smoothed where needed, of the cells that are not empty on both sides.
    smooth: Vec<(f64, f64)>,
    n_reference: f64,
    n_current: f64,
}

impl Comparison {
    /// Prepares the shares of two count vectors.
    pub fn of(reference: &[u64], current: &[u64]) -> Result<Self, CompareError> {
        if reference.len() != current.len() {
            return Err(CompareError::Length(reference.len(), current.len()));
        }
        let sum = |counts: &[u64]| counts.iter().map(|c| *c as f64).sum::<f64>();
        let (n_reference, n_current) = (sum(reference), sum(current));
        if n_reference == 0.0 || n_current == 0.0 {
            return Err(CompareError::Empty);
        }
        let pairs: Vec<(f64, f64)> =
            reference.iter().zip(current).map(|(a, b)| (*a as f64, *b as f64)).collect();
        let exact = pairs.iter().map(|(a, b)| (a / n_reference, b / n_current)).collect();
        let alive: Vec<(f64, f64)> = pairs.into_iter().filter(|(a, b)| a + b > 0.0).collect();
        let prior = if alive.iter().any(|(a, b)| *a == 0.0 || *b == 0.0) { JEFFREYS } else { 0.0 };
        let extra = prior * alive.len() as f64;
        let smooth = alive
            .iter()
            .map(|(a, b)| ((a + prior) / (n_reference + extra), (b + prior) / (n_current + extra)))
            .collect();
        Ok(Self { exact, smooth, n_reference, n_current })
    }

    /// Population stability index: sum of (q - p) ln(q / p). 0 is equal; 0.1 is worth a look, 0.25 is another
    /// population, *if* the counts are large enough (see [`Comparison::psi_noise`]).
    pub fn psi(&self) -> f64 {
        self.smooth.iter().map(|(p, q)| (q - p) * (q / p).ln()).sum()
    }

    /// PSI that chance alone exceeds once in a thousand: (1/n_eff + 1/N) times the 99.9 % point of a chi-square
    /// with one degree less than cells.
    pub fn psi_noise(&self, n_eff: f64) -> f64 {
        if n_eff <= 0.0 {
            return f64::MAX;
        }
        (1.0 / n_eff + 1.0 / self.n_reference) * chi_square_quantile(self.freedom(), 0.999)
    }

    /// Jensen-Shannon divergence in nats, 0 to ln 2.
    pub fn js_divergence_nats(&self) -> f64 {
        let half = |a: f64, m: f64| if a > 0.0 { a * (a / m).ln() } else { 0.0 };
        let sum: f64 =
            self.exact.iter().map(|(p, q)| half(*p, (p + q) / 2.0) + half(*q, (p + q) / 2.0)).sum();
        (sum / 2.0).max(0.0)
    }

    /// Jensen-Shannon distance: the square root of the divergence in nats. (A threshold of 0.1 on the distance is
    /// one of 0.01 on the divergence: other tools mean one or the other by "JS".)
    pub fn js_distance_nats(&self) -> f64 {
        self.js_divergence_nats().sqrt()
    }

    /// Hellinger distance, 0 to 1.
    pub fn hellinger(&self) -> f64 {
        let sum: f64 = self.exact.iter().map(|(p, q)| (p.sqrt() - q.sqrt()).powi(2)).sum();
        (sum / 2.0).sqrt()
    }

    /// Largest difference of a cell's share.
    pub fn l_infinity(&self) -> f64 {
        self.exact.iter().map(|(p, q)| (p - q).abs()).fold(0.0, f64::max)
    }

    /// Kolmogorov-Smirnov distance at the edges of the cells: largest difference of the cumulated shares.
    pub fn ks(&self) -> f64 {
        let mut gap = 0.0f64;
        let mut largest = 0.0f64;
        for (p, q) in &self.exact {
            gap += q - p;
            largest = largest.max(gap.abs());
        }
        largest
    }

    /// Wasserstein-1 distance in the unit of `positions`, one for each cell, rising; `None` where their number differs.
    pub fn wasserstein_1(&self, positions: &[f64]) -> Option<f64> {
        if positions.len() != self.exact.len() {
            return None;
        }
        let mut gap = 0.0;
        let mut work = 0.0;
        for ((p, q), step) in self.exact.iter().zip(positions.windows(2)) {
            gap += q - p;
            if let [a, b] = step {
                work += f64::abs(gap) * (b - a);
            }
        }
        Some(work)
    }

    /// Chi-square test of the current counts, the reference taken as exact: how often chance alone would be at
    /// least so far away. For reports; the verdict uses evidence that may be looked at again and again.
    pub fn chi_square_p(&self) -> f64 {
        let n = self.n_current;
        let statistic: f64 = self.smooth.iter().map(|(p, q)| n * (q - p).powi(2) / p).sum();
        match ChiSquared::new(self.freedom()) {
            Ok(chi) => chi.sf(statistic).clamp(0.0, 1.0),
            Err(_) => 1.0,
        }
    }

    /// Degrees of freedom: one less than the cells that are not empty on both sides, at least one.
    fn freedom(&self) -> f64 {
        (self.smooth.len() as f64 - 1.0).max(1.0)
    }
}

/// The point that a chi-square variable stays below with this probability.
fn chi_square_quantile(freedom: f64, probability: f64) -> f64 {
    ChiSquared::new(freedom).map_or(f64::MAX, |chi| chi.inverse_cdf(probability))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn near(value: f64, expected: f64, within: f64) {
        assert!((value - expected).abs() <= within, "{value} is not {expected} +- {within}");
    }

    #[test]
    fn quarters_against_four_to_one() {
        let c = Comparison::of(&[25, 25, 25, 25], &[40, 30, 20, 10]).unwrap();
        near(c.psi(), 0.228_217_409_6, 5e-11);
        near(c.js_divergence_nats(), 0.027_865_613_5, 5e-11);
        near(c.js_distance_nats(), 0.166_929_965_7, 5e-11);
        near(c.hellinger(), 0.167_899_596_4, 5e-11);
        near(c.l_infinity(), 0.15, 1e-12);
        near(c.ks(), 0.20, 1e-12);
        near(c.wasserstein_1(&[0.0, 1.0, 2.0, 3.0]).unwrap(), 0.15 + 0.20 + 0.15, 1e-12);
    }

    #[test]
    fn psi_of_five_thousand_against_five_thousand() {
        near(
            Comparison::of(&[1000, 1500, 1200, 1300], &[800, 1400, 1600, 1200]).unwrap().psi(),
            0.034_921_0,
            5e-8,
        );
    }

    #[test]
    fn chi_square_and_hellinger_of_six_categories() {
        let c = Comparison::of(&[16, 18, 16, 14, 12, 12], &[16, 16, 16, 16, 16, 8]).unwrap();
        near(c.chi_square_p(), 0.67309, 5e-6);
        near(c.hellinger(), 0.06812, 1e-5); // derived by hand: .06813
    }

    #[test]
    fn the_noise_of_ten_bins_is_what_the_tables_say() {
        // N = 10,000, ten cells: 99.9 % of chance lies below these.
        let c = Comparison::of(&[1000; 10], &[1; 10]).unwrap();
        for (n, noise) in
            [(100.0, 0.282), (300.0, 0.096), (1000.0, 0.031), (3000.0, 0.012), (10_000.0, 0.0056)]
        {
            near(c.psi_noise(n), noise, 0.0006);
        }
        near(c.psi_noise(0.0), f64::MAX, 0.0);
    }

    #[test]
    fn an_empty_cell_is_rare_and_not_impossible() {
        let c = Comparison::of(&[500, 500, 0], &[0, 500, 500]).unwrap();
        assert!((3.0..15.0).contains(&c.psi()), "{}", c.psi());
        assert_eq!(Comparison::of(&[0, 0], &[1, 1]), Err(CompareError::Empty));
        assert_eq!(Comparison::of(&[1], &[1, 1]), Err(CompareError::Length(1, 2)));
    }

    proptest! {
        #[test]
        fn every_score_is_a_finite_number_in_its_range(
            pairs in proptest::collection::vec((prop_oneof![Just(0u64), 0..9u64, 0..u64::from(u32::MAX)], prop_oneof![Just(0u64), 0..9u64, 0..u64::from(u32::MAX)]), 1..34)
        ) {
            let (p, q): (Vec<u64>, Vec<u64>) = pairs.into_iter().unzip();
            let Ok(c) = Comparison::of(&p, &q) else { return Ok(()) };
            let back = Comparison::of(&q, &p).unwrap();
            prop_assert!(c.psi().is_finite() && c.psi() >= -1e-12);
            prop_assert!((c.psi() - back.psi()).abs() < 1e-9, "PSI is symmetric");
            prop_assert!((0.0..=2f64.ln() + 1e-9).contains(&c.js_divergence_nats()));
            prop_assert!((0.0..=1.0 + 1e-9).contains(&c.hellinger()));
            prop_assert!((0.0..=1.0 + 1e-9).contains(&c.l_infinity()));
            prop_assert!((0.0..=1.0 + 1e-9).contains(&c.ks()));
            prop_assert!((0.0..=1.0).contains(&c.chi_square_p()));
            prop_assert!(c.hellinger().powi(2) <= 1.0 + 1e-9 && c.l_infinity() <= 2.0 * c.ks() + 1e-9);
            let same = Comparison::of(&p, &p).unwrap();
            prop_assert!(same.psi() == 0.0 && same.ks() == 0.0 && same.hellinger() == 0.0 && same.chi_square_p() == 1.0);
        }
    }
}
