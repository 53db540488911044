//! Rollouts: what an operator orders, and where it stands with which evidence.

use serde::{Deserialize, Serialize};

use crate::ids::RolloutId;
use crate::wire::v1::{ShadowEnd, ShadowTotals};
use crate::{DeviceId, Digest, ModelName, UnixMillis};

/// A stage of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// Name for people: `canary`.
    #[serde(default)]
    pub name: Option<String>,
    /// `"10%"` of the selected devices or `"2"` devices; together with all stages before it.
    pub size: String,
    /// At least so many devices whatever the percentage says.
    #[serde(default)]
    pub min: u32,
    /// Stage wait: seconds to observe after the last device of the stage passed its trial.
    #[serde(default)]
    pub soak_s: u32,
    /// A person with the approver role says go before this stage starts.
    #[serde(default)]
    pub approval: bool,
}

/// When a rollout is stopped. Shares are of the devices that answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSpec {
    /// Failed or rolled back by themselves, percent: stopped when the lower confidence bound is above it.
    pub max_failed_percent: f64,
    /// Devices that must have answered before a share means anything.
    pub min_sample: u32,
    /// A device that was ordered and has not answered after so many seconds counts as silent.
    pub silent_after_s: u32,
    /// Silent devices, percent.
    pub max_silent_percent: f64,
    /// Confidence of the bounds, 0 to 1.
    pub confidence: f64,
    /// Rows that may be answered otherwise in shadow than by the version before, percent, over all devices that
    /// compared; without it shadows are reported and judged by each device only. Needs `policy.shadow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_shadow_disagree_percent: Option<f64>,
    /// Labelled answers that must be right, percent, over all devices with labels; without it accuracy is shown only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_accuracy_percent: Option<f64>,
    /// What the version answers, compared with what the one before answered on the same devices.
    pub outputs: OutputGate,
}

/// When a version is stopped for what it answers. Only models with class scores have a confidence to compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputGate {
    /// How far the mean confidence may fall, 0 to 1. More must be proven before the version is stopped; 1 switches
    /// the gate off.
    pub max_confidence_drop: f64,
    /// Readings that a device needs with either version before the two are compared.
    pub min_readings: u32,
    /// Confidence of the proof, over all looks of the whole rollout, 0 to 1.
    pub confidence: f64,
    /// Longest that a stage waits for those readings after its last trial passed, seconds.
    pub max_wait_s: u32,
}

impl Default for OutputGate {
    /// A fall by 0.1 is what a person notices on a page, and above the 0.03 or so by which two good versions of one
    /// model differ. With 100 readings before and after on two canaries, a fall of 0.31 is proven at the first look
    /// (0.1 allowed, 0.21 of uncertainty), smaller ones with more. 99.9 %, so that the gate adds a tenth to the error
    /// of the others. A window is closed after an hour at the latest; half an hour more is for slow lines.
    fn default() -> Self {
        Self { max_confidence_drop: 0.1, min_readings: 100, confidence: 0.999, max_wait_s: 5_400 }
    }
}

impl Default for GateSpec {
    /// 2 % failed, 2 % silent after 15 minutes, three devices, 99 %; outputs as [`OutputGate`] says.
    fn default() -> Self {
        Self {
            max_failed_percent: 2.0,
            min_sample: 3,
            silent_after_s: 900,
            max_silent_percent: 2.0,
            confidence: 0.99,
            max_shadow_disagree_percent: None,
            min_accuracy_percent: None,
            outputs: OutputGate::default(),
        }
    }
}

/// What happens when a gate is crossed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBreach {
    /// Devices that have the version get the one they had before.
    #[default]
    Rollback,
    /// Nobody else gets it until a person decides.
    Pause,
}

/// `POST /rollouts` (operator), and `rollout.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSpec {
    /// Model.
    pub model: ModelName,
    /// A published version.
    pub version: semver::Version,
    /// Which devices: `site = lyon and not arch = armv7`; empty for all.
    #[serde(default)]
    pub selector: String,
    /// In order; the last must reach 100 %.
    pub stages: Vec<StageSpec>,
    /// When it is stopped.
    #[serde(default)]
    pub gate: GateSpec,
    /// And then.
    #[serde(default)]
    pub on_breach: OnBreach,
    /// How devices take it over.
    #[serde(default)]
    pub policy: crate::wire::v1::UpdatePolicy,
    /// Takes over from a running rollout of the same model instead of being refused.
    #[serde(default)]
    pub supersede: bool,
}

