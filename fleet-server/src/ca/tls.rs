//! TLS for the listeners: ring, the fleet's authorities for clients, a server certificate that can be exchanged while
//! connections come in.

use std::sync::{Arc, PoisonError, RwLock};

use plimsoll_protocol::UnixMillis;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::clients::Clients;
use super::{Authorities, Ca, CaError};

/// The server's own certificate; every handshake takes the newest.
#[derive(Debug)]
pub struct ServerCertificate {
    hosts: Vec<String>,
    current: RwLock<Made>,
}

#[derive(Debug, Clone)]
struct Made {
    key: Arc<CertifiedKey>,
    until_ms: UnixMillis,
}

impl ServerCertificate {
    /// Makes the first one, for these host names and addresses.
    pub fn new(ca: &Ca, hosts: Vec<String>, now: UnixMillis) -> Result<Arc<Self>, CaError> {
        let current = RwLock::new(make(ca, &hosts, now)?);
        Ok(Arc::new(Self { hosts, current }))
    }

    /// Makes the next one; connections that stand keep theirs.
    pub fn renew(&self, ca: &Ca, now: UnixMillis) -> Result<(), CaError> {
        let next = make(ca, &self.hosts, now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Its end.
    pub fn until_ms(&self) -> UnixMillis {
        self.current.read().unwrap_or_else(PoisonError::into_inner).until_ms
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

fn make(ca: &Ca, hosts: &[String], now: UnixMillis) -> Result<Made, CaError> {
    let (chain, key, until_ms) = ca.server_certificate(hosts, now)?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Made { key: Arc::new(CertifiedKey::from_der(chain, key, &provider)?), until_ms })
}

/// One configuration for each kind of listener.
#[derive(Clone)]
pub struct TlsConfigs {
    /// HTTPS of devices: a client certificate is checked when there is one; routes that need it say so.
    pub https: Arc<ServerConfig>,
    /// MQTT of devices: no client certificate, no connection.
    pub mqtt: Arc<ServerConfig>,
}

impl TlsConfigs {
    /// For these authorities and this certificate.
    pub fn new(
        authorities: &Arc<Authorities>,
        certificate: &Arc<ServerCertificate>,
    ) -> Result<Self, CaError> {
        let https = config(authorities, certificate, false, &[b"http/1.1", crate::gateway::ALPN])?;
        let mqtt = config(authorities, certificate, true, &[])?;
        Ok(Self { https, mqtt })
    }
}

fn config(
    authorities: &Arc<Authorities>,
    certificate: &Arc<ServerCertificate>,
    strict: bool,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, CaError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = Clients { authorities: Arc::clone(authorities), strict };
    let resolver: Arc<dyn ResolvesServerCert> = Arc::<ServerCertificate>::clone(certificate);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    // A resumed session would skip the check of the client's certificate, and with it the end of its time.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
