//! TLS towards the fleet's server: ring, the fleet's CA as the only root, the device's certificate as its name.
//!
//! Certificates are checked against [`Clock`], so that a device whose clock was reset to 1970 still accepts a
//! server certificate that the time floor proves to be valid already.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use plimsoll_protocol::Digest;

use crate::clock::Clock;
use crate::identity::Identity;

/// A TLS configuration that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text is not what it should be.
    #[error("{what} is not readable PEM: {why}; enrol again with `plimsoll-agent enroll --force`")]
    Pem {
        /// Which one.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// rustls refused the parts.
    #[error("the device's certificate, its key and the fleet's CA do not make a TLS configuration")]
    Config(#[from] rustls::Error),
}

/// Makes ring the process's cryptography, once; a second call changes nothing.
pub fn install_ring() {
    // An error means that a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// For every call after enrolment: the server must chain to the fleet's CA, the device shows its certificate.
pub fn mutual(identity: &Identity, clock: &Clock) -> Result<ClientConfig, TlsError> {
    let chain = certificates("device.crt", identity.certificate_pem.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|e| TlsError::Pem { what: "device.key", why: e.to_string() })?;
    let roots = roots(certificates("ca.pem", identity.ca_pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?)
}

/// For enrolment: nothing is known of the server but the fingerprint of its CA, carried in the join token.
pub fn pinned(ca: Digest) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedCa { ca, provider: provider.clone() });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous() // the verifier below is stricter than the default one, not weaker
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// The certificates of a PEM text, at least one.
pub fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| TlsError::Pem { what, why: e.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Pem { what, why: "it holds no certificate".into() });
    }
    Ok(found)
}

/// SHA-256 of a certificate's DER: what a join token carries.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Digest {
    Digest::of(certificate)
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, rustls::Error> {
    let mut store = RootCertStore::empty();
    certificates.into_iter().try_for_each(|c| store.add(c))?;
    Ok(store)
}

/// Accepts a server whose chain carries the CA with this fingerprint *and* verifies against that CA alone, name
/// and dates included. Holding a copy of the CA's certificate is therefore not enough: its key must have signed.
#[derive(Debug)]
struct PinnedCa {
    ca: Digest,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = std::iter::once(end_entity).chain(intermediates);
        let pinned = presented.into_iter().find(|c| fingerprint(c) == self.ca);
        let pinned = pinned.ok_or(CertificateError::UnknownIssuer)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots(vec![pinned.clone().into_owned()])?),
            self.provider.clone(),
        );
        let verifier = verifier.build().map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pki {
        ca: rcgen::Certificate,
        issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    }

    fn pki() -> Pki {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        Pki { ca, issuer: rcgen::Issuer::new(params, key) }
    }

    fn server(pki: &Pki, name: &str) -> CertificateDer<'static> {
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        params.signed_by(&key, &pki.issuer).unwrap().der().clone()
    }

    fn verify(
        pin: Digest,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &str,
    ) -> Result<(), rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = PinnedCa { ca: pin, provider };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(leaf, chain, &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn only_a_server_signed_by_the_pinned_ca_under_its_own_name_is_believed() {
        let (fleet, other) = (pki(), pki());
        let pin = fingerprint(fleet.ca.der());
        let chain = [fleet.ca.der().clone()];
        let leaf = server(&fleet, "plimsoll.example");
        assert_eq!(verify(pin, &leaf, &chain, "plimsoll.example"), Ok(()));

        assert!(verify(pin, &leaf, &[], "plimsoll.example").is_err(), "the chain must carry the CA");
        assert!(verify(pin, &leaf, &chain, "elsewhere.example").is_err(), "the name counts");
        let strange = server(&other, "plimsoll.example");
        assert!(verify(pin, &strange, &[other.ca.der().clone()], "plimsoll.example").is_err(), "another CA");
        // The pinned certificate is public: showing it proves nothing without a signature by its key.
        assert!(verify(pin, &strange, &chain, "plimsoll.example").is_err(), "a copy of the CA is not enough");
    }
}
