//! What the server says, from bytes to values. Everything else is refused with words, counted and reported; nothing
//! that arrives here can end the agent.

use plimsoll_protocol::DeviceIdentity;
use plimsoll_protocol::wire::v1::{Ack, Command, Desired, Down, FleetConfig, MAX_COMMAND_ID, Topic};

/// Largest desired state: 8 models of about 1 KiB each, with room for their blocked digests.
const MAX_INBOUND: usize = 64 * 1024;

/// A message that was understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Inbound {
    /// What to run.
    Desired(Desired),
    /// What may leave the outbox.
    Ack(Ack),
    /// A one-off command.
    Command(Command),
    /// Settings of the fleet.
    Config(FleetConfig),
}

/// A message that was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message on {topic} refused: {why}")]
pub struct RefusedMessage {
    /// `message.foreign`, `message.malformed`, `message.unsupported`.
    pub code: &'static str,
    /// Topic, cut to 120 characters.
    pub topic: String,
    /// Why.
    pub why: String,
}

/// Parses one message for this device.
pub fn parse(who: &DeviceIdentity, topic: &str, payload: &[u8]) -> Result<Inbound, RefusedMessage> {
    let refuse = |code, why: String| RefusedMessage { code, topic: topic.chars().take(120).collect(), why };
    let malformed = |e: serde_json::Error| refuse("message.malformed", format!("not the JSON expected: {e}"));
    let parsed = Topic::parse(topic).map_err(|e| refuse("message.foreign", e.to_string()))?;
    if payload.len() > MAX_INBOUND {
        let why = format!("{} bytes; at most {MAX_INBOUND} are read", payload.len());
        return Err(refuse("message.malformed", why));
    }
    match parsed {
        Topic::Down(owner, kind) if owner == *who => match kind {
            Down::Desired => {
                let desired: Desired = serde_json::from_slice(payload).map_err(malformed)?;
                if desired.v != 1 {
                    let why = format!("desired state version {}; this agent reads 1: update it", desired.v);
                    return Err(refuse("message.unsupported", why));
                }
                Ok(Inbound::Desired(desired))
            }
            Down::Ack => serde_json::from_slice(payload).map(Inbound::Ack).map_err(malformed),
            Down::Command => {
                let command: Command = serde_json::from_slice(payload).map_err(malformed)?;
                if command.id.len() > MAX_COMMAND_ID {
                    let why = format!("a command's id is longer than {MAX_COMMAND_ID} bytes");
                    return Err(refuse("message.malformed", why));
                }
                Ok(Inbound::Command(command))
            }
        },
        Topic::AllConfig(tenant) if tenant == who.tenant => {
            serde_json::from_slice(payload).map(Inbound::Config).map_err(malformed)
        }
        _ => Err(refuse("message.foreign", format!("it is not for {who}"))),
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_protocol::wire::v1::CommandKind;

    use super::*;

    fn check(topic: &str, payload: &str) -> Result<Inbound, &'static str> {
        parse(&"acme.cam-1".parse().unwrap(), topic, payload.as_bytes()).map_err(|e| e.code)
    }

    #[test]
    fn what_is_for_this_device_is_understood_and_unknown_fields_are_tolerated() {
        let desired = r#"{"v":1,"generation":7,"models":[],"issued_ms":0,"of_a_newer_server":true}"#;
        let got = check("plimsoll/1/acme/cam-1/dn/desired", desired).unwrap();
        assert!(matches!(got, Inbound::Desired(d) if d.generation == 7));
        let got = check("plimsoll/1/acme/all/dn/cfg", r#"{"window_s":5}"#).unwrap();
        assert!(matches!(got, Inbound::Config(c) if c.window_s == Some(5)));
        for (text, what) in [
            (r#"{"id":"1","command":"pause"}"#, CommandKind::Pause),
            (
                r#"{"id":"1","command":"log","filter":"debug","for_s":9}"#,
                CommandKind::Log { filter: "debug".into(), for_s: 9 },
            ),
            (r#"{"id":"1","command":"of_a_newer_server","with":"more"}"#, CommandKind::Unknown),
        ] {
            let got = check("plimsoll/1/acme/cam-1/dn/cmd", text).unwrap();
            assert_eq!(got, Inbound::Command(Command { id: "1".into(), what }));
        }
    }

    #[test]
    fn foreign_and_damaged_messages_are_refused_by_kind() {
        let desired = r#"{"v":1,"generation":7,"models":[],"issued_ms":0}"#;
        for (topic, payload, code) in [
            ("plimsoll/1/acme/cam-2/dn/desired", desired, "message.foreign"),
            ("plimsoll/1/other/cam-1/dn/desired", desired, "message.foreign"),
            ("plimsoll/1/other/all/dn/cfg", "{}", "message.foreign"),
            ("plimsoll/1/acme/cam-1/up/state", "{}", "message.foreign"),
            ("something/else", desired, "message.foreign"),
            ("plimsoll/1/acme/cam-1/dn/desired", &desired[..20], "message.malformed"),
            ("plimsoll/1/acme/cam-1/dn/desired", "", "message.malformed"),
            ("plimsoll/1/acme/cam-1/dn/ack", "[]", "message.malformed"),
            ("plimsoll/1/acme/cam-1/dn/ack", &"[".repeat(60_000), "message.malformed"),
            ("plimsoll/1/acme/cam-1/dn/ack", &"x".repeat(MAX_INBOUND + 1), "message.malformed"),
            (
                "plimsoll/1/acme/cam-1/dn/desired",
                &desired.replace("\"v\":1", "\"v\":2"),
                "message.unsupported",
            ),
            ("plimsoll/1/acme/cam-1/dn/cmd", "{}", "message.malformed"),
            ("plimsoll/1/acme/cam-1/dn/cmd", r#"{"id":"1","command":"log"}"#, "message.malformed"),
            (
                "plimsoll/1/acme/cam-1/dn/cmd",
                &format!(r#"{{"id":"{}","command":"pause"}}"#, "x".repeat(65)),
                "message.malformed",
            ),
        ] {
            assert_eq!(check(topic, payload).unwrap_err(), code, "{topic} {:.40}", payload);
        }
    }
}
