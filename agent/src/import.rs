//! A bundle from a file: what a device without a network reads instead of a server.
//!
//! The file is believed in as little as the network. Its metadata goes through the client that also reads from the
//! server, with what this device trusts already, so a file older than what the device has seen is refused like a
//! server that shows old metadata. Its blobs go into the staging folder through the writer of downloads, each to the
//! digest and size that are signed. No path is made of a name in it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use plimsoll_protocol::archive::{ArchiveError, Documents as Metadata, Index, Reader};
use plimsoll_protocol::bundle::MAX_MANIFEST_BYTES;
use plimsoll_protocol::trust::Verified;
use plimsoll_protocol::{Digest, bundle::Manifest};
use rustix::fs::OFlags;

use crate::causes;
use crate::fetch::{Documents, FetchError, slot_error};
use crate::slots::{Slots, Staging};

/// Bytes read at a time: what a download hands to the disk at once.
const CHUNK: usize = 256 * 1024;

/// An export, read up to its first blob.
#[derive(Debug)]
pub struct Export {
    /// What it says that it holds.
    pub index: Index,
    metadata: Metadata,
    blobs: Reader<BufReader<File>>,
}

impl Export {
    /// Reads index and metadata. Blocks on the disk.
    pub fn open(path: &Path) -> Result<Self, FetchError> {
        let cannot = |e: std::io::Error| {
            let text = format!(
                "cannot read {}: {e}; the agent reads it with its own rights: put the file where its service may \
                 read, /var/lib/plimsoll-agent for example",
                path.display()
            );
            FetchError::permanent("import.unreadable", text)
        };
        // Without waiting: a pipe without a writer must not hold a thread.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|e| cannot(e.into()))?;
        let file = File::from(file);
        if !file.metadata().map_err(cannot)?.is_file() {
            return Err(cannot(std::io::Error::other("it is not an ordinary file")));
        }
        let (index, metadata, blobs) = Reader::open(BufReader::new(file)).map_err(refused)?;
        Ok(Self { index, metadata, blobs })
    }

    /// The metadata, for the client; the blobs, for the staging folder.
    pub fn split(self) -> (Index, FromFile, Blobs<BufReader<File>>) {
        (self.index, FromFile(self.metadata), Blobs(self.blobs))
    }
}

/// The signed documents of an export.
#[derive(Debug)]
pub struct FromFile(Metadata);

impl Documents for FromFile {
    async fn get(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, FetchError> {
        let Some(bytes) = self.0.get(name) else { return Ok(None) };
        if bytes.len() as u64 > max_bytes {
            let text = format!("{name} in the export is longer than the {max_bytes} bytes allowed");
            return Err(FetchError::permanent("fetch.oversized", text));
        }
        Ok(Some(bytes.clone()))
    }
}

/// The blobs of an export. What they are is said by digests that somebody else has verified.
#[derive(Debug)]
pub struct Blobs<R>(Reader<R>);

impl<R: Read> Blobs<R> {
    /// The first one, which is the manifest; nobody has checked it.
    pub fn manifest(&mut self) -> Result<Vec<u8>, FetchError> {
        let Some((_, size)) = self.0.next_blob().map_err(refused)? else {
            return Err(FetchError::permanent("import.refused", "the export holds no bundle"));
        };
        if size > MAX_MANIFEST_BYTES {
            let text = format!("its bundle.json has {size} bytes; at most {MAX_MANIFEST_BYTES} are read");
            return Err(FetchError::permanent("import.refused", text));
        }
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match self.0.read(&mut part).map_err(refused)? {
                0 => return Ok(bytes),
                got => bytes.extend_from_slice(part.get(..got).unwrap_or_default()),
            }
        }
    }

    /// Stages a verified bundle and fills it. On an error what was whole stays, as after a download that broke off.
    pub fn stage(
        &mut self,
        slots: &Slots,
        manifest: &Verified<Manifest>,
        bytes: &[u8],
    ) -> Result<(), FetchError> {
        let staging = slots.stage(manifest, bytes).map_err(slot_error)?;
        while let Some((digest, size)) = self.0.next_blob().map_err(refused)? {
            self.file(&staging, digest, size)?;
        }
        match staging.missing().first() {
            None => Ok(()),
            Some(file) => {
                let text = format!("file {} is missing in the export", file.path);
                Err(FetchError::permanent("import.refused", text))
            }
        }
    }

    /// Writes one blob to every place that the manifest has for it.
    fn file(&mut self, staging: &Staging, digest: Digest, size: u64) -> Result<(), FetchError> {
        let mut of_it = staging.manifest().files.iter().filter(|f| f.sha256 == digest && f.size == size);
        let Some(first) = of_it.next() else {
            let text =
                format!("the export holds sha256:{digest} of {size} bytes, which its manifest does not list");
            return Err(FetchError::permanent("import.refused", text));
        };
        let mut writers = Vec::new();
        for entry in std::iter::once(first).chain(of_it) {
            let mut writer = staging.file(entry).map_err(slot_error)?;
            writer.restart().map_err(slot_error)?;
            writers.push(writer);
        }
        let mut part = vec![0; CHUNK];
        loop {
            let got = self.0.read(&mut part).map_err(refused)?;
            let Some(piece) = part.get(..got).filter(|piece| !piece.is_empty()) else { break };
            writers.iter_mut().try_for_each(|w| w.write(piece)).map_err(slot_error)?;
        }
        writers.into_iter().try_for_each(|w| w.finish()).map_err(slot_error)
    }
}

fn refused(error: ArchiveError) -> FetchError {
    let code = if matches!(error, ArchiveError::Io(_)) { "import.unreadable" } else { "import.refused" };
    FetchError::permanent(code, causes(&error))
}
