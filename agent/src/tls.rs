//! TLS towards the fleet's server: ring, the fleet's CA as the only root, the device's certificate as its name.
//!
//! Certificates are checked against [`Clock`]. A clock that nothing keeps proves at most that some time has passed:
//! by it a server's certificate can have expired, but "not valid yet" says only that the clock is late, and is not
//! held against the server. A device that starts in 1970 with a floor of last year connects.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use plimsoll_protocol::Digest;

use crate::clock::Clock;
use crate::identity::Identity;

/// A configuration that lacks only what the device shows of itself.
type Builder = ConfigBuilder<ClientConfig, WantsClientCert>;

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

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For every call after enrolment: the server must chain to the fleet's CA, the device shows its certificate.
pub fn mutual(identity: &Identity, clock: &Clock) -> Result<ClientConfig, TlsError> {
    let chain = certificates("device.crt", identity.certificate_pem.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|e| TlsError::Pem { what: "device.key", why: e.to_string() })?;
    let provider = provider();
    let inner = of_authorities(certificates("ca.pem", identity.ca_pem.as_bytes())?, &provider)?;
    let server = Server { rule: Rule::Fleet { inner, clock: clock.clone() }, provider };
    Ok(server.config(Arc::new(clock.clone()))?.with_client_auth_cert(chain, key)?)
}

/// For documents that prove themselves, from whoever answers: signed metadata and the fleet's authorities. Neither
/// side is authenticated, so nothing else may be asked or told on such a connection.
pub fn dangerously_anybody(clock: &Clock) -> Result<ClientConfig, TlsError> {
    let server = Server { rule: Rule::Anybody, provider: provider() };
    Ok(server.config(Arc::new(clock.clone()))?.with_no_client_auth())
}

/// Code of a fetch that failed because the server's certificate is of an unknown authority.
pub const SERVER_UNKNOWN: &str = "fetch.server_unknown";

/// What a failed connection says about certificates, when it says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The server's certificate is of an authority that this device does not know.
    ServerUnknown,
    /// The server does not take this device's certificate: expired, or of an authority that it does not know.
    CertificateRefused,
}

/// Looks through an error and its causes for a failed check of a certificate, on this side or on the other.
pub fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<Trouble> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref().and_then(of_tls) {
            return Some(found);
        }
        // An I/O error hides the error that it carries from `source`, which answers with that error's own.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| trouble(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn of_tls(error: &rustls::Error) -> Option<Trouble> {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Some(Trouble::ServerUnknown),
        rustls::Error::AlertReceived(
            Alert::CertificateExpired | Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown,
        ) => Some(Trouble::CertificateRefused),
        _ => None,
    }
}

/// For enrolment: nothing is known of the server but the fingerprint of its CA, carried in the join token.
pub fn pinned(ca: Digest) -> Result<ClientConfig, TlsError> {
    let server = Server { rule: Rule::Pinned(ca), provider: provider() };
    Ok(server.config(Arc::new(DefaultTimeProvider))?.with_no_client_auth())
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

/// Whether a server is believed: by a rule of ours for its certificate; its signature in the handshake is always
/// checked as by default.
#[derive(Debug)]
struct Server {
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

/// Which certificate is believed.
#[derive(Debug)]
enum Rule {
    /// One that the fleet's authorities signed: the default, but for a clock that nothing keeps (top of this file).
    Fleet { inner: Arc<WebPkiServerVerifier>, clock: Clock },
    /// One whose chain carries the CA with this fingerprint *and* verifies against that CA alone, name and dates
    /// included. Holding a copy of the CA's certificate is therefore not enough: its key must have signed.
    Pinned(Digest),
    /// Any. For [`dangerously_anybody`].
    Anybody,
}

impl Server {
    /// The parts that every configuration begins with.
    fn config(self, clock: Arc<dyn TimeProvider>) -> Result<Builder, TlsError> {
        Ok(ClientConfig::builder_with_details(Arc::clone(&self.provider), clock)
            .with_safe_default_protocol_versions()?
            .dangerous() // each rule says why it is not
            .with_custom_certificate_verifier(Arc::new(self)))
    }
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (inner, believed) = match &self.rule {
            Rule::Anybody => return Ok(ServerCertVerified::assertion()),
            Rule::Fleet { inner, clock } => (Arc::clone(inner), clock.is_believed()),
            Rule::Pinned(ca) => {
                let mut presented = std::iter::once(end_entity).chain(intermediates);
                let pinned = presented.find(|c| fingerprint(c) == *ca);
                let pinned = pinned.ok_or(CertificateError::UnknownIssuer)?.clone().into_owned();
                // Before the enrolment nothing is known of this device's clock.
                (of_authorities(vec![pinned], &self.provider)?, false)
            }
        };
        late(believed, now, |now| inner.verify_server_cert(end_entity, intermediates, name, ocsp, now))
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

/// Verifies at `now`; when the certificate is not valid yet by a clock that is not believed, at its first second.
fn late(
    believed: bool,
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<ServerCertVerified, rustls::Error>,
) -> Result<ServerCertVerified, rustls::Error> {
    match verify(now) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before, ..
        })) if !believed => verify(not_before),
        verified => verified,
    }
}

