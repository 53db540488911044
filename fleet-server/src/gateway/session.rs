//! One MQTT connection without a socket: bytes in, [`Step`]s and bytes out. Both protocol versions in one shape.
//!
//! The state machine of the protocol (packet order, sizes, ids, receive maximum) is `mqtt-protocol-core`; this
//! file translates it, adds what a gateway does not offer (QoS 2, AUTH), and never touches a clock or the network,
//! so that any byte sequence can be tried on it.

use bytes::Bytes;
use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::{ConnectionOptions, Event};
use mqtt_protocol_core::mqtt::packet::{Packet, Qos, SubEntry};
use mqtt_protocol_core::mqtt::prelude::*;
use mqtt_protocol_core::mqtt::result_code::{DisconnectReasonCode, MqttError};
use mqtt_protocol_core::mqtt::{Connection, Version, role};
use plimsoll_protocol::wire::v1::MAX_PACKET_BYTES;

use super::packets::{self, Goodbye, Refusal};

/// Unacknowledged QoS 1 publishes of one client, either way. A device's outbox sends 20 at a time; at a round trip
/// of 200 ms over a mobile network that is 100 reports a second, and at 3 KiB each 60 KiB of memory.
pub(super) const INFLIGHT: u16 = 20;

/// Longest keepalive, in seconds: a dead connection is noticed in 30 minutes at worst. Mobile networks forget an
/// idle mapping after 5 to 30 minutes, so a longer one would only pretend that the connection lives.
pub(super) const MAX_KEEP_ALIVE_S: u16 = 20 * 60;

/// What a packet of the peer asks for.
#[derive(Debug)]
pub(super) enum Step {
    /// First packet. Must be answered with [`Session::accept`] or [`Session::refuse`] before the next step.
    Connect(Connect),
    /// A message, QoS 0 or 1.
    Publish(Publish),
    /// Must be answered with [`Session::subscribed`].
    Subscribe(Subscribe),
    /// Answered already.
    Unsubscribe(Vec<String>),
    /// The peer leaves.
    Goodbye {
        /// Version 5 clients may ask for their will.
        with_will: bool,
    },
    /// Ping or acknowledgement, dealt with.
    Nothing,
}

/// CONNECT.
#[derive(Debug, Clone)]
pub(super) struct Connect {
    pub(super) client_id: String,
    pub(super) password: Option<Vec<u8>>,
    pub(super) keep_alive_s: u16,
    pub(super) will: Option<Will>,
}

/// The message to send should the connection die.
#[derive(Debug, Clone)]
pub(super) struct Will {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
}

/// PUBLISH.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// Present with QoS 1.
    pub(super) id: Option<u16>,
}

/// SUBSCRIBE.
#[derive(Debug)]
pub(super) struct Subscribe {
    pub(super) id: u16,
    pub(super) filters: Vec<Wanted>,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) filter: String,
    /// Asked for QoS 1 or 2, of which 1 is granted at most.
    pub(super) acknowledged: bool,
    /// Retained messages are wanted now.
    pub(super) retained: bool,
}

/// A message for the peer.
#[derive(Debug, Clone)]
pub(super) struct Delivery<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) acknowledged: bool,
    pub(super) retain: bool,
}

/// The connection cannot go on. What there is to say about it is in the output already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the protocol: {0:?}")]
pub(super) struct Broken(pub(super) MqttError);

/// One connection's protocol state and the bytes waiting to be written.
pub(super) struct Session {
    core: Connection<role::Server>,
    out: Vec<u8>,
    inflight: u16,
}

impl Session {
    /// Before CONNECT.
    pub(super) fn new() -> Self {
        let options = ConnectionOptions::new().maximum_packet_size_recv(MAX_PACKET_BYTES);
        let mut core = Connection::with_options(Version::Undetermined, options);
        core.set_auto_ping_response(true);
        Self { core, out: Vec::new(), inflight: 0 }
    }

