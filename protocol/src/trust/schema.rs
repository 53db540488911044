//! The four kinds of documents. Fields that this version does not know are carried along, because they are under
//! the signature and the next version of a document must not lose them.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{Key, KeyId, pattern};
use crate::{Digest, UnixSeconds};

/// Version of the TUF specification that documents of ours name. Readers check the first number only.
pub const SPEC_VERSION: &str = "1.0.31";

/// Longest name of a delegated role, percent-encoded: a model's name is 60, other tools use paths. With a version of
/// 20 digits before it and `.json` behind, and what an atomic write adds, it stays under the 255 bytes of a file name.
const MAX_ROLE_NAME: usize = 192;

/// The signed part of a document: what every kind has, and its own `body`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub struct Doc<T> {
    #[serde(rename = "_type")]
    pub(super) kind: String,
    pub(super) spec_version: String,
    /// Rises by at least one with every signing.
    pub version: u64,
    /// Not to be believed at or after this time.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub expires: UnixSeconds,
    /// When it was signed, as the signer says. Raises a device's time floor when the signer is offline.
    #[serde(rename = "x-issued", default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<UnixSeconds>,
    /// What this kind says.
    #[serde(flatten)]
    pub body: T,
}

/// A kind of document.
pub trait RoleType: Serialize + for<'de> Deserialize<'de> {
    /// Its `_type`.
    const TYPE: &'static str;
    /// Checks that the parts agree.
    fn check(&self) -> Result<(), String>;
}

impl<T: RoleType> Doc<T> {
    /// A document to be signed.
    pub fn new(version: u64, issued: Option<UnixSeconds>, expires: UnixSeconds, body: T) -> Self {
        let spec_version = SPEC_VERSION.to_owned();
        Self { kind: T::TYPE.to_owned(), spec_version, version, expires, issued, body }
    }

    /// Reads the `signed` part of an envelope **without verifying anything**: to show it, or to sign the next one.
    pub fn read_unverified(envelope: &Value) -> Result<Self, String> {
        let signed = envelope.get("signed").ok_or("it has no `signed` part")?;
        let doc = Self::deserialize(signed).map_err(|e| e.to_string())?;
        doc.check()?;
        Ok(doc)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.kind != T::TYPE {
            return Err(format!("_type is {:?} where {:?} was expected", self.kind, T::TYPE));
        }
        if !self.spec_version.starts_with("1.") {
            return Err(format!("spec_version {:?} is not of TUF 1", self.spec_version));
        }
        if self.version == 0 {
            return Err("version 0 is not a version".into());
        }
        self.body.check()
    }
}

/// Whose signatures count, and how many distinct keys are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Which keys.
    pub keyids: Vec<KeyId>,
    /// How many of them, counted by public key.
    pub threshold: u32,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl RoleKeys {
    /// Of these keys, so many.
    pub fn new(keyids: Vec<KeyId>, threshold: u32) -> Self {
        Self { keyids, threshold, extra: BTreeMap::new() }
    }

    fn check(&self, role: &str) -> Result<(), String> {
        check_threshold(role, &self.keyids, self.threshold)
    }
}

fn check_threshold(role: &str, keyids: &[KeyId], threshold: u32) -> Result<(), String> {
    if threshold == 0 {
        return Err(format!("role {role} has threshold 0, which anybody meets"));
    }
    let distinct: BTreeSet<_> = keyids.iter().collect();
    if distinct.len() != keyids.len() {
        return Err(format!("role {role} lists a key id twice"));
    }
    Ok(())
}

/// The keys of the other roles; signed offline by k of n.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Root {
    /// All keys, by id.
    pub keys: BTreeMap<KeyId, Key>,
    /// `root`, `timestamp`, `snapshot`, `targets`.
    pub roles: BTreeMap<String, RoleKeys>,
    /// Whether documents carry their version in their names. Ours always do.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// The roles that every root names.
pub const TOP_LEVEL: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

impl RoleType for Root {
    const TYPE: &'static str = "root";
    fn check(&self) -> Result<(), String> {
        for role in TOP_LEVEL {
            self.roles.get(role).ok_or_else(|| format!("root names no role {role}"))?.check(role)?;
        }
        Ok(())
    }
}

/// What is signed for, and who else may sign.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// Files, by path.
    pub targets: BTreeMap<String, TargetMeta>,
    /// Who else may sign, for which paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl RoleType for Targets {
    const TYPE: &'static str = "targets";
    fn check(&self) -> Result<(), String> {
        self.delegations.as_ref().map_or(Ok(()), Delegations::check)
    }
}

/// One file that is signed for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetMeta {
    /// Bytes.
    pub length: u64,
    /// `sha256` in hexadecimal digits, and others.
    pub hashes: BTreeMap<String, String>,
    /// Free: a bundle's `version` and `sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Value>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl TargetMeta {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8], custom: Option<Value>) -> Self {
        let hashes = BTreeMap::from([("sha256".to_owned(), Digest::of(bytes).to_string())]);
        Self { length: bytes.len() as u64, hashes, custom, extra: BTreeMap::new() }
    }

    /// The SHA-256, when there is one.
    pub fn sha256(&self) -> Option<Digest> {
        self.hashes.get("sha256")?.parse().ok()
    }
}

