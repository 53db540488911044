//! Trust as the operators' API speaks of it: what is published, what is uploaded, what waits for signatures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::UnixSeconds;

/// `GET /trust`: what `plimsoll trust` needs to sign the next metadata.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrustState {
    /// Public key of the server's snapshot role, hexadecimal Ed25519.
    pub snapshot_key: String,
    /// Public key of the server's timestamp role, hexadecimal Ed25519.
    pub timestamp_key: String,
    /// The snapshot key that the server made to take over with the next root that names it.
    #[serde(default)]
    pub next_snapshot_key: Option<String>,
    /// The timestamp key that the server made to take over with the next root that names it.
    #[serde(default)]
    pub next_timestamp_key: Option<String>,
    /// Current root metadata; `None` before `plimsoll trust init`.
    pub root: Option<Value>,
    /// All root metadata, oldest first: whoever knows an old root walks them to the newest.
    #[serde(default)]
    pub roots: Vec<Value>,
    /// Current snapshot metadata.
    #[serde(default)]
    pub snapshot: Option<Value>,
    /// Current timestamp metadata.
    #[serde(default)]
    pub timestamp: Option<Value>,
    /// Current top-level targets metadata.
    pub targets: Option<Value>,
    /// Current metadata of each delegated role, by name.
    pub roles: BTreeMap<String, Value>,
}

/// `PUT /trust/metadata` (publisher; root needs admin): signed documents, taken together or not at all. The server
/// verifies them with the code of the devices, then signs a fresh snapshot and timestamp.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrustUpload {
    /// Next root (N + 1), or the first.
    #[serde(default)]
    pub root: Option<Value>,
    /// Next top-level targets.
    #[serde(default)]
    pub targets: Option<Value>,
    /// Next metadata of delegated roles, by name.
    #[serde(default)]
    pub roles: BTreeMap<String, Value>,
}

/// `POST /trust/online-keys` (admin): the server makes new online keys, which take over with the root that names
/// them. Asked again before that, it answers with the same keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewOnlineKeys {
    /// `snapshot`, `timestamp`.
    pub roles: Vec<String>,
}

/// `POST /trust/freshness` (admin): snapshot and timestamp that last, for one export.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewFreshness {
    /// Seconds; at most 90 days.
    pub valid_s: i64,
}

/// Answer to [`NewFreshness`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Freshness {
    /// The documents to the byte, by the names that they are fetched by.
    pub documents: BTreeMap<String, String>,
}

/// A change that waits for signatures: a file that goes from hand to hand, or `PUT /trust/proposals/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proposal {
    /// Format: 1.
    pub plimsoll_proposal: u32,
    /// The same for every copy, whoever has signed it.
    pub id: String,
    /// What was asked for: `rotate targets`.
    pub why: String,
    /// When it was made.
    pub created: UnixSeconds,
    /// It is not signed at or after this time.
    pub expires: UnixSeconds,
    /// The documents, with the signatures that they have.
    pub upload: TrustUpload,
    /// What was published when it was made: a signer without a network verifies the change on top of this. In files
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<TrustState>,
}
