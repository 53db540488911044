//! Which signatures count: Ed25519 always, ECDSA P-256 and RSA where they are built in *and* asked for.
//!
//! Two gates, because cargo unifies features: a device's program that is built beside the server's would verify RSA
//! although nobody meant it to. The cargo feature `ecdsa-rsa` compiles the code; [`Schemes`] is a value that the
//! caller hands to its client, and what is not in it never counts.

use ed25519_dalek::{Signature, VerifyingKey};

use super::Key;

/// A way of signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `ed25519`, strictly: no point of small order, one spelling of each signature.
    Ed25519,
    /// `ecdsa-sha2-nistp256`: what many key management services keep.
    EcdsaP256,
    /// `rsassa-pss-sha256`, 2,048 to 8,192 bits, 32 bytes of salt.
    RsaPss,
    /// `rsa-pkcs1v15-sha256`, 2,048 to 8,192 bits.
    RsaPkcs1,
}

/// The schemes that count for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schemes(&'static [Scheme]);

impl Schemes {
    /// Ed25519 only: devices.
    pub const ED25519: Self = Self(&[Scheme::Ed25519]);
    /// Everything that this build can verify: with the feature `ecdsa-rsa` all of [`Scheme`], else Ed25519.
    #[cfg(feature = "ecdsa-rsa")]
    pub const BUILT_IN: Self = Self(&[Scheme::Ed25519, Scheme::EcdsaP256, Scheme::RsaPss, Scheme::RsaPkcs1]);
    /// Everything that this build can verify: with the feature `ecdsa-rsa` all of [`Scheme`], else Ed25519.
    #[cfg(not(feature = "ecdsa-rsa"))]
    pub const BUILT_IN: Self = Self::ED25519;

    /// Whether a scheme counts.
    pub fn has(self, scheme: Scheme) -> bool {
        self.0.contains(&scheme)
    }
}

/// A public key of a known scheme. Two are one when their material is, whatever their documents call them.
pub(super) struct PublicKey {
    pub scheme: Scheme,
    material: Vec<u8>,
}

impl PublicKey {
    /// `None` when the kind is unknown, or not built in, or the bytes are malformed.
    pub fn of(key: &Key) -> Option<Self> {
        let scheme = match (key.keytype.as_str(), key.scheme.as_str()) {
            ("ed25519", "ed25519") => Scheme::Ed25519,
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => Scheme::EcdsaP256,
            ("rsa", "rsassa-pss-sha256") => Scheme::RsaPss,
            ("rsa", "rsa-pkcs1v15-sha256") => Scheme::RsaPkcs1,
            _ => return None,
        };
        let material = match scheme {
            Scheme::Ed25519 => key.public()?.to_vec(),
            #[cfg(feature = "ecdsa-rsa")]
            other => super::ecdsa_rsa::material(other, key.keyval.get("public")?.as_str()?)?,
            #[cfg(not(feature = "ecdsa-rsa"))]
            _ => return None,
        };
        Some(Self { scheme, material })
    }

    /// What makes it this key and no other: the point, or modulus and exponent.
    pub fn material(&self) -> &[u8] {
        &self.material
    }

    /// Whether `signature` is this key's over `message`. For Ed25519 `verify_strict` only: it refuses keys and points
    /// of small order and non-canonical scalars, which make one signature valid for many messages.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.scheme {
            Scheme::Ed25519 => self.verifies_ed25519(message, signature).is_some(),
            #[cfg(feature = "ecdsa-rsa")]
            other => super::ecdsa_rsa::verifies(other, &self.material, message, signature),
            #[cfg(not(feature = "ecdsa-rsa"))]
            _ => false,
        }
    }

    fn verifies_ed25519(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        let key = VerifyingKey::from_bytes(self.material.as_slice().try_into().ok()?).ok()?;
        key.verify_strict(message, &Signature::from_slice(signature).ok()?).ok()
    }
}
