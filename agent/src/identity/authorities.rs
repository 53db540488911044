//! Which authorities the fleet's owner signed for: `fleet/ca.pem`, a target of the top-level role.
//!
//! The metadata and this file are public and prove themselves, so they are also taken from a server whose own
//! certificate this device cannot check. That is the one thing such a server may say, and how a device that slept
//! through a change of the fleet's authority comes back.

use plimsoll_protocol::trust::{FLEET_CA, MAX_FLEET_FILE_BYTES};
use plimsoll_protocol::wire::v1::FLEET_CA_PATH;
use plimsoll_protocol::{Digest, UnixSeconds};

use super::Identity;
use crate::clock::Clock;
use crate::fetch::{FetchError, HttpSource, Trust};
use crate::tls;

/// What the owner says.
#[derive(Debug)]
pub struct Learned {
    /// PEM of the authorities; `None` when nothing is published, or what this device has.
    pub new_pem: Option<String>,
    /// Newest time that verified metadata proves.
    pub issued: Option<UnixSeconds>,
}

/// Asks with the device's certificate, or when `known` is false without any and of whoever answers.
pub async fn learn(
    identity: &Identity,
    trust: &Trust,
    clock: &Clock,
    known: bool,
) -> Result<Learned, FetchError> {
    let unusable = |e: &dyn std::error::Error| FetchError::permanent("identity.lost", crate::causes(e));
    let config = if known { tls::mutual(identity, clock) } else { tls::dangerously_anybody(clock) };
    let config = config.map_err(|e| unusable(&e))?;
    let source = HttpSource::new(&identity.https, config, None, clock.clone()).map_err(|e| unusable(&e))?;
    let mut view = trust.refresh(&source, clock.trust_s()).await?;
    let issued = view.issued();
    let Some(target) = view.file(&source, FLEET_CA).await? else {
        return Ok(Learned { new_pem: None, issued });
    };
    if target.sha256() == Digest::of(identity.ca_pem.as_bytes()) {
        return Ok(Learned { new_pem: None, issued });
    }
    let limit = target.length().min(MAX_FLEET_FILE_BYTES);
    let bytes = source.document(FLEET_CA_PATH, limit).await?;
    let bytes = bytes.ok_or_else(|| {
        FetchError::transient("fetch.unavailable", format!("the server has no {FLEET_CA} yet"))
    })?;
    let admitted = target.admit(bytes).map_err(|e| FetchError::transient("trust.refused", e.to_string()))?;
    let pem = String::from_utf8(admitted.into_inner())
        .map_err(|e| FetchError::permanent("trust.refused", format!("{FLEET_CA}: {e}")))?;
    tls::certificates(FLEET_CA, pem.as_bytes())
        .map_err(|e| FetchError::permanent("trust.refused", e.to_string()))?;
    Ok(Learned { new_pem: Some(pem), issued })
}
