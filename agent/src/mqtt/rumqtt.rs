//! The adapter to `rumqttc`: a task that makes one connection after another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, Filter, LastWill, Packet, PublishProperties, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use tokio::sync::{mpsc, watch};

use plimsoll_protocol::DeviceIdentity;
use plimsoll_protocol::wire::v1::{MAX_PACKET_BYTES, State, Topic, Up};

use crate::stamp::Stamp;
use crate::tls::{self, Trouble};

use super::backoff::{Backoff, first_contact_ms};
use super::{Full, Link, LinkEvent, Outgoing};

/// Unacknowledged publishes that the library keeps. Its default of 65,535 slots takes 13.9 MB; 20 take 17 KiB and
/// carry 20 reports a round trip, 1,000 a second when the server commits every 20 ms.
const IN_FLIGHT: u16 = 20;
/// Messages between driver and library: a window of reports, its resends, birth and health.
const QUEUE: usize = 64;
/// A dead server is noticed after two of these, a dead device by the server after one and a half.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// TCP, TLS and CONNACK together: a full mTLS handshake takes 2 s on a slow ARM core over a bad link; ten times that.
const CONNECT_S: u64 = 20;
/// Time for a goodbye to leave before a connection is made anew.
const GOODBYE: Duration = Duration::from_secs(2);

/// Everything needed to connect.
#[derive(Clone)]
pub struct Broker {
    /// Client id and topics.
    pub who: DeviceIdentity,
    /// Name in the server's certificate.
    pub host: String,
    /// Port.
    pub port: u16,
    /// With the device's certificate. When it changes, the connection is made anew with the next one.
    pub tls: watch::Receiver<Arc<rustls::ClientConfig>>,
    /// For the will.
    pub stamp: Stamp,
    /// Spread of the first contact, seconds.
    pub first_contact_spread_s: u32,
    /// Fixed for a device: its place in the spread.
    pub device_seed: u64,
}

/// Connects for ever, until the driver drops its end. Never publishes.
pub async fn run(mut broker: Broker, events: mpsc::Sender<LinkEvent>) {
    let mut backoff = Backoff::default();
    tokio::time::sleep(Duration::from_millis(first_contact_ms(
        broker.device_seed,
        broker.first_contact_spread_s,
    )))
    .await;
    for conn in 1_u64.. {
        let config = Arc::clone(&broker.tls.borrow_and_update());
        let (client, mut poll) = AsyncClient::new(options(&broker, config, conn), QUEUE);
        let stood = Instant::now();
        let mut tls = broker.tls.clone();
        let ended = tokio::select! {
            ended = one_connection(&broker, conn, client.clone(), &mut poll, &events) => ended,
            () = changed(&mut tls) => {
                leave(&client, &mut poll).await;
                Ok(Ended { was_up: true, reason: "made anew with the new certificate".into(), trouble: None })
            }
        };
        let Ok(Ended { was_up, reason, trouble }) = ended else { return };
        drop(poll); // closes the socket now, not after the delay
        let lasted = if was_up { stood.elapsed().as_millis() } else { 0 };
        let retry_ms = match broker.tls.has_changed() {
            Ok(true) => 0, // no failure, so nothing to wait for
            _ => backoff.ended(u64::try_from(lasted).unwrap_or(u64::MAX), crate::clock::random_u64()),
        };
        if events.send(LinkEvent::Down { conn, reason, trouble, retry_ms }).await.is_err() {
            return;
        }
        let mut tls = broker.tls.clone();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(retry_ms)) => {}
            () = changed(&mut tls) => {} // what was refused may be taken now
        }
    }
}

/// Returns when there is another configuration than the last that was looked at.
async fn changed(tls: &mut watch::Receiver<Arc<rustls::ClientConfig>>) {
    if tls.changed().await.is_err() {
        std::future::pending().await // nobody will change it any more
    }
}

/// Says goodbye, so that the server sends no will, and lets it leave.
async fn leave(client: &AsyncClient, poll: &mut EventLoop) {
    if client.try_disconnect().is_ok() {
        let gone = async { while poll.poll().await.is_ok() {} };
        let _ = tokio::time::timeout(GOODBYE, gone).await; // a server that does not take it takes the will
    }
}

/// How a connection ended.
struct Ended {
    /// Whether it ever stood.
    was_up: bool,
    reason: String,
    trouble: Option<Trouble>,
}

/// The driver dropped its mailbox: the agent stops.
struct DriverGone;

/// Polls one connection to its end.
async fn one_connection(
    broker: &Broker,
    conn: u64,
    client: AsyncClient,
    poll: &mut EventLoop,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<Ended, DriverGone> {
    let mut was_up = false;
    loop {
        let event = match poll.poll().await {
            Ok(event) => event,
            Err(error) => {
                return Ok(Ended { was_up, reason: crate::causes(&error), trouble: trouble(&error) });
            }
        };
        let told = match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                let filters =
                    Topic::subscriptions(&broker.who).map(|path| Filter::new(path, QoS::AtLeastOnce));
                if client.try_subscribe_many(filters).is_err() {
                    let reason = "the queue of a fresh connection is full".into();
                    return Ok(Ended { was_up, reason, trouble: None });
                }
                was_up = true;
                let link = Box::new(RumqttLink { client: client.clone() });
                events.send(LinkEvent::Up { conn, link }).await
            }
            Event::Incoming(Packet::Publish(publish)) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                events.send(LinkEvent::Message { topic, payload: publish.payload }).await
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let refused = ack.return_codes.iter().find(|c| !matches!(c, SubscribeReasonCode::Success(_)));
                match refused {
                    Some(code) => events.send(LinkEvent::SubscriptionRefused(format!("{code:?}"))).await,
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        };
        told.map_err(|_| DriverGone)?;
    }
}

/// A server that refuses a device by name may do so for its certificate: the renewal will say what it is.
fn trouble(error: &ConnectionError) -> Option<Trouble> {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => {
            Some(Trouble::CertificateRefused)
        }
        // Its source is not told by the library: an alert of TLS that comes with the first bytes of the server.
        ConnectionError::MqttState(StateError::Deserialization(error)) => tls::trouble(error),
        other => tls::trouble(other),
    }
}

fn options(broker: &Broker, config: Arc<rustls::ClientConfig>, conn: u64) -> MqttOptions {
    let mut options = MqttOptions::new(broker.who.to_string(), broker.host.clone(), broker.port);
    let will = broker.stamp.json(0, State::Offline { boot: broker.stamp.boot, conn });
    let topic = Topic::Up(broker.who.clone(), Up::State).to_string();
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_S);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)))
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_start(true)
        .set_connection_timeout(CONNECT_S)
        .set_max_packet_size(Some(MAX_PACKET_BYTES))
        .set_receive_maximum(Some(IN_FLIGHT))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT)
        .set_last_will(LastWill::new(topic, will, QoS::AtLeastOnce, true, None))
        .set_network_options(network);
    options
}

struct RumqttLink {
    client: AsyncClient,
}

impl Link for RumqttLink {
    fn publish(&self, message: Outgoing) -> Result<(), Full> {
        let qos = if message.assured { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let (topic, properties) = (
            message.topic.to_string(),
            PublishProperties { message_expiry_interval: message.expiry_s, ..PublishProperties::default() },
        );
        let sent =
            self.client.try_publish_with_properties(topic, qos, message.retain, message.payload, properties);
        sent.map_err(|_| Full)
    }

    fn disconnect(&self) -> Result<(), Full> {
        self.client.try_disconnect().map_err(|_| Full)
    }
}
