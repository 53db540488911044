//! Shares per second, by a token bucket: of the publishes of one device, of the refusals reported. Pure; time is
//! an argument.

use std::time::Duration;

/// How many may be made. The default is for the publishes of one device.
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    /// In the long run. An outbox of 10,000 reports drains in ten seconds, and a hundred devices that
    /// misbehave use up what the server can commit (100,000 a second), so fewer do not slow the others down.
    pub per_second: u32,
    /// At once: a second's worth.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { per_second: 1_000, burst: 1_000 }
    }
}

/// What is left of the share.
#[derive(Debug)]
pub(super) struct Throttle {
    limit: RateLimit,
    tokens: f64,
    /// Time of the last change, on the caller's clock.
    at: Duration,
}

impl Throttle {
    /// Full at time `now`.
    pub(super) fn new(limit: RateLimit, now: Duration) -> Self {
        Self { limit, tokens: f64::from(limit.burst), at: now }
    }

    /// Takes `n`, going into debt if need be; returns how long to take nothing more.
    pub(super) fn take(&mut self, n: usize, now: Duration) -> Duration {
        let rate = f64::from(self.limit.per_second.max(1));
        let refill = now.saturating_sub(self.at).as_secs_f64() * rate;
        self.at = now;
        self.tokens = (self.tokens + refill).min(f64::from(self.limit.burst)) - n as f64;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / rate) }
    }

    /// Takes one if there is one.
    pub(super) fn allows(&mut self, now: Duration) -> bool {
        let allowed = self.take(1, now).is_zero();
        if !allowed {
            self.tokens += 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn who_waits_as_told_never_exceeds_the_rate(
            takes in proptest::collection::vec((1usize..200, 0u64..500), 1..100),
        ) {
            let limit = RateLimit { per_second: 100, burst: 50 };
            let (mut throttle, mut now, mut taken) = (Throttle::new(limit, Duration::ZERO), Duration::ZERO, 0);
            for (n, pause_ms) in takes {
                now += throttle.take(n, now) + Duration::from_millis(pause_ms);
                taken += n;
                let allowed = now.as_secs_f64() * 100.0 + 50.0;
                prop_assert!(taken as f64 <= allowed + 0.001, "{taken} by {now:?}");
            }
        }
    }

    #[test]
    fn what_is_not_allowed_takes_nothing() {
        let mut throttle = Throttle::new(RateLimit { per_second: 10, burst: 2 }, Duration::ZERO);
        let at = |ms| Duration::from_millis(ms);
        let asked = [0, 0, 0, 50, 100, 110, 200].map(|ms| throttle.allows(at(ms)));
        assert_eq!(asked, [true, true, false, false, true, false, true]);
    }

    #[test]
    fn a_quiet_device_has_its_burst_and_no_more() {
        let mut throttle = Throttle::new(RateLimit { per_second: 100, burst: 50 }, Duration::ZERO);
        let later = Duration::from_secs(3600);
        assert_eq!(throttle.take(50, later), Duration::ZERO);
        assert_eq!(throttle.take(1, later), Duration::from_millis(10));
    }
}
