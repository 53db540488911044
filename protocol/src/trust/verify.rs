//! Opening an envelope: size, form, signatures. The only place where a threshold is counted.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use sha2::Digest as _;

use super::schema::{DelegatedRole, Delegations, Doc, FileMeta, RoleType, Root};
use super::{Key, KeyId, TrustError, canonical};
use crate::{Digest, UnixSeconds};

/// A document that parses. Nobody has vouched for it yet.
pub(super) struct Unverified<T> {
    role: String,
    doc: Doc<T>,
    message: Vec<u8>,
    signatures: BTreeMap<KeyId, Option<[u8; 64]>>,
}

/// Who may sign, as the delegator says.
pub(super) struct Authority<'a> {
    pub delegator: String,
    pub keys: &'a BTreeMap<KeyId, Key>,
    pub keyids: &'a [KeyId],
    pub threshold: u32,
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
        let mut valid: BTreeSet<[u8; 32]> = BTreeSet::new();
        let mut ids = Vec::new();
        for id in authority.keyids {
            let (Some(key), Some(Some(signature))) = (authority.keys.get(id), self.signatures.get(id)) else {
                continue;
            };
            let Some(public) = key.public() else { continue };
            if !valid.contains(&public) && key.verifies(&self.message, signature) {
                valid.insert(public);
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
        if let Some(old) = predecessor {
            self.check(&old.authority("root")?)?;
        }
        self.check(&self.doc.authority("root")?)?;
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
        Ok(Authority { delegator: delegator.to_owned(), keys, keyids, threshold: holders.threshold })
    }
}

impl Delegations {
    /// Who may sign as one of the roles.
    pub(super) fn authority<'a>(&'a self, delegator: &str, role: &'a DelegatedRole) -> Authority<'a> {
        let (keys, keyids) = (&self.keys, role.keyids.as_slice());
        Authority { delegator: delegator.to_owned(), keys, keyids, threshold: role.threshold }
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
        check_hashes(hashes, bytes).map_err(|(expected, got)| TrustError::DigestMismatch {
            role: role.to_owned(),
            expected,
            got,
            by: by.to_owned(),
        })
    }
}

/// Every digest of a known kind must hold, and there must be one.
fn check_hashes(hashes: &BTreeMap<String, String>, bytes: &[u8]) -> Result<(), (String, String)> {
    let mut known = false;
    for (algorithm, expected) in hashes {
        let got = match algorithm.as_str() {
            "sha256" => Digest::of(bytes).to_string(),
            "sha512" => hex::encode(sha2::Sha512::digest(bytes)),
            _ => continue,
        };
        if got != *expected {
            return Err((expected.clone(), got));
        }
        known = true;
    }
    if known { Ok(()) } else { Err(("a sha256".into(), "digests of unknown kinds only".into())) }
}

/// 128 lower-case digits. Upper case is refused, so that a signature has one spelling.
fn decode(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}
