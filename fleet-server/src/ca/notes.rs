//! What the server has noted of its certificates, for `plimsoll-server doctor`: it looks from outside, and the
//! server's own certificate is never stored.

use std::path::Path;

use plimsoll_protocol::UnixMillis;
use serde::{Deserialize, Serialize};

use super::{Authorities, ServerCertificate};
use crate::secret;

/// Where they lie in the state folder.
const FILE: &str = "certificates.json";

/// Ends of certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Of the server's own.
    pub server_until_ms: UnixMillis,
    /// Of the issuing authority's.
    pub authority_until_ms: UnixMillis,
    /// Whether the authority comes from files of the operator's PKI, which lie elsewhere.
    pub own_files: bool,
}

impl Notes {
    /// Writes what holds now. A failure is logged: nothing but advice depends on it.
    pub fn write(dir: &Path, authorities: &Authorities, certificate: &ServerCertificate) {
        let notes = Self {
            server_until_ms: certificate.until_ms(),
            authority_until_ms: authorities.issuing().until_ms(),
            own_files: authorities.own_files(),
        };
        let json = serde_json::to_vec_pretty(&notes).unwrap_or_default(); // numbers only: cannot fail
        if let Err(error) = secret::write_public(&dir.join(FILE), &json) {
            tracing::warn!(%error, "the ends of certificates were not noted for the doctor");
        }
    }

    /// Reads them; `None` before the first start.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
    }
}
