//! The signing side: documents from values, signatures from whatever can sign, and what a server publishes.
//!
//! Deterministic: the same values and keys give the same bytes (Ed25519 signatures are). The owner signs root and
//! targets, a team its model's role, each far from the server; the server only says what is current.

mod edit;
mod export;
mod listing;
mod pending;
mod publish;
mod read;
mod words;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use super::schema::{DelegatedRole, Delegations, Doc, RoleKeys, RoleType, Root, TargetMeta, Targets};
use super::{Key, KeyPair, Signer, TrustError, canonical};
use crate::{ModelName, UnixSeconds};

pub use edit::Edit;
pub use export::MAX_EXPORT_LIFETIME_S;
pub use pending::{
    Need, Standing, change_id, countersign, document_mut, documents, follows, merge_change, standing,
};
pub use publish::{Change, Repository};
pub use read::Current;
pub use words::{describe, key_label};

/// A day.
pub const DAY_S: i64 = 24 * 60 * 60;
/// Root and targets are signed by hand, from a drawer: once a year.
pub const OFFLINE_LIFETIME_S: i64 = 365 * DAY_S;
/// A model's role is signed with every release. 90 days bounds how long a stolen server can hide a removal.
pub const ROLE_LIFETIME_S: i64 = 90 * DAY_S;
/// The snapshot is signed with every change, and again at half its life: a week survives a long weekend.
pub const SNAPSHOT_LIFETIME_S: i64 = 7 * DAY_S;
/// The timestamp bounds how long a network can freeze a device on old metadata: a day.
pub const TIMESTAMP_LIFETIME_S: i64 = DAY_S;

/// The server's own keys.
#[derive(Debug)]
pub struct Online {
    /// Signs what is current of every role.
    pub snapshot: KeyPair,
    /// Signs which snapshot is current.
    pub timestamp: KeyPair,
}

/// Who holds which top-level role.
#[derive(Debug, Clone)]
pub struct RootKeys {
    /// Keys of root, and how many must sign.
    pub root: (Vec<Key>, u32),
    /// Keys of targets, and how many must sign.
    pub targets: (Vec<Key>, u32),
    /// The server's snapshot key.
    pub snapshot: Key,
    /// The server's timestamp key.
    pub timestamp: Key,
}

impl Root {
    /// A root that names these keys.
    pub fn of(keys: &RootKeys) -> Self {
        let mut root = Self {
            keys: Default::default(),
            roles: Default::default(),
            consistent_snapshot: true,
            extra: Default::default(),
        };
        root.set("root", &keys.root.0, keys.root.1);
        root.set("targets", &keys.targets.0, keys.targets.1);
        root.set("snapshot", std::slice::from_ref(&keys.snapshot), 1);
        root.set("timestamp", std::slice::from_ref(&keys.timestamp), 1);
        root
    }

    /// Gives a role to other keys. Keys that no role names any more are dropped.
    pub fn set(&mut self, role: &str, keys: &[Key], threshold: u32) {
        let ids = keys.iter().map(Key::id).collect();
        self.roles.insert(role.to_owned(), RoleKeys::new(ids, threshold));
        self.keys.extend(keys.iter().map(|key| (key.id(), key.clone())));
        let roles = &self.roles;
        self.keys.retain(|id, _| roles.values().any(|r| r.keyids.contains(id)));
    }
}

/// What a model's role may sign for: every file of every version, `bundles/<model>/<version>/<file>`.
pub fn model_paths(model: &ModelName) -> Vec<String> {
    vec![format!("bundles/{model}/*/*")]
}

impl Targets {
    /// The delegation of a role.
    pub fn delegated(&self, role: &str) -> Option<&DelegatedRole> {
        self.delegations.as_ref()?.roles.iter().find(|r| r.name == role)
    }

