//! The end of a look-up: a target that admits exactly the bytes that were signed.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde_json::Value;

use super::digests::{Differs, Digests};
use super::{TargetMeta, TrustError};
use crate::Digest;
use crate::bundle::{MAX_MANIFEST_BYTES, Manifest, target_path};

/// A value whose signature was checked. Only this module makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<T> {
    value: T,
    digest: Digest,
}

impl<T> Verified<T> {
    /// SHA-256 of the bytes it came from.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
    /// Gives up the proof.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A path that a trusted role signed for, by whatever digests it chose. Made by [`super::Client`] only.
#[derive(Debug, Clone, PartialEq)]
pub struct SignedTarget {
    role: String,
    path: String,
    meta: TargetMeta,
}

impl SignedTarget {
    pub(super) fn new(role: &str, path: &str, meta: &TargetMeta) -> Self {
        Self { role: role.to_owned(), path: path.to_owned(), meta: meta.clone() }
    }

    /// Its path in the repository.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// Bytes.
    pub const fn length(&self) -> u64 {
        self.meta.length
    }
    /// Its digests, by algorithm, in hexadecimal digits.
    pub const fn hashes(&self) -> &BTreeMap<String, String> {
        &self.meta.hashes
    }
    /// Which role signed for it.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The same with a SHA-256, which is what blobs are named by; an error when the role gave none.
    pub fn by_sha256(self) -> Result<VerifiedTarget, TrustError> {
        let sha256 = self
            .meta
            .sha256()
            .ok_or_else(|| TrustError::target(&self.path, format!("role {} names no sha256", self.role)))?;
        Ok(VerifiedTarget { signed: self, sha256 })
    }

    /// Checks bytes that come in pieces.
    pub fn checker(&self) -> TargetCheck {
        TargetCheck { target: self.clone(), seen: 0, digests: Digests::new(&self.meta.hashes) }
    }
}

/// Bytes of a target under way: give it every piece, then [`Self::finish`].
#[derive(Debug, Clone)]
pub struct TargetCheck {
    target: SignedTarget,
    seen: u64,
    digests: Digests,
}

impl TargetCheck {
    /// Takes a piece. An error at the first byte too many, so that endless data end there.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), TrustError> {
        self.seen = self.seen.saturating_add(piece.len() as u64);
        if self.seen > self.target.length() {
            let why = format!("it has {} bytes or more, {} are signed for", self.seen, self.target.length());
            return Err(TrustError::target(self.target.path(), why));
        }
        self.digests.update(piece);
        Ok(())
    }

    /// Whether the pieces were the signed bytes: length, and every digest of a kind that is known here.
    pub fn finish(self) -> Result<(), TrustError> {
        let Self { target, seen, digests } = self;
        if seen != target.length() {
            let why = format!("it has {seen} bytes, {} are signed for", target.length());
            return Err(TrustError::target(target.path(), why));
        }
        let wrong = |d: Differs| TrustError::wrong_bytes(target.path(), &d.expected, &d.got);
        digests.check(target.hashes()).map_err(wrong)
    }
}

/// A path that a trusted role signed for by SHA-256. Made of a [`SignedTarget`], and by the server's check of an
/// upload.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedTarget {
    signed: SignedTarget,
    sha256: Digest,
}

impl VerifiedTarget {
    pub(super) fn new(role: &str, path: &str, meta: &TargetMeta) -> Result<Self, TrustError> {
        SignedTarget::new(role, path, meta).by_sha256()
    }

    /// Its path in the repository.
    pub fn path(&self) -> &str {
        &self.signed.path
    }
    /// Bytes.
    pub const fn length(&self) -> u64 {
        self.signed.length()
    }
    /// Digest of its bytes; also the name of its blob.
    pub const fn sha256(&self) -> Digest {
        self.sha256
    }
    /// What the signer added.
    pub const fn custom(&self) -> Option<&Value> {
        self.signed.meta.custom.as_ref()
    }
    /// Which role signed for it.
    pub fn role(&self) -> &str {
        &self.signed.role
    }

    /// Admits the signed bytes and no others.
    pub fn admit(&self, bytes: Vec<u8>) -> Result<Verified<Vec<u8>>, TrustError> {
        self.check(&bytes)?;
        Ok(Verified { value: bytes, digest: self.sha256 })
    }

    /// Admits a `bundle.json`: the signed bytes, a valid manifest, and of the model and version that the path names,
    /// so that a signed bundle cannot be passed off as another version.
    pub fn admit_manifest(&self, bytes: &[u8]) -> Result<Verified<Manifest>, TrustError> {
        if self.length() > MAX_MANIFEST_BYTES {
            let why = format!("it has {} bytes; at most {MAX_MANIFEST_BYTES} are read", self.length());
            return Err(TrustError::target(self.path(), why));
        }
        self.check(bytes)?;
        let value = Manifest::parse(bytes).map_err(|e| TrustError::target(self.path(), e))?;
        let own = target_path(&value.model, &value.version);
        if own != self.path() {
            return Err(TrustError::target(self.path(), format!("its manifest is that of {own}")));
        }
        Ok(Verified { value, digest: self.sha256 })
    }

    fn check(&self, bytes: &[u8]) -> Result<(), TrustError> {
        if bytes.len() as u64 != self.length() {
            let why = format!("it has {} bytes, {} are signed for", bytes.len(), self.length());
            return Err(TrustError::target(self.path(), why));
        }
        let mut check = self.signed.checker();
        check.update(bytes)?;
        check.finish()
    }
}
