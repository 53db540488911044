//! The device's local time, for maintenance hours: `TZ` or `/etc/localtime`, as every other program here reads it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use plimsoll_protocol::hours::LocalTime;

use crate::clock::Clock;

/// 2025-01-01: a clock before this program was written is wrong.
pub const PLAUSIBLE_S: i64 = 1_735_689_600;

/// The local time, or nothing while the system's clock cannot be right: before this program was written, or before a
/// time that signed metadata proves to have passed. Whether a time service keeps it does not matter here: maintenance
/// hours are a convenience, not a proof.
pub fn local(clock: &Clock) -> Option<LocalTime> {
    let now_ms = clock.system_ms();
    if now_ms.div_euclid(1_000) < clock.floor_s().max(PLAUSIBLE_S) {
        return None;
    }
    local_in(now_ms, TimeZone::system())
}

fn local_in(now_ms: i64, zone: TimeZone) -> Option<LocalTime> {
    let local = Timestamp::from_millisecond(now_ms).ok()?.to_zoned(zone);
    let part = |n: i8| u8::try_from(n).ok();
    Some(LocalTime::new(
        part(local.weekday().to_monday_zero_offset())?,
        part(local.hour())?,
        part(local.minute())?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_moves_the_hour_and_the_day() {
        let now_ms = 1_798_757_999_000; // Thursday 2026-12-31 22:59:59 UTC
        let text = |zone: &str| local_in(now_ms, TimeZone::posix(zone).unwrap()).unwrap().to_string();
        assert_eq!(text("UTC0"), "Thu 22:59");
        assert_eq!(text("<+02>-2"), "Fri 00:59");
        assert_eq!(text("<-11>11"), "Thu 11:59");
    }

    #[test]
    fn a_clock_that_cannot_be_right_has_no_local_time() {
        let clock = Clock::start(0, crate::clock::ClockTrust::Untrusted);
        assert!(local(&clock).is_some());
        clock.raise_floor(clock.system_ms() / 1000 + 3600);
        assert_eq!(local(&clock), None);
    }
}
