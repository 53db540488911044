//! What the server remembers, as domain traits: devices, tokens, trust, rollouts, reports, journal.
//!
//! The rest of the server asks for facts about devices and rollouts and never for keys. One implementation is
//! [`embedded`]; a second one must pass `contract`, which is written against the traits alone.
//!
//! Three promises hold for every implementation:
//! - a reply `Ok` to a write means durable: it survives a power cut;
//! - a write is whole or absent, also when it touches many records;
//! - a report that was counted is never counted again, whatever the device sends.

pub mod embedded;
mod error;
mod records;

#[cfg(test)]
mod contract;

use futures_util::future::BoxFuture;
use plimsoll_fleet_core::Rollout;
use plimsoll_protocol::api::Decision;
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::Desired;
use plimsoll_protocol::{DeviceId, Digest, ModelName};

pub use error::{StoreError, TokenFault};
pub use records::*;

/// An answer that may need a disk or a network.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The registry of devices.
pub trait Devices {
    /// Enrols a device: checks the join token, spends one use, registers name and key, all or nothing. The same
    /// name with the same key is answered again without spending a use, so that a lost answer can be asked again.
    fn enrol(&self, enrolment: Enrolment) -> Reply<'_, DeviceRecord>;
    /// All devices, by name.
    fn devices(&self) -> Reply<'_, Vec<DeviceRecord>>;
    /// One device.
    fn device(&self, device: &DeviceId) -> Reply<'_, Option<DeviceRecord>>;
    /// Lets a device in or keeps it out. Keeping it out ends a permission to bring another key.
    fn set_revoked(&self, device: &DeviceId, revoked: bool) -> Reply<'_, DeviceRecord>;
    /// Lets the next enrolment under this name bring another key; the key registered stays out.
    fn allow_new_key(&self, device: &DeviceId) -> Reply<'_, DeviceRecord>;
    /// Notes the next certificate of a device that is registered with this key and not revoked.
    fn renew(&self, renewal: Renewal) -> Reply<'_, DeviceRecord>;
    /// Desired documents of all devices that have one.
    fn all_desired(&self) -> Reply<'_, Vec<(DeviceId, Desired)>>;
    /// Last known state of all devices that ever connected.
    fn states(&self) -> Reply<'_, Vec<(DeviceId, StateRecord)>>;
    /// Last report of every order, of all devices.
    fn jobs(&self) -> Reply<'_, Vec<JobRecord>>;
    /// Last report about each candidate in shadow, of all devices.
    fn shadows(&self) -> Reply<'_, Vec<ShadowRecord>>;
}

/// Tokens of people and of devices to be. Only hashes of secrets are stored.
pub trait Tokens {
    /// Adds an API token.
    fn add_token(&self, token: TokenRecord) -> Reply<'_, ()>;
    /// The API token with this id.
    fn token(&self, id: &str) -> Reply<'_, Option<TokenRecord>>;
    /// All API tokens.
    fn tokens(&self) -> Reply<'_, Vec<TokenRecord>>;
    /// Adds a join token.
    fn add_join_token(&self, token: JoinTokenRecord) -> Reply<'_, ()>;
    /// All join tokens.
    fn join_tokens(&self) -> Reply<'_, Vec<JoinTokenRecord>>;
    /// Takes a join token back: nobody enrols with it any more. Those who did stay.
    fn revoke_join_token(&self, id: &str) -> Reply<'_, JoinTokenRecord>;
}

/// The trust repository's index and what is published in it. The documents themselves are blobs.
pub trait Trust {
    /// What is current.
    fn trust(&self) -> Reply<'_, TrustIndex>;
    /// Makes a new state of the repository current, when `from` is still the current serial.
    fn set_trust(&self, from: u64, index: TrustIndex) -> Reply<'_, ()>;
    /// Published bundles.
    fn bundles(&self) -> Reply<'_, Vec<BundleRecord>>;
}

/// Rollouts and the orders that follow from them.
pub trait Rollouts {
    /// All rollouts with their members, in the order of their numbers.
    fn rollouts(&self) -> Reply<'_, Vec<Rollout>>;
    /// The decisions of one rollout, oldest first.
    fn decisions(&self, id: &RolloutId) -> Reply<'_, Vec<Decision>>;
    /// Stores what a tick or a person decided. A rollout is written only over the epoch that it was planned from:
    /// two planners cannot both win.
    fn commit_plan(&self, plan: PlanWrite) -> Reply<'_, ()>;
}

/// What devices reported.
pub trait Reports {
    /// Commits reports of many devices and says which were new. Duplicates by (device, incarnation, boot, seq) are
    /// not written and are no error.
    fn commit_reports(&self, reports: Vec<ReportWrite>) -> Reply<'_, Vec<Outcome>>;
    /// The newest drift windows of a device and a bundle, oldest first.
    fn drift(&self, device: &DeviceId, model: &ModelName, digest: &Digest) -> Reply<'_, Vec<DriftRecord>>;
    /// The newest `limit` records of the same, newest first: parts of windows, so the last window may lack some.
    fn newest_drift(
        &self,
        device: &DeviceId,
        model: &ModelName,
        digest: &Digest,
        limit: usize,
    ) -> Reply<'_, Vec<DriftRecord>>;
}

/// What happened, for people: events and the audit log.
pub trait Journal {
    /// Adds an event of the server's own or about a device.
    fn add_event(&self, event: NewEvent) -> Reply<'_, u64>;
    /// Events with an id below `before` (all when `None`), newest first.
    fn events(&self, before: Option<u64>, limit: usize) -> Reply<'_, Vec<EventRecord>>;
    /// Appends to the audit log; the entry's hash covers the one before it.
    fn audit(&self, entry: NewAudit) -> Reply<'_, ()>;
    /// The audit log, oldest first.
    fn audit_log(&self) -> Reply<'_, Vec<AuditRecord>>;
}

/// All of it.
pub trait Store: Devices + Tokens + Trust + Rollouts + Reports + Journal + Send + Sync + 'static {}
impl<T: Devices + Tokens + Trust + Rollouts + Reports + Journal + Send + Sync + 'static> Store for T {}
