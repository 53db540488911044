//! From a path to the role that signs for it: delegations depth first, in the order in which they are listed.
//!
//! A role is asked only through a delegator that names its keys and covers the path, and it is verified against
//! that delegator each time, also when its bytes are at hand from an earlier look-up (python-tuf trusts a cached
//! role whoever delegated it first). Only the roles on the way are fetched, so a device of one model never loads
//! the metadata of another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::schema::{DelegatedRole, Doc, Targets, role_file};
use super::super::verify::{Authority, Unverified};
use super::super::{
    Key, KeyId, MAX_DELEGATION_DEPTH, MAX_LOOKUP_ROLES, MAX_TARGETS_BYTES, SignedTarget, TrustError,
};
use super::refresh::{bound, exact};
use super::{Client, Fetch, State, Store};

/// One look-up under way.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    path: String,
    /// Roles to ask, the next one last.
    stack: Vec<Pending>,
    visited: BTreeSet<String>,
    found: Option<SignedTarget>,
    /// Set while the state waits for bytes.
    fetch: Option<Fetch>,
}

/// A delegation that may speak for the path.
#[derive(Debug, Clone)]
struct Pending {
    role: DelegatedRole,
    keys: Arc<BTreeMap<KeyId, Key>>,
    delegator: String,
    depth: usize,
}

const NOTHING: &Fetch = &Fetch { path: String::new(), max_bytes: 0, role: String::new() };

impl Lookup {
    pub fn start(path: &str, targets: &Doc<Targets>) -> Result<Self, TrustError> {
        let (stack, visited) = (Vec::new(), BTreeSet::new());
        let mut lookup = Self { path: path.to_owned(), stack, visited, found: None, fetch: None };
        lookup.visit("targets", 0, targets)?;
        Ok(lookup)
    }

    /// The document the look-up waits for.
    pub fn fetch(&self) -> &Fetch {
        self.fetch.as_ref().unwrap_or(NOTHING) // `go_on` keeps a look-up as state only with its fetch set
    }

    /// Asks one role, and lines up those it delegates to.
    fn visit(&mut self, name: &str, depth: usize, doc: &Doc<Targets>) -> Result<(), TrustError> {
        if let Some(meta) = doc.body.targets.get(&self.path) {
            self.found = Some(SignedTarget::new(name, &self.path, meta));
            return Ok(());
        }
        let Some(delegations) = &doc.body.delegations else { return Ok(()) };
        let keys = Arc::new(delegations.keys.clone());
        let mut next = Vec::new();
        for role in delegations.roles.iter().filter(|role| role.covers(&self.path)) {
            if depth >= MAX_DELEGATION_DEPTH {
                return Err(TrustError::Endless {
                    what: "delegations in a chain",
                    max: MAX_DELEGATION_DEPTH,
                });
            }
            let (delegator, keys) = (name.to_owned(), Arc::clone(&keys));
            next.push(Pending { role: role.clone(), keys, delegator, depth: depth + 1 });
            if role.terminating {
                self.stack.clear();
                break;
            }
        }
        self.stack.extend(next.into_iter().rev());
        Ok(())
    }
}

impl Client {
    /// Asks role after role until the path is found, nobody is left, or bytes are needed.
    pub(super) fn go_on(&mut self, mut lookup: Lookup) -> Result<(), TrustError> {
        lookup.fetch = None;
        loop {
            if let Some(target) = lookup.found {
                self.state = State::Found(target);
                return Ok(());
            }
            let Some(pending) = lookup.stack.last().cloned() else {
                self.state = State::NotListed(lookup.path);
                return Ok(());
            };
            let name = pending.role.name.as_str();
            if lookup.visited.contains(name) {
                lookup.stack.pop();
                continue;
            }
            if lookup.visited.len() >= MAX_LOOKUP_ROLES {
                return Err(TrustError::Endless {
                    what: "delegated roles for one path",
                    max: MAX_LOOKUP_ROLES,
                });
            }
            let meta = self.meta(name).ok_or_else(|| TrustError::NotInSnapshot { role: name.to_owned() })?;
            let stored = self.stored.get(&role_file(name));
            match stored.and_then(|bytes| self.open_delegated(&pending, bytes).ok()) {
                Some(doc) => advance(&mut lookup, &pending, &doc)?,
                None => {
                    let (path, max_bytes) = (self.path(name, meta), bound(meta, MAX_TARGETS_BYTES));
                    lookup.fetch = Some(Fetch { path, max_bytes, role: name.to_owned() });
                    self.state = State::Looking(lookup);
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn take_delegated(&mut self, bytes: &[u8]) -> Result<Vec<Store>, TrustError> {
        let State::Looking(lookup) = &self.state else {
            return Err(TrustError::OutOfTurn("no look-up is under way"));
        };
        let mut lookup = lookup.clone();
        let Some(pending) = lookup.stack.last().cloned() else {
            return Err(TrustError::OutOfTurn("the look-up waits for nothing"));
        };
        let doc = self.open_delegated(&pending, bytes)?;
        advance(&mut lookup, &pending, &doc)?;
        self.go_on(lookup)?;
        Ok(vec![self.keep(role_file(&pending.role.name), bytes)])
    }

    fn open_delegated(&self, pending: &Pending, bytes: &[u8]) -> Result<Doc<Targets>, TrustError> {
        let role = &pending.role;
        let name = role.name.as_str();
        let meta = self.meta(name).ok_or_else(|| TrustError::NotInSnapshot { role: name.to_owned() })?;
        meta.check_bytes(name, bytes, "snapshot.json")?;
        let doc = Unverified::<Targets>::open(name, bytes, MAX_TARGETS_BYTES)?.verify(&Authority {
            delegator: pending.delegator.clone(),
            keys: &pending.keys,
            keyids: &role.keyids,
            threshold: role.threshold,
            schemes: self.schemes,
        })?;
        exact(name, doc.version, meta.version, "snapshot.json")?;
        doc.fresh(name, self.now)?;
        Ok(doc)
    }
}

fn advance(lookup: &mut Lookup, pending: &Pending, doc: &Doc<Targets>) -> Result<(), TrustError> {
    lookup.stack.pop();
    lookup.visited.insert(pending.role.name.clone());
    lookup.visit(&pending.role.name, pending.depth, doc)
}
