//! Digests of bytes that come in pieces, against those that were signed for.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256, Sha512};

/// Bytes so far, under every algorithm that is known here.
#[derive(Debug, Clone, Default)]
pub(super) struct Digests {
    sha256: Sha256,
    sha512: Sha512,
}

/// Two digests that differ, in words: the one that was signed for, and the one found.
pub(super) struct Differs {
    pub expected: String,
    pub got: String,
}

impl Digests {
    pub fn of(bytes: &[u8]) -> Self {
        let mut digests = Self::default();
        digests.update(bytes);
        digests
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.sha512.update(bytes);
    }

    /// Every digest of a known kind must hold, and there must be one.
    pub fn check(self, hashes: &BTreeMap<String, String>) -> Result<(), Differs> {
        let (sha256, sha512) = (hex::encode(self.sha256.finalize()), hex::encode(self.sha512.finalize()));
        let mut known = false;
        for (algorithm, expected) in hashes {
            let got = match algorithm.as_str() {
                "sha256" => &sha256,
                "sha512" => &sha512,
                _ => continue,
            };
            if got != expected {
                return Err(Differs { expected: expected.clone(), got: got.clone() });
            }
            known = true;
        }
        if known {
            return Ok(());
        }
        let kinds: Vec<&str> = hashes.keys().map(String::as_str).collect();
        let expected = format!("none of a kind that is known here, only {kinds:?}");
        Err(Differs { expected, got: sha256 })
    }
}
