//! Two mebibytes that nobody needs, until the disk is full.
//!
//! Somebody else may fill the file system. What the agent must do then (drop what it was fetching, shorten the
//! outbox, mark a slot) writes a little before it frees a lot, and fails on the last byte. So a file of zeros is kept,
//! given up when the disk is full, and written again when there is room.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};
use crate::health::disk_free;

/// A commit of the outbox copies a path of its tree, at most some 64 KiB; a manifest is at most 1 MiB and a set of
/// trust documents 0.6 MiB. Two of the larger fit.
pub const BALLAST_BYTES: u64 = 2 * 1024 * 1024;
/// Less than this free counts as full: no commit of the outbox is sure to fit.
const FULL_BYTES: u64 = 256 * 1024;

/// The file.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
}

/// What was done about the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The disk was full and the ballast was given up: what can be freed must be freed now.
    GivenUp,
    /// There is room again and the ballast was written.
    Restored,
}

impl Ballast {
    /// The ballast of a state folder. Writes nothing yet.
    pub fn of(state: &Path) -> Self {
        Self { path: state.join("ballast") }
    }

    /// Looks at the disk. Writes the ballast only where twice its size stays free, so that it is never itself what
    /// fills the disk.
    pub fn look(&self) -> Result<Option<Change>, FileError> {
        let there = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.len() == BALLAST_BYTES);
        let free = disk_free(self.path.parent().unwrap_or(&self.path));
        if there && free < FULL_BYTES {
            self.give_up()?;
            return Ok(Some(Change::GivenUp));
        }
        if !there && free >= 3 * BALLAST_BYTES {
            // Zeros are written, not a hole: only blocks that are allocated can be given up.
            let zeros = vec![0; BALLAST_BYTES as usize];
            files::write_atomic(&self.path, &zeros, files::SECRET)?;
            return Ok(Some(Change::Restored));
        }
        Ok(None)
    }

    fn give_up(&self) -> Result<(), FileError> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", &self.path, e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_is_made_of_blocks_and_made_once() {
        use std::os::unix::fs::MetadataExt;
        let state = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(state.path());
        assert_eq!(ballast.look().unwrap(), Some(Change::Restored));
        let meta = std::fs::metadata(state.path().join("ballast")).unwrap();
        assert_eq!(meta.len(), BALLAST_BYTES);
        assert!(meta.blocks() * 512 >= BALLAST_BYTES, "{} blocks are allocated", meta.blocks());
        assert_eq!(ballast.look().unwrap(), None);
        std::fs::write(state.path().join("ballast"), "cut off").unwrap();
        assert_eq!(ballast.look().unwrap(), Some(Change::Restored), "a piece of it is none");
    }
}
