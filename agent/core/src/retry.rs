//! Full-jitter exponential backoff, as a function.
//!
//! Full jitter (uniform in `[0, min(cap, base * 2^n)]`) spreads a fleet that failed together better than a fixed
//! delay with a little noise: after a server outage of an hour every device's next try lies uniformly in half an
//! hour, so 10,000 devices come back at six a second.

/// First ceiling: a broken connection usually works again at once.
pub const BASE_MS: u64 = 2_000;
/// Last ceiling, reached at the eleventh failure: a device that stays offline for weeks tries 100 times a day on
/// average, and comes back within half an hour.
pub const CAP_MS: u64 = 30 * 60 * 1_000;

/// The delay before the try after `failures` failures in a row (0 is treated as 1).
pub fn backoff_ms(failures: u32, seed: u64) -> u64 {
    let doublings = failures.saturating_sub(1).min(20); // 2 s * 2^20 is far above the cap and far below overflow
    uniform_ms((BASE_MS << doublings).min(CAP_MS), seed)
}

/// Uniform in `[0, most]`.
pub fn uniform_ms(most: u64, seed: u64) -> u64 {
    // The multiply-shift maps 64 random bits on the range with a bias below 2^-20 for any delay under a year.
    let wide = u128::from(mix(seed)) * (u128::from(most) + 1);
    (wide >> 64) as u64 // below most + 1 by construction
}

/// SplitMix64's finaliser: neighbouring seeds give unrelated bits, so a counter would do as a seed too.
pub const fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_never_overflows() {
        for (failures, ceiling) in
            [(0, 2_000), (1, 2_000), (2, 4_000), (5, 32_000), (11, CAP_MS), (u32::MAX, CAP_MS)]
        {
            let delays = (0..2_000).map(|seed| backoff_ms(failures, seed));
            let most = delays.max().unwrap();
            assert!(most <= ceiling, "{failures} failures: {most} ms is above {ceiling}");
            assert!(
                most > ceiling * 9 / 10,
                "{failures} failures: 2,000 draws stay under {most} of {ceiling}"
            );
        }
    }

    #[test]
    fn delays_fill_the_whole_range_evenly() {
        let mut tenths = [0u32; 10];
        for seed in 0..10_000 {
            let delay = uniform_ms(999, seed);
            tenths[usize::try_from(delay / 100).unwrap()] += 1;
        }
        // 10,000 draws in ten bins: 1,000 each, standard deviation 30; five of them is chance once in a million.
        assert!(tenths.iter().all(|n| n.abs_diff(1_000) < 150), "{tenths:?}");
        assert_eq!(uniform_ms(0, 7), 0);
        assert!(uniform_ms(u64::MAX, 7) > 0);
    }
}
