//! The index of the next measurement window of each bundle, kept across restarts.
//!
//! The server counts windows by (bundle, index), so an index must not be used twice for different counts. The file
//! is written once a window; if it is lost, the server sees repeated indexes under a new boot, which it can tell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_protocol::Digest;

use crate::files::{self, FileError, PUBLIC};

/// Bundles remembered: what the anchor may hold as active, previous and ordered for 8 models, and some of the past.
const MAX_BUNDLES: usize = 32;
/// 32 lines of under 90 bytes.
const MAX_FILE: u64 = 16 * 1024;

/// The counters.
#[derive(Debug)]
pub struct Windows {
    path: PathBuf,
    next: BTreeMap<Digest, u64>,
    changed: bool,
}

impl Windows {
    /// Reads the counters of a state folder; what cannot be read counts from 0.
    pub fn open(state: &Path) -> Self {
        let path = state.join("windows.json");
        let read = files::read_limited(&path, MAX_FILE).ok();
        let next = read.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Self { path, next, changed: false }
    }

    /// Index of the next window of a bundle.
    pub fn next(&self, digest: Digest) -> u64 {
        self.next.get(&digest).copied().unwrap_or(0)
    }

    /// A window of a bundle was closed.
    pub fn closed(&mut self, digest: Digest, index: u64) {
        let next = self.next.entry(digest).or_default();
        if index >= *next {
            *next = index + 1;
            self.changed = true;
        }
    }

    /// Forgets bundles that are not kept, beyond [`MAX_BUNDLES`], and writes the file when something changed.
    pub fn save(&mut self, kept: impl Fn(&Digest) -> bool) -> Result<(), FileError> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        if self.next.len() > MAX_BUNDLES {
            self.next.retain(|digest, _| kept(digest));
        }
        let json = serde_json::to_vec(&self.next).unwrap_or_default(); // keys are texts: cannot fail
        files::write_atomic(&self.path, &json, PUBLIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_not_used_twice_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"a");
        let mut windows = Windows::open(dir.path());
        assert_eq!(windows.next(digest), 0);
        windows.closed(digest, 0);
        windows.closed(digest, 0); // a second part of the same window
        windows.save(|_| true).unwrap();
        assert_eq!(Windows::open(dir.path()).next(digest), 1);
        std::fs::write(dir.path().join("windows.json"), "spoilt").unwrap();
        assert_eq!(Windows::open(dir.path()).next(digest), 0);
    }

    #[test]
    fn old_bundles_are_forgotten_and_kept_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut windows = Windows::open(dir.path());
        let keep = Digest::of(&[0]);
        for n in 0..=40_u8 {
            windows.closed(Digest::of(&[n]), 4);
        }
        windows.save(|d| *d == keep).unwrap();
        let windows = Windows::open(dir.path());
        assert_eq!((windows.next(keep), windows.next(Digest::of(&[1]))), (5, 0));
    }
}
