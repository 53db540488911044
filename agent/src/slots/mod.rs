//! Slots: bundles on the disk, one directory each, named by the digest of its `bundle.json`.
//!
//! ```text
//! state/staging/<digest>/   being fetched; may be thrown away at any time
//! state/slots/<digest>/     whole and durable: appears by one rename and is never written again
//! ```
//!
//! A slot describes itself: its name is the digest of its manifest, and the manifest lists the size and digest of
//! every file, so a slot can be checked with nothing else at hand. Only a manifest that trust has verified can be
//! staged. What a slot must not hold it must not hold at all: a symbolic link, a file that is not listed, a file of
//! another size make it damaged, not usable with a warning.
//!
//! [`writer`] fills a staging directory, [`check`] tells whole from damaged, this file moves directories.

mod check;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use plimsoll_agent_core::{Observed, SlotFacts};
use plimsoll_protocol::bundle::{MANIFEST_FILE, Manifest};
use plimsoll_protocol::trust::Verified;
use plimsoll_protocol::{Digest, Generation};

use crate::files::{FileError, create_private_dir, disk, sync_parent, write_atomic};
pub use check::Check;
pub use writer::{FileWriter, Staging};

/// Name of the mark of a slot that passed a trial here. A bundle cannot hold such a file: its paths have no part
/// that starts with a dot.
const PROVEN: &str = ".proven";
/// Partial files of a staging directory; cannot collide with the bundle's files for the same reason.
const PARTS: &str = ".parts";
/// Ending of a directory that is being deleted.
const GONE: &str = ".gone";

/// A failure with a slot: what was tried on which object.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The system refused; trying again later can help.
    #[error(transparent)]
    Io(#[from] FileError),
    /// What is there is not the bundle; trying again with the same bytes cannot help.
    #[error("bundle {digest:?}: {why}")]
    Damaged {
        /// Which bundle.
        digest: Digest,
        /// Which file, what was expected, what is there.
        why: String,
    },
}

impl SlotError {
    /// Whether trying again later can help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Io(_))
    }

    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io(FileError::new(what, path, source))
    }
}

/// A whole slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Where its files are.
    pub dir: PathBuf,
    /// Its name.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Manifest,
    /// The newest mark of a passed trial.
    pub proven: Option<Generation>,
}

/// The slots of a state folder.
#[derive(Debug, Clone)]
pub struct Slots {
    staging: PathBuf,
    slots: PathBuf,
    limits: Limits,
}

/// What the operator allows bundles to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// What an update leaves free on the file system, bytes.
    pub reserve_bytes: u64,
    /// Most bytes of all bundles together; `None` for what the disk has.
    pub quota_bytes: Option<u64>,
}

impl Slots {
    /// The slots of a state folder, for a look: creates and finishes nothing.
    pub fn at(state: &Path) -> Self {
        Self { staging: state.join("staging"), slots: state.join("slots"), limits: Limits::default() }
    }

