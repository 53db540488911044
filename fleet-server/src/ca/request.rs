//! A certificate request: the only X.509 that a stranger may send.

use plimsoll_protocol::{DeviceIdentity, Digest};
use rcgen::{CertificateSigningRequestParams, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::{self, PemObject};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::CaError;

/// Largest request in bytes of PEM: one for a P-256 key with a long name has 500, so eight times that; an RSA-8192
/// request, which is refused for its key, has 3,000.
const MAX_PEM: usize = 4 * 1024;
const DAMAGED: &str = "it is cut short or damaged";
const WRONG_KEY: &str = "its key must be ECDSA P-256 or Ed25519";

/// A certificate request whose signature holds: the device has the private key.
pub struct CheckedRequest {
    identity: DeviceIdentity,
    public_key: SubjectPublicKeyInfo,
}

impl CheckedRequest {
    /// Parses a request in PEM for a device of this name; checks its signature, its key type and its name. What else
    /// it asks for (names, usages, to be an authority) is not refused but never granted.
    pub fn parse(identity: DeviceIdentity, text: &str) -> Result<Self, CaError> {
        let refuse = |why: String| CaError::Request { device: identity.device.to_string(), why };
        if text.len() > MAX_PEM {
            return Err(refuse(format!("it has {} bytes; at most {MAX_PEM} are read", text.len())));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|e| match e {
            pem::Error::NoItemsFound => refuse("it is not a PEM text of a CERTIFICATE REQUEST".into()),
            _ => refuse(DAMAGED.into()),
        })?;
        let (names, key) = names_and_key(&der).ok_or_else(|| refuse(DAMAGED.into()))?;
        // Checks the signature. The algorithm that it names is the signature's: a P-384 key may sign with SHA-256 as
        // a P-256 key does, so the key speaks for itself below.
        CertificateSigningRequestParams::from_der(&der).map_err(|e| refuse(words(&e)))?;
        let public_key = SubjectPublicKeyInfo::from_der(&key).map_err(|_| refuse(WRONG_KEY.into()))?;
        let algorithm = public_key.algorithm();
        if *algorithm != rcgen::PKCS_ECDSA_P256_SHA256 && *algorithm != rcgen::PKCS_ED25519 {
            return Err(refuse(WRONG_KEY.into()));
        }
        let own = [identity.device.to_string(), identity.to_string()];
        match names.iter().find(|name| !own.contains(name)) {
            Some(name) => {
                let name: String = name.chars().take(80).collect();
                Err(refuse(format!("it was made for {name:?}")))
            }
            None => Ok(Self { identity, public_key }),
        }
    }

    /// Whose.
    pub const fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// The key to be certified.
    pub const fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }

    /// SHA-256 of the public key, as SubjectPublicKeyInfo.
    pub fn key(&self) -> Digest {
        Digest::of(&self.public_key.subject_public_key_info())
    }
}

/// What a device's operator can act on; the parser's own words name structures of X.509.
fn words(error: &rcgen::Error) -> String {
    match error {
        rcgen::Error::InvalidCertificationRequestSignature => {
            "its signature does not hold: it was damaged, or it was not made with the key that it carries"
                .into()
        }
        rcgen::Error::CouldNotParseCertificationRequest | rcgen::Error::PemError(_) => DAMAGED.into(),
        rcgen::Error::UnsupportedExtension => {
            "it asks for an extension that no device's certificate has".into()
        }
        rcgen::Error::UnsupportedSignatureAlgorithm => WRONG_KEY.into(),
        other => other.to_string(),
    }
}

/// Its common names and its key (SubjectPublicKeyInfo, DER); `None` when it is no request, or more than one.
fn names_and_key(der: &[u8]) -> Option<(Vec<String>, Vec<u8>)> {
    let (rest, request) = X509CertificationRequest::from_der(der).ok()?;
    let info = &request.certification_request_info;
    let names = info.subject.iter_common_name().map(|name| name.as_str().map(str::to_owned));
    let names = names.collect::<Result<_, _>>().ok()?;
    rest.is_empty().then(|| (names, info.subject_pki.raw.to_vec()))
}
