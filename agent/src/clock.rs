//! Time and randomness at the edge: read here, handed as values to everything that decides.
//!
//! A device may boot in 1970, and a clock may also be wrong into the future. So there are two answers to "what time
//! is it":
//!
//! - [`Clock::trust_s`], by which signed metadata expires. A clock that a time service keeps is believed, but never
//!   below the floor; any other is not believed at all and the floor stands for it. The floor is the newest moment
//!   that offline-signed metadata proves to have passed (and the time this agent was built), so that a stolen
//!   server, which signs online, cannot move it.
//! - [`Clock::now_ms`], for certificates of connections and for texts: the system's, but never below the floor. A
//!   certificate that is not valid *yet* says nothing against a server when the clock is not believed
//!   ([`Clock::is_believed`]).
//!
//! The floor is kept in the anchor; this type only holds the copy in use.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plimsoll_protocol::{UnixMillis, UnixSeconds};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

/// Made by systemd-timesyncd once it has set the clock since the boot.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Whether the system's clock is believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ClockTrust {
    /// Once systemd-timesyncd says that it has set it.
    #[default]
    Auto,
    /// Always: another time service keeps it (chrony, ntpd, GPS), or a clock with a good battery.
    Trusted,
    /// Never.
    Untrusted,
}

/// The agent's clock. Clones share the floor.
#[derive(Debug, Clone)]
pub struct Clock {
    started: Instant,
    floor_s: Arc<AtomicI64>,
    trust: ClockTrust,
}

impl Clock {
    /// Starts counting now, with the floor that the anchor remembers, or the time this agent was built when that is
    /// later.
    pub fn start(floor_s: UnixSeconds, trust: ClockTrust) -> Self {
        let floor_s = Arc::new(AtomicI64::new(floor_s.max(built_s())));
        Self { started: Instant::now(), floor_s, trust }
    }

    /// Milliseconds since the agent started: never goes back.
    pub fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What the system's clock says, for time stamps.
    pub fn system_ms(&self) -> UnixMillis {
        system_ms(SystemTime::now())
    }

    /// The system's time, but never below the floor.
    pub fn now_ms(&self) -> UnixMillis {
        self.system_ms().max(self.floor_s().saturating_mul(1000))
    }

    /// [`Self::now_ms`] in seconds.
    pub fn now_s(&self) -> UnixSeconds {
        self.now_ms().div_euclid(1000)
    }

    /// The time by which signed metadata expires.
    pub fn trust_s(&self) -> UnixSeconds {
        trust_s(self.system_ms().div_euclid(1000), self.floor_s(), self.is_kept())
    }

    /// Whether the system's clock can be right: a time service keeps it, and it is not behind what is proven.
    pub fn is_believed(&self) -> bool {
        self.is_kept() && self.system_ms().div_euclid(1000) >= self.floor_s()
    }

    fn is_kept(&self) -> bool {
        match self.trust {
            ClockTrust::Trusted => true,
            ClockTrust::Untrusted => false,
            ClockTrust::Auto => Path::new(SYNCHRONISED).exists(),
        }
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

/// What stands for the time: a clock that is kept, but not below the floor; the floor otherwise.
const fn trust_s(system_s: UnixSeconds, floor_s: UnixSeconds, kept: bool) -> UnixSeconds {
    if kept && system_s > floor_s { system_s } else { floor_s }
}

/// When this agent was built, as far as who built it said so (`SOURCE_DATE_EPOCH`): later than that it is for sure.
fn built_s() -> UnixSeconds {
    option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(0)
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

    fn future() -> UnixSeconds {
        system_ms(SystemTime::now()) / 1000 + 1_000_000
    }

    #[test]
    fn the_floor_only_rises_and_lifts_a_clock_that_was_reset() {
        let future = future();
        let clock = Clock::start(0, ClockTrust::Trusted);
        assert!(clock.now_ms() / 1000 < future && clock.is_believed());
        assert!(clock.raise_floor(future));
        assert!(!clock.raise_floor(future - 10));
        assert!(clock.now_ms() / 1000 >= future && clock.trust_s() == future);
        assert!(!clock.is_believed(), "it is behind what is proven");
        assert!(clock.system_ms() / 1000 < future, "time stamps show the device's own clock");
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_not_believed_in_either_direction() {
        assert_eq!(trust_s(0, 1_000, false), 1_000, "1970");
        assert_eq!(trust_s(4_000_000_000, 1_000, false), 1_000, "2096: it would make all metadata expire");
        assert_eq!(trust_s(2_000, 1_000, true), 2_000);
        assert_eq!(trust_s(0, 1_000, true), 1_000, "kept, and behind what is proven");
        let past = 1_000;
        let clock = Clock::start(past, ClockTrust::Untrusted);
        assert!(clock.trust_s() == past.max(built_s()) && !clock.is_believed());
    }
}
