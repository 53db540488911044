//! Why the store refused or failed.

use std::sync::Arc;

use plimsoll_protocol::DeviceId;

/// What is wrong with a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// No such token, or another secret: not told apart, so that ids cannot be probed.
    Unknown,
    /// Its time is over.
    Expired,
    /// All its uses are spent.
    UsedUp,
    /// An operator took it back.
    Revoked,
    /// It is for other names.
    Names,
}

impl std::fmt::Display for TokenFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "is unknown",
            Self::Expired => "has expired",
            Self::UsedUp => "has been used as often as it may be",
            Self::Revoked => "was revoked",
            Self::Names => "is for devices of other names",
        })
    }
}

/// A write or a read that did not happen. Cloneable, because one failed fsync fails everybody who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk, the file system or the database.
    #[error("{what} failed")]
    Storage {
        /// What was tried on which object.
        what: String,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// What is there cannot be what was written.
    #[error("{0} is damaged: restore the state folder's last export or a backup")]
    Corrupt(String),
    /// The store was closed, or its writer died.
    #[error("the store is closed; the server is stopping")]
    Stopped,
    /// A join token that does not let a device in.
    #[error("join token {id} {fault}: make a new one with `plimsoll device token`")]
    JoinToken {
        /// Public part.
        id: String,
        /// Why.
        fault: TokenFault,
    },
    /// The name belongs to another key.
    #[error(
        "device {0} is enrolled with another key: choose another name, or let the new key in with `plimsoll device \
         readmit {0} --new-key`"
    )]
    DeviceTaken(DeviceId),
    /// The device is kept out.
    #[error("device {0} is revoked: an operator lets it in again with `plimsoll device readmit {0}`")]
    DeviceRevoked(DeviceId),
    /// Somebody else changed it in between.
    #[error("{0} changed meanwhile: read it again and repeat")]
    Conflict(String),
    /// No such thing.
    #[error("{0} does not exist")]
    NotFound(String),
}

impl StoreError {
    /// A failure of the storage below.
    pub fn storage(what: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Storage { what: what.into(), source: Arc::new(source) }
    }
}
