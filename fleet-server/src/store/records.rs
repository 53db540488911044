//! Records of the store. They are JSON inside, so a field that is added needs a serde default and nothing else.

use std::collections::BTreeMap;

use plimsoll_fleet_core::{Member, RolloutState};
use plimsoll_protocol::api::{Decision, Role};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::{Birth, Desired, DriftReport, Event, JobReport, Severity, ShadowReport};
use plimsoll_protocol::{DeviceId, Digest, Incarnation, ModelName, UnixMillis};
use serde::{Deserialize, Serialize};

/// A registered device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Name.
    pub device: DeviceId,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER) that its certificates carry.
    pub key: Digest,
    /// When it enrolled first.
    pub enrolled_ms: UnixMillis,
    /// End of its newest certificate.
    pub certificate_until_ms: UnixMillis,
    /// As it said when it enrolled.
    pub arch: String,
    /// Its own, as it said at enrolment.
    pub labels: BTreeMap<String, String>,
    /// Of the join token. They win over what the device says of itself: a stolen token does not choose where its
    /// thief belongs, and a device cannot leave its part of the fleet.
    #[serde(default)]
    pub granted: BTreeMap<String, String>,
    /// Kept out.
    pub revoked: bool,
    /// The next enrolment under this name may bring another key.
    #[serde(default)]
    pub rekey: bool,
    /// SHA-256 of the authority that signed its newest certificate; unknown in records of before.
    #[serde(default)]
    pub issuer: Option<Digest>,
}

/// What [`super::Devices::enrol`] decides on.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Name asked for.
    pub device: DeviceId,
    /// SHA-256 of its public key.
    pub key: Digest,
    /// Join token, public part.
    pub token_id: String,
    /// SHA-256 of the token's secret.
    pub secret: Digest,
    /// Architecture it says.
    pub arch: String,
    /// Labels it says.
    pub labels: BTreeMap<String, String>,
    /// End of the certificate that is ready for it.
    pub certificate_until_ms: UnixMillis,
    /// The authority that signed it.
    pub issuer: Digest,
    /// Server time.
    pub now_ms: UnixMillis,
}

/// What [`super::Devices::renew`] notes.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// Who.
    pub device: DeviceId,
    /// SHA-256 of the public key that its certificate carries.
    pub key: Digest,
    /// End of the next certificate.
    pub certificate_until_ms: UnixMillis,
    /// The authority that signed it.
    pub issuer: Digest,
}

/// An API token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public part.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of the secret. Secrets have 128 random bits, so a plain hash cannot be searched.
    pub secret: Digest,
    /// When it ends.
    pub expires_ms: UnixMillis,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// Public part.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret: Digest,
    /// Devices that may still enrol.
    pub uses_left: u32,
    /// When it ends.
    pub expires_ms: UnixMillis,
    /// Labels for every device that enrols with it.
    pub labels: BTreeMap<String, String>,
    /// Devices that it was made for; 0 in records of before.
    #[serde(default)]
    pub uses: u32,
    /// Taken back.
    #[serde(default)]
    pub revoked: bool,
    /// Names that it is for, with one `*` at the end; `None` for every name.
    #[serde(default)]
    pub names: Option<String>,
}

impl JoinTokenRecord {
    /// Whether a device of this name may enrol with it.
    pub fn is_for(&self, device: &DeviceId) -> bool {
        let Some(names) = &self.names else { return true };
        match names.strip_suffix('*') {
            Some(start) => device.as_str().starts_with(start),
            None => device.as_str() == names,
        }
    }
}

/// A document of the trust repository, kept as a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustDoc {
    /// Of its bytes.
    pub sha256: Digest,
    /// Its bytes.
    pub length: u64,
}

/// The trust repository: its documents by the name they are served under, and what they list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrustIndex {
    /// Rises with every change; a change names the serial it was made from.
    pub serial: u64,
    /// `1.root.json`, `timestamp.json`, `3.meter-reader.json`, …: of each role the newest is current.
    pub files: BTreeMap<String, TrustDoc>,
    /// What the current metadata lists.
    pub bundles: Vec<BundleRecord>,
    /// Files of the fleet that it lists, by path.
    #[serde(default)]
    pub fleet_files: BTreeMap<String, TrustDoc>,
    /// Bundles that it listed once and no longer does.
    #[serde(default)]
    pub revoked: Vec<RevokedRecord>,
    /// Changes that wait for signatures, by name.
    #[serde(default)]
    pub proposals: BTreeMap<String, TrustDoc>,
}

/// A version whose signature was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRecord {
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
    /// Of its `bundle.json`.
    pub digest: Digest,
    /// Server time at which the metadata without it was accepted.
    pub at_ms: UnixMillis,
}

impl RevokedRecord {
    /// A published version that no longer is.
    pub fn of(bundle: &BundleRecord, at_ms: UnixMillis) -> Self {
        Self { model: bundle.model.clone(), version: bundle.version.clone(), digest: bundle.digest, at_ms }
    }
}

/// A published version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
    /// Of its `bundle.json`.
    pub digest: Digest,
    /// Bytes of all files.
    pub bytes: u64,
    /// Role that signed it.
    pub signed_by: String,
    /// Annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
}

/// What one tick of the reconciler, or one action of a person, stores: whole or not at all.
#[derive(Debug, Clone, Default)]
pub struct PlanWrite {
    /// Rollouts with their new epoch. One that exists is written only over the epoch before.
    pub rollouts: Vec<RolloutState>,
    /// Members that are new or changed.
    pub members: Vec<(RolloutId, DeviceId, Member)>,
    /// Decisions for the history.
    pub decisions: Vec<(RolloutId, Decision)>,
    /// Desired documents that changed.
    pub desired: Vec<(DeviceId, Desired)>,
    /// Decisions worth an event.
    pub events: Vec<NewEvent>,
}

