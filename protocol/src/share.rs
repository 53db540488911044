//! Is a share of bad ones above a limit, or could it be chance? What the gates of a rollout and a device's own verdict
//! on a shadow are made of.

use statrs::function::beta::{beta_reg, ln_beta};

/// Evidence that more than a share `limit` (of devices, of rows) is bad, after `bad` of `n`: how many times more likely the
/// answers are when the true share lies anywhere above the limit (all such shares weighed equally) than at the limit.
///
/// Whatever the true share below the limit, this value ever reaches `1 / a` with probability at most `a`, however
/// often it is looked at (Ville's inequality: it is a non-negative martingale at the limit, and a supermartingale
/// below). So one may look at each tick, and no correction for repeated looks is needed.
pub fn evidence_above(limit: f64, bad: u64, n: u64) -> f64 {
    ln_evidence_above(limit, bad, n).exp()
}

fn ln_evidence_above(limit: f64, bad: u64, n: u64) -> f64 {
    let good = n.saturating_sub(bad);
    if limit <= 0.0 {
        // Nothing may fail: the first failure proves it, no success speaks for a violation.
        return if bad > 0 { f64::INFINITY } else { 0.0 };
    }
    if limit >= 1.0 {
        return 0.0;
    }
    let (bad, good) = (bad as f64, good as f64);
    // The integral of q^bad (1-q)^good over q in (limit, 1], over its width, against the same at the limit.
    let above = beta_reg(good + 1.0, bad + 1.0, 1.0 - limit);
    if above <= 0.0 {
        return f64::NEG_INFINITY;
    }
    ln_beta(bad + 1.0, good + 1.0) + above.ln()
        - (1.0 - limit).ln()
        - bad * limit.ln()
        - good * (1.0 - limit).ln()
}

/// The largest share that `bad` of `n` answers speak against at error probability `alpha`: "at least this share of
/// all is bad". The inverse of [`evidence_above`], by bisection; 0 when nothing is proven.
pub fn lower_bound(bad: u64, n: u64, alpha: f64) -> f64 {
    let proven = |share: f64| ln_evidence_above(share, bad, n) >= -alpha.ln();
    let (mut low, mut high) = (0.0, if n == 0 { 0.0 } else { bad as f64 / n as f64 });
    // 40 halvings of [0, 1] end below 1e-12.
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        if middle > 0.0 && proven(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Probability of `bad` or more among `n` when each is bad with probability `share` (exact binomial).
pub fn tail(share: f64, bad: u64, n: u64) -> f64 {
    if bad == 0 {
        return 1.0;
    }
    if bad > n || share <= 0.0 {
        return 0.0;
    }
    if share >= 1.0 {
        return 1.0;
    }
    beta_reg(bad as f64, (n - bad) as f64 + 1.0, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1e-3), "{a} is not {b}");
    }

    #[test]
    fn the_tail_is_the_exact_binomial() {
        close(tail(0.02, 1, 2), 0.0396);
        close(tail(0.02, 2, 2), 0.0004);
        close(tail(0.02, 2, 3), 3.0 * 0.0004 * 0.98 + 0.000_008);
        close(tail(0.5, 3, 4), 5.0 / 16.0);
        close(tail(0.02, 0, 50), 1.0);
        close(tail(0.0, 1, 50), 0.0);
    }

    #[test]
    fn evidence_matches_the_integral_done_by_hand() {
        // 2 of 2 above 2 %: (1 - 0.02^3) / 3 / 0.98 / 0.02^2.
        close(evidence_above(0.02, 2, 2), (1.0 - 0.000_008) / 3.0 / 0.98 / 0.0004);
        // 1 of 1 above 2 %: (1 - 0.02^2) / 2 / 0.98 / 0.02 = 25.5.
        close(evidence_above(0.02, 1, 1), 25.5);
        close(evidence_above(0.02, 0, 0), 1.0);
        assert_eq!(evidence_above(0.0, 1, 1_000), f64::INFINITY);
        assert_eq!(evidence_above(1.0, 5, 5), 1.0);
    }

    #[test]
    fn evidence_is_a_martingale_at_the_limit_and_falls_below_it() {
        for (bad, n) in [(0, 0), (0, 7), (1, 3), (4, 40), (30, 900)] {
            let next = |p: f64| {
                p * evidence_above(0.02, bad + 1, n + 1) + (1.0 - p) * evidence_above(0.02, bad, n + 1)
            };
            close(next(0.02), evidence_above(0.02, bad, n));
            assert!(next(0.01) < evidence_above(0.02, bad, n), "{bad} of {n}");
        }
    }

    #[test]
    fn the_lower_bound_is_where_the_evidence_meets_the_level() {
        for (bad, n) in [(2, 2), (9, 10), (40, 500), (300, 5_000)] {
            let bound = lower_bound(bad, n, 0.01);
            close(evidence_above(bound, bad, n), 100.0);
            assert!(bound < bad as f64 / n as f64);
        }
        assert_eq!(lower_bound(0, 10, 0.01), 0.0);
        assert_eq!(lower_bound(0, 0, 0.01), 0.0);
    }

    #[test]
    fn large_counts_stay_finite() {
        assert!(evidence_above(0.02, 2_000, 100_000).is_finite());
        assert!(evidence_above(0.02, 60_000, 100_000) > 1e10);
        assert!(evidence_above(0.02, 100, 100_000) < 1.0);
    }
}
