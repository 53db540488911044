//! Certificates: who signs them, for whom, and which are believed.
//!
//! | part | does |
//! |---|---|
//! | [`Ca`] | one authority: signs devices and the server |
//! | [`Authorities`] | which authority signs now, which one follows, which ones were: survives a restart at any step |
//! | [`CheckedRequest`] | a request of a device, its signature, key type and name checked |
//! | [`ServerCertificate`], [`TlsConfigs`] | the listeners' side; what changes here holds from the next handshake on |
//!
//! The authority is the fleet's own (one ECDSA P-256 key made at the first start, mode 0600) or the operator's: an
//! issuing certificate and its key in files. It signs certificates of devices (common name `tenant.device`) and the
//! server's own (remade every six hours, never stored). From a request only the public key is taken: names, usages
//! and validity are the server's decision.
//!
//! A certificate alone lets nobody in: the registry knows each device's key, and every call compares. That is why an
//! expired certificate can renew itself, why a stolen authority cannot speak for a device, and why authorities of the
//! past are believed for ever.

mod authorities;
mod authority;
mod clients;
mod notes;
mod request;
mod tls;

use std::path::PathBuf;

use plimsoll_protocol::Digest;
use rustls_pki_types::CertificateDer;

pub use authorities::{Authorities, Source, fingerprints};
pub use authority::{Ca, Issued};
pub use notes::Notes;
pub use request::CheckedRequest;
pub use tls::{ServerCertificate, TlsConfigs};

/// Life of a device's certificate unless configured. A device renews at two thirds, so it may be off for 30 days and
/// come back without anything special.
pub const DEVICE_LIFE_S: u64 = 90 * DAY_S;
const DAY_S: u64 = 24 * 3600;

/// What was refused or could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The state folder.
    #[error("certificate authority: {0}")]
    Io(#[from] std::io::Error),
    /// Making a key, or signing.
    #[error("certificate authority: {what}: {source}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// An authority's file that cannot be used.
    #[error("certificate authority {path}: {why}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// A change of authority that would lock devices out, or makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The request of a device.
    #[error("certificate request of {device} is refused: {why}")]
    Request {
        /// The name asked for.
        device: String,
        /// What is wrong with it.
        why: String,
    },
    /// A TLS configuration.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}

fn crypto(what: &'static str) -> impl Fn(rcgen::Error) -> CaError {
    move |source| CaError::Crypto { what, source }
}

/// SHA-256 of the public key of a verified certificate, as [`CheckedRequest::key`] computes it for a request.
pub fn key_of(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Digest::of(parsed.public_key().raw))
}

#[cfg(test)]
mod tests;
