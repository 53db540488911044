//! Drift of single devices, as the server judges the windows that they report.

use serde::{Deserialize, Serialize};

use crate::drift::Verdict;
use crate::{Digest, ModelName, UnixMillis};

/// In `DeviceInfo`: a model whose data on this device have moved away from its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftAlarm {
    /// Model.
    pub model: ModelName,
    /// Version that runs.
    pub version: semver::Version,
    /// One sentence a feature in alarm, with numbers.
    pub features: Vec<String>,
    /// Where it comes from, by comparison with the other devices of the fleet, and where to look.
    pub cause: String,
}

/// `GET /devices/{device}/drift`: one a model in service that has measured windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftInfo {
    /// Model.
    pub model: ModelName,
    /// Version that runs.
    pub version: semver::Version,
    /// Its digest: windows of other versions are not mixed in.
    pub digest: Digest,
    /// Windows that were judged, one after the other.
    pub windows: u64,
    /// When the last of them was open, by the device's clock.
    pub opened_ms: UnixMillis,
    /// And closed.
    pub closed_ms: UnixMillis,
    /// Its samples.
    pub samples: u64,
    /// What was wrong with requests and values in all stored windows of this version, in words; empty when nothing was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quality: String,
    /// How its answers compare with the labels that came, in words; empty when none came.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub truth: String,
    /// Answers with a label, and those of them that were right.
    #[serde(default)]
    pub labelled: (u64, u64),
    /// Where the drift comes from, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// In the baseline's order.
    pub features: Vec<FeatureDrift>,
}

/// One feature of a device, after its last window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureDrift {
    /// What is known.
    pub verdict: Verdict,
    /// The same in words.
    pub text: String,
    /// Whether it is an alarm.
    pub alarm: bool,
    /// `(bin in words, share of the reference, share of the last window)`.
    pub bars: Vec<(String, f64, f64)>,
}
