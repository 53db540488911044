//! Opening an envelope: size, form, signatures. The only place where a threshold is counted.

use std::collections::{BTreeMap, BTreeSet};

use super::digests::Digests;
use super::schema::{DelegatedRole, Delegations, Doc, FileMeta, RoleType, Root};
use super::scheme::{PublicKey, Schemes};
use super::{Key, KeyId, TrustError, canonical};
use crate::UnixSeconds;
use serde::Deserialize;
use serde_json::Value;

/// A document that parses. Nobody has vouched for it yet.
pub(super) struct Unverified<T> {
    role: String,
    doc: Doc<T>,
    message: Vec<u8>,
    signatures: BTreeMap<KeyId, Option<Vec<u8>>>,
}

/// Who may sign, as the delegator says.
pub(super) struct Authority<'a> {
    pub delegator: String,
    pub keys: &'a BTreeMap<KeyId, Key>,
    pub keyids: &'a [KeyId],
    pub threshold: u32,
    /// Signatures of other schemes do not count.
    pub schemes: Schemes,
}

impl Authority<'_> {
    /// The same for somebody to whom only some schemes count.
    pub fn accepting(self, schemes: Schemes) -> Self {
        Self { schemes, ..self }
    }
}

impl<T: RoleType> Unverified<T> {
    /// Parses `{"signed": …, "signatures": [{"keyid": …, "sig": …}]}`.
    pub fn open(role: &str, bytes: &[u8], max: u64) -> Result<Self, TrustError> {
        if bytes.len() as u64 > max {
            return Err(TrustError::TooBig { role: role.to_owned(), got: bytes.len() as u64, max });
        }
        #[derive(Deserialize)]
        struct Envelope {
            signed: Value,
            signatures: Vec<OneSignature>,
        }
        #[derive(Deserialize)]
        struct OneSignature {
            keyid: KeyId,
            sig: String,
        }
        let parse = |why: String| TrustError::parse(role, why);
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| parse(e.to_string()))?;
        let mut signatures = BTreeMap::new();
        for one in envelope.signatures {
            // Two signatures under one id: which one is meant would be the reader's choice.
            if signatures.insert(one.keyid.clone(), decode(&one.sig)).is_some() {
                return Err(parse(format!("it carries two signatures of key {}", one.keyid)));
            }
        }
        let message = canonical(&envelope.signed).map_err(parse)?;
        let doc = Doc::<T>::deserialize(&envelope.signed).map_err(|e| parse(e.to_string()))?;
        doc.check().map_err(parse)?;
        Ok(Self { role: role.to_owned(), doc, message, signatures })
    }

    /// The version it claims.
    pub fn version(&self) -> u64 {
        self.doc.version
    }

    /// Keys of an authority that have signed it: one id for each distinct public key, because the same key under two
    /// ids is one.
    pub fn signed_by(&self, authority: &Authority<'_>) -> Vec<KeyId> {
        let mut valid: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut ids = Vec::new();
        for id in authority.keyids {
            let (Some(key), Some(Some(signature))) = (authority.keys.get(id), self.signatures.get(id)) else {
                continue;
            };
            let Some(public) = PublicKey::of(key).filter(|k| authority.schemes.has(k.scheme)) else {
                continue;
            };
            if !valid.contains(public.material()) && public.verifies(&self.message, signature) {
                valid.insert(public.material().to_vec());
                ids.push(id.clone());
            }
        }
        ids
    }

    /// Checks the threshold of one authority, in distinct public keys.
    pub fn check(&self, authority: &Authority<'_>) -> Result<(), TrustError> {
        let valid = u32::try_from(self.signed_by(authority).len()).unwrap_or(u32::MAX);
        if authority.threshold > 0 && valid >= authority.threshold {
            return Ok(());
        }
        Err(TrustError::Signatures {
            role: self.role.clone(),
            version: self.doc.version,
            delegator: authority.delegator.clone(),
            valid,
            threshold: authority.threshold,
        })
    }

    /// The document although nobody vouched for it: for the server to read what it verified when it was uploaded.
    pub fn into_unverified(self) -> Doc<T> {
        self.doc
    }

    /// The document, once an authority vouches for it.
    pub fn verify(self, authority: &Authority<'_>) -> Result<Doc<T>, TrustError> {
        self.check(authority)?;
        Ok(self.doc)
    }
}

