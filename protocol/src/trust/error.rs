//! Why a document was not trusted: which role and version, what was expected, and what to do.

use super::Fetch;
use crate::UnixSeconds;

/// A document, a target or a bundle that was refused. Nothing of it was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is no root to start from.
    #[error(
        "there is no trusted root.json to start from: enrol the device again or copy root.json from the owner"
    )]
    NoRoot,
    /// Not a document of this kind.
    #[error("{role}.json does not parse: {why}; publish it again with `plimsoll`")]
    Parse {
        /// Which document.
        role: String,
        /// The parser's words.
        why: String,
    },
    /// More bytes than allowed.
    #[error("{role}.json has {got} bytes; at most {max} are read")]
    TooBig {
        /// Which document.
        role: String,
        /// Bytes given.
        got: u64,
        /// The limit.
        max: u64,
    },
    /// Too few good signatures of keys that the delegator names.
    #[error(
        "{role}.json version {version} has {valid} valid signatures of distinct keys that {delegator} names; \
         {threshold} are needed: sign it with the right keys (`plimsoll trust status` lists them)"
    )]
    Signatures {
        /// Which document.
        role: String,
        /// Its version.
        version: u64,
        /// Who says which keys count: `root 3`, `targets`.
        delegator: String,
        /// Distinct keys with a good signature.
        valid: u32,
        /// How many are needed.
        threshold: u32,
    },
    /// Another version than the one that was asked for.
    #[error(
        "{role}.json has version {got} where {expected} was expected ({by}); the server's repository is inconsistent"
    )]
    Version {
        /// Which document.
        role: String,
        /// Version found.
        got: u64,
        /// Version expected.
        expected: u64,
        /// Who says so.
        by: String,
    },
    /// An older version than one that was trusted before.
    #[error(
        "{role}.json version {got} is older than the trusted version {trusted} ({document}): refused as a rollback; \
         if the server was restored from a backup, publish again so that versions pass it"
    )]
    Rollback {
        /// Whose version went back.
        role: String,
        /// Version offered.
        got: u64,
        /// Version trusted.
        trusted: u64,
        /// Which document offered it.
        document: String,
    },
    /// A role that was in the trusted snapshot is not in the new one.
    #[error("snapshot.json version {version} no longer lists {role}.json: refused as a rollback")]
    Dropped {
        /// Which role.
        role: String,
        /// Version of the snapshot.
        version: u64,
    },
    /// Not the bytes that the document above names.
    #[error("{role}.json has digest {got}, {by} names {expected}: fetched wrongly, or tampered with")]
    DigestMismatch {
        /// Which document.
        role: String,
        /// Digest expected, hexadecimal.
        expected: String,
        /// Digest found, hexadecimal.
        got: String,
        /// Who names it.
        by: String,
    },
    /// Not the length that the document above names.
    #[error("{role}.json has {got} bytes, {by} names {expected}: fetched wrongly, or tampered with")]
    LengthMismatch {
        /// Which document.
        role: String,
        /// Bytes expected.
        expected: u64,
        /// Bytes found.
        got: u64,
        /// Who names it.
        by: String,
    },
    /// Too old to install anything by. The running model is not concerned.
    #[error(
        "{role}.json version {version} expired at {} (it is {}): nothing new is installed until it is signed again; \
         the running model is not concerned", when(*.expires), when(*.now)
    )]
    Expired {
        /// Which document.
        role: String,
        /// Its version.
        version: u64,
        /// When it expired.
        expires: UnixSeconds,
        /// The time it was judged by.
        now: UnixSeconds,
    },
    /// The server does not have a document that must be there.
    #[error("the server has no {path}, which {role} needs: the repository is incomplete")]
    Missing {
        /// What was asked for.
        path: String,
        /// Which role.
        role: String,
    },
    /// A delegated role that the snapshot does not list.
    #[error("role {role} is delegated, but snapshot.json does not list it: sign and upload {role}.json")]
    NotInSnapshot {
        /// Which role.
        role: String,
    },
    /// A chain without an end.
    #[error("more than {max} {what}: refused as endless")]
    Endless {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A bundle or file that is not what the target says.
    #[error("{path} is refused: {why}")]
    Target {
        /// Path of the target.
        path: String,
        /// What differs.
        why: String,
    },
    /// An upload that contradicts what is published.
    #[error("upload refused: {0}")]
    Upload(String),
    /// The caller asked out of turn.
    #[error("the trust client was asked out of turn: {0}")]
    OutOfTurn(&'static str),
}

impl TrustError {
    /// Whether metadata is merely too old: blocks installs, raises an alarm, and never stops a running model.
    pub const fn is_expired(&self) -> bool {
        matches!(self, Self::Expired { .. })
    }

    pub(super) fn parse(role: &str, why: impl ToString) -> Self {
        Self::Parse { role: role.to_owned(), why: why.to_string() }
    }

    pub(super) fn missing(fetch: &Fetch) -> Self {
        Self::Missing { path: fetch.path.clone(), role: fetch.role.clone() }
    }

    pub(super) fn target(path: &str, why: impl ToString) -> Self {
        Self::Target { path: path.to_owned(), why: why.to_string() }
    }

    pub(super) fn wrong_bytes(path: &str, expected: &str, got: &str) -> Self {
        Self::target(path, format!("its digest is {got}, the signed one is {expected}"))
    }
}

fn when(seconds: UnixSeconds) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |t| t.to_string())
}
