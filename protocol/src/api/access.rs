//! How devices get in: join tokens, certificates, authorities.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, UnixMillis};

/// One of `GET /join-tokens` (operator). The secret was shown once and is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenInfo {
    /// Public part.
    pub id: String,
    /// Devices that it was made for.
    pub uses: u32,
    /// Devices that may still enrol.
    pub uses_left: u32,
    /// When it ends.
    pub expires_ms: UnixMillis,
    /// Taken back by an operator.
    pub revoked: bool,
    /// Labels of every device that enrols with it.
    pub labels: BTreeMap<String, String>,
    /// Which names it is for: `cam-*`; `None` for every name.
    pub names: Option<String>,
}

/// `POST /devices/{device}/readmit` (operator).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readmit {
    /// The next enrolment under this name may bring another key; the one registered stays out.
    #[serde(default)]
    pub new_key: bool,
}

/// `GET /ca` (viewer), `POST /ca/prepare` and `POST /ca/switch` (admin).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaInfo {
    /// Signs devices and the server now.
    pub issuing: CaCertificate,
    /// Made ready to follow it.
    pub next: Option<CaCertificate>,
    /// Whether the issuing authority comes from files of the operator's own PKI.
    pub own_files: bool,
    /// Which authorities `fleet/ca.pem` names: what devices trust. `None` while nothing is published, and devices
    /// trust what they got when they enrolled.
    pub published: Option<Vec<Digest>>,
    /// What is to be published now: the issuing authority, and the next one when there is one. PEM.
    pub bundle_pem: String,
    /// End of the server's own certificate.
    pub server_until_ms: UnixMillis,
}

/// An authority's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaCertificate {
    /// SHA-256 of its DER.
    pub fingerprint: Digest,
    /// Its name.
    pub subject: String,
    /// Its end.
    pub until_ms: UnixMillis,
    /// Registered devices whose newest certificate it signed; `None` where that is not counted.
    pub devices: Option<u64>,
}
