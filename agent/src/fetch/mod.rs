//! Getting signed things over HTTPS.
//!
//! | part | does |
//! |---|---|
//! | [`HttpSource`] | one client with the device's certificate: small documents, and blobs with resume |
//! | `file` | one file of a bundle by the cheapest way: it is here, a delta, the whole |
//! | `patch` | a file as a delta to one that is here |
//! | [`Local`] | what is here |
//! | `ranged` | what an answer to a ranged request means (pure) |
//! | `pace` | the bandwidth cap (pure) |
//! | [`Trust`] | drives the TUF client of the protocol and stores what it trusts |
//!
//! The network is believed in nothing: every byte ends at a digest that a signature covers.

mod file;
mod http;
mod local;
mod pace;
mod patch;
mod ranged;
mod trust;

use std::time::Duration;

pub use file::{Came, Way, blocking, file, slot_error};
pub use http::{BlobSink, HttpSource};
pub use local::Local;
pub use patch::{OldFile, Patched};
pub use trust::{Documents, Refresh, Trust};

/// A fetch that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchError {
    /// `fetch.network`, `trust.refused`, `bundle.tampered`, …: the code of the event, should it be reported.
    pub code: &'static str,
    /// What was tried on which object, and what to do.
    pub text: String,
    /// Whether trying again later can help.
    pub transient: bool,
    /// What the server asked for.
    pub retry_after: Option<Duration>,
}

impl FetchError {
    /// Trying again later can help.
    pub fn transient(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), transient: true, retry_after: None }
    }

    /// Trying again cannot help: the object itself was refused.
    pub fn permanent(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), transient: false, retry_after: None }
    }
}

impl std::fmt::Display for FetchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for FetchError {}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
