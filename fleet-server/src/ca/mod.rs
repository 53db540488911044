//! The fleet's own certificate authority.
//!
//! One ECDSA P-256 key, made at the first start, mode 0600. It signs certificates of devices (90 days, common name
//! `tenant.device`) and the server's own (remade at every start and every day, never stored). From a certificate
//! request only the public key is taken: names, usages and validity are the server's decision.

mod tls;

use std::path::Path;
use std::time::Duration;

use plimsoll_protocol::{DeviceIdentity, Digest, TenantId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub use tls::{ServerCertificate, TlsConfigs};

use crate::secret;

/// Life of a device's certificate. A device renews at two thirds, so it may be off for 30 days and still come back.
pub const DEVICE_DAYS: u64 = 90;
/// Life of the server's own certificate, which is remade daily.
const SERVER_DAYS: u64 = 90;
/// Life of the CA: longer than the hardware it speaks for.
const CA_DAYS: u64 = 20 * 365;
/// Certificates begin a day in the past: devices' clocks are wrong by hours more often than by days.
const BACKDATED: u64 = DAY;
const DAY: u64 = 24 * 3600;

/// What the CA refused or could not do.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The state folder.
    #[error("certificate authority: {0}")]
    Io(#[from] std::io::Error),
    /// Key or certificate on disk, or signing.
    #[error("certificate authority: {what}: {source}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
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

/// A certificate for a device.
pub struct Issued {
    /// PEM, the CA's certificate after it.
    pub chain_pem: String,
    /// Its end.
    pub until_ms: UnixMillis,
}

/// A certificate request whose signature holds: the device has the private key.
pub struct CheckedRequest {
    identity: DeviceIdentity,
    request: CertificateSigningRequestParams,
}

impl CheckedRequest {
    /// Parses a request in PEM for a device of this name, checks its signature, its key type and its name.
    pub fn parse(identity: DeviceIdentity, pem: &str) -> Result<Self, CaError> {
        let refuse = |why: String| CaError::Request { device: identity.device.to_string(), why };
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(|e| refuse(e.to_string()))?;
        let algorithm = request.public_key.algorithm();
        if *algorithm != rcgen::PKCS_ECDSA_P256_SHA256 && *algorithm != rcgen::PKCS_ED25519 {
            return Err(refuse("its key must be ECDSA P-256 or Ed25519".into()));
        }
        match common_name(&request.params.distinguished_name) {
            Some(name) if name != identity.device.as_str() && name != identity.to_string() => {
                Err(refuse(format!("it was made for {name:?}")))
            }
            _ => Ok(Self { identity, request }),
        }
    }

    /// SHA-256 of the public key, as SubjectPublicKeyInfo.
    pub fn key(&self) -> Digest {
        Digest::of(&self.request.public_key.subject_public_key_info())
    }
}

fn common_name(name: &DistinguishedName) -> Option<String> {
    Some(match name.get(&DnType::CommonName)? {
        rcgen::DnValue::Utf8String(text) => text.clone(),
        rcgen::DnValue::PrintableString(text) => text.as_str().to_owned(),
        other => format!("{other:?}"),
    })
}

/// SHA-256 of the public key of a verified certificate, as [`CheckedRequest::key`] computes it for a request.
pub fn key_of(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Digest::of(parsed.public_key().raw))
}

/// The authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    /// Reads the authority in `dir` (`ca.key`, `ca.pem`) or makes it.
    pub fn open(dir: &Path, tenant: &TenantId, now: UnixMillis) -> Result<Self, CaError> {
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        if !cert_path.exists() {
            let key = KeyPair::generate().map_err(crypto("making its key"))?;
            let pem = own_params(tenant, now)?.self_signed(&key).map_err(crypto("signing itself"))?.pem();
            // The key first: a certificate without its key would be found and could never sign.
            secret::write_private(&key_path, key.serialize_pem().as_bytes())?;
            secret::write_public(&cert_path, pem.as_bytes())?;
        }
        let key =
            KeyPair::from_pem(&std::fs::read_to_string(&key_path)?).map_err(crypto("reading ca.key"))?;
        let pem = std::fs::read_to_string(&cert_path)?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| std::io::Error::other(format!("{}: {e}", cert_path.display())))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(crypto("reading ca.pem"))?;
        Ok(Self { issuer, certificate, pem })
    }

    /// PEM of its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// DER of its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a join token carries: SHA-256 of the certificate's DER.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// Signs a device's certificate.
    pub fn issue(&self, request: &CheckedRequest, now: UnixMillis) -> Result<Issued, CaError> {
        let mut params = leaf_params(&request.identity.to_string(), DEVICE_DAYS, now)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params
            .signed_by(&request.request.public_key, &self.issuer)
            .map_err(crypto("signing a device"))?;
        let chain_pem = format!("{}{}", signed.pem(), self.pem);
        Ok(Issued { chain_pem, until_ms: now + (DEVICE_DAYS * DAY * 1000) as i64 })
    }

    /// Makes a key and a certificate for the server under these host names and addresses.
    pub fn server_certificate(
        &self,
        hosts: &[String],
        now: UnixMillis,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let mut params = leaf_params("plimsoll-server", SERVER_DAYS, now)?;
        let named = CertificateParams::new(hosts).map_err(crypto("host names of the server"))?;
        params.subject_alt_names = named.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(crypto("making the server's key"))?;
        let signed = params.signed_by(&key, &self.issuer).map_err(crypto("signing the server"))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((vec![signed.der().clone(), self.certificate.clone()], key))
    }
}

fn own_params(tenant: &TenantId, now: UnixMillis) -> Result<CertificateParams, CaError> {
    let mut params = leaf_params(&format!("Plimsoll fleet CA of {tenant}"), CA_DAYS, now)?;
    // One level: it signs devices and the server, and nobody may sign in its name.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(name: &str, days: u64, now: UnixMillis) -> Result<CertificateParams, CaError> {
    let seconds = u64::try_from(now / 1000).unwrap_or(0);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + Duration::from_secs(seconds.saturating_sub(BACKDATED));
    params.not_after = epoch + Duration::from_secs(seconds + days * DAY);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // 127 random bits: positive in DER, unique without a counter.
    let mut serial = secret::random::<16>()?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

#[cfg(test)]
mod tests;