/// Last known state of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateRecord {
    /// Incarnation of the last birth.
    pub inc: Incarnation,
    /// Last birth; kept when the device goes offline.
    pub birth: Birth,
    /// Boot and connection that `online` speaks of.
    pub session: (u64, u64),
    /// Whether that connection stood when this was written.
    pub online: bool,
    /// Server time.
    pub at_ms: UnixMillis,
    /// The message as received: what dashboards get as the retained one.
    pub payload: String,
}

/// Last report of the order for one model on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Device.
    pub device: DeviceId,
    /// The report.
    pub report: JobReport,
    /// Server time.
    pub at_ms: UnixMillis,
    /// Which report this is, so that an older one that arrives later does not win.
    pub inc: Incarnation,
    /// Boot and sequence of the report.
    pub order: (u64, u64),
}

/// Last report of a device about what a candidate answered in shadow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShadowRecord {
    /// Device.
    pub device: DeviceId,
    /// The report.
    pub report: ShadowReport,
    /// Server time.
    pub at_ms: UnixMillis,
    /// Which report this is, so that an older one that arrives later does not win.
    pub inc: Incarnation,
    /// Boot and sequence of the report.
    pub order: (u64, u64),
}

/// A drift window as received.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriftRecord {
    /// Server time.
    pub at_ms: UnixMillis,
    /// The report, one part of a window.
    pub report: DriftReport,
}

/// One report that a device sent.
#[derive(Debug, Clone)]
pub struct ReportWrite {
    /// Who.
    pub device: DeviceId,
    /// Incarnation.
    pub inc: Incarnation,
    /// Boot.
    pub boot: u64,
    /// Sequence.
    pub seq: u64,
    /// Server time.
    pub at_ms: UnixMillis,
    /// What.
    pub body: ReportBody,
}

/// What a report says.
#[derive(Debug, Clone)]
pub enum ReportBody {
    /// A birth, and the message as received.
    Online(Box<Birth>, String),
    /// The end of a connection, and the message as received.
    Offline {
        /// Boot of the connection that ended.
        boot: u64,
        /// Its number within the boot.
        conn: u64,
        /// As received.
        payload: String,
    },
    /// Progress of an order.
    Job(Box<JobReport>),
    /// Something that happened.
    Event(Event),
    /// A closed window.
    Drift(Box<DriftReport>),
    /// What a candidate answered in shadow.
    Shadow(Box<ShadowReport>),
    /// Nothing to keep; its number is remembered so that ranges stay whole.
    Seen,
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Committed now; what it changed.
    Fresh(Change),
    /// Committed earlier.
    Duplicate,
}

/// A record that a report replaced, as it is now stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The state of the device.
    State(Box<StateRecord>),
    /// Where an order stands.
    Job(Box<JobRecord>),
    /// What a candidate answered in shadow.
    Shadow(Box<ShadowRecord>),
    /// A new event, with its number.
    Event(u64),
    /// Nothing that others keep in memory.
    Nothing,
}

/// An event to be.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Server time.
    pub at_ms: UnixMillis,
    /// Whose; `None` for the server's own.
    pub device: Option<DeviceId>,
    /// How bad.
    pub severity: Severity,
    /// For machines.
    pub code: String,
    /// For people.
    pub text: String,
}

/// An event.
pub type EventRecord = plimsoll_protocol::api::EventInfo;

/// An audit entry to be.
#[derive(Debug, Clone)]
pub struct NewAudit {
    /// Server time.
    pub at_ms: UnixMillis,
    /// Token id, device name or `server`.
    pub who: String,
    /// `rollout.start`, `device.revoke`, …
    pub action: String,
    /// On what.
    pub object: String,
    /// With which result or reason.
    pub detail: String,
}

/// One link of the audit chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// From 1, without gaps.
    pub number: u64,
    /// Server time.
    pub at_ms: UnixMillis,
    /// Token id, device name or `server`.
    pub who: String,
    /// `rollout.start`, `device.revoke`, …
    pub action: String,
    /// On what.
    pub object: String,
    /// With which result or reason.
    pub detail: String,
    /// Hash of the entry before; of nothing for the first.
    pub previous: Digest,
    /// Hash over `previous` and all fields above.
    pub hash: Digest,
}

impl AuditRecord {
    /// Links an entry to the one before it.
    pub fn link(number: u64, previous: Digest, new: NewAudit) -> Self {
        let NewAudit { at_ms, who, action, object, detail } = new;
        let mut record =
            Self { number, at_ms, who, action, object, detail, previous, hash: Digest::from_bytes([0; 32]) };
        record.hash = record.computed();
        record
    }

    /// The hash that this entry must carry. Fields are length-prefixed, so that no two entries share a text.
    pub fn computed(&self) -> Digest {
        let mut text = format!("{}\n{}\n{}\n", self.previous, self.number, self.at_ms);
        for field in [&self.who, &self.action, &self.object, &self.detail] {
            text.push_str(&format!("{}:{field}\n", field.len()));
        }
        Digest::of(text.as_bytes())
    }
}

/// Checks an audit log from its first entry; the error names the first link that does not hold.
pub fn verify_audit(log: &[AuditRecord]) -> Result<(), String> {
    let mut previous = Digest::of(b"");
    for (index, entry) in log.iter().enumerate() {
        if entry.number != index as u64 + 1 {
            return Err(format!(
                "audit entry {} stands where {} should be: entries are missing",
                entry.number,
                index + 1
            ));
        }
        if entry.previous != previous || entry.hash != entry.computed() {
            return Err(format!("audit entry {} was changed after it was written", entry.number));
        }
        previous = entry.hash;
    }
    Ok(())
}
