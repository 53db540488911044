//! Which client certificates pass a handshake.
//!
//! Against every authority that the fleet ever had. On the HTTPS listener a certificate whose time is over passes
//! too: whether it opens anything is decided for each request, by the registry, and `/v1/renew` is the one path that
//! takes it. On the MQTT listener it does not pass, so that the device learns at once, by the TLS alert.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Authorities, CaError};

/// Checks a chain against these anchors, dates included.
pub(super) fn verifier(
    anchors: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(built.map_err(|e| Error::General(format!("client certificates: {e}")))?)
}

/// The verifier of one listener. Asks [`Authorities`] at every handshake, so a rotation needs no restart.
pub(super) struct Clients {
    pub(super) authorities: Arc<Authorities>,
    /// No certificate, no connection; and none whose time is over.
    pub(super) strict: bool,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clients(strict: {})", self.strict)
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.strict
    }

    /// None: authorities come and go, and a device has one certificate to offer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self.authorities.clients();
        match chain.verify_client_cert(end_entity, intermediates, now) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }))
                if !self.strict =>
            {
                // As it was in its last second: signature, usage and chain hold for an expired one as for any.
                chain.verify_client_cert(end_entity, intermediates, not_after)
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.clients().verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.clients().verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.clients().supported_verify_schemes()
    }
}
