//! Durations and times as people write and read them.

use plimsoll_protocol::{UnixMillis, UnixSeconds};

/// Parses `90s`, `15m`, `2h`, `1d` or plain seconds.
pub fn seconds(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        None => (text, 1),
        Some(digits) => {
            let factor = match text.as_bytes().last() {
                Some(b'm') => 60,
                Some(b'h') => 3_600,
                Some(b'd') => 86_400,
                _ => 1,
            };
            (digits, factor)
        }
    };
    let number = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(factor));
    number.ok_or_else(|| format!("{text:?} is not a duration: 90s, 15m, 2h, 1d"))
}

/// The clock of this machine.
pub fn now() -> UnixSeconds {
    jiff::Timestamp::now().as_second()
}

/// `2026-11-21 08:30:00` in UTC.
pub fn utc(ms: UnixMillis) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| format!("{ms} ms"), |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// `2027-11-21`.
pub fn date(seconds: UnixSeconds) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("{seconds} s"), |t| t.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_plain_numbers_are_seconds() {
        for (text, expect) in [("3s", 3), ("15m", 900), ("2h", 7_200), ("1d", 86_400), ("7", 7), ("0", 0)] {
            assert_eq!(seconds(text), Ok(expect), "{text}");
        }
        for bad in ["", "s", "-1s", "1w", "1.5h", "99999999999", "4294967295d"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(1_800_000_000_123), "2027-01-15 08:00:00");
        assert_eq!(date(1_800_000_000), "2027-01-15");
    }
}
