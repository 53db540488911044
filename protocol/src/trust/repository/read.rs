//! What a signer builds on: the published documents, verified under the root that the signer knows.
//!
//! A signer who took the server's word for the current role would sign whatever a stolen server slipped into it.
//! Expiry is not judged here: signing anew is how an expired role is mended.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::schema::{Doc, Root, Targets};
use super::super::verify::Unverified;
use super::super::{MAX_ROOT_BYTES, MAX_TARGETS_BYTES, TrustError, VerifiedTarget};
use super::to_bytes;
use crate::api::TrustState;

/// The published documents, verified.
#[derive(Debug, Clone)]
pub struct Current {
    /// Root.
    pub root: Doc<Root>,
    /// Top-level targets.
    pub targets: Doc<Targets>,
    /// Roles that targets delegates to, by name, as far as they have signed anything.
    pub roles: BTreeMap<String, Doc<Targets>>,
    /// All of it as published, with the signatures.
    pub documents: TrustState,
}

impl Current {
    /// Verifies what a server says is published. `pinned` is the root that the signer knows: the same, or an older one
    /// from which the published roots lead to the newest, one by one. Without it the server's root is taken at its
    /// word, which the caller must make visible. `None` when nothing is published yet.
    pub fn read(state: &TrustState, pinned: Option<&[u8]>) -> Result<Option<Self>, TrustError> {
        let Some(newest) = &state.root else { return Ok(None) };
        let root = verified_root(newest, &state.roots, pinned)?;
        let Some(targets) = &state.targets else {
            return Err(TrustError::Upload("the server has a root but no targets".into()));
        };
        let targets = Unverified::<Targets>::open("targets", &to_bytes(targets), MAX_TARGETS_BYTES)?;
        let targets = targets.verify(&root.authority("targets")?)?;
        let mut roles = BTreeMap::new();
        for delegations in targets.body.delegations.iter() {
            for role in &delegations.roles {
                let Some(document) = state.roles.get(&role.name) else { continue };
                let bytes = to_bytes(document);
                let doc = Unverified::<Targets>::open(&role.name, &bytes, MAX_TARGETS_BYTES)?;
                roles.insert(role.name.clone(), doc.verify(&delegations.authority("targets", role))?);
            }
        }
        Ok(Some(Self { root, targets, roles, documents: state.clone() }))
    }

    /// The published version of a role; 0 when it has signed nothing. Of a role that is no longer delegated it is the
    /// last one that was published: numbers never go back.
    pub fn version(&self, role: &str) -> u64 {
        match role {
            "root" => self.root.version,
            "targets" => self.targets.version,
            _ => self.roles.get(role).map_or_else(
                || {
                    let document = self.documents.roles.get(role);
                    document
                        .and_then(|d| Doc::<Targets>::read_unverified(d).ok())
                        .map_or(0, |doc| doc.version)
                },
                |doc| doc.version,
            ),
        }
    }

    /// The published target of a path, signed by a role that may speak for it.
    pub fn target(&self, path: &str) -> Result<Option<VerifiedTarget>, TrustError> {
        let own = std::iter::once(("targets", &self.targets));
        let delegated = self.targets.body.delegations.iter().flat_map(|d| &d.roles);
        let covering = delegated.filter(|role| role.covers(path));
        let covering = covering.filter_map(|role| Some((role.name.as_str(), self.roles.get(&role.name)?)));
        let found = own.chain(covering).find_map(|(name, doc)| Some((name, doc.body.targets.get(path)?)));
        found.map(|(name, meta)| VerifiedTarget::new(name, path, meta)).transpose()
    }
}

fn verified_root(newest: &Value, roots: &[Value], pinned: Option<&[u8]>) -> Result<Doc<Root>, TrustError> {
    let open = |bytes: &[u8]| Unverified::<Root>::open("root", bytes, MAX_ROOT_BYTES);
    let bytes = to_bytes(newest);
    let Some(pinned) = pinned else { return open(&bytes)?.verify_root(None) };
    let mut known = open(pinned)?.verify_root(None)?;
    for later in roots {
        let next = open(&to_bytes(later))?;
        if next.version() == known.version.saturating_add(1) {
            known = next.verify_root(Some(&known))?;
        }
    }
    let published = open(&bytes)?;
    let version = published.version();
    if version == known.version {
        // Of one version there is one root: the known one, whatever the server shows.
        let published = published.verify_root(None)?;
        if published == known {
            return Ok(known);
        }
        return Err(TrustError::Upload(format!(
            "the server shows another root.json version {version} than the known one"
        )));
    }
    if version != known.version.saturating_add(1) {
        let (role, by) =
            ("root".to_owned(), "the one after the known root; get the current root.json from the owner");
        return Err(TrustError::Version { role, got: version, expected: known.version + 1, by: by.into() });
    }
    published.verify_root(Some(&known))
}
