//! Packets that the gateway sends, once for both protocol versions.

use mqtt_protocol_core::mqtt::Version;
use mqtt_protocol_core::mqtt::packet::{
    MaximumQos, Packet, Property, Qos, ReceiveMaximum, ServerKeepAlive, SessionExpiryInterval,
    SharedSubscriptionAvailable, SubscriptionIdentifierAvailable, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, ConnectReturnCode, DisconnectReasonCode, MqttError, PubackReasonCode,
    SubackReasonCode, SubackReturnCode, UnsubackReasonCode,
};

use super::session::{Delivery, INFLIGHT};

/// CONNACK 1, "unacceptable protocol version", to a client of MQTT 3.1 or of none.
pub(super) const CONNACK_UNSUPPORTED_VERSION: [u8; 4] = [0x20, 2, 0, 1];

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client id is not the certificate's identity.
    ClientId,
    /// No such token.
    Password,
    /// The certificate names no device, or one that may not connect, or the will is not its to send.
    NotAuthorized,
}

/// Why a version 5 client is disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// Packet out of order or of a kind not offered.
    Protocol,
    /// QoS 2.
    Qos,
    /// Too many refused attempts, or a dashboard that publishes.
    NotAuthorized,
    /// The store did not commit.
    Busy,
    /// Nothing came for one and a half keepalives.
    KeepAlive,
    /// A newer connection has this identity.
    TakenOver,
    /// Disabled by an operator.
    Administrative,
    /// The server stops.
    ShuttingDown,
    /// Faster than allowed, or too slow to take its orders.
    Quota,
}

type Built = Result<Packet, MqttError>;

/// Success, with what this server offers. Sessions are not kept: what a device must know is in the store.
pub(super) fn connack(version: Version, keep_alive_s: Option<u16>) -> Built {
    if version == Version::V3_1_1 {
        let ack = v3_1_1::Connack::builder().session_present(false).return_code(ConnectReturnCode::Accepted);
        return Ok(ack.build()?.into());
    }
    let mut props: Vec<Property> = vec![
        ReceiveMaximum::new(INFLIGHT)?.into(),
        MaximumQos::new(1)?.into(),
        SessionExpiryInterval::new(0)?.into(),
        SharedSubscriptionAvailable::new(0)?.into(),
        SubscriptionIdentifierAvailable::new(0)?.into(),
    ];
    if let Some(seconds) = keep_alive_s {
        props.push(ServerKeepAlive::new(seconds)?.into());
    }
    let ack = v5_0::Connack::builder().session_present(false).reason_code(ConnectReasonCode::Success);
    Ok(ack.props(props).build()?.into())
}

pub(super) fn refusal(version: Version, refusal: Refusal) -> Built {
    let (v3, v5) = match refusal {
        Refusal::ClientId => {
            (ConnectReturnCode::IdentifierRejected, ConnectReasonCode::ClientIdentifierNotValid)
        }
        Refusal::Password => {
            (ConnectReturnCode::BadUserNameOrPassword, ConnectReasonCode::BadUserNameOrPassword)
        }
        Refusal::NotAuthorized => (ConnectReturnCode::NotAuthorized, ConnectReasonCode::NotAuthorized),
    };
    match version {
        Version::V5_0 => Ok(v5_0::Connack::builder().session_present(false).reason_code(v5).build()?.into()),
        _ => Ok(v3_1_1::Connack::builder().session_present(false).return_code(v3).build()?.into()),
    }
}

pub(super) fn puback(version: Version, id: u16, allowed: bool) -> Built {
    match (version, allowed) {
        (Version::V5_0, true) => Ok(v5_0::Puback::builder().packet_id(id).build()?.into()),
        (Version::V5_0, false) => {
            let ack = v5_0::Puback::builder().packet_id(id).reason_code(PubackReasonCode::NotAuthorized);
            Ok(ack.build()?.into())
        }
        _ => Ok(v3_1_1::Puback::builder().packet_id(id).build()?.into()),
    }
}

pub(super) fn suback(version: Version, id: u16, granted: &[Option<bool>]) -> Built {
    if version == Version::V5_0 {
        let codes = granted.iter().map(|g| match g {
            Some(false) => SubackReasonCode::GrantedQos0,
            Some(true) => SubackReasonCode::GrantedQos1,
            None => SubackReasonCode::NotAuthorized,
        });
        return Ok(v5_0::Suback::builder().packet_id(id).reason_codes(codes.collect()).build()?.into());
    }
    let codes = granted.iter().map(|g| match g {
        Some(false) => SubackReturnCode::SuccessMaximumQos0,
        Some(true) => SubackReturnCode::SuccessMaximumQos1,
        None => SubackReturnCode::Failure,
    });
    Ok(v3_1_1::Suback::builder().packet_id(id).return_codes(codes.collect()).build()?.into())
}

pub(super) fn unsuback(version: Version, id: u16, filters: usize) -> Built {
    if version == Version::V5_0 {
        let codes = vec![UnsubackReasonCode::Success; filters];
        return Ok(v5_0::Unsuback::builder().packet_id(id).reason_codes(codes).build()?.into());
    }
    Ok(v3_1_1::Unsuback::builder().packet_id(id).build()?.into())
}

pub(super) fn publish(version: Version, message: &Delivery<'_>, id: Option<u16>) -> Built {
    let qos = if id.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce };
    if version == Version::V5_0 {
        let packet = v5_0::Publish::builder().topic_name(message.topic)?.payload(message.payload);
        let packet = packet.qos(qos).retain(message.retain).packet_id(id);
        return Ok(packet.build()?.into());
    }
    let packet = v3_1_1::Publish::builder().topic_name(message.topic)?.payload(message.payload);
    let packet = packet.qos(qos).retain(message.retain).packet_id(id);
    Ok(packet.build()?.into())
}

pub(super) fn disconnect(why: Goodbye) -> Built {
    let reason = match why {
        Goodbye::Protocol => DisconnectReasonCode::ProtocolError,
        Goodbye::Qos => DisconnectReasonCode::QosNotSupported,
        Goodbye::NotAuthorized => DisconnectReasonCode::NotAuthorized,
        Goodbye::Busy => DisconnectReasonCode::ServerBusy,
        Goodbye::KeepAlive => DisconnectReasonCode::KeepAliveTimeout,
        Goodbye::TakenOver => DisconnectReasonCode::SessionTakenOver,
        Goodbye::Administrative => DisconnectReasonCode::AdministrativeAction,
        Goodbye::ShuttingDown => DisconnectReasonCode::ServerShuttingDown,
        Goodbye::Quota => DisconnectReasonCode::QuotaExceeded,
    };
    Ok(v5_0::Disconnect::builder().reason_code(reason).build()?.into())
}
