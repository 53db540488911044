//! The anchor: the few facts that a device must find again after a power cut at any instant.
//!
//! Two files of fixed size, written in turn. A commit overwrites the one that does *not* hold the newest record,
//! in place, and flushes it; a cut in the middle leaves that one torn, which its checksum tells, and the other whole.
//! Nothing is created, renamed or allocated, so a commit works on a full disk and costs one flush: 4.1 KB on the
//! device, against 64 KB and four flushes for write, fsync, rename, fsync directory.
//!
//! After an error the same file is written again, from memory: the page cache may have dropped what it failed to
//! write, and the other file holds the only record known to be good.

mod crc;
mod frame;

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};

use plimsoll_agent_core::Persistent;
use plimsoll_protocol::{Incarnation, UnixSeconds};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::files::disk::{self, DiskFile};
use crate::files::{FileError, SECRET};
use frame::{FILE_BYTES, Frame, MAX_PAYLOAD};

const NAMES: [&str; 2] = ["anchor.a", "anchor.b"];

/// What the anchor holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnchorState {
    /// Of this state folder.
    pub incarnation: Incarnation,
    /// Starts of the agent with this state folder; raised and committed before the first report of a start.
    pub boot: u64,
    /// The device's clock is never believed below this: the newest time in a verified document.
    #[serde(default)]
    pub time_floor: UnixSeconds,
    /// The lifecycle of every model.
    pub core: Persistent,
}

/// What was found when the anchor was opened.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The newest record that was committed.
    Record(Box<AnchorState>),
    /// No anchor: a new state folder.
    Nothing,
    /// Both files are there and neither is whole. Rebuild from the slots, with a new incarnation.
    Lost,
}

/// A failure of the anchor: what was tried on which file.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// Another process owns the folder.
    #[error("another agent works with {}: stop it, or give this one a --state-dir of its own", .0.display())]
    Busy(PathBuf),
    /// Does not happen with records of the core, which are bounded (a test holds that).
    #[error("the record has {0} bytes; the anchor holds {MAX_PAYLOAD}")]
    TooBig(usize),
    /// Does not happen: the record has no maps with keys that are not text.
    #[error("the record cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// The open anchor. Owns the state folder: a second one on the same folder is refused.
#[derive(Debug)]
pub struct Anchor {
    files: [DiskFile; 2],
    paths: [PathBuf; 2],
    /// Of the newest record known to be durable.
    generation: u64,
    /// The file to write next: not the one that holds that record.
    next: usize,
}

impl Anchor {
    /// Opens the anchor in a folder, which must exist; creates its two files when they are missing.
    pub fn open(folder: &Path) -> Result<(Self, Found), AnchorError> {
        let paths = NAMES.map(|name| folder.join(name));
        let existed = paths.iter().any(|p| p.exists());
        let files = [open_or_create(&paths[0])?, open_or_create(&paths[1])?];
        match files[0].try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AnchorError::Busy(folder.to_owned())),
            Err(TryLockError::Error(e)) => return Err(FileError::new("lock", &paths[0], e).into()),
        }
        disk::sync_dir(folder).map_err(FileError::on("flush", folder))?;

        let frames = [read(&files[0], &paths[0])?, read(&files[1], &paths[1])?];
        let newest = match &frames {
            [Some(a), Some(b)] if b.generation > a.generation => Some(1),
            [Some(_), _] => Some(0),
            [None, Some(_)] => Some(1),
            [None, None] => None,
        };
        let mut anchor = Self { files, paths, generation: 0, next: 0 };
        let Some((newest, frame)) = newest.and_then(|n| frames.into_iter().nth(n).flatten().map(|f| (n, f)))
        else {
            return Ok((anchor, if existed { Found::Lost } else { Found::Nothing }));
        };
        anchor.generation = frame.generation;
        anchor.next = 1 - newest;
        Ok((anchor, Found::Record(Box::new(frame.state))))
    }

    /// Makes a record durable. On an error the record before is still the newest, and the next call writes to the
    /// same file again.
    pub fn commit(&mut self, state: &AnchorState) -> Result<(), AnchorError> {
        let generation = self.generation + 1;
        let bytes = frame::encode(generation, state)?;
        let (file, path) = (&self.files[self.next], &self.paths[self.next]);
        file.write_all_at(&bytes, 0).map_err(FileError::on("write", path))?;
        file.sync_data().map_err(FileError::on("flush", path))?;
        self.generation = generation;
        self.next = 1 - self.next;
        Ok(())
    }
}

/// The newest record of a folder, without opening it for writing: for a look from outside, also while an agent works
/// with it (a commit that is just being written counts as not there).
pub fn peek(folder: &Path) -> Result<Option<AnchorState>, AnchorError> {
    let look = |path: PathBuf| match std::fs::read(&path) {
        Ok(bytes) => Ok(frame::decode(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("read", &path, e)),
    };
    let [a, b] = NAMES.map(|name| look(folder.join(name)));
    let newest = [a?, b?].into_iter().flatten().max_by_key(|frame| frame.generation);
    Ok(newest.map(|frame| frame.state))
}

/// Opens a file of the full size. Written with zeros and not merely extended, so that every block of it is
/// allocated now and a later commit needs none.
fn open_or_create(path: &Path) -> Result<DiskFile, FileError> {
    let open = || -> io::Result<DiskFile> {
        let file = DiskFile::open(path, OFlags::RDWR | OFlags::CREATE, SECRET)?;
        let length = file.size()?;
        if length < FILE_BYTES as u64 {
            let start = usize::try_from(length).unwrap_or(0);
            file.write_all_at(&vec![0; FILE_BYTES - start], length)?;
            file.sync_all()?;
        }
        Ok(file)
    };
    let read_only = |e: io::Error| match e.kind() {
        // What is there can be read, which is enough to serve; a commit answers with its own error.
        io::ErrorKind::ReadOnlyFilesystem => DiskFile::open(path, OFlags::RDONLY, 0),
        _ => Err(e),
    };
    open().or_else(read_only).map_err(FileError::on("open", path))
}

/// The frame of a file, or nothing when it is not whole. A file that the system cannot read is an error: what it
/// holds may be the newest record, and going on without it could undo it.
fn read(file: &DiskFile, path: &Path) -> Result<Option<Frame>, FileError> {
    let mut bytes = vec![0; FILE_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(FileError::on("read", path))?;
    Ok(frame::decode(&bytes))
}

#[cfg(test)]
mod tests;