impl Unverified<Root> {
    /// Verifies a root against itself and, when given, its predecessor.
    pub fn verify_root(self, predecessor: Option<&Doc<Root>>) -> Result<Doc<Root>, TrustError> {
        self.verify_root_by(predecessor, Schemes::BUILT_IN)
    }

    /// The same for somebody to whom only some schemes count.
    pub fn verify_root_by(
        self,
        predecessor: Option<&Doc<Root>>,
        schemes: Schemes,
    ) -> Result<Doc<Root>, TrustError> {
        if let Some(old) = predecessor {
            self.check(&old.authority("root")?.accepting(schemes))?;
        }
        self.check(&self.doc.authority("root")?.accepting(schemes))?;
        Ok(self.doc)
    }
}

impl Doc<Root> {
    /// Who may sign a top-level role.
    pub(super) fn authority(&self, role: &str) -> Result<Authority<'_>, TrustError> {
        self.body.authority(&format!("root {}", self.version), role)
    }
}

impl Root {
    /// Who may sign a top-level role.
    pub(super) fn authority(&self, delegator: &str, role: &str) -> Result<Authority<'_>, TrustError> {
        let holders =
            self.roles.get(role).ok_or_else(|| TrustError::parse("root", format!("no role {role}")))?;
        let (keys, keyids) = (&self.keys, holders.keyids.as_slice());
        let (delegator, threshold) = (delegator.to_owned(), holders.threshold);
        Ok(Authority { delegator, keys, keyids, threshold, schemes: Schemes::BUILT_IN })
    }
}

impl Delegations {
    /// Who may sign as one of the roles.
    pub(super) fn authority<'a>(&'a self, delegator: &str, role: &'a DelegatedRole) -> Authority<'a> {
        let (keys, keyids) = (&self.keys, role.keyids.as_slice());
        let (delegator, threshold) = (delegator.to_owned(), role.threshold);
        Authority { delegator, keys, keyids, threshold, schemes: Schemes::BUILT_IN }
    }
}

impl<T> Doc<T> {
    /// Refuses what has expired.
    pub(super) fn fresh(&self, role: &str, now: UnixSeconds) -> Result<(), TrustError> {
        if now < self.expires {
            return Ok(());
        }
        let role = role.to_owned();
        Err(TrustError::Expired { role, version: self.version, expires: self.expires, now })
    }
}

impl FileMeta {
    /// Checks length and digests, where they are given, and that nothing unknown stands in for them.
    pub(super) fn check_bytes(&self, role: &str, bytes: &[u8], by: &str) -> Result<(), TrustError> {
        if let Some(expected) = self.length.filter(|l| *l != bytes.len() as u64) {
            let (role, by, got) = (role.to_owned(), by.to_owned(), bytes.len() as u64);
            return Err(TrustError::LengthMismatch { role, expected, got, by });
        }
        let Some(hashes) = &self.hashes else { return Ok(()) };
        let mut digests = Digests::new(hashes);
        digests.update(bytes);
        digests.check(hashes).map_err(|differs| TrustError::DigestMismatch {
            role: role.to_owned(),
            expected: differs.expected,
            got: differs.got,
            by: by.to_owned(),
        })
    }
}

/// Lower-case digits. Upper case is refused, so that a signature has one spelling.
fn decode(text: &str) -> Option<Vec<u8>> {
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    lower.then(|| hex::decode(text).ok()).flatten()
}
