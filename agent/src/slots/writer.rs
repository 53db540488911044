//! Filling a staging directory: hash while writing, resume after a cut, refuse a byte too many.
//!
//! A file is written beside its place (`.parts/<number>`) and moved there when it is whole, verified and flushed; so
//! what lies in its place is whole, and what lies in `.parts` is where a fetch goes on.

use std::io;
use std::path::PathBuf;

use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{FileEntry, Manifest};
use ring::digest::{Context, SHA256};
use rustix::fs::OFlags;

use super::check::{BUNDLE_MODE, finish, hash_file};
use super::{PARTS, SlotError, flush_dir, manifest_path};
use crate::files::disk::{self, DiskFile};
use crate::files::{create_private_dir, write_atomic};

/// A staging directory with a verified manifest.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    digest: Digest,
    manifest: Manifest,
}

impl Staging {
    pub(super) fn open(
        dir: PathBuf,
        digest: Digest,
        manifest: Manifest,
        bytes: &[u8],
    ) -> Result<Self, SlotError> {
        create_private_dir(&dir.join(PARTS))?;
        let path = manifest_path(&dir);
        write_atomic(&path, bytes, crate::files::PUBLIC)?;
        Ok(Self { dir, digest, manifest })
    }

    /// The manifest that is being fetched.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Files that are not there yet. One that lies in its place with another content is fetched again.
    pub fn missing(&self) -> Vec<FileEntry> {
        let whole =
            |e: &FileEntry| hash_file(&self.dir.join(e.path.as_str())).is_ok_and(|got| got == e.sha256);
        self.manifest.files.iter().filter(|e| !whole(e)).cloned().collect()
    }

    /// Opens one of the manifest's files for writing, where an earlier fetch of it stopped.
    pub fn file(&self, entry: &FileEntry) -> Result<FileWriter, SlotError> {
        let number =
            self.manifest.files.iter().position(|f| f == entry).ok_or_else(|| SlotError::Damaged {
                digest: self.digest,
                why: format!("file {} is not in its manifest", entry.path),
            })?;
        let part = self.dir.join(PARTS).join(number.to_string());
        FileWriter::open(part, self.dir.join(entry.path.as_str()), entry.clone(), self.digest)
    }
}

/// One file being written.
pub struct FileWriter {
    file: DiskFile,
    part: PathBuf,
    place: PathBuf,
    entry: FileEntry,
    digest: Digest,
    hash: Option<Context>,
    written: u64,
}

impl FileWriter {
    fn open(part: PathBuf, place: PathBuf, entry: FileEntry, digest: Digest) -> Result<Self, SlotError> {
        let file = DiskFile::open(&part, OFlags::RDWR | OFlags::CREATE, BUNDLE_MODE)
            .map_err(SlotError::io("open", &part))?;
        let mut this = Self { file, part, place, entry, digest, hash: None, written: 0 };
        this.take_up().map_err(SlotError::io("read", &this.part.clone()))?;
        Ok(this)
    }

    /// Hashes what is there; a part that is longer than the file can be is none.
    fn take_up(&mut self) -> io::Result<()> {
        let mut hash = Context::new(&SHA256);
        let length = self.file.size()?;
        if length > self.entry.size {
            self.file.set_len(0)?;
        }
        let mut buffer = vec![0; 64 * 1024];
        self.written = 0;
        loop {
            match self.file.read_at(&mut buffer, self.written)? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    self.written += n as u64;
                }
            }
        }
        self.hash = Some(hash);
        Ok(())
    }

    /// Bytes that are there: the start of the next range request.
    pub const fn offset(&self) -> u64 {
        self.written
    }

    /// Whether all bytes are there; [`FileWriter::finish`] says whether they are the right ones.
    pub const fn is_full(&self) -> bool {
        self.written == self.entry.size
    }

    /// Begins again: the server answered with the whole file.
    pub fn restart(&mut self) -> Result<(), SlotError> {
        let restart = |this: &mut Self| {
            this.file.set_len(0)?;
            this.take_up()
        };
        restart(self).map_err(SlotError::io("truncate", &self.part.clone()))
    }

    /// Appends. Refuses what goes beyond the signed size before it reaches the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SlotError> {
        if self.written + bytes.len() as u64 > self.entry.size {
            let why =
                format!("file {} is longer than the {} bytes signed for", self.entry.path, self.entry.size);
            self.drop_part();
            return Err(SlotError::Damaged { digest: self.digest, why });
        }
        if let Err(e) = self.file.write_all_at(bytes, self.written) {
            // How much of it was written is not known: the next writer reads what is there.
            return Err(SlotError::io("write", &self.part)(e));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Verifies, flushes, and moves the file to its place. A wrong digest drops the part, so that the next fetch
    /// begins at its start.
    pub fn finish(mut self) -> Result<(), SlotError> {
        let damaged = |why| Err(SlotError::Damaged { digest: self.digest, why });
        if self.written != self.entry.size {
            let why =
                format!("file {} ends after {} of {} bytes", self.entry.path, self.written, self.entry.size);
            return damaged(why);
        }
        let hash = self.hash.take().unwrap_or_else(|| Context::new(&SHA256));
        let got = finish(hash).map_err(SlotError::io("hash", &self.part))?;
        if got != self.entry.sha256 {
            self.drop_part();
            return damaged(format!(
                "file {} has digest {got} instead of {}",
                self.entry.path, self.entry.sha256
            ));
        }
        // A failed flush may have dropped pages that the cache no longer knows: the part is written again, whole.
        if let Err(e) = self.file.sync_all() {
            self.drop_part();
            return Err(SlotError::io("flush", &self.part)(e));
        }
        let folder = self.place.parent().unwrap_or(&self.place);
        disk::create_dirs(folder).map_err(SlotError::io("create directory", folder))?;
        disk::rename(&self.part, &self.place).map_err(SlotError::io("rename", &self.part))?;
        flush_dir(folder)
    }

    fn drop_part(&self) {
        if let Err(e) = disk::remove_file(&self.part) {
            tracing::debug!(path = %self.part.display(), error = %e, "a part could not be removed; it is overwritten");
        }
    }
}
