//! What is here already: files of other slots that are, or resemble, files of a bundle being fetched.

use std::path::PathBuf;

use plimsoll_protocol::bundle::FileEntry;
use plimsoll_protocol::{Digest, ModelName};

use super::patch::OldFile;
use crate::slots::{Check, Slots};

/// Files below this are fetched whole: the server offers no delta for them.
const MIN_DELTA: u64 = 4 * 1024;

/// The files of the slots of this device.
#[derive(Debug, Default)]
pub struct Local {
    /// Of the same model first, newer versions first.
    slots: Vec<LocalSlot>,
}

#[derive(Debug)]
struct LocalSlot {
    same_model: bool,
    version: semver::Version,
    dir: PathBuf,
    files: Vec<FileEntry>,
}

impl Local {
    /// Looks through all slots but that of `except`. Reads manifests, so it blocks; what cannot be read is not there.
    pub fn find(slots: &Slots, model: &ModelName, except: Digest) -> Self {
        let Ok(observed) = slots.observe(Check::Sizes) else { return Self::default() };
        let mut found: Vec<LocalSlot> = observed
            .slots
            .keys()
            .filter(|digest| **digest != except)
            .filter_map(|digest| slots.open_slot(*digest, Check::Sizes).ok())
            .map(|slot| LocalSlot {
                same_model: slot.manifest.model == *model,
                version: slot.manifest.version.clone(),
                dir: slot.dir,
                files: slot.manifest.files,
            })
            .collect();
        found.sort_by(|a, b| (b.same_model, &b.version).cmp(&(a.same_model, &a.version)));
        Self { slots: found }
    }

    /// The very same file, under whatever name in whatever model.
    pub fn same(&self, entry: &FileEntry) -> Option<PathBuf> {
        let same = |f: &&FileEntry| f.sha256 == entry.sha256 && f.size == entry.size;
        self.slots.iter().find_map(|slot| Some(slot.dir.join(slot.files.iter().find(same)?.path.as_str())))
    }

    /// The same file of an earlier version of the model: what a delta may start from.
    pub fn older(&self, entry: &FileEntry) -> Option<(OldFile, &semver::Version)> {
        if entry.size < MIN_DELTA {
            return None;
        }
        self.slots.iter().filter(|slot| slot.same_model).find_map(|slot| {
            let old = slot.files.iter().find(|f| f.path == entry.path && f.size > 0)?;
            let path = slot.dir.join(old.path.as_str());
            Some((OldFile { path, digest: old.sha256, size: old.size }, &slot.version))
        })
    }
}
