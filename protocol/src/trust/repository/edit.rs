//! The next documents of a repository, from what is to change. Nothing is signed here.
//!
//! Who changes keys must not leave behind a document that nobody vouches for any more: whatever no longer stands
//! under its new keys becomes part of the change, with the same contents and the next version.

use std::collections::BTreeMap;

use super::super::schema::{Doc, RoleType, Root, TOP_LEVEL, Targets};
use super::super::verify::{Authority, Unverified};
use super::super::{Key, MAX_TARGETS_BYTES, TrustError};
use super::{Current, DAY_S, OFFLINE_LIFETIME_S, ROLE_LIFETIME_S, sign, to_bytes};
use crate::UnixSeconds;
use crate::api::TrustUpload;

/// A change in the making, on top of what is published.
#[derive(Debug)]
pub struct Edit<'a> {
    current: &'a Current,
    now: UnixSeconds,
    root: Option<Root>,
    targets: Option<Targets>,
    roles: BTreeMap<String, Targets>,
    lifetimes: BTreeMap<String, i64>,
}

impl<'a> Edit<'a> {
    /// Nothing is changed yet. `now` goes into the documents as the time of signing.
    pub fn new(current: &'a Current, now: UnixSeconds) -> Self {
        let (roles, lifetimes) = (BTreeMap::new(), BTreeMap::new());
        Self { current, now, root: None, targets: None, roles, lifetimes }
    }

    /// The next root, to be changed.
    pub fn root(&mut self) -> &mut Root {
        self.root.get_or_insert_with(|| self.current.root.body.clone())
    }

    /// The next top-level targets, to be changed.
    pub fn targets(&mut self) -> &mut Targets {
        self.targets.get_or_insert_with(|| self.current.targets.body.clone())
    }

    /// The next document of a delegated role, to be changed. Empty when the role has signed nothing that counts.
    pub fn role(&mut self, name: &str) -> &mut Targets {
        let published = || self.current.roles.get(name).map(|doc| doc.body.clone()).unwrap_or_default();
        self.roles.entry(name.to_owned()).or_insert_with(published)
    }

    /// Keys and threshold of a role after what was changed so far; `None` when there is no such role.
    pub fn keys(&self, role: &str) -> Option<(Vec<Key>, u32)> {
        let root = self.root.as_ref().unwrap_or(&self.current.root.body);
        let targets = self.targets.as_ref().unwrap_or(&self.current.targets.body);
        if let Some(holders) = root.roles.get(role) {
            let keys = holders.keyids.iter().filter_map(|id| root.keys.get(id)).cloned();
            return Some((keys.collect(), holders.threshold));
        }
        let (delegations, holders) = (targets.delegations.as_ref()?, targets.delegated(role)?);
        let keys = holders.keyids.iter().filter_map(|id| delegations.keys.get(id)).cloned();
        Some((keys.collect(), holders.threshold))
    }

    /// Gives a role that exists to these keys.
    pub fn set_keys(&mut self, role: &str, keys: &[Key], threshold: u32) -> Result<(), TrustError> {
        let distinct = keys.iter().enumerate().all(|(i, key)| !keys.iter().take(i).any(|k| k.is(key)));
        if !distinct {
            return Err(TrustError::Upload(format!("role {role} would list one key twice")));
        }
        if threshold == 0 || threshold as usize > keys.len() {
            let why = format!("{} key(s) of role {role} cannot sign {threshold} at a time", keys.len());
            return Err(TrustError::Upload(why));
        }
        if TOP_LEVEL.contains(&role) {
            self.root().set(role, keys, threshold);
        } else if !self.targets().set_keys(role, keys, threshold) {
            let why = format!("role {role} is not delegated: run `plimsoll trust delegate {role}` first");
            return Err(TrustError::Upload(why));
        }
        Ok(())
    }

    /// Makes a role's document valid for so long from now, whatever it was before.
    pub fn renew(&mut self, role: &str, lifetime_s: i64) {
        self.lifetimes.insert(role.to_owned(), lifetime_s);
        match role {
            "root" => _ = self.root(),
            "targets" => _ = self.targets(),
            _ => _ = self.role(role),
        }
    }

    /// The documents, unsigned, each the next version of what is published.
    pub fn finish(mut self) -> Result<TrustUpload, TrustError> {
        self.add_what_falls()?;
        let mut upload = TrustUpload::default();
        if let Some(body) = self.root.take() {
            upload.root = Some(self.next("root", Some(&self.current.root), body, OFFLINE_LIFETIME_S)?);
        }
        if let Some(body) = self.targets.take() {
            let old = Some(&self.current.targets);
            upload.targets = Some(self.next("targets", old, body, OFFLINE_LIFETIME_S)?);
        }
        for (name, body) in std::mem::take(&mut self.roles) {
            let old = self.current.roles.get(&name);
            let document = self.next(&name, old, body, ROLE_LIFETIME_S)?;
            upload.roles.insert(name, document);
        }
        Ok(upload)
    }

    /// A lifetime that the owner chose once stays until another is chosen.
    fn next<T: RoleType>(
        &self,
        role: &str,
        old: Option<&Doc<T>>,
        body: T,
        usual_s: i64,
    ) -> Result<serde_json::Value, TrustError> {
        let before = old.and_then(|doc| Some(doc.expires.saturating_sub(doc.issued?)));
        let lifetime_s = self.lifetimes.get(role).copied().or(before).unwrap_or(usual_s).max(DAY_S);
        let version = self.current.version(role) + 1;
        sign(&Doc::new(version, Some(self.now), self.now.saturating_add(lifetime_s), body), &[])
    }

    fn add_what_falls(&mut self) -> Result<(), TrustError> {
        if let (Some(root), None) = (&self.root, &self.targets) {
            let authority = root.authority("root", "targets")?;
            if !stands("targets", self.current.documents.targets.as_ref(), &authority) {
                self.targets();
            }
        }
        let Some(targets) = &self.targets else { return Ok(()) };
        let published = |name: &String| self.current.documents.roles.get(name);
        let delegated = targets.delegations.iter().flat_map(|d| d.roles.iter().map(move |role| (d, role)));
        let fallen: Vec<String> = delegated
            .filter(|(_, role)| !self.roles.contains_key(&role.name) && published(&role.name).is_some())
            .filter(|(d, role)| !stands(&role.name, published(&role.name), &d.authority("targets", role)))
            .map(|(_, role)| role.name.clone())
            .collect();
        for name in fallen {
            self.role(&name);
        }
        Ok(())
    }
}

/// Whether a published document has enough signatures of these keys.
fn stands(role: &str, document: Option<&serde_json::Value>, authority: &Authority<'_>) -> bool {
    document.is_some_and(|envelope| {
        let opened = Unverified::<Targets>::open(role, &to_bytes(envelope), MAX_TARGETS_BYTES);
        opened.is_ok_and(|doc| doc.check(authority).is_ok())
    })
}
