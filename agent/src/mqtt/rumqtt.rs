//! The adapter to `rumqttc`: a task that makes one connection after another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, Packet, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use tokio::sync::mpsc;

use plimsoll_protocol::DeviceIdentity;
use plimsoll_protocol::wire::v1::{MAX_PACKET_BYTES, State, Topic, Up};

use crate::stamp::Stamp;

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

/// Everything needed to connect.
#[derive(Clone)]
pub struct Broker {
    /// Client id and topics.
    pub who: DeviceIdentity,
    /// Name in the server's certificate.
    pub host: String,
    /// Port.
    pub port: u16,
    /// With the device's certificate.
    pub tls: Arc<rustls::ClientConfig>,
    /// For the will.
    pub stamp: Stamp,
    /// Spread of the first contact, seconds.
    pub first_contact_spread_s: u32,
    /// Fixed for a device: its place in the spread.
    pub device_seed: u64,
}

/// Connects for ever, until the driver drops its end. Never publishes.
pub async fn run(broker: Broker, events: mpsc::Sender<LinkEvent>) {
    let mut backoff = Backoff::default();
    tokio::time::sleep(Duration::from_millis(first_contact_ms(
        broker.device_seed,
        broker.first_contact_spread_s,
    )))
    .await;
    for conn in 1_u64.. {
        let (client, mut poll) = AsyncClient::new(options(&broker, conn), QUEUE);
        let stood = Instant::now();
        let (was_up, reason) = match one_connection(&broker, conn, client, &mut poll, &events).await {
            Ok(ended) => ended,
            Err(DriverGone) => return,
        };
        drop(poll); // closes the socket now, not after the delay
        let lasted = if was_up { stood.elapsed().as_millis() } else { 0 };
        let retry_ms = backoff.ended(u64::try_from(lasted).unwrap_or(u64::MAX), crate::clock::random_u64());
        if events.send(LinkEvent::Down { conn, reason, retry_ms }).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(retry_ms)).await;
    }
}

/// The driver dropped its mailbox: the agent stops.
struct DriverGone;

/// Polls one connection to its end; says whether it ever stood, and why it ended.
async fn one_connection(
    broker: &Broker,
    conn: u64,
    client: AsyncClient,
    poll: &mut EventLoop,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(bool, String), DriverGone> {
    let mut was_up = false;
    loop {
        let event = match poll.poll().await {
            Ok(event) => event,
            Err(error) => return Ok((was_up, crate::causes(&error))),
        };
        let told = match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                let filters =
                    Topic::subscriptions(&broker.who).map(|path| Filter::new(path, QoS::AtLeastOnce));
                if client.try_subscribe_many(filters).is_err() {
                    return Ok((was_up, "the queue of a fresh connection is full".into()));
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

fn options(broker: &Broker, conn: u64) -> MqttOptions {
    let mut options = MqttOptions::new(broker.who.to_string(), broker.host.clone(), broker.port);
    let will = broker.stamp.json(0, State::Offline { boot: broker.stamp.boot, conn });
    let topic = Topic::Up(broker.who.clone(), Up::State).to_string();
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_S);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(broker.tls.clone())))
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