/// Who else may sign.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delegations {
    /// Their keys, by id.
    pub keys: BTreeMap<KeyId, Key>,
    /// In order of precedence.
    #[serde(default)]
    pub roles: Vec<DelegatedRole>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Delegations {
    fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for role in &self.roles {
            let name = role.name.as_str();
            if name.is_empty() || role_file(name).len() > MAX_ROLE_NAME || TOP_LEVEL.contains(&name) {
                return Err(format!("a delegated role cannot be named {name:?}"));
            }
            if !seen.insert(name) {
                return Err(format!("role {name} is delegated twice"));
            }
            if role.paths.is_some() == role.path_hash_prefixes.is_some() {
                return Err(format!("role {name} needs either paths or path_hash_prefixes"));
            }
            check_threshold(name, &role.keyids, role.threshold)?;
        }
        Ok(())
    }
}

/// One role that may sign for some paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// Its document is `<version>.<name>.json`.
    pub name: String,
    /// Which keys.
    pub keyids: Vec<KeyId>,
    /// How many of them, counted by public key.
    pub threshold: u32,
    /// When it may speak for a path, no later delegation is asked.
    pub terminating: bool,
    /// Shell patterns whose wildcards stay inside one part of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Or: first digits of the SHA-256 of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl DelegatedRole {
    /// Whether it may speak for a path.
    pub fn covers(&self, path: &str) -> bool {
        let by_pattern = self.paths.iter().flatten().any(|pattern| pattern::covers(pattern, path));
        let by_hash = || {
            let hash = Digest::of(path.as_bytes()).to_string();
            self.path_hash_prefixes.iter().flatten().any(|prefix| hash.starts_with(prefix.as_str()))
        };
        by_pattern || by_hash()
    }
}

/// What is current of every targets document; signed online.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// By role: `targets.json`, `meter-reader.json`.
    pub meta: BTreeMap<String, FileMeta>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl RoleType for Snapshot {
    const TYPE: &'static str = "snapshot";
    fn check(&self) -> Result<(), String> {
        self.meta.get("targets.json").map(|_| ()).ok_or_else(|| "it does not list targets.json".into())
    }
}

/// What is the current snapshot; signed online, short-lived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timestamp {
    /// `snapshot.json` only.
    pub meta: BTreeMap<String, FileMeta>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl RoleType for Timestamp {
    const TYPE: &'static str = "timestamp";
    fn check(&self) -> Result<(), String> {
        self.meta.get("snapshot.json").map(|_| ()).ok_or_else(|| "it does not list snapshot.json".into())
    }
}

impl Doc<Timestamp> {
    /// What it says of the snapshot.
    pub(super) fn snapshot(&self) -> FileMeta {
        self.body.meta.get("snapshot.json").cloned().unwrap_or_default() // `check` made sure that it is there
    }
}

/// What one document says of another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Of the document.
    pub version: u64,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// `sha256` in hexadecimal digits, and others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
    /// Fields of others.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl FileMeta {
    /// Of a document's bytes.
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        let hashes = BTreeMap::from([("sha256".to_owned(), Digest::of(bytes).to_string())]);
        Self { version, length: Some(bytes.len() as u64), hashes: Some(hashes), extra: BTreeMap::new() }
    }
}

/// Name by which a snapshot lists a role: the role's own, never encoded, because it is no file name there.
pub(super) fn meta_name(role: &str) -> String {
    format!("{role}.json")
}

/// Name of a role's document without version: `meter-reader.json`. Whatever is not a letter, a digit or one of
/// `_ . - ~` is percent-encoded, so that no role name can leave a folder.
pub fn role_file(role: &str) -> String {
    let mut name = String::with_capacity(role.len() + 5);
    for byte in role.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name.push_str(".json");
    name
}

/// Name of a document on the server: `3.meter-reader.json`.
pub fn file_name(role: &str, version: u64) -> String {
    format!("{version}.{}", role_file(role))
}

fn write_time<S: Serializer>(seconds: &UnixSeconds, out: S) -> Result<S::Ok, S::Error> {
    let time = jiff::Timestamp::from_second(*seconds).map_err(serde::ser::Error::custom)?;
    time.to_string().serialize(out)
}

fn read_time<'de, D: Deserializer<'de>>(input: D) -> Result<UnixSeconds, D::Error> {
    let text = String::deserialize(input)?;
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| D::Error::custom(format!("expires {text:?} is not a time: 2027-01-31T00:00:00Z")))?;
    Ok(time.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_name_cannot_leave_its_folder() {
        assert_eq!(file_name("../../etc/passwd", 3), "3...%2F..%2Fetc%2Fpasswd.json");
        assert_eq!(role_file("meter-reader_2"), "meter-reader_2.json");
    }
}
