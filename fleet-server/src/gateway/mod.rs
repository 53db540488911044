//! The server's own MQTT endpoint, versions 3.1.1 and 5: a gateway, not a broker.
//!
//! Every topic is known and devices never talk to each other, so access control is a comparison of the
//! connection's identity with a topic ([`access`]), a PUBACK can mean *committed to the store* ([`ingest`]), and
//! there are no sessions: what a device must know is in the store and is offered whenever it subscribes.
//!
//! ```text
//! listener ── handshake ── connection ── session (protocol, no I/O)
//!                              │  ├─ device     publishes own up/…, hears own dn/… and all/dn/cfg
//!                              │  └─ dashboard  hears up/… of its tenant, says nothing
//!                              └─ ingest (one task): batches ─ Handler::commit ─ PUBACK ─ dashboards
//! ```
//!
//! One connection is one task. It alone reads, writes and waits for its peer; others reach it through a bounded
//! mailbox and never wait for it: a full mailbox is an answer. The registry is the one owner of who is connected.
//!
//! Deliberately absent: QoS 2 (reports carry their identity and are counted once), sessions, shared
//! subscriptions, topic aliases, wills other than a device's own state, anything from one device to another.

mod access;
mod connection;
mod dashboard;
mod device;
mod handler;
mod identity;
mod ingest;
mod link;
mod listener;
mod packets;
mod registry;
mod session;
mod stats;
mod throttle;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use plimsoll_protocol::wire::v1::{Down, Topic};
use plimsoll_protocol::{DeviceIdentity, TenantId};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

pub use handler::{CommitError, Handler, Inbound, Notice, Refused};
pub use identity::{CertificateError, DeviceCertificate};
pub use ingest::{BATCH_ROWS, BATCH_TIME};
pub use registry::SendError;
pub use stats::Stats;
pub use throttle::RateLimit;

use registry::{Kick, Mail, Registry};
use stats::Counters;
use throttle::Throttle;

/// ALPN name with which a client of the HTTPS port asks for MQTT instead (firewalls that pass 443 only).
pub const ALPN: &[u8] = b"mqtt";

/// Where to listen and how much to bear.
#[derive(Debug, Clone)]
pub struct Config {
    /// For devices, always TLS.
    pub devices: SocketAddr,
    /// Must demand and verify a client certificate.
    pub devices_tls: Arc<ServerConfig>,
    /// For dashboards.
    pub dashboards: SocketAddr,
    /// `None` is for loopback only.
    pub dashboards_tls: Option<Arc<ServerConfig>>,
    /// The rest.
    pub limits: Limits,
}

/// What the gateway bears before it says no.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections of all kinds. 20,000 at a budget of 40 KiB each are 800 MB.
    pub connections: usize,
    /// Connections between accept and CONNACK. A mutual handshake costs one to two milliseconds of a core, so
    /// 1,024 are the work of a second; the rest waits in the listen queue.
    pub handshakes: usize,
    /// From accept to CONNECT. TLS needs three round trips and CONNECT one: at 2 s each, on a bad mobile link,
    /// 8 s, and a little.
    pub handshake_time: Duration,
    /// Time a peer has to take what it is sent. A desired state of 3 KiB at 1 KiB/s, three times over.
    pub write_time: Duration,
    /// Publishes of one device.
    pub rate: RateLimit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            handshakes: 1_024,
            handshake_time: Duration::from_secs(10),
            write_time: Duration::from_secs(10),
            rate: RateLimit::default(),
        }
    }
}

/// Refusals that are reported one by one; more are only counted. A wrong configuration or a first attempt shows
/// itself in a few, and 10 a second written to the store as events do not fill a disk overnight (900,000 at 300
/// bytes are 260 MB).
const REFUSALS_REPORTED: RateLimit = RateLimit { per_second: 10, burst: 100 };

/// What every task of the gateway shares.
struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    registry: Registry,
    counters: Counters,
    ingest: mpsc::Sender<ingest::Ask>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    stopping: watch::Sender<bool>,
    started: Instant,
    refusals: Mutex<Throttle>,
}

impl Shared {
    /// Returns when the gateway is to stop.
    async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // Fails only without a sender, and this is its owner.
        let _stop = stopping.wait_for(|stop| *stop).await;
    }

    /// Reports a security event, within reason.
    fn refused(&self, refused: Refused) {
        let now = self.started.elapsed();
        if self.refusals.lock().unwrap_or_else(PoisonError::into_inner).allows(now) {
            self.handler.notice(Notice::Refused(refused));
        } else {
            self.counters.refusals_not_reported.one();
        }
    }
}

/// A running gateway. Cheap to clone.
#[derive(Clone)]
pub struct GatewayHandle {
    shared: Arc<Shared>,
    devices: SocketAddr,
    dashboards: SocketAddr,
}

/// Starts gateways.
pub struct Gateway;

