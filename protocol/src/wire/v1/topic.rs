//! Topics: `plimsoll/1/{tenant}/{device}/up/…` and `…/dn/…`, of fixed depth.
//!
//! Parsing is total: a topic is one of these or it is nothing. What a device may use follows from its identity
//! alone, so access control is a comparison and not a rule file.

use std::fmt;

use crate::{DeviceId, DeviceIdentity, TenantId};

/// Before the tenant in every topic.
pub const ROOT: &str = "plimsoll/1";

/// What a device sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Up {
    /// Birth, will, last state. QoS 1, retained.
    State,
    /// Health, latest wins. QoS 0.
    Health,
    /// Closed measurement windows. QoS 1, through the outbox.
    Drift,
    /// Transitions and alarms. QoS 1, through the outbox, first priority.
    Event,
    /// Progress of the desired state. QoS 1, through the outbox.
    Job,
    /// What a candidate answered beside the version that runs. QoS 1, through the outbox.
    Shadow,
    /// zlib backfill: a JSON array of [`super::BatchEntry`]. QoS 1.
    Batch,
    /// Answers to commands. QoS 1.
    Response,
}

/// What a device receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Down {
    /// Goal state with its generation. QoS 1, retained.
    Desired,
    /// One-off commands, expiring in at most 300 s. QoS 1.
    Command,
    /// Ranges of reports that are committed. QoS 0.
    Ack,
}

impl Up {
    /// The last part of the topic.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Health => "health",
            Self::Drift => "drift",
            Self::Event => "event",
            Self::Job => "job",
            Self::Shadow => "shadow",
            Self::Batch => "batch",
            Self::Response => "rsp",
        }
    }
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::State,
        Self::Health,
        Self::Drift,
        Self::Event,
        Self::Job,
        Self::Shadow,
        Self::Batch,
        Self::Response,
    ];
}

impl Down {
    /// The last part of the topic.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Command => "cmd",
            Self::Ack => "ack",
        }
    }
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Desired, Self::Command, Self::Ack];
}

/// A topic of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// From a device.
    Up(DeviceIdentity, Up),
    /// To a device.
    Down(DeviceIdentity, Down),
    /// To every device of a tenant: [`super::FleetConfig`]. QoS 1, retained.
    AllConfig(TenantId),
}

/// A text that is not a topic of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a Plimsoll topic: plimsoll/1/<tenant>/<device>/up|dn/<kind>")]
pub struct TopicError(pub String);

impl Topic {
    /// Parses a topic name (not a filter).
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        Self::try_parse(text).ok_or_else(|| TopicError(text.chars().take(120).collect()))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(ROOT)?.strip_prefix('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        let tenant = TenantId::new(parts.first()?).ok()?;
        if parts.get(1..) == Some(&["all", "dn", "cfg"]) {
            return Some(Self::AllConfig(tenant));
        }
        let [_, device, direction, kind] = parts.as_slice() else { return None };
        let identity = DeviceIdentity { tenant, device: DeviceId::new(device).ok()? };
        match *direction {
            "up" => Up::ALL.into_iter().find(|k| k.as_str() == *kind).map(|k| Self::Up(identity, k)),
            "dn" => Down::ALL.into_iter().find(|k| k.as_str() == *kind).map(|k| Self::Down(identity, k)),
            _ => None,
        }
    }

    /// Whether a device with this identity may publish here (as itself, upwards, nothing else).
    pub fn may_publish(&self, who: &DeviceIdentity) -> bool {
        matches!(self, Self::Up(owner, _) if owner == who)
    }

    /// The filters that a device may subscribe to: exactly these texts, or any topic they match.
    pub fn subscriptions(who: &DeviceIdentity) -> [String; 2] {
        [
            format!("{ROOT}/{}/{}/dn/+", who.tenant, who.device),
            Self::AllConfig(who.tenant.clone()).to_string(),
        ]
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(who, kind) => write!(f, "{ROOT}/{}/{}/up/{}", who.tenant, who.device, kind.as_str()),
            Self::Down(who, kind) => write!(f, "{ROOT}/{}/{}/dn/{}", who.tenant, who.device, kind.as_str()),
            Self::AllConfig(tenant) => write!(f, "{ROOT}/{tenant}/all/dn/cfg"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(text: &str) -> DeviceIdentity {
        text.parse().unwrap()
    }

    #[test]
    fn every_topic_round_trips() {
        let cam = who("acme.cam-1");
        let all = Up::ALL.map(|k| Topic::Up(cam.clone(), k)).into_iter();
        let all = all.chain(Down::ALL.map(|k| Topic::Down(cam.clone(), k)));
        for topic in all.chain([Topic::AllConfig(cam.tenant.clone())]) {
            assert_eq!(Topic::parse(&topic.to_string()), Ok(topic));
        }
    }

    #[test]
    fn what_is_not_a_topic_is_nothing() {
        for bad in [
            "",
            "/",
            "plimsoll/1",
            "plimsoll/1/acme",
            "plimsoll/2/acme/cam/up/state",
            "plimsoll/1/acme/cam/up",
            "plimsoll/1/acme/cam/up/state/x",
            "plimsoll/1/acme/+/up/state",
            "plimsoll/1/acme/cam/up/#",
            "$share/g/plimsoll/1/acme/cam/up/state",
            "plimsoll/1/acme/cam/sideways/state",
            "é/x",
            "plimsoll/1/acme/cam/dn/state",
            "plimsoll/1//cam/up/state",
        ] {
            assert!(Topic::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_device_publishes_only_as_itself_and_only_upwards() {
        let cam = who("acme.cam-1");
        assert!(Topic::Up(cam.clone(), Up::Event).may_publish(&cam));
        assert!(!Topic::Up(who("acme.cam-2"), Up::Event).may_publish(&cam));
        assert!(!Topic::Up(who("other.cam-1"), Up::Event).may_publish(&cam));
        assert!(!Topic::Down(cam.clone(), Down::Desired).may_publish(&cam));
        assert!(!Topic::AllConfig(cam.tenant.clone()).may_publish(&cam));
    }
}
