//! The end of a look-up: a target that admits exactly the bytes that were signed.

use std::ops::Deref;

use serde_json::Value;

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

/// A path that a trusted role signed for. Made by [`super::Client`] and by the server's check of an upload only.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedTarget {
    path: String,
    length: u64,
    sha256: Digest,
    custom: Option<Value>,
    role: String,
}

impl VerifiedTarget {
    pub(super) fn new(role: &str, path: &str, meta: &TargetMeta) -> Result<Self, TrustError> {
        let sha256 =
            meta.sha256().ok_or_else(|| TrustError::target(path, format!("role {role} names no sha256")))?;
        let (role, path) = (role.to_owned(), path.to_owned());
        Ok(Self { path, length: meta.length, sha256, custom: meta.custom.clone(), role })
    }

    /// Its path in the repository.
    pub fn path(&self) -> &str {
        &self.path
    }
    /// Bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }
    /// Digest of its bytes; also the name of its blob.
    pub const fn sha256(&self) -> Digest {
        self.sha256
    }
    /// What the signer added.
    pub const fn custom(&self) -> Option<&Value> {
        self.custom.as_ref()
    }
    /// Which role signed for it.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Admits the signed bytes and no others.
    pub fn admit(&self, bytes: Vec<u8>) -> Result<Verified<Vec<u8>>, TrustError> {
        self.check(&bytes)?;
        Ok(Verified { value: bytes, digest: self.sha256 })
    }

    /// Admits a `bundle.json`: the signed bytes, a valid manifest, and of the model and version that the path names,
    /// so that a signed bundle cannot be passed off as another version.
    pub fn admit_manifest(&self, bytes: &[u8]) -> Result<Verified<Manifest>, TrustError> {
        if self.length > MAX_MANIFEST_BYTES {
            let why = format!("it has {} bytes; at most {MAX_MANIFEST_BYTES} are read", self.length);
            return Err(TrustError::target(&self.path, why));
        }
        self.check(bytes)?;
        let value = Manifest::parse(bytes).map_err(|e| TrustError::target(&self.path, e))?;
        let own = target_path(&value.model, &value.version);
        if own != self.path {
            return Err(TrustError::target(&self.path, format!("its manifest is that of {own}")));
        }
        Ok(Verified { value, digest: self.sha256 })
    }

    fn check(&self, bytes: &[u8]) -> Result<(), TrustError> {
        if bytes.len() as u64 != self.length {
            let why = format!("it has {} bytes, {} are signed for", bytes.len(), self.length);
            return Err(TrustError::target(&self.path, why));
        }
        let got = Digest::of(bytes);
        if got != self.sha256 {
            return Err(TrustError::wrong_bytes(&self.path, &self.sha256, &got));
        }
        Ok(())
    }
}