/// `GET /rollouts`, `GET /rollouts/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RolloutInfo {
    /// Id.
    pub id: RolloutId,
    /// As started.
    pub spec: RolloutSpec,
    /// Digest of the version.
    pub digest: Digest,
    /// Where it stands.
    pub status: RolloutStatus,
    /// Why, in words: the last decision and its evidence.
    pub reason: String,
    /// Server time of the start.
    pub started_ms: UnixMillis,
    /// Server time of the end.
    pub ended_ms: Option<UnixMillis>,
    /// One a stage.
    pub stages: Vec<StageInfo>,
    /// Newest last: every decision with its reason.
    pub history: Vec<Decision>,
    /// What the version answers beside the one before: as measured now, or when the rollout was last decided on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<OutputEvidence>,
    /// What late labels say of the version, and of the newest other one that has labels; in words, empty when none came.
    /// Judged when the gate says how many must be right.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accuracy: String,
    /// What its shadows saw, on devices that compared it with the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowEvidence>,
}

/// The answers of a new version in shadow: beside those of the version before, to the same requests, told to nobody.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowEvidence {
    /// In words.
    pub text: String,
    /// Rows compared on all devices.
    pub rows: u64,
    /// Of those, answered otherwise.
    pub differ: u64,
    /// The newest report of each device, by name; the first few of many.
    pub devices: Vec<DeviceShadow>,
}

/// What one device saw in shadow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceShadow {
    /// Device.
    pub device: DeviceId,
    /// Version that it was compared with; `None` when nothing ran.
    pub current: Option<semver::Version>,
    /// How it stands.
    pub end: ShadowEnd,
    /// Why, when it was skipped, broke or differs.
    pub reason: Option<String>,
    /// What was compared.
    pub totals: ShadowTotals,
}

/// The answers of a new version beside those of the version before, on the same devices, and on devices that do not
/// have it (controls) over the same days. Confidence is the highest class probability of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputEvidence {
    /// In words.
    pub text: String,
    /// Devices with the version, by name; the first few of many.
    pub canaries: Vec<DeviceOutputs>,
    /// Devices without it, by name; the first few of many.
    pub controls: Vec<DeviceOutputs>,
    /// Canaries with enough readings of both versions.
    pub compared: u64,
    /// Controls with enough readings before and since.
    pub controls_compared: u64,
    /// Mean confidence of the compared canaries, before and after; each device counts the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub means: Option<(f64, f64)>,
    /// The same for the controls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_means: Option<(f64, f64)>,
    /// The fall that is proven at the gate's confidence, whatever it is: negative when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// The fall that is allowed.
    pub allowed: f64,
    /// Upper bound of the probability of such counts if nothing had changed; only worked out for a proven fall.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// How often was looked so far: once a window.
    pub looks: u64,
    /// The fall is proven, and the controls fell too: it may be the world.
    pub vetoed: bool,
    /// The rollout was stopped or paused on it.
    pub stopped: bool,
    /// Bins of confidence: label, share before, share after, over the compared canaries.
    pub bars: Vec<(String, f64, f64)>,
}

/// Mean confidence of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceOutputs {
    /// Device.
    pub device: DeviceId,
    /// Readings with the version before (of a control: before the rollout).
    pub before_readings: u64,
    /// Their mean confidence.
    pub before: Option<f64>,
    /// Readings with the new version (of a control: since the rollout began).
    pub after_readings: u64,
    /// Their mean confidence.
    pub after: Option<f64>,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum RolloutStatus {
    Running,
    WaitingForApproval,
    Paused,
    RollingBack,
    RolledBack,
    Completed,
    Aborted,
    Superseded,
}

impl RolloutStatus {
    /// Whether it will never change again.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::RolledBack | Self::Completed | Self::Aborted | Self::Superseded)
    }

    /// As a sentence says it: "the rollout is paused".
    pub const fn words(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::WaitingForApproval => "waiting for approval",
            Self::Paused => "paused",
            Self::RollingBack => "rolling back",
            Self::RolledBack => "rolled back",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Superseded => "superseded",
        }
    }
}

/// One stage, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInfo {
    /// Name.
    pub name: String,
    /// Devices of this stage (not of those before it).
    pub devices: u64,
    /// Ordered.
    pub ordered: u64,
    /// Passed their trial.
    pub active: u64,
    /// Failed or rolled back by themselves.
    pub failed: u64,
    /// Cannot run it.
    pub not_applicable: u64,
    /// Have not answered in time.
    pub silent: u64,
    /// Under way.
    pub in_progress: u64,
    /// `waiting`, `running`, `soaking`, `done`.
    pub state: String,
    /// What it waits for, in words.
    pub waiting_for: Option<String>,
}

/// One decision of the planner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Server time.
    pub at_ms: UnixMillis,
    /// In words, with numbers.
    pub text: String,
}

/// `POST /rollouts/{id}/{pause|resume|abort|approve}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RolloutAction {
    /// Why, for the history.
    #[serde(default)]
    pub reason: String,
}
