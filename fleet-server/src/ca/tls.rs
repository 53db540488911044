//! TLS for the listeners: ring, the CA as the only root for clients, a server certificate that can be exchanged
//! while connections come in.

use std::sync::{Arc, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use super::{Ca, CaError};

/// The server's own certificate; every handshake takes the newest.
#[derive(Debug)]
pub struct ServerCertificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Makes the first one.
    pub fn new(ca: &Ca, hosts: &[String], now: i64) -> Result<Arc<Self>, CaError> {
        Ok(Arc::new(Self { current: RwLock::new(make(ca, hosts, now)?) }))
    }

    /// Makes the next one; connections that stand keep theirs.
    pub fn renew(&self, ca: &Ca, hosts: &[String], now: i64) -> Result<(), CaError> {
        let next = make(ca, hosts, now)?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }
}

fn make(ca: &Ca, hosts: &[String], now: i64) -> Result<Arc<CertifiedKey>, CaError> {
    let (chain, key) = ca.server_certificate(hosts, now)?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
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
    /// For this authority and this certificate.
    pub fn new(ca: &Ca, certificate: &Arc<ServerCertificate>) -> Result<Self, CaError> {
        let https = config(ca, certificate, false, &[b"http/1.1", crate::gateway::ALPN])?;
        let mqtt = config(ca, certificate, true, &[])?;
        Ok(Self { https, mqtt })
    }
}

fn config(
    ca: &Ca,
    certificate: &Arc<ServerCertificate>,
    required: bool,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, CaError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let verifier =
        builder.build().map_err(|e| rustls::Error::General(format!("client certificates: {e}")))?;
    let resolver: Arc<dyn ResolvesServerCert> = Arc::<ServerCertificate>::clone(certificate);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}
