//! What the gateway asks of the rest of the server, and what it tells it.
//!
//! The gateway knows MQTT, identities and topics; it knows no payload and keeps nothing that must survive a
//! restart. Whatever must survive is behind this trait.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use plimsoll_protocol::wire::v1::{Topic, Up};
use plimsoll_protocol::{DeviceIdentity, TenantId};

use super::DeviceCertificate;

/// A publish of a device, its right to that topic already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Who sent it: from the certificate of the connection, never from the message.
    pub from: DeviceIdentity,
    /// Which of its topics.
    pub kind: Up,
    /// The message, unparsed. May be anything.
    pub payload: Bytes,
    /// QoS 1: the device waits for the commit and sends again without it.
    pub acknowledged: bool,
    /// Whether late subscribers should see it (births and wills).
    pub retain: bool,
    /// Sent by the gateway on the device's behalf because its connection died.
    pub is_will: bool,
}

/// A batch that could not be made durable. No PUBACK is sent for it and the devices send it again.
#[derive(Debug, thiserror::Error)]
#[error("a batch of reports could not be committed: {0}")]
pub struct CommitError(pub String);

/// Something the rest of the server may want to know. Delivered in order for each device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A device is connected. After a takeover it comes without a `Disconnected` before it.
    Connected {
        /// Who.
        identity: DeviceIdentity,
        /// From where.
        peer: SocketAddr,
    },
    /// A device has no connection any more.
    Disconnected {
        /// Who.
        identity: DeviceIdentity,
        /// It said goodbye; otherwise its will has been committed, or is about to be.
        graceful: bool,
    },
    /// Something was refused: a security event.
    Refused(Refused),
}

/// An attempt that access control refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// From where.
    pub peer: SocketAddr,
    /// Whose certificate it was, if it was a device's.
    pub identity: Option<DeviceIdentity>,
    /// What was tried on which object, for people; at most 400 bytes.
    pub what: String,
}

/// The rest of the server, as the gateway sees it.
pub trait Handler: Send + Sync + 'static {
    /// Makes a batch durable. PUBACKs go out only after `Ok`; on `Err` every connection with an acknowledged
    /// message in the batch is closed, and its device sends again. One call at a time, at most
    /// [`super::BATCH_ROWS`] messages and one read buffer; the order of each device is kept.
    fn commit(&self, batch: Arc<[Inbound]>) -> BoxFuture<'_, Result<(), CommitError>>;

    /// What the store would have a device find when it subscribes: its desired state, its tenant's settings.
    fn retained<'a>(&'a self, who: &'a DeviceIdentity) -> BoxFuture<'a, Vec<(Topic, Bytes)>>;

    /// The last `up/state` of every device, asked once at start, for dashboards that subscribe later.
    fn retained_states(&self) -> BoxFuture<'_, Vec<(DeviceIdentity, Bytes)>>;

    /// Whether this certificate may connect: known, not revoked, not replaced. Asked again after the connection
    /// is registered, so that a revocation followed by [`super::GatewayHandle::kick`] leaves no gap.
    fn is_allowed(&self, certificate: &DeviceCertificate) -> bool;

    /// The tenant that the bearer of an API token may watch. Asked at CONNECT and with every ping, so that a
    /// revoked token ends its connections. The token must not be logged.
    fn watcher(&self, token: &str) -> Option<TenantId>;

    /// Something happened. Called with a lock held: must not block, and must not call the gateway.
    fn notice(&self, notice: Notice);
}