    /// Lets `keys` sign as `role` for `paths`; replaces what was delegated to that role before. Terminating: nobody
    /// else may speak for these paths.
    pub fn delegate(&mut self, role: &str, keys: &[Key], threshold: u32, paths: Vec<String>) {
        let delegations = self.delegations.get_or_insert_with(Delegations::default);
        let keyids = keys.iter().map(Key::id).collect();
        let (name, paths) = (role.to_owned(), Some(paths));
        let (path_hash_prefixes, extra) = (None, Default::default());
        let new =
            DelegatedRole { name, keyids, threshold, terminating: true, paths, path_hash_prefixes, extra };
        match delegations.roles.iter_mut().find(|r| r.name == role) {
            Some(old) => *old = new,
            None => delegations.roles.push(new),
        }
        delegations.keys.extend(keys.iter().map(|key| (key.id(), key.clone())));
        let roles = &delegations.roles;
        delegations.keys.retain(|id, _| roles.iter().any(|r| r.keyids.contains(id)));
    }

    /// Gives a role that is delegated to other keys; what it may sign for stays. `false` when there is no such role.
    pub fn set_keys(&mut self, role: &str, keys: &[Key], threshold: u32) -> bool {
        let Some(delegations) = &mut self.delegations else { return false };
        let Some(held) = delegations.roles.iter_mut().find(|r| r.name == role) else { return false };
        held.keyids = keys.iter().map(Key::id).collect();
        held.threshold = threshold;
        delegations.keys.extend(keys.iter().map(|key| (key.id(), key.clone())));
        let roles = &delegations.roles;
        delegations.keys.retain(|id, _| roles.iter().any(|r| r.keyids.contains(id)));
        true
    }

    /// Signs for a `bundle.json`. The sequence rises with every bundle of the role, for people and for order.
    pub fn add_bundle(&mut self, model: &ModelName, version: &semver::Version, manifest: &[u8]) {
        let sequence =
            self.targets.values().filter_map(|t| t.custom.as_ref()?.get("sequence")?.as_u64()).max();
        let custom = json!({ "version": version.to_string(), "sequence": sequence.unwrap_or(0) + 1 });
        let path = crate::bundle::target_path(model, version);
        self.targets.insert(path, TargetMeta::of(manifest, Some(custom)));
    }

    /// Signs for a small file that is no bundle, [`crate::trust::FLEET_CA`] for example. Unlike a version it may be
    /// replaced; in the top-level targets only, which is where devices look for it.
    pub fn add_file(&mut self, path: &str, bytes: &[u8]) {
        self.targets.insert(path.to_owned(), TargetMeta::of(bytes, None));
    }

    /// Revokes a version. Returns whether it was listed.
    pub fn remove_bundle(&mut self, model: &ModelName, version: &semver::Version) -> bool {
        self.targets.remove(&crate::bundle::target_path(model, version)).is_some()
    }
}

/// Signs a document: the envelope that is uploaded.
pub fn sign<T: RoleType>(doc: &Doc<T>, signers: &[&dyn Signer]) -> Result<Value, TrustError> {
    let fail = |why: String| TrustError::parse(T::TYPE, why);
    doc.check().map_err(fail)?;
    let signed = serde_json::to_value(doc).map_err(|e| fail(e.to_string()))?;
    let message = canonical(&signed).map_err(fail)?;
    let mut signatures = Vec::new();
    for signer in signers {
        let signature = signer.sign(&message).map_err(fail)?;
        signatures.push(json!({ "keyid": signer.key().id(), "sig": hex::encode(signature) }));
    }
    Ok(json!({ "signed": signed, "signatures": signatures }))
}

/// The bytes of an envelope as they are stored, hashed and served.
pub fn to_bytes(envelope: &Value) -> Vec<u8> {
    serde_json::to_vec(envelope).unwrap_or_default() // a Value has text keys only: cannot fail
}

/// Signs the next version of a document that exists, or its first.
pub fn sign_next<T: RoleType>(
    previous: Option<u64>,
    body: T,
    now: UnixSeconds,
    lifetime_s: i64,
    signers: &[&dyn Signer],
) -> Result<Value, TrustError> {
    sign(&Doc::new(previous.unwrap_or(0) + 1, Some(now), now.saturating_add(lifetime_s), body), signers)
}
