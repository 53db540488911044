//! From a client certificate to a device. The chain is verified by rustls before anything here runs.

use plimsoll_protocol::{DeviceIdentity, UnixMillis};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate that rustls verified, and the device it names: the proof that a connection is a device's.
#[derive(Debug, Clone)]
pub struct DeviceCertificate {
    identity: DeviceIdentity,
    until_ms: UnixMillis,
    der: CertificateDer<'static>,
}

/// A certificate that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509.
    #[error("the client certificate cannot be read as X.509")]
    Unreadable,
    /// None or several common names.
    #[error("the client certificate has {0} common names; a device's has exactly one, tenant.device")]
    CommonNames(usize),
    /// A common name that is not an identity.
    #[error("the common name of the client certificate names no device: {0}")]
    Identity(#[from] plimsoll_protocol::ids::IdError),
}

impl DeviceCertificate {
    /// Reads the identity. Does not verify the chain: give it only certificates that a verified connection
    /// presented.
    pub fn from_verified(der: CertificateDer<'static>) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| CertificateError::Unreadable)?;
        let mut names = certificate.subject().iter_common_name();
        let (first, more) = (names.next(), names.count());
        let Some(first) = first.filter(|_| more == 0) else {
            return Err(CertificateError::CommonNames(usize::from(first.is_some()) + more));
        };
        let name = first.as_str().map_err(|_| CertificateError::Unreadable)?;
        let identity = name.parse()?;
        let until_ms = certificate.validity().not_after.timestamp().saturating_mul(1000);
        Ok(Self { identity, until_ms, der })
    }

    /// Who it is.
    pub fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// When it ends. A connection may outlast it, so it is asked again whenever something is decided.
    pub const fn until_ms(&self) -> UnixMillis {
        self.until_ms
    }

    /// The certificate itself, for its fingerprint.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_common_name_is_the_device_and_anything_else_is_nobody() {
        let good = DeviceCertificate::from_verified(certificate(&["acme.cam-1"])).unwrap();
        assert_eq!(good.identity().to_string(), "acme.cam-1");
        let refused = |names: &[&str]| DeviceCertificate::from_verified(certificate(names)).unwrap_err();
        assert_eq!(refused(&[]), CertificateError::CommonNames(0));
        assert!(matches!(refused(&["acme"]), CertificateError::Identity(_)));
        assert!(matches!(refused(&["acme.cam.1"]), CertificateError::Identity(_)));
        let garbage = DeviceCertificate::from_verified(CertificateDer::from(vec![0x30, 3, 1, 2, 3]));
        assert_eq!(garbage.unwrap_err(), CertificateError::Unreadable);
    }
}