    /// The next packet in `input`, which is advanced past it; `None` when the rest is not a whole packet (it is
    /// kept inside).
    pub(super) fn next(&mut self, input: &mut Cursor<&[u8]>) -> Result<Option<Step>, Broken> {
        while (input.position() as usize) < input.get_ref().len() {
            let events = self.core.recv(input);
            if let Some(step) = self.apply(events)? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    /// Answers CONNECT; returns after how many seconds of silence the peer is taken for dead.
    pub(super) fn accept(&mut self, connect: &Connect) -> Result<f64, Broken> {
        let asked = connect.keep_alive_s;
        let impose = (asked == 0 || asked > MAX_KEEP_ALIVE_S).then_some(MAX_KEEP_ALIVE_S);
        let connack = packets::connack(self.version(), impose).map_err(Broken)?;
        self.send(connack)?;
        // Version 3.1.1 cannot be told a shorter keepalive; a longer one is its right, none at all is not.
        let keep_alive = match (self.version(), asked) {
            (_, 0) | (Version::V5_0, MAX_KEEP_ALIVE_S..) => MAX_KEEP_ALIVE_S,
            (_, asked) => asked,
        };
        Ok(f64::from(keep_alive) * 1.5)
    }

    /// Answers CONNECT with a refusal; the connection is over.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        if let Ok(packet) = packets::refusal(self.version(), refusal) {
            let _over_either_way = self.send(packet);
        }
    }

    /// Acknowledges a publish, or (version 5) says that it was refused.
    pub(super) fn acknowledge(&mut self, id: u16, allowed: bool) -> Result<(), Broken> {
        let puback = packets::puback(self.version(), id, allowed).map_err(Broken)?;
        self.send(puback)
    }

    /// Answers SUBSCRIBE: for each filter the granted "acknowledged", or `None` for refused.
    pub(super) fn subscribed(&mut self, id: u16, granted: &[Option<bool>]) -> Result<(), Broken> {
        let suback = packets::suback(self.version(), id, granted).map_err(Broken)?;
        self.send(suback)
    }