/// The default verifier, with these authorities as its only roots.
fn of_authorities(
    certificates: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    certificates.into_iter().try_for_each(|c| roots.add(c))?;
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    built.map_err(|e| rustls::Error::General(e.to_string()))
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
        let verifier = Server { rule: Rule::Pinned(pin), provider: provider() };
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

    #[test]
    fn a_late_clock_that_nothing_keeps_is_not_held_against_the_server_and_an_end_is() {
        let fleet = pki();
        let leaf = |from: i32, until: i32| {
            let mut params = rcgen::CertificateParams::new(vec!["plimsoll.example".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            params.signed_by(&key, &fleet.issuer).unwrap().der().clone()
        };
        let identity = Identity {
            who: "acme.cam-1".parse().unwrap(),
            https: String::new(),
            mqtt: String::new(),
            certificate_pem: String::new(),
            ca_pem: fleet.ca.pem(),
            key_pem: String::new(),
        };
        let authorities = certificates("ca.pem", identity.ca_pem.as_bytes()).unwrap();
        let check = |trust, leaf: &CertificateDer<'_>, year: u64| {
            let provider = provider();
            let inner = of_authorities(authorities.clone(), &provider).unwrap();
            let server = Server { rule: Rule::Fleet { inner, clock: Clock::start(0, trust) }, provider };
            let name = ServerName::try_from("plimsoll.example").unwrap();
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs((year - 1970) * 31_557_600));
            server.verify_server_cert(leaf, &[], &name, &[], now).map(|_| ())
        };
        use crate::clock::ClockTrust::{Trusted, Untrusted};
        let future = leaf(2031, 2032);
        assert_eq!(check(Untrusted, &future, 1970), Ok(()), "the clock may be late");
        assert!(check(Trusted, &future, 1970).is_err(), "a clock that is kept is not");
        assert!(check(Untrusted, &leaf(2020, 2021), 2026).is_err(), "what has ended has ended");
        let strange = server(&pki(), "plimsoll.example");
        assert!(check(Untrusted, &strange, 2026).is_err(), "a late clock excuses nothing else");
    }

    #[test]
    fn trouble_is_found_below_other_errors() {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        let io = |e: rustls::Error| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
        assert_eq!(trouble(&unknown.clone()), Some(Trouble::ServerUnknown));
        let wrapped = rumqttc::v5::ConnectionError::Io(io(unknown));
        assert_eq!(trouble(&wrapped), Some(Trouble::ServerUnknown));
        assert_eq!(trouble(&std::io::Error::other(io(alert))), Some(Trouble::CertificateRefused));
        assert_eq!(trouble(&std::io::Error::other("cut")), None);
    }
}
