//! What a device reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::drift::{Quality, Truth, Window};
use crate::ids::RolloutId;
use crate::{Digest, Generation, Incarnation, ModelName, UnixMillis};

/// Around every report. (device, `inc`, `boot`, `seq`) is its identity: the server counts it once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// 1.
    pub v: u32,
    /// Incarnation of the agent's state folder.
    pub inc: Incarnation,
    /// Boot counter of the agent, persisted.
    pub boot: u64,
    /// Rises by one with every report of this boot that goes through the outbox, from 1; shared by all kinds. 0 for
    /// state (will included) and health, which replace each other: never deduplicated, never acknowledged.
    pub seq: u64,
    /// The device's clock. Never used to decide, only shown with its skew.
    pub ts: UnixMillis,
    /// Milliseconds since the agent started.
    pub mono: u64,
    /// The report.
    pub body: T,
}

/// Births, and the will that the broker sends when a connection dies. Travels in an [`Envelope`] like every report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// First message of every connection: all that the server needs to know.
    Online(Box<Birth>),
    /// Sent on a clean stop, or as the will. Ignored when a newer (boot, conn) was seen.
    Offline {
        /// Boot counter of the connection that ended.
        boot: u64,
        /// Connection counter within that boot.
        conn: u64,
    },
}

/// Full state of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Birth {
    /// Boot counter.
    pub boot: u64,
    /// Connection counter within the boot.
    pub conn: u64,
    /// Of the agent.
    pub agent_version: semver::Version,
    /// `x86_64`, `aarch64`, `armv7`.
    pub arch: String,
    /// `Debian GNU/Linux 12`, for people.
    pub os: String,
    /// Memory of the machine, bytes.
    pub ram_bytes: u64,
    /// Generation of the desired state it works by.
    pub generation: Generation,
    /// What it runs.
    pub models: Vec<RunningModel>,
    /// Free labels from its configuration: `site = "lyon"`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A model that a device runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningModel {
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
    /// Digest of its `bundle.json`.
    pub digest: Digest,
    /// Whether its trial has ended well.
    pub trial_passed: bool,
}

/// Health of a device: counters since the agent's boot unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Share of all cores over the interval, 0 to 1.
    pub cpu: f32,
    /// Memory in use on the machine, bytes.
    pub ram_used_bytes: u64,
    /// Memory of the agent and its children, bytes.
    pub agent_rss_bytes: u64,
    /// Free on the file system of the state folder, bytes.
    pub disk_free_bytes: u64,
    /// Highest temperature of a sensor, °C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<f32>,
    /// Reports that wait.
    pub outbox_entries: u64,
    /// Reports dropped because the outbox was full.
    pub outbox_dropped: u64,
    /// Restarts of the serving child.
    pub serve_restarts: u64,
    /// The signed metadata has expired: nothing can be installed until its owner or the server signs anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trust_expired: bool,
    /// One a model that is served.
    pub models: Vec<ModelHealth>,
}

/// How a model serves. Counters since it became active.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelHealth {
    /// Model.
    pub model: ModelName,
    /// Digest of its `bundle.json`.
    pub digest: Digest,
    /// Inference requests answered, well or badly.
    pub requests: u64,
    /// Requests that failed for the model's or the runtime's fault.
    pub failed: u64,
    /// Requests refused for the caller's fault (shape, type, range).
    pub refused: u64,
    /// Requests refused because the queue was full.
    pub busy: u64,
    /// Median latency of the recent requests, microseconds.
    pub p50_us: u64,
    /// 99th percentile of the recent requests, microseconds.
    pub p99_us: u64,
    /// What was wrong with requests and their values.
    #[serde(default, skip_serializing_if = "Quality::is_clean")]
    pub quality: Quality,
    /// Labels that came late, and how the answers compare with them.
    #[serde(default, skip_serializing_if = "Truth::is_empty")]
    pub truth: Truth,
    /// Most memory that its load or one request needed so far, bytes; 0 where it is not counted.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// A closed measurement window of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftReport {
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
    /// Digest of its `bundle.json`: windows are never mixed across versions.
    pub digest: Digest,
    /// Counts rise from 0 with every window of this digest on this device.
    pub index: u64,
    /// A wide window is split by features: this part and how many there are.
    pub part: (u32, u32),
    /// The counts, and the requests served while it was open.
    pub window: Window,
}

/// Something that happened. `code` is for machines, `text` for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// How bad.
    pub severity: Severity,
    /// Which kind: `trust.refused`, `order.stale`, `serve.died`, `rolled_back`, `outbox.recreated`, …
    pub code: String,
    /// What was tried on which object, and what to do. At most 600 bytes.
    pub text: String,
    /// The model it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// The bundle it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Severity {
    Info,
    Warning,
    Alarm,
}

/// Progress of one assigned version on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Of the order.
    pub generation: Generation,
    /// The rollout that ordered it, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// Model.
    pub model: ModelName,
    /// Version ordered.
    pub version: semver::Version,
    /// Digest ordered.
    pub digest: Digest,
    /// Where it stands.
    pub phase: JobPhase,
    /// Why, when it waits, failed or was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What runs now for this model, whatever became of the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Digest>,
}

/// Phases of an update as the fleet sees it. The last five are ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// For maintenance hours, jitter, the application or a retry.
    Waiting,
    /// Metadata or files.
    Fetching,
    /// Golden samples in a child process.
    SelfTesting,
    /// Beside the version that runs, on the same requests, answering nobody.
    Shadowing,
    /// Taking over.
    Activating,
    /// On trial.
    Probation,
    /// The trial passed; it runs.
    Active,
    /// Never ran; the previous model was not touched.
    Failed,
    /// Ran, was found bad by the device itself, and the previous model runs again.
    RolledBack,
    /// This device cannot run it (architecture, memory, disk, operators); nothing was fetched. Not a failure.
    NotApplicable,
    /// A newer order came.
    Superseded,
}

impl JobPhase {
    /// Whether nothing more will come of the order.
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Self::Active | Self::Failed | Self::RolledBack | Self::NotApplicable | Self::Superseded
        )
    }
}

/// One report of a backfill: the kind of its topic and its envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchEntry {
    /// `drift`, `event`, `job` or `shadow`.
    pub kind: String,
    /// As it would have been published.
    pub report: Envelope<serde_json::Value>,
}
