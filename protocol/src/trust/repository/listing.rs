//! Everything that a repository signs for, and that it stays what it was.

use std::collections::BTreeMap;

use super::super::schema::{DelegatedRole, Doc, Root, TargetMeta, Targets};
use super::super::verify::Unverified;
use super::super::{
    FLEET_FILES, MAX_DELEGATION_DEPTH, MAX_FLEET_FILE_BYTES, MAX_ROOT_BYTES, MAX_TARGETS_BYTES, TrustError,
    VerifiedTarget,
};
use super::publish::Repository;
use crate::Digest;

impl Repository {
    /// Everything that is signed for: each delegated role is verified against its delegator, and each path must be
    /// one that every delegation on the way covers.
    pub fn listed(&self) -> Result<Vec<VerifiedTarget>, TrustError> {
        let (Some(root), Some(targets)) = (self.roots.values().next_back(), &self.targets) else {
            return Ok(Vec::new());
        };
        let root = Unverified::<Root>::open("root", root, MAX_ROOT_BYTES)?.verify_root(None)?;
        let targets = Unverified::<Targets>::open("targets", targets, MAX_TARGETS_BYTES)?;
        let targets = targets.verify(&root.authority("targets")?)?;
        let mut listed = Vec::new();
        self.walk("targets", &targets, &mut Vec::new(), &mut listed)?;
        Ok(listed)
    }

    fn walk(
        &self,
        name: &str,
        doc: &Doc<Targets>,
        way: &mut Vec<DelegatedRole>,
        listed: &mut Vec<VerifiedTarget>,
    ) -> Result<(), TrustError> {
        for (path, meta) in &doc.body.targets {
            if !way.iter().all(|role| role.covers(path)) {
                let why = format!("role {name} lists {path}, which it was not delegated");
                return Err(TrustError::Upload(why));
            }
            check_target(name, path, meta)?;
            listed.push(VerifiedTarget::new(name, path, meta)?);
        }
        let Some(delegations) = &doc.body.delegations else { return Ok(()) };
        for role in &delegations.roles {
            let Some(bytes) = self.roles.get(&role.name) else { continue }; // delegated, nothing signed yet
            if way.len() >= MAX_DELEGATION_DEPTH {
                return Err(TrustError::Endless {
                    what: "delegations in a chain",
                    max: MAX_DELEGATION_DEPTH,
                });
            }
            let child = Unverified::<Targets>::open(&role.name, bytes, MAX_TARGETS_BYTES)?;
            let child = child.verify(&delegations.authority(name, role))?;
            way.push(role.clone());
            self.walk(&role.name, &child, way, listed)?;
            way.pop();
        }
        Ok(())
    }
}

/// A bundle that was signed for keeps its bytes: a version is what it was, or it is gone. Files of the fleet change.
pub(super) fn immutable(before: &[VerifiedTarget], after: &[VerifiedTarget]) -> Result<(), TrustError> {
    let old: BTreeMap<&str, Digest> = before.iter().map(|t| (t.path(), t.sha256())).collect();
    let fixed = |t: &&VerifiedTarget| !t.path().starts_with(FLEET_FILES);
    match after.iter().filter(fixed).find(|t| old.get(t.path()).is_some_and(|digest| *digest != t.sha256())) {
        None => Ok(()),
        Some(t) => {
            let why = format!("{} is published with other contents already: publish a new version", t.path());
            Err(TrustError::Upload(why))
        }
    }
}

/// Paths that the repository lists are paths that a device will write about in logs and look up.
fn check_target(role: &str, path: &str, meta: &TargetMeta) -> Result<(), TrustError> {
    crate::bundle::SafePath::new(path).map_err(|e| TrustError::Upload(format!("role {role}: {e}")))?;
    if path.starts_with(FLEET_FILES) {
        if role != "targets" {
            let why = format!("role {role} lists {path}, which only the top-level targets may sign for");
            return Err(TrustError::Upload(why));
        }
        if meta.length > MAX_FLEET_FILE_BYTES {
            let why = format!("{path} has {} bytes; at most {MAX_FLEET_FILE_BYTES} are taken", meta.length);
            return Err(TrustError::Upload(why));
        }
    }
    if meta.sha256().is_none() {
        return Err(TrustError::Upload(format!("role {role} names no sha256 for {path}")));
    }
    Ok(())
}