    /// Writes a message for the peer. `Ok(false)`: it is larger than the peer accepts and was left out. With
    /// [`Self::has_room`] false, an acknowledged message must wait.
    pub(super) fn deliver(&mut self, message: &Delivery<'_>) -> Result<bool, Broken> {
        let id = match message.acknowledged {
            true => Some(self.core.acquire_packet_id().map_err(Broken)?),
            false => None,
        };
        let publish = packets::publish(self.version(), message, id).map_err(Broken)?;
        match self.send(publish) {
            Ok(()) => {
                self.inflight += u16::from(id.is_some());
                Ok(true)
            }
            Err(Broken(MqttError::PacketTooLarge)) => {
                if let Some(id) = id {
                    let _released = self.core.release_packet_id(id);
                }
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    /// Whether another acknowledged message may be sent now.
    pub(super) fn has_room(&self) -> bool {
        let peer = self.core.get_receive_maximum_vacancy_for_send().unwrap_or(INFLIGHT);
        self.inflight < INFLIGHT && peer > 0
    }

    /// Tells a version 5 client why it is disconnected; version 3.1.1 has no word for it.
    pub(super) fn goodbye(&mut self, why: Goodbye) {
        if self.version() == Version::V5_0
            && let Ok(packet) = packets::disconnect(why)
        {
            let _over_either_way = self.send(packet);
        }
    }

    /// Whether refusals can be told to the peer packet by packet.
    pub(super) fn is_v5(&self) -> bool {
        self.version() == Version::V5_0
    }

    /// Bytes waiting to be written.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    fn version(&self) -> Version {
        self.core.get_protocol_version()
    }

    fn send(&mut self, packet: Packet) -> Result<(), Broken> {
        let events = self.core.send(packet);
        self.apply(events).map(drop)
    }

    /// Puts packets into the output and yields the one step that a received packet makes.
    fn apply(&mut self, events: Vec<Event>) -> Result<Option<Step>, Broken> {
        let (mut step, mut broken) = (None, None);
        for event in events {
            match event {
                Event::RequestSendPacket { packet, .. } => self.out.extend(packet.to_continuous_buffer()),
                Event::NotifyPacketReceived(packet) => step = Some(self.translate(packet)?),
                Event::NotifyPacketIdReleased(_) => self.inflight = self.inflight.saturating_sub(1),
                Event::NotifyError(error) => broken = Some(Broken(error)),
                // The keepalive is the shell's: it counts whole packets, as this does.
                Event::RequestTimerReset { .. } | Event::RequestTimerCancel(_) => {}
                // Comes with an error, or after a refusal or a goodbye of ours.
                Event::RequestClose => {}
            }
        }
        match broken {
            Some(Broken(MqttError::UnsupportedProtocolVersion)) if self.out.is_empty() => {
                self.out.extend(packets::CONNACK_UNSUPPORTED_VERSION);
                Err(Broken(MqttError::UnsupportedProtocolVersion))
            }
            Some(broken) => Err(broken),
            None => Ok(step),
        }
    }

    fn translate(&mut self, packet: Packet) -> Result<Step, Broken> {
        Ok(match packet {
            Packet::V3_1_1Connect(p) => Step::Connect(Connect {
                client_id: p.client_id().to_owned(),
                password: p.password().map(<[u8]>::to_vec),
                keep_alive_s: p.keep_alive(),
                will: will(p.will_topic(), p.will_payload(), p.will_retain(), p.will_qos())?,
            }),
            Packet::V5_0Connect(p) => Step::Connect(Connect {
                client_id: p.client_id().to_owned(),
                password: p.password().map(<[u8]>::to_vec),
                keep_alive_s: p.keep_alive(),
                will: will(p.will_topic(), p.will_payload(), p.will_retain(), p.will_qos())?,
            }),
            Packet::V3_1_1Publish(p) => {
                self.publish(p.topic_name(), p.payload().as_slice(), p.retain(), p.qos(), p.packet_id())?
            }
            Packet::V5_0Publish(p) => {
                self.publish(p.topic_name(), p.payload().as_slice(), p.retain(), p.qos(), p.packet_id())?
            }
            Packet::V3_1_1Subscribe(p) => subscribe(p.packet_id(), p.entries()),
            Packet::V5_0Subscribe(p) => subscribe(p.packet_id(), p.entries()),
            Packet::V3_1_1Unsubscribe(p) => {
                let filters = p.entries().iter().map(|f| f.as_str().to_owned()).collect();
                self.unsubscribed(p.packet_id(), filters)?
            }
            Packet::V5_0Unsubscribe(p) => {
                let filters = p.entries().iter().map(|f| f.as_str().to_owned()).collect();
                self.unsubscribed(p.packet_id(), filters)?
            }
            Packet::V3_1_1Disconnect(_) => Step::Goodbye { with_will: false },
            Packet::V5_0Disconnect(p) => Step::Goodbye {
                with_will: !matches!(p.reason_code(), None | Some(DisconnectReasonCode::NormalDisconnection)),
            },
            Packet::V3_1_1Puback(_) | Packet::V5_0Puback(_) => Step::Nothing,
            Packet::V3_1_1Pingreq(_) | Packet::V5_0Pingreq(_) => Step::Nothing,
            _ => {
                self.goodbye(Goodbye::Protocol);
                return Err(Broken(MqttError::ProtocolError));
            }
        })
    }

    fn publish(
        &mut self,
        topic: &str,
        payload: &[u8],
        retain: bool,
        qos: Qos,
        id: Option<u16>,
    ) -> Result<Step, Broken> {
        if qos == Qos::ExactlyOnce {
            // Reports carry their own identity and are counted once whatever the transport does.
            self.goodbye(Goodbye::Qos);
            return Err(Broken(MqttError::QosNotSupported));
        }
        let (topic, payload) = (topic.to_owned(), Bytes::copy_from_slice(payload));
        Ok(Step::Publish(Publish { topic, payload, retain, id }))
    }

    fn unsubscribed(&mut self, id: u16, filters: Vec<String>) -> Result<Step, Broken> {
        let unsuback = packets::unsuback(self.version(), id, filters.len()).map_err(Broken)?;
        self.send(unsuback)?;
        Ok(Step::Unsubscribe(filters))
    }
}

fn will(topic: Option<&str>, payload: Option<&[u8]>, retain: bool, qos: Qos) -> Result<Option<Will>, Broken> {
    let Some(topic) = topic else { return Ok(None) };
    if qos == Qos::ExactlyOnce {
        return Err(Broken(MqttError::QosNotSupported));
    }
    let payload = Bytes::copy_from_slice(payload.unwrap_or_default());
    Ok(Some(Will { topic: topic.to_owned(), payload, retain }))
}

fn subscribe(id: u16, entries: &[SubEntry]) -> Step {
    use mqtt_protocol_core::mqtt::packet::RetainHandling::DoNotSendRetained;
    let wanted = |entry: &SubEntry| Wanted {
        filter: entry.topic_filter().to_owned(),
        acknowledged: entry.sub_opts().qos() != Qos::AtMostOnce,
        retained: entry.sub_opts().rh() != DoNotSendRetained,
    };
    Step::Subscribe(Subscribe { id, filters: entries.iter().map(wanted).collect() })
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
