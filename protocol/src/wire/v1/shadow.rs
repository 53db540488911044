//! Shadow: a candidate beside the version that runs, on a sample of the same requests, answering nobody.
//!
//! What is compared is counted by rows. A row *differs* when the candidate would have told the application something
//! else: another class where the model answers classes, a number more than half a standard deviation away where it
//! answers numbers, or nothing at all.

use serde::{Deserialize, Serialize};

use crate::ids::RolloutId;
use crate::share;
use crate::{Digest, Generation, ModelName};

/// Longest shadow that a device runs, seconds: a week holds every rhythm that a model of weekdays has.
pub const MAX_SHADOW_S: u32 = 7 * 24 * 3600;
/// Error that one device may make when it stops a version for its disagreement, over all looks of one shadow: one
/// device in a hundred for a version exactly at the limit, half of what the gate on failed devices allows (2 %).
pub const SHADOW_ERROR: f64 = 0.01;

/// How a version is compared with the one that runs before it takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShadowPolicy {
    /// How long, seconds. At most [`MAX_SHADOW_S`].
    pub seconds: u32,
    /// Share of the requests that the candidate sees too, percent, 1 to 100.
    pub sample_percent: u32,
    /// Rows from which on a share means something; fewer at the end is told, not failed.
    pub min_rows: u32,
    /// Rows that may differ, percent. More, when it is proven, stops the version on this device; without a limit the
    /// device only reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disagree_percent: Option<u32>,
}

impl Default for ShadowPolicy {
    /// Twenty minutes, a tenth of the requests: a camera that asks once a second gives 120 rows, a hundred of which
    /// prove a disagreement of a tenth against a limit of nearly nothing.
    fn default() -> Self {
        Self { seconds: 1200, sample_percent: 10, min_rows: 100, max_disagree_percent: None }
    }
}

/// What was compared so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowTotals {
    /// Rows that both were asked.
    pub rows: u64,
    /// Of those, answered otherwise by the candidate, or not at all.
    pub differ: u64,
    /// Of those that differ, without an answer.
    pub failed: u64,
    /// Rows of the sample that the candidate was too busy for.
    pub skipped: u64,
    /// How far numbers (scores too) lie apart; `None` when the model answers none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
    /// Median time in the current version, of the compared requests, microseconds.
    pub current_p50_us: u64,
    /// 99th percentile of the same.
    pub current_p99_us: u64,
    /// Median time in the candidate, which runs at low priority, microseconds.
    pub candidate_p50_us: u64,
    /// 99th percentile of the same.
    pub candidate_p99_us: u64,
    /// Most memory that the candidate needed for its load or a request, bytes; 0 where it is not known.
    pub memory_bytes: u64,
}

/// How far two versions' numbers lie apart, over all elements compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// Mean absolute difference.
    pub mean: f64,
    /// Largest absolute difference.
    pub max: f64,
    /// Mean difference in standard deviations of what the current version answers.
    pub relative: f64,
}

impl ShadowTotals {
    /// Whether it is proven, at an error of `error` over any number of looks, that more than `limit_percent` of the
    /// rows differ; and if so, how many percent at least. Rows count as independent: the sample is drawn at random
    /// from the requests of the whole shadow, so that neighbours in a burst are rarely both in it.
    pub fn proven_above(&self, limit_percent: f64, error: f64) -> Option<f64> {
        let proven = share::evidence_above(limit_percent / 100.0, self.differ, self.rows) >= 1.0 / error;
        proven.then(|| share::lower_bound(self.differ, self.rows, error) * 100.0)
    }
}

/// How a shadow stands, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShadowEnd {
    /// Goes on.
    Open,
    /// Saw enough, and nothing speaks against the candidate.
    Agreed,
    /// Its time is over and it saw fewer rows than it should; the candidate goes on to its trial.
    Few,
    /// Proven to differ in more rows than the limit allows; the candidate never answers.
    Differs,
    /// The candidate crashed, or could not be loaded.
    Broke,
    /// There was nothing to compare it with, or no room; the candidate goes on to its trial.
    Skipped,
}

/// What a device saw of a candidate before it let it answer. The newest of an order replaces the ones before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShadowReport {
    /// Of the order.
    pub generation: Generation,
    /// The rollout that ordered it, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// Model.
    pub model: ModelName,
    /// The candidate's version.
    pub version: semver::Version,
    /// The candidate.
    pub candidate: Digest,
    /// The version that it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<semver::Version>,
    /// What it was compared with; `None` when nothing ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Digest>,
    /// How it stands.
    pub end: ShadowEnd,
    /// Why, when it was skipped, broke or differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was compared.
    pub totals: ShadowTotals,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_above_the_limit_is_believed_only_when_it_is_proven() {
        let totals = |differ, rows| ShadowTotals { rows, differ, ..ShadowTotals::default() };
        for (differ, rows, limit, proven) in [
            (0, 10_000, 5.0, false),
            (1, 2, 5.0, false),
            (3, 50, 5.0, false), // 6 %, as happens at 4 % every third time
            (10, 50, 5.0, true),
            (412, 3_000, 5.0, true),
            (150, 3_000, 5.0, false), // exactly at it
            (1, 1, 0.0, true),
        ] {
            let bound = totals(differ, rows).proven_above(limit, SHADOW_ERROR);
            assert_eq!(bound.is_some(), proven, "{differ} of {rows}, limit {limit} %: {bound:?}");
            assert!(bound.is_none_or(|b| b >= limit), "{bound:?} is below {limit}");
        }
    }

    #[test]
    fn a_report_fits_one_value_of_the_store_whatever_it_says() {
        let most = u64::MAX;
        let distance = Some(Distance { mean: f64::MIN_POSITIVE, max: f64::MAX, relative: -f64::MAX });
        let report = ShadowReport {
            generation: most,
            rollout: Some(RolloutId::new(&"r".repeat(40)).unwrap()),
            model: ModelName::new(&"m".repeat(60)).unwrap(),
            version: format!("1.0.0-{}", "x".repeat(58)).parse().unwrap(),
            candidate: Digest::of(b"a"),
            current_version: Some(format!("1.0.0-{}", "x".repeat(58)).parse().unwrap()),
            current: Some(Digest::of(b"b")),
            end: ShadowEnd::Differs,
            reason: Some("é".repeat(120)),
            totals: ShadowTotals {
                rows: most,
                differ: most,
                failed: most,
                skipped: most,
                distance,
                current_p50_us: most,
                current_p99_us: most,
                candidate_p50_us: most,
                candidate_p99_us: most,
                memory_bytes: most,
            },
        };
        let json = serde_json::to_string(&report).unwrap();
        // The envelope around it takes under 250 bytes.
        assert!(json.len() + 250 < crate::wire::v1::MAX_REPORT_BYTES, "{} bytes", json.len());
        assert_eq!(serde_json::from_str::<ShadowReport>(&json).unwrap(), report);
    }
}
