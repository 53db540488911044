//! When a certificate is renewed. Pure.

use plimsoll_agent_core::retry;
use plimsoll_protocol::UnixSeconds;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

/// From when until when a certificate is good, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// First second.
    pub from_s: UnixSeconds,
    /// End.
    pub until_s: UnixSeconds,
}

impl Validity {
    /// Of the first certificate of a PEM text; the error is the parser's.
    pub fn of(pem: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| e.to_string())?;
        let validity = parsed.validity();
        Ok(Self { from_s: validity.not_before.timestamp(), until_s: validity.not_after.timestamp() })
    }

    /// When it is to be renewed: at two thirds of its life, and up to a twelfth later by the device's seed, so that a
    /// batch that enrolled in one hour does not renew in one. Of 90 days that is day 60 to 67.5, and 22 days of
    /// tries remain.
    pub fn renew_s(self, seed: u64) -> UnixSeconds {
        let life = u64::try_from(self.until_s.saturating_sub(self.from_s)).unwrap_or(0);
        let after = life / 3 * 2 + retry::uniform_ms(life / 12, seed);
        self.from_s.saturating_add(i64::try_from(after).unwrap_or(i64::MAX))
    }

    /// In words: `valid for 89 days`, `ended 3 hours ago`.
    pub fn words(self, now_s: UnixSeconds) -> String {
        let span = |s: i64| match s {
            172_800.. => format!("{} days", s / 86_400),
            7_200.. => format!("{} hours", s / 3_600),
            120.. => format!("{} minutes", s / 60),
            _ => format!("{s} seconds"),
        };
        if now_s < self.until_s {
            format!("valid for {}", span(self.until_s - now_s))
        } else {
            format!("ended {} ago", span(now_s - self.until_s))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn devices_of_one_batch_renew_in_the_week_after_two_thirds() {
        let validity = Validity { from_s: 1_000_000, until_s: 1_000_000 + 90 * DAY };
        let times: Vec<i64> = (0..200).map(|seed| (validity.renew_s(seed) - 1_000_000) / DAY).collect();
        assert!(times.iter().all(|day| (60..=67).contains(day)), "{times:?}");
        for day in 60..67 {
            assert!(times.contains(&day), "nobody renews on day {day}");
        }
        assert_eq!(validity.renew_s(7), validity.renew_s(7), "a restart does not move it");
    }

    #[test]
    fn a_certificate_that_makes_no_sense_is_renewed_at_once() {
        for (from_s, until_s) in [(5, 5), (9, 5), (i64::MAX, i64::MAX)] {
            assert_eq!(Validity { from_s, until_s }.renew_s(3), from_s);
        }
    }

    #[test]
    fn the_words_have_a_unit_that_fits() {
        let validity = Validity { from_s: 0, until_s: 100 * DAY };
        for (now, words) in [
            (0, "valid for 100 days"),
            (99 * DAY, "valid for 24 hours"),
            (100 * DAY - 600, "valid for 10 minutes"),
            (100 * DAY, "ended 0 seconds ago"),
            (190 * DAY, "ended 90 days ago"),
        ] {
            assert_eq!(validity.words(now), words);
        }
    }
}
