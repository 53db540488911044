//! Digests of bytes that come in pieces, against those that were signed for.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256, Sha512};

/// Bytes so far, under the algorithms that somebody signed with and that are known here.
#[derive(Debug, Clone)]
pub(super) struct Digests {
    sha256: Sha256,
    /// Only where it was signed for: it would double the work.
    sha512: Option<Sha512>,
}

/// Two digests that differ, in words: the one that was signed for, and the one found.
pub(super) struct Differs {
    pub expected: String,
    pub got: String,
}

impl Digests {
    /// To be checked against `hashes`.
    pub fn new(hashes: &BTreeMap<String, String>) -> Self {
        Self { sha256: Sha256::new(), sha512: hashes.contains_key("sha512").then(Sha512::new) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// Every digest of a known kind must hold, and there must be one. `hashes` are those of [`Self::new`].
    pub fn check(self, hashes: &BTreeMap<String, String>) -> Result<(), Differs> {
        let sha256 = hex::encode(self.sha256.finalize());
        let sha512 = self.sha512.map(|sha512| hex::encode(sha512.finalize())).unwrap_or_default();
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
