//! When to connect again. Full jitter, so that a fleet whose server restarts does not come back in step.

use plimsoll_agent_core::retry;

/// A connection that lasted so long was a good one: only then does the next failure start from the bottom. A server
/// that accepts and drops would otherwise be asked once a second for ever.
pub const STABLE_MS: u64 = 120_000;
/// First bound of the random delay.
pub const BASE_MS: u64 = 1_000;
/// Last bound: 10,000 devices spread over 60 s are 167 TLS handshakes a second, a sixth of what the server takes.
pub const CAP_MS: u64 = 60_000;

/// Counts the failures since the last stable connection.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A connection ended after `lasted_ms` (0 when it never stood): how long to wait, given random bits.
    pub fn ended(&mut self, lasted_ms: u64, seed: u64) -> u64 {
        if lasted_ms >= STABLE_MS {
            self.failures = 0;
        }
        let delay = retry::uniform_ms((BASE_MS << self.failures.min(16)).min(CAP_MS), seed);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// Delay of the first contact after a boot: a fixed place for each device in the spread, so that a power cut of a
/// site does not bring all its devices back in the same second.
pub fn first_contact_ms(device_seed: u64, spread_s: u32) -> u64 {
    device_seed % (u64::from(spread_s) * 1000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_under_a_bound_that_grows_to_the_cap_and_resets_only_after_a_stable_connection() {
        let mut backoff = Backoff::default();
        for attempt in 0..20_u32 {
            let bound = (BASE_MS << attempt.min(10)).min(CAP_MS);
            let delay = backoff.ended(STABLE_MS - 1, u64::MAX / 3);
            assert!(delay <= bound, "attempt {attempt}: {delay} > {bound}");
        }
        let high = (0_u64..64)
            .map(|i| {
                let mut b = Backoff { failures: 20 };
                b.ended(0, i)
            })
            .max();
        assert!(high > Some(CAP_MS / 2), "the whole spread is used");
        assert!(backoff.ended(STABLE_MS, u64::MAX) <= BASE_MS);
    }

    #[test]
    fn the_first_contact_is_fixed_for_a_device_and_may_be_at_once() {
        assert_eq!(first_contact_ms(12_345_678, 0), 0);
        assert_eq!(first_contact_ms(12_345_678, 30), 12_345_678 % 30_000);
    }
}
