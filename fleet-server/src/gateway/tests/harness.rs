//! A gateway with a store that can be watched, stopped and broken, and a certificate authority.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use plimsoll_protocol::wire::v1::{Topic, Up};
use plimsoll_protocol::{DeviceIdentity, TenantId};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::gateway::{
    CommitError, Config, DeviceCertificate, Gateway, GatewayHandle, Handler, Inbound, Limits, Notice,
    RateLimit,
};

/// Longer than anything here takes on a loaded machine; waiting ends when the event comes.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const TOKEN: &str = "watch-acme";

pub fn id(text: &str) -> DeviceIdentity {
    text.parse().unwrap()
}

#[derive(Default)]
pub struct Seen {
    pub committed: Vec<Inbound>,
    pub notices: Vec<Notice>,
    pub revoked: BTreeSet<DeviceIdentity>,
    pub retained: BTreeMap<DeviceIdentity, Vec<(Topic, Bytes)>>,
}

impl Seen {
    pub fn wills(&self) -> usize {
        self.committed.iter().filter(|m| m.is_will).count()
    }
    pub fn refusals(&self) -> Vec<&str> {
        let refused = self.notices.iter().filter_map(|notice| match notice {
            Notice::Refused(refused) => Some(refused.what.as_str()),
            _ => None,
        });
        refused.collect()
    }
    pub fn has_left(&self, who: &str, graceful: bool) -> bool {
        self.notices.contains(&Notice::Disconnected { identity: id(who), graceful })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Works,
    /// Commits wait until this changes.
    Stopped,
    Fails,
    Panics,
}

/// The rest of the server, played by a vector.
pub struct Store {
    pub seen: Mutex<Seen>,
    changed: watch::Sender<u64>,
    pub mode: watch::Sender<Mode>,
    pub states: Vec<(DeviceIdentity, Bytes)>,
    pub token_revoked: AtomicBool,
}

impl Store {
    /// Waits until what was seen satisfies `holds`.
    pub async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|_| holds(&self.seen.lock().unwrap()));
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let seen = self.seen.lock().unwrap();
            panic!("never happened: {what}\ncommitted {:?}\nnotices {:?}", seen.committed, seen.notices);
        }
    }
    fn change(&self, with: impl FnOnce(&mut Seen)) {
        with(&mut self.seen.lock().unwrap());
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Handler for Store {
    fn commit(&self, batch: Arc<[Inbound]>) -> BoxFuture<'_, Result<(), CommitError>> {
        async move {
            let mut mode = self.mode.subscribe();
            let mode = *mode.wait_for(|m| *m != Mode::Stopped).await.unwrap();
            match mode {
                Mode::Fails => return Err(CommitError("the disk is full".into())),
                Mode::Panics => panic!("on purpose"),
                Mode::Works | Mode::Stopped => {
                    self.change(|seen| seen.committed.extend(batch.iter().cloned()))
                }
            }
            Ok(())
        }
        .boxed()
    }
    fn retained<'a>(&'a self, who: &'a DeviceIdentity) -> BoxFuture<'a, Vec<(Topic, Bytes)>> {
        let retained = self.seen.lock().unwrap().retained.get(who).cloned().unwrap_or_default();
        async move { retained }.boxed()
    }
    fn retained_states(&self) -> BoxFuture<'_, Vec<(DeviceIdentity, Bytes)>> {
        async { self.states.clone() }.boxed()
    }
    fn is_allowed(&self, certificate: &DeviceCertificate) -> bool {
        !self.seen.lock().unwrap().revoked.contains(certificate.identity())
    }
    fn watcher(&self, token: &str) -> Option<TenantId> {
        (token == TOKEN && !self.token_revoked.load(SeqCst)).then(|| TenantId::new("acme").unwrap())
    }
    fn notice(&self, notice: Notice) {
        self.change(|seen| seen.notices.push(notice));
    }
}

/// A gateway and what is needed to connect to it.
pub struct Fixture {
    pub gateway: GatewayHandle,
    pub store: Arc<Store>,
    pub tls: Arc<ServerConfig>,
    ca: CertifiedIssuer<'static, KeyPair>,
}

pub fn roomy() -> Limits {
    let rate = RateLimit { per_second: 1_000_000, burst: 1_000_000 };
    Limits { handshake_time: PATIENCE, write_time: PATIENCE, rate, ..Limits::default() }
}

impl Fixture {
    pub async fn start() -> Self {
        Self::start_with(roomy(), Vec::new()).await
    }

    pub async fn start_with(limits: Limits, states: Vec<(DeviceIdentity, Bytes)>) -> Self {
        let _installed_by_another_test = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let (chain, key) = issue(&ca, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
        let tls =
            ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();

        let store = Arc::new(Store {
            seen: Mutex::default(),
            changed: watch::Sender::new(0),
            mode: watch::Sender::new(Mode::Works),
            states,
            token_revoked: AtomicBool::new(false),
        });
        let tls = Arc::new(tls);
        let loopback = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            devices: loopback,
            devices_tls: tls.clone(),
            dashboards: loopback,
            dashboards_tls: None,
            limits,
        };
        let gateway = Gateway::start(config, store.clone()).await.unwrap();
        Self { gateway, store, tls, ca }
    }

    /// Another gateway on the same store, with these dashboards.
    pub async fn another(
        &self,
        dashboards: SocketAddr,
        dashboards_tls: Option<Arc<ServerConfig>>,
    ) -> std::io::Result<GatewayHandle> {
        let devices = "127.0.0.1:0".parse().unwrap();
        let devices_tls = self.tls.clone();
        let config = Config { devices, devices_tls, dashboards, dashboards_tls, limits: roomy() };
        Gateway::start(config, self.store.clone()).await
    }

    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// Certificate and key of a device, as PEM.
    pub fn device_pem(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            params(name, ExtendedKeyUsagePurpose::ClientAuth).signed_by(&key, &self.ca).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn device_certificate(&self, name: &str) -> DeviceCertificate {
        let (mut chain, _key) = issue(&self.ca, name, ExtendedKeyUsagePurpose::ClientAuth);
        DeviceCertificate::from_verified(chain.remove(0)).unwrap()
    }

    /// TLS of a client with this common name, or with none.
    pub fn client_tls(&self, name: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        Arc::new(match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (chain, key) = issue(&self.ca, name, ExtendedKeyUsagePurpose::ClientAuth);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }

    pub fn hold(&self, who: &str, kind: plimsoll_protocol::wire::v1::Down, payload: &'static str) {
        let entry = (Topic::Down(id(who), kind), Bytes::from(payload));
        self.store.seen.lock().unwrap().retained.entry(id(who)).or_default().push(entry);
    }
}

fn params(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let sans = if name == "localhost" { vec![name.to_owned(), "127.0.0.1".to_owned()] } else { vec![] };
    let mut params = CertificateParams::new(sans).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    params
}

fn issue(
    ca: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = params(name, usage).signed_by(&key, ca).unwrap();
    (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

pub fn up(who: &str, kind: Up) -> String {
    Topic::Up(id(who), kind).to_string()
}
