//! The connection to the server: MQTT v5, one connection after another, each a value of its own.
//!
//! What was measured of the client library decides the shape: on a reconnect it silently drops everything that was
//! queued or unacknowledged, it has no back-off, and publishing from inside its poll loop can deadlock. So the
//! **outbox is the truth**: [`Outflow`] says which reports to publish next and only the server's application
//! acknowledgement ([`plimsoll_protocol::wire::v1::Ack`]) removes one. Every connection gets a fresh client with a
//! fresh will, and the task that polls it never publishes; it hands the driver a [`Link`] instead.
//!
//! Direction of waiting: the poll task may wait for the driver's mailbox, the driver never waits for the link
//! (a full link answers [`Full`]), so the two cannot wait for each other.

mod backoff;
pub mod batch;
mod inbound;
mod outflow;
mod rumqtt;

use bytes::Bytes;
use plimsoll_protocol::wire::v1::Topic;

use crate::tls::Trouble;

pub use backoff::Backoff;
pub use inbound::{Inbound, RefusedMessage, parse};
pub use outflow::{Outflow, RESEND_MS, ReportId, WINDOW};
pub use rumqtt::{Broker, run};

/// A message on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Topic,
    /// What.
    pub payload: Vec<u8>,
    /// QoS 1 when true, 0 otherwise.
    pub assured: bool,
    /// The server keeps it for later subscribers.
    pub retain: bool,
    /// The server may drop it after so many seconds.
    pub expiry_s: Option<u32>,
}

/// The link's queue is full or the connection is gone; the message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link takes no message now")]
pub struct Full;

/// One live connection. Neither call waits.
pub trait Link: Send {
    /// Queues a message. Does not say that it arrived.
    fn publish(&self, message: Outgoing) -> Result<(), Full>;
    /// Ends the connection after what is queued, so that the server does not send the will.
    fn disconnect(&self) -> Result<(), Full>;
}

/// What happens on the link.
pub enum LinkEvent {
    /// A connection stands and is subscribed; the birth must be published now.
    Up {
        /// Counts the connections of this boot; the same number is in the will.
        conn: u64,
        /// To publish with until [`LinkEvent::Down`].
        link: Box<dyn Link>,
    },
    /// A message came.
    Message {
        /// As received, not yet believed.
        topic: String,
        /// As received.
        payload: Bytes,
    },
    /// The server refused a subscription: orders will not arrive on this connection.
    SubscriptionRefused(String),
    /// The connection ended or could not be made; the next attempt follows by itself.
    Down {
        /// Which.
        conn: u64,
        /// Why.
        reason: String,
        /// What it says about certificates.
        trouble: Option<Trouble>,
        /// When the next attempt is made, milliseconds from now.
        retry_ms: u64,
    },
}

impl std::fmt::Debug for LinkEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Up { conn, .. } => write!(f, "Up({conn})"),
            Self::Message { topic, payload } => write!(f, "Message({topic}, {} bytes)", payload.len()),
            Self::SubscriptionRefused(why) => write!(f, "SubscriptionRefused({why})"),
            Self::Down { conn, reason, retry_ms, .. } => write!(f, "Down({conn}, {reason}, {retry_ms} ms)"),
        }
    }
}
