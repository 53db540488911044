//! Time and randomness at the edge: read here, handed as values to everything that decides.
//!
//! A device may boot in 1970. The time floor is the newest moment that offline-signed metadata proves to have
//! passed; `now` is never below it, so that expired metadata stays expired on a clock that was reset. The floor is
//! kept in the anchor; this type only holds the copy in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plimsoll_protocol::{UnixMillis, UnixSeconds};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// The agent's clock. Clones share the floor.
#[derive(Debug, Clone)]
pub struct Clock {
    started: Instant,
    floor_s: Arc<AtomicI64>,
}

impl Clock {
    /// Starts counting now, with the floor that the anchor remembers.
    pub fn start(floor_s: UnixSeconds) -> Self {
        Self { started: Instant::now(), floor_s: Arc::new(AtomicI64::new(floor_s)) }
    }

    /// Milliseconds since the agent started: never goes back.
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What the system's clock says, for time stamps.
    pub fn system_ms(&self) -> UnixMillis {
        system_ms(SystemTime::now())
    }

    /// The time that decisions use: the system's, but never below the floor.
    pub fn now_ms(&self) -> UnixMillis {
        self.system_ms().max(self.floor_s().saturating_mul(1000))
    }

    /// [`Self::now_ms`] in seconds.
    pub fn now_s(&self) -> UnixSeconds {
        self.now_ms().div_euclid(1000)
    }

    /// The floor in use.
    pub fn floor_s(&self) -> UnixSeconds {
        self.floor_s.load(Ordering::Relaxed)
    }

    /// Raises the floor; `true` when it rose. Does not write the anchor.
    pub fn raise_floor(&self, to_s: UnixSeconds) -> bool {
        self.floor_s.fetch_max(to_s, Ordering::Relaxed) < to_s
    }
}

/// 64 random bits from the system. Without a source of randomness (a kernel that is still starting) the clock's low
/// bits must do: they only spread retries.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::from(d.subsec_nanos())),
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(self.now_ms()).ok()?)))
    }
}

fn system_ms(time: SystemTime) -> UnixMillis {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_only_rises_and_lifts_a_clock_that_was_reset() {
        let future = system_ms(SystemTime::now()) / 1000 + 1_000_000;
        let clock = Clock::start(0);
        assert!(clock.now_s() < future);
        assert!(clock.raise_floor(future));
        assert!(!clock.raise_floor(future - 10));
        assert!(clock.now_s() >= future);
        assert!(clock.system_ms() / 1000 < future, "time stamps show the device's own clock");
    }
}
