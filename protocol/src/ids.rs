//! Identifiers: parsed once at the edge, then trusted. All are ASCII, bounded, and safe in a path, a topic, a
//! certificate's common name and a log line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a tenant, device or model: two of them and a dot stay inside a certificate's 64 to 128
/// characters and far inside MQTT's 65,535 bytes a topic.
pub const MAX_NAME: usize = 60;

/// A text that is not an acceptable identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty, too long, or with a character outside the set.
    #[error("{kind} {value:?} is not valid: 1 to {MAX_NAME} characters of A-Z a-z 0-9 _ - are allowed")]
    Name {
        /// What the text was meant to name.
        kind: &'static str,
        /// The text, cut to 80 characters.
        value: String,
    },
    /// Not 64 lower-case hexadecimal digits.
    #[error("digest {0:?} is not 64 lower-case hexadecimal digits of a SHA-256")]
    Digest(String),
    /// Not 32 lower-case hexadecimal digits.
    #[error("incarnation {0:?} is not 32 lower-case hexadecimal digits")]
    Incarnation(String),
    /// Not `tenant.device`.
    #[error("identity {0:?} is not of the form tenant.device")]
    Identity(String),
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn checked_name(kind: &'static str, value: &str) -> Result<String, IdError> {
    let fits = (1..=MAX_NAME).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits { Ok(value.to_owned()) } else { Err(IdError::Name { kind, value: cut(value) }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses a name; the error says what is allowed.
            pub fn new(value: &str) -> Result<Self, IdError> {
                checked_name($kind, value).map(Self)
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(&s)
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }
    };
}

name_type!(
    /// The owner of a fleet. One a server today; topics and certificates keep the segment.
    TenantId, "tenant"
);
name_type!(
    /// One device of a tenant.
    DeviceId, "device"
);
name_type!(
    /// A model that a fleet runs; its versions are bundles.
    ModelName, "model"
);
name_type!(
    /// One rollout of a model version.
    RolloutId, "rollout"
);

/// `tenant.device`: a certificate's common name and the MQTT client id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceIdentity {
    /// Owner.
    pub tenant: TenantId,
    /// Device.
    pub device: DeviceId,
}

impl fmt::Display for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tenant, self.device)
    }
}
impl FromStr for DeviceIdentity {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let (tenant, device) = s.split_once('.').ok_or_else(|| IdError::Identity(cut(s)))?;
        Ok(Self { tenant: TenantId::new(tenant)?, device: DeviceId::new(device)? })
    }
}
impl TryFrom<String> for DeviceIdentity {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}
impl From<DeviceIdentity> for String {
    fn from(i: DeviceIdentity) -> String {
        i.to_string()
    }
}

/// A SHA-256, as 64 lower-case hexadecimal digits in text. A bundle is known by the digest of its `bundle.json`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// From raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// The digest of a document in memory (streams of unknown length are hashed by the shells).
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.short())
    }
}
impl FromStr for Digest {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let lower = s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut bytes = [0; 32];
        if !lower || hex::decode_to_slice(s, &mut bytes).is_err() {
            return Err(IdError::Digest(cut(s)));
        }
        Ok(Self(bytes))
    }
}
impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}
impl From<Digest> for String {
    fn from(d: Digest) -> String {
        d.to_string()
    }
}

/// Random id made with the agent's state folder, so that a reflashed device is not mistaken for its past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    /// From 16 random bytes that the caller drew.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}
impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl FromStr for Incarnation {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let mut bytes = [0; 16];
        if hex::decode_to_slice(s, &mut bytes).is_err() || s.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(IdError::Incarnation(cut(s)));
        }
        Ok(Self(bytes))
    }
}
impl TryFrom<String> for Incarnation {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}
impl From<Incarnation> for String {
    fn from(i: Incarnation) -> String {
        i.to_string()
    }
}

/// Rises with every change of a device's desired state; the agent refuses an older one.
pub type Generation = u64;
/// Seconds since 1970-01-01T00:00:00Z.
pub type UnixSeconds = i64;
/// Milliseconds since 1970-01-01T00:00:00Z.
pub type UnixMillis = i64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_a_path_or_a_topic_could_misread() {
        for bad in ["", "a/b", "a.b", "..", "é", "a b", "+", "#", "$SYS", &"x".repeat(MAX_NAME + 1)] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(DeviceId::new("cam_7-B").unwrap().as_str(), "cam_7-B");
    }

    #[test]
    fn identity_round_trips_and_needs_both_halves() {
        let id: DeviceIdentity = "acme.cam-1".parse().unwrap();
        assert_eq!(id.to_string(), "acme.cam-1");
        for bad in ["acme", ".cam", "acme.", "a.b.c"] {
            assert!(bad.parse::<DeviceIdentity>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn digest_is_lower_case_hex_of_sha256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        assert!(empty.to_uppercase().parse::<Digest>().is_err());
        assert!("00".parse::<Digest>().is_err());
    }
}
