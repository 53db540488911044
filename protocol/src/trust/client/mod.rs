//! The client workflow of TUF 1.0 (section 5), as a state machine over bytes.
//!
//! Root chain, timestamp, snapshot, targets, then as many look-ups as the caller likes. At each point
//! [`Client::next`] names the one document that is wanted; [`Client::supply`] takes it. A refusal changes nothing:
//! the same document is wanted again, and what was trusted before stays trusted.
//!
//! What was trusted before (from the caller's store) serves two purposes. Its *versions* are floors below which
//! nothing is accepted, even when it has expired. Its *bytes* save a download when the document above still names
//! exactly them. Recovery from a fast-forward attack needs no record of events: once the root names other keys for
//! timestamp or snapshot, the stored documents no longer verify under it; both are forgotten, and their floors with them.

mod lookup;
mod refresh;

use std::collections::BTreeMap;

use super::schema::{Doc, Root, Snapshot, Targets, Timestamp};
use super::scheme::Schemes;
use super::verify::Unverified;
use super::{MAX_ROOT_BYTES, SignedTarget, TrustError};
use crate::UnixSeconds;
use lookup::Lookup;

/// What the caller's store holds, by name: `root.json` (needed), `timestamp.json`, `snapshot.json`,
/// `targets.json`, `<role>.json`. What is absent or spoilt is fetched again.
pub type TrustedDocs = BTreeMap<String, Vec<u8>>;

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Fetch this and [`Client::supply`] it.
    Fetch(Fetch),
    /// All four top-level roles are fresh; [`Client::find`] may be called.
    Refreshed,
    /// The look-up ended: a trusted role signs for the path.
    Found(SignedTarget),
    /// The look-up ended: no trusted role signs for the path (any more).
    NotListed {
        /// The path.
        path: String,
    },
}

/// A document that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Below the repository's metadata address: `2.root.json`, `timestamp.json`, `7.meter-reader.json`.
    pub path: String,
    /// Reading may stop, as an error, after so many bytes.
    pub max_bytes: u64,
    /// Whose document it is.
    pub role: String,
}

/// What the server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response<'a> {
    /// The whole document.
    Bytes(&'a [u8]),
    /// 404 (or 403, as object stores answer): it does not exist. Nothing else may be told as this.
    NotFound,
}

/// What changes in the store. Persist it, atomically and in order, before going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A document that is now trusted.
    Write {
        /// Name in the store: `root.json`, `meter-reader.json`.
        name: String,
        /// The bytes as received.
        bytes: Vec<u8>,
    },
    /// A document that no longer counts, because the keys that signed it were rotated away.
    Delete {
        /// Name in the store: `timestamp.json`.
        name: String,
    },
}

/// The client. Owns the state of one refresh and its look-ups; make a new one for the next refresh.
#[derive(Debug)]
pub struct Client {
    now: UnixSeconds,
    schemes: Schemes,
    /// Bytes that were trusted, by store name; updated with what is accepted.
    stored: TrustedDocs,
    root: Doc<Root>,
    roots_walked: u32,
    timestamp: Option<Doc<Timestamp>>,
    /// Floor until the new snapshot is accepted, then that.
    snapshot: Option<Doc<Snapshot>>,
    targets: Option<Doc<Targets>>,
    state: State,
}

#[derive(Debug)]
enum State {
    Root,
    Timestamp,
    Snapshot,
    Targets,
    Refreshed,
    Looking(Lookup),
    Found(SignedTarget),
    NotListed(String),
}

impl Client {
    /// Starts from what the caller trusts, and takes signatures of Ed25519 only. `now` judges every expiry of this
    /// refresh; it is an argument because a device without a clock has a floor instead of a time.
    pub fn new(stored: TrustedDocs, now: UnixSeconds) -> Result<Self, TrustError> {
        Self::accepting(stored, now, Schemes::ED25519)
    }

    /// The same, taking signatures of these schemes.
    pub fn accepting(stored: TrustedDocs, now: UnixSeconds, schemes: Schemes) -> Result<Self, TrustError> {
        let bytes = stored.get("root.json").ok_or(TrustError::NoRoot)?;
        let root = Unverified::<Root>::open("root", bytes, MAX_ROOT_BYTES)?.verify_root_by(None, schemes)?;
        Ok(Self {
            now,
            schemes,
            stored,
            root,
            roots_walked: 0,
            timestamp: None,
            snapshot: None,
            targets: None,
            state: State::Root,
        })
    }

    /// What to do next. Asks the same again until it is supplied.
    pub fn next(&self) -> Step {
        match &self.state {
            State::Root | State::Timestamp | State::Snapshot | State::Targets => Step::Fetch(self.wanted()),
            State::Refreshed => Step::Refreshed,
            State::Looking(lookup) => Step::Fetch(lookup.fetch().clone()),
            State::Found(target) => Step::Found(target.clone()),
            State::NotListed(path) => Step::NotListed { path: path.clone() },
        }
    }

    /// Takes the answer to [`Step::Fetch`]. An error leaves the client as it was and nothing to store.
    pub fn supply(&mut self, response: Response<'_>) -> Result<Vec<Store>, TrustError> {
        let Step::Fetch(fetch) = self.next() else {
            return Err(TrustError::OutOfTurn("a document was supplied although none was wanted"));
        };
        let bytes = match (response, &self.state) {
            (Response::NotFound, State::Root) => return self.end_of_roots(),
            (Response::NotFound, _) => return Err(TrustError::missing(&fetch)),
            (Response::Bytes(bytes), _) => bytes,
        };
        if bytes.len() as u64 > fetch.max_bytes {
            let (role, got, max) = (fetch.role, bytes.len() as u64, fetch.max_bytes);
            return Err(TrustError::TooBig { role, got, max });
        }
        match &self.state {
            State::Root => self.take_root(bytes),
            State::Timestamp => self.take_timestamp(bytes),
            State::Snapshot => self.take_snapshot(bytes),
            State::Targets => self.take_targets(bytes),
            _ => self.take_delegated(bytes),
        }
    }

    /// Looks a path up. Needs a finished refresh; may be called again after each look-up ends.
    pub fn find(&mut self, path: &str) -> Result<(), TrustError> {
        if !matches!(self.state, State::Refreshed | State::Found(_) | State::NotListed(_)) {
            return Err(TrustError::OutOfTurn("a path was looked up before the refresh ended"));
        }
        let targets = self.targets.as_ref().ok_or(TrustError::OutOfTurn("there is no targets document"))?;
        let lookup = Lookup::start(path, targets)?;
        self.go_on(lookup)
    }

    /// Whether documents and targets carry version and digest in their names, as the trusted root says.
    pub const fn consistent_snapshot(&self) -> bool {
        self.root.body.consistent_snapshot
    }

    /// The version of the trusted root.
    pub const fn root_version(&self) -> u64 {
        self.root.version
    }

    /// The latest time that the fleet's owner signed at, which is a floor under any clock: the `x-issued` of root
    /// and top-level targets. Not that of delegated roles: a stolen key of one team must not move the time of all
    /// models, and not that of the online roles, which a stolen server could push to 2099.
    pub fn max_issued(&self) -> Option<UnixSeconds> {
        self.root.issued.max(self.targets.as_ref().and_then(|t| t.issued))
    }

    fn keep(&mut self, name: String, bytes: &[u8]) -> Store {
        self.stored.insert(name.clone(), bytes.to_vec());
        Store::Write { name, bytes: bytes.to_vec() }
    }
}
