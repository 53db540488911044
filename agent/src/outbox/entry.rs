//! Keys of the outbox: class, boot, sequence number, incarnation; big-endian, so that bytes sort as numbers do.

use plimsoll_protocol::Incarnation;
use plimsoll_protocol::wire::v1::Up;

/// How important a report is. The order is that of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Transitions and alarms.
    Event,
    /// What candidates answered beside the version that runs: a few for each order. Before its progress, which may be
    /// that it failed for this.
    Shadow,
    /// Progress of orders.
    Job,
    /// Measurement windows: many, and the newest say most.
    Drift,
}

/// The rank of the last class.
pub(super) const LAST_CLASS: u8 = 3;

impl Class {
    /// All, most important first.
    pub const ALL: [Self; 4] = [Self::Event, Self::Shadow, Self::Job, Self::Drift];

    /// The class of a kind of report; kinds that do not wait have none.
    pub const fn of(kind: Up) -> Option<Self> {
        match kind {
            Up::Event => Some(Self::Event),
            Up::Job => Some(Self::Job),
            Up::Shadow => Some(Self::Shadow),
            Up::Drift => Some(Self::Drift),
            Up::State | Up::Health | Up::Batch | Up::Response => None,
        }
    }

    pub(super) const fn rank(self) -> u8 {
        match self {
            Self::Event => 0,
            Self::Shadow => 1,
            Self::Job => 2,
            Self::Drift => LAST_CLASS,
        }
    }

    const fn kind(self) -> Up {
        match self {
            Self::Event => Up::Event,
            Self::Job => Up::Job,
            Self::Shadow => Up::Shadow,
            Self::Drift => Up::Drift,
        }
    }
}

/// A report that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which topic it goes to.
    pub kind: Up,
    /// Of its envelope. Another than the agent's own after an anchor was lost.
    pub inc: Incarnation,
    /// Of its envelope.
    pub boot: u64,
    /// Of its envelope.
    pub seq: u64,
    /// The envelope.
    pub json: Vec<u8>,
}

impl Waiting {
    /// What it is counted by.
    pub const fn id(&self) -> (Incarnation, u64, u64) {
        (self.inc, self.boot, self.seq)
    }
}

/// Bytes of a key.
const KEY: usize = 1 + 8 + 8 + 16;
/// What an entry costs besides its envelope: the key, and about as much again of the tree's pages.
pub(super) const OVERHEAD: u64 = 2 * KEY as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub class: Class,
    pub boot: u64,
    pub seq: u64,
    pub inc: Incarnation,
}

impl Key {
    pub fn encode(&self) -> [u8; KEY] {
        let mut bytes = [0; KEY];
        bytes[0] = self.class.rank();
        bytes[1..9].copy_from_slice(&self.boot.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.seq.to_be_bytes());
        bytes[17..].copy_from_slice(self.inc.as_bytes());
        bytes
    }

    /// The key, or nothing for bytes that are none (of a later version, say); such an entry waits for its version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (rank, rest) = bytes.split_first()?;
        let (boot, rest) = rest.split_first_chunk()?;
        let (seq, inc) = rest.split_first_chunk()?;
        let inc = Incarnation::from_bytes(inc.try_into().ok()?);
        let class = Class::ALL.into_iter().find(|c| c.rank() == *rank)?;
        Some(Self { class, boot: u64::from_be_bytes(*boot), seq: u64::from_be_bytes(*seq), inc })
    }

    /// First and last key of a range of sequence numbers, whatever the incarnation.
    pub fn range(class: Class, boot: u64, low: u64, high: u64) -> [[u8; KEY]; 2] {
        let key = |seq, inc| Self { class, boot, seq, inc: Incarnation::from_bytes(inc) }.encode();
        [key(low, [0; 16]), key(high, [0xff; 16])]
    }

    pub fn waiting(self, json: Vec<u8>) -> Waiting {
        Waiting { kind: self.class.kind(), inc: self.inc, boot: self.boot, seq: self.seq, json }
    }
}
