//! Keys: Ed25519, named by the SHA-256 of their canonical description.

use std::collections::BTreeMap;
use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use crate::Digest;

/// Field of a key that holds its name for people: whose it is, or which file.
const NAME: &str = "x-plimsoll-name";

/// Name of a key inside a document. A label only: what counts is the public key behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key as a document describes it. Kinds that this version does not know are kept and never count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// `ed25519`, or what [`super::Scheme`] lists.
    pub keytype: String,
    /// The same for Ed25519; a type of key may sign in several ways.
    pub scheme: String,
    /// `{"public": "<64 hexadecimal digits>"}`, or a PEM.
    pub keyval: BTreeMap<String, Value>,
    /// Fields of others, preserved under the signature.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Key {
    /// Describes a raw Ed25519 public key.
    pub fn ed25519(public: &[u8; 32]) -> Self {
        let name = || "ed25519".to_owned();
        let keyval = BTreeMap::from([("public".to_owned(), Value::String(hex::encode(public)))]);
        Self { keytype: name(), scheme: name(), keyval, extra: BTreeMap::new() }
    }

    /// Describes a public key given as 64 hexadecimal digits; the error says what is wrong with it.
    pub fn from_hex(public: &str) -> Result<Self, String> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(public, &mut bytes)
            .map_err(|_| format!("{public:?} is not an Ed25519 public key: 64 hexadecimal digits"))?;
        let key = Self::ed25519(&bytes);
        key.verifying().ok_or_else(|| format!("{public} is not a point of Ed25519"))?;
        Ok(key)
    }

    /// The name TUF gives it: SHA-256 of its canonical description. Its name for people is no part of it, so that a
    /// key keeps its id when it is given one.
    pub fn id(&self) -> KeyId {
        // A key is strings and, from others, whatever JSON allows; a fraction there leaves an id of nothing, which
        // no signature can name by accident.
        let mut value = serde_json::to_value(self).unwrap_or(Value::Null);
        if let Some(fields) = value.as_object_mut() {
            fields.remove(NAME);
        }
        KeyId(Digest::of(&canonical(&value).unwrap_or_default()).to_string())
    }

    /// The same key with a name for people, kept in the document under the signature.
    pub fn named(mut self, name: &str) -> Self {
        self.extra.insert(NAME.to_owned(), Value::String(name.to_owned()));
        self
    }

    /// The name for people, when it has one.
    pub fn name(&self) -> Option<&str> {
        self.extra.get(NAME)?.as_str()
    }

    /// Whether both describe one public key, whatever is noted beside it.
    pub fn is(&self, other: &Self) -> bool {
        (&self.keytype, &self.scheme, &self.keyval) == (&other.keytype, &other.scheme, &other.keyval)
    }

    /// The raw Ed25519 public key, `None` when the key is of another kind or the bytes are malformed.
    pub fn public(&self) -> Option<[u8; 32]> {
        self.verifying().map(|k| k.to_bytes())
    }

    fn verifying(&self) -> Option<VerifyingKey> {
        if self.keytype != "ed25519" || self.scheme != "ed25519" {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(self.keyval.get("public")?.as_str()?, &mut bytes).ok()?;
        VerifyingKey::from_bytes(&bytes).ok()
    }
}

/// Whatever can sign: a key in memory, a command, a token of hardware.
pub trait Signer {
    /// The public half.
    fn key(&self) -> Key;
    /// Signs; the error is in words for people.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String>;
}

/// An Ed25519 key pair in memory; zeroed when dropped.
pub struct KeyPair(SigningKey);

impl KeyPair {
    /// From 32 random bytes that the caller drew.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }
    /// The secret, for the key file.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
    /// The raw public key.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
    /// The raw public key in hexadecimal digits.
    pub fn public_hex(&self) -> String {
        hex::encode(self.public())
    }
    /// The id of the public key.
    pub fn id(&self) -> KeyId {
        self.key().id()
    }
}

impl Signer for KeyPair {
    fn key(&self) -> Key {
        Key::ed25519(&self.public())
    }
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.0.sign(message).to_vec())
    }
}

impl fmt::Debug for KeyPair {
    /// Shows the public half only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public_hex())
    }
}
