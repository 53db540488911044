//! The operators' HTTP API, `/api/v1`: what `plimsoll` and the web page speak with the server.

mod access;
mod command;
mod drift;
mod rollout;
mod trust;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::v1::{Birth, Health, JobPhase, RunningModel, Severity};
use crate::{DeviceId, Digest, Generation, ModelName, UnixMillis};

pub use access::{CaCertificate, CaInfo, JoinTokenInfo, Readmit};
pub use command::CommandSent;
pub use drift::{DriftAlarm, DriftInfo, FeatureDrift};
pub use rollout::{
    Decision, DeviceOutputs, DeviceShadow, GateSpec, OnBreach, OutputEvidence, OutputGate, RolloutAction,
    RolloutInfo, RolloutSpec, RolloutStatus, ShadowEvidence, StageInfo, StageSpec,
};
pub use trust::{Freshness, NewFreshness, NewOnlineKeys, Proposal, TrustState, TrustUpload};

/// Error body, RFC 9457 (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Short, the same for every occurrence: `rollout-conflict`.
    #[serde(rename = "type")]
    pub kind: String,
    /// HTTP status.
    pub status: u16,
    /// What was tried on which object, and the remedy.
    pub detail: String,
}

/// What a token may do. Each includes the ones before it, but approver and publisher, which stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads everything, subscribes to telemetry.
    Viewer,
    /// Runs rollouts and devices.
    Operator,
    /// Operator who may also approve stages.
    Approver,
    /// Viewer who may also upload blobs and signed metadata.
    Publisher,
    /// Everything, tokens included.
    Admin,
}

/// `POST /tokens` (admin): a token for the API and the dashboards' MQTT.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// For people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Days until it ends.
    pub days: u32,
}

/// Answer to [`NewToken`] and to `POST /join-tokens`: shown once, stored only as a hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenCreated {
    /// Public part.
    pub id: String,
    /// The whole token.
    pub token: String,
    /// When it ends.
    pub expires_ms: UnixMillis,
}

/// `POST /join-tokens` (operator).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewJoinToken {
    /// How many devices may enrol with it.
    pub uses: u32,
    /// Minutes until it ends.
    pub minutes: u32,
    /// Labels that every device enrolled with it carries.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Names that may enrol with it, with one `*` at the end: `cam-*`. Without it every name may.
    #[serde(default)]
    pub names: Option<String>,
}

/// `GET /server`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Of the server.
    pub version: semver::Version,
    /// Tenant served.
    pub tenant: String,
    /// What devices are told to call.
    pub device_https: String,
    /// What devices are told to connect to.
    pub device_mqtt: String,
    /// Where dashboards subscribe.
    pub dashboard_mqtt: String,
    /// SHA-256 of the fleet CA's certificate.
    pub ca: Digest,
}

/// `GET /models`: one a published version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelVersion {
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
    /// Digest of its `bundle.json`.
    pub digest: Digest,
    /// Bytes of all files.
    pub bytes: u64,
    /// Role that signed it.
    pub signed_by: String,
    /// Annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// Devices that run it.
    pub devices: u64,
    /// Answers of classes that got a label, on all devices.
    #[serde(default)]
    pub labelled: u64,
    /// Of those, the class with the largest score was the label.
    #[serde(default)]
    pub correct: u64,
}

/// `GET /devices`, `GET /devices/{device}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Device.
    pub device: DeviceId,
    /// Whether its MQTT connection stands.
    pub online: bool,
    /// Whether it may connect at all.
    pub revoked: bool,
    /// End of its newest certificate.
    #[serde(default)]
    pub certificate_until_ms: UnixMillis,
    /// Server time of its last message.
    pub last_seen_ms: Option<UnixMillis>,
    /// Labels: of the join token, overlaid by the device's own.
    pub labels: BTreeMap<String, String>,
    /// Last birth.
    pub birth: Option<Birth>,
    /// Last health.
    pub health: Option<Health>,
    /// What it runs, from the newest of birth and job reports.
    pub running: Vec<RunningModel>,
    /// Generation of its desired state.
    pub generation: Generation,
    /// Its last order, by model, and where that stands.
    pub jobs: Vec<JobInfo>,
    /// Why it waits, in words, when it does.
    pub waiting: Option<String>,
    /// Models whose data have moved away from their reference here.
    #[serde(default)]
    pub drift: Vec<DriftAlarm>,
}

/// Where an order stands on a device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobInfo {
    /// Model.
    pub model: ModelName,
    /// Version ordered.
    pub version: semver::Version,
    /// Digest ordered.
    pub digest: Digest,
    /// Phase; `None` when the device has not answered yet.
    pub phase: Option<JobPhase>,
    /// Why.
    pub reason: Option<String>,
    /// Server time of the last report.
    pub at_ms: Option<UnixMillis>,
}

/// One line of the fleet's events, newest first: `GET /events?after=&limit=`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventInfo {
    /// Rises with every event.
    pub id: u64,
    /// Server time.
    pub at_ms: UnixMillis,
    /// Whose; `None` for the server's own.
    pub device: Option<DeviceId>,
    /// How bad.
    pub severity: Severity,
    /// `trust.refused`, `order.stale`, …
    pub code: String,
    /// In words.
    pub text: String,
}