    /// The same slots under the operator's limits, which preflight holds against an update.
    pub fn limited(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The operator's limits.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes that the quota leaves for one more bundle, beside what is there and what is on its way.
    pub fn quota_left(&self) -> Option<u64> {
        let used = || check::tree_bytes(&self.slots).saturating_add(check::tree_bytes(&self.staging));
        self.limits.quota_bytes.map(|quota| quota.saturating_sub(used()))
    }

    /// Opens the slots of a state folder, creates their directories, and finishes deletions that a crash cut off.
    pub fn open(state: &Path) -> Result<Self, SlotError> {
        let this = Self::at(state);
        for dir in [&this.staging, &this.slots] {
            if dir.is_dir() {
                continue; // also on a disk that takes no writes
            }
            create_private_dir(dir)?;
        }
        sync_parent(&this.slots).map_err(SlotError::io("flush", state))?;
        for path in children(&this.staging)? {
            if path.extension().is_some_and(|e| e == &GONE[1..])
                && let Err(error) = remove_dir(&path)
            {
                tracing::warn!(error = crate::causes(&error), "a deleted slot still takes space");
            }
        }
        Ok(this)
    }

    /// Opens the staging directory of a verified manifest and keeps what an earlier fetch has put there.
    /// `bytes` are those of the manifest.
    pub fn stage(&self, manifest: &Verified<Manifest>, bytes: &[u8]) -> Result<Staging, SlotError> {
        self.stage_signed(manifest.digest(), manifest, bytes)
    }

    /// Private, so that outside this module only a verified manifest can be staged.
    fn stage_signed(&self, digest: Digest, manifest: &Manifest, bytes: &[u8]) -> Result<Staging, SlotError> {
        if Digest::of(bytes) != digest {
            return Err(SlotError::Damaged { digest, why: "these are not the bytes of its manifest".into() });
        }
        Staging::open(self.staging_dir(digest), digest, manifest.clone(), bytes)
    }

    /// Makes a staged bundle a slot: checks every byte of it again, flushes the directories, renames. Idempotent:
    /// a slot that is there and whole is the answer.
    pub fn commit(&self, digest: Digest) -> Result<Slot, SlotError> {
        let (from, to) = (self.staging_dir(digest), self.dir(digest));
        if !from.exists() {
            return self.open_slot(digest, Check::Contents);
        }
        let manifest = check::check(&from, digest, Check::Contents)?;
        remove_dir(&from.join(PARTS))?;
        check::flush_dirs(&from)?;
        if to.exists() {
            self.delete(digest)?; // a damaged slot of the same name, which is being replaced
        }
        disk::rename(&from, &to).map_err(SlotError::io("rename", &from))?;
        sync_parent(&to).map_err(SlotError::io("flush", &self.slots))?;
        Ok(Slot { dir: to, digest, manifest, proven: None })
    }

    /// Opens a slot, or says what is wrong with it.
    pub fn open_slot(&self, digest: Digest, check: Check) -> Result<Slot, SlotError> {
        let dir = self.dir(digest);
        let manifest = check::check(&dir, digest, check)?;
        let proven = std::fs::read_to_string(dir.join(PROVEN)).ok().and_then(|text| text.trim().parse().ok());
        Ok(Slot { dir, digest, manifest, proven })
    }

    /// Everything that is in the slots, for [`plimsoll_agent_core::Core::resume`]. A slot that the system cannot read
    /// counts as damaged: it cannot be served either way.
    pub fn observe(&self, check: Check) -> Result<Observed, SlotError> {
        let mut observed = Observed { slots: BTreeMap::new(), damaged: Vec::new() };
        for path in children(&self.slots)? {
            // What is not named by a digest is not ours to judge, and is left alone.
            let Some(digest) = path.file_name().and_then(|n| n.to_str()?.parse::<Digest>().ok()) else {
                continue;
            };
            match self.open_slot(digest, check) {
                Ok(Slot { manifest: Manifest { model, version, .. }, proven, .. }) => {
                    observed.slots.insert(digest, SlotFacts { model, version, proven });
                }
                Err(error) => {
                    tracing::warn!(slot.digest = %digest, error = %error, "slot is damaged");
                    observed.damaged.push(digest);
                }
            }
        }
        Ok(observed)
    }

    /// Marks a slot as proven on this device. Does not write when the mark is there already.
    pub fn mark_proven(&self, digest: Digest, generation: Generation) -> Result<(), SlotError> {
        let path = self.dir(digest).join(PROVEN);
        let text = format!("{generation}\n");
        if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        Ok(write_atomic(&path, text.as_bytes(), crate::files::PUBLIC)?)
    }

    /// Deletes a slot. It leaves its place by one rename, so a crash never leaves half a slot there.
    pub fn delete(&self, digest: Digest) -> Result<(), SlotError> {
        let dir = self.dir(digest);
        let gone = self.staging.join(format!("{digest}{GONE}"));
        remove_dir(&gone)?;
        match disk::rename(&dir, &gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(SlotError::io("delete", &dir))?,
        }
        sync_parent(&dir).map_err(SlotError::io("flush", &self.slots))?;
        remove_dir(&gone)
    }

    /// Drops the staging directory of a bundle.
    pub fn discard(&self, digest: Digest) -> Result<(), SlotError> {
        remove_dir(&self.staging_dir(digest))
    }

    /// Drops the staging directories of all bundles but these.
    pub fn discard_all_but(&self, wanted: &BTreeSet<Digest>) -> Result<(), SlotError> {
        for path in children(&self.staging)? {
            let digest = path.file_name().and_then(|n| n.to_str()?.parse::<Digest>().ok());
            if !digest.is_some_and(|d| wanted.contains(&d)) {
                remove_dir(&path)?;
            }
        }
        Ok(())
    }

    /// Bytes that a fetch which was interrupted has already put into the staging directory.
    pub fn staged_bytes(&self, digest: Digest) -> u64 {
        check::tree_bytes(&self.staging_dir(digest))
    }

    /// Free for the agent on the file system of the slots, bytes.
    pub fn disk_free(&self) -> Result<u64, SlotError> {
        let stat =
            rustix::fs::statvfs(&self.slots).map_err(|e| SlotError::io("measure", &self.slots)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Where the files of a slot are.
    pub fn dir(&self, digest: Digest) -> PathBuf {
        self.slots.join(digest.to_string())
    }

    fn staging_dir(&self, digest: Digest) -> PathBuf {
        self.staging.join(digest.to_string())
    }
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, SlotError> {
    let read = || std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = read().map_err(SlotError::io("list", dir))?;
    paths.sort();
    Ok(paths)
}

/// Removes a directory tree or a stray file; what is not there is removed already.
fn remove_dir(path: &Path) -> Result<(), SlotError> {
    disk::remove_tree(path).map_err(SlotError::io("remove", path))
}

/// Flushes one directory's entries.
fn flush_dir(dir: &Path) -> Result<(), SlotError> {
    disk::sync_dir(dir).map_err(SlotError::io("flush", dir))
}

/// Path of the manifest in a bundle's directory.
fn manifest_path(dir: &Path) -> PathBuf {
    dir.join(MANIFEST_FILE)
}

#[cfg(test)]
mod tests;
