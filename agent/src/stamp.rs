//! The envelope around every report: which state folder, which boot, when.

use plimsoll_protocol::Incarnation;
use plimsoll_protocol::wire::v1::Envelope;
use serde::Serialize;

use crate::clock::Clock;

/// What all envelopes of one boot have in common.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Of the state folder.
    pub inc: Incarnation,
    /// Boot counter, persisted before anything is sent under it.
    pub boot: u64,
    /// For time stamps.
    pub clock: Clock,
}

impl Stamp {
    /// A report in its envelope, as JSON. `seq` is 0 for state and health.
    pub fn json<T: Serialize>(&self, seq: u64, body: T) -> Vec<u8> {
        let envelope = Envelope {
            v: 1,
            inc: self.inc,
            boot: self.boot,
            seq,
            ts: self.clock.system_ms(),
            mono: self.clock.mono_ms(),
            body,
        };
        // Reports are structs of numbers and texts with text keys, which always have a JSON form.
        serde_json::to_vec(&envelope).unwrap_or_default()
    }
}