impl Gateway {
    /// Asks the handler for the last states, binds both listeners and serves until [`GatewayHandle::shutdown`].
    /// Refuses to take tokens in the clear anywhere but on loopback.
    pub async fn start(config: Config, handler: Arc<dyn Handler>) -> io::Result<GatewayHandle> {
        if config.dashboards_tls.is_none() && !config.dashboards.ip().is_loopback() {
            let text = format!(
                "will not listen on {} for dashboards without TLS: API tokens would pass in the clear; configure \
                 TLS for dashboards or listen on 127.0.0.1",
                config.dashboards
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let states = handler.retained_states().await;
        let devices = bind(config.devices, "devices").await?;
        let dashboards = bind(config.dashboards, "dashboards").await?;
        let addresses = (devices.local_addr()?, dashboards.local_addr()?);

        let (ingest, asks) = mpsc::channel(ingest::QUEUE);
        let shared = Arc::new(Shared {
            handler,
            limits: config.limits,
            registry: Registry::new(states),
            counters: Counters::default(),
            ingest,
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            handshakes: Arc::new(Semaphore::new(config.limits.handshakes)),
            stopping: watch::Sender::new(false),
            started: Instant::now(),
            refusals: Mutex::new(Throttle::new(REFUSALS_REPORTED, Duration::ZERO)),
        });
        tokio::spawn(ingest::run(shared.clone(), asks));
        let tls = listener::Kind::Devices(config.devices_tls);
        tokio::spawn(listener::accept(shared.clone(), devices, tls));
        let plain = listener::Kind::Dashboards(config.dashboards_tls);
        tokio::spawn(listener::accept(shared.clone(), dashboards, plain));
        Ok(GatewayHandle { shared, devices: addresses.0, dashboards: addresses.1 })
    }
}

async fn bind(address: SocketAddr, whom: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        io::Error::new(e.kind(), format!("cannot listen on {address} for MQTT of {whom}: {e}; is it in use?"))
    })
}

impl GatewayHandle {
    /// Where devices connect (the port that was given, or chosen for port 0).
    pub fn devices_address(&self) -> SocketAddr {
        self.devices
    }

    /// Where dashboards connect.
    pub fn dashboards_address(&self) -> SocketAddr {
        self.dashboards
    }

    /// Sends a message to a connected device; it passes on only if the device subscribed to the topic.
    ///
    /// `retain` says that the store holds it as truth and the handler offers it at the next subscribe: persist
    /// first, then send. Such a message is never lost: a device whose mailbox is full is disconnected, so that
    /// it returns and asks. Does not wait, and does not tell whether the device received it.
    pub fn send(
        &self,
        to: &DeviceIdentity,
        kind: Down,
        payload: Bytes,
        retain: bool,
    ) -> Result<(), SendError> {
        let topic = Topic::Down(to.clone(), kind);
        let sent = self.shared.registry.send(to, Mail { topic, payload, retained: retain });
        if retain && sent == Err(SendError::Busy) {
            self.shared.counters.devices_too_slow.one();
            self.shared.registry.kick(to, Kick::TooSlow);
        }
        sent
    }

    /// Sends its settings to every connected device of a tenant; returns how many have it in their mailbox. The
    /// others get it when they subscribe.
    pub fn broadcast_config(&self, tenant: &TenantId, payload: Bytes) -> usize {
        let of_tenant = self.connected().into_iter().filter(|who| who.tenant == *tenant);
        let topic = Topic::AllConfig(tenant.clone());
        of_tenant
            .filter(|who| {
                let mail = Mail { topic: topic.clone(), payload: payload.clone(), retained: true };
                let sent = self.shared.registry.send(who, mail);
                if sent == Err(SendError::Busy) {
                    self.shared.counters.devices_too_slow.one();
                    self.shared.registry.kick(who, Kick::TooSlow);
                }
                sent.is_ok()
            })
            .count()
    }

    /// Ends the connection of a device, by an operator's order; `false` when it has none.
    pub fn kick(&self, who: &DeviceIdentity) -> bool {
        self.shared.registry.kick(who, Kick::Administrative)
    }

    /// Who is connected now.
    pub fn connected(&self) -> BTreeSet<DeviceIdentity> {
        self.shared.registry.connected()
    }

    /// Counters for `/metrics`.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// Serves MQTT on a connection that another listener accepted and verified (ALPN [`ALPN`] on the HTTPS port)
    /// until it ends. The same limits and rules hold.
    pub async fn serve_stream<S>(&self, stream: S, certificate: DeviceCertificate, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = self.shared.clone();
        shared.counters.accepted.one();
        let (Ok(_connection), Ok(handshake)) =
            (shared.connections.clone().try_acquire_owned(), shared.handshakes.clone().try_acquire_owned())
        else {
            return shared.counters.over_limit.one();
        };
        let connect_by = Instant::now() + shared.limits.handshake_time;
        let door = connection::Door::Device(Some(certificate));
        let arrival = connection::Arrival { stream: Box::new(stream), door, peer, connect_by, handshake };
        listener::contain(&shared.clone(), connection::serve(shared, arrival)).await;
    }

    /// Stops listening, says goodbye to every client (no will is sent: it is the server that leaves), commits
    /// what was received, and returns; at the latest after `patience` for the clients.
    pub async fn shutdown(&self, patience: Duration) {
        self.shared.stopping.send_replace(true);
        self.shared.registry.kick_all(Kick::ShuttingDown);
        let all = u32::try_from(self.shared.limits.connections).unwrap_or(u32::MAX);
        let everyone_left = self.shared.connections.acquire_many(all);
        if timeout(patience, everyone_left).await.is_err() {
            tracing::warn!("some MQTT connections did not end in {patience:?} and are abandoned");
        }
        ingest::stop(&self.shared.ingest).await;
    }
}

#[cfg(test)]
mod tests;
