//! A version of a model with everything that proves it, as one file: for devices without a network.
//!
//! ```text
//! plimsoll-export.json            which model and version; a hint, nothing believes it
//! metadata/1.root.json …          all roots, then timestamp, snapshot, targets and roles, under the names that
//! metadata/timestamp.json …       they are fetched by
//! blobs/sha256/<hex>              bundle.json first, then the files that it lists
//! ```
//!
//! A tar file in the "ustar" form, in this order, of ordinary files only. It carries no trust of its own: who reads
//! it hands `metadata/` to the client that also reads from the network, and every blob ends at a signed digest. What
//! is checked here is that a hostile archive can neither name a place outside, nor fill memory, nor be read in two
//! ways: no path is ever made of a name in it.

mod header;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::bundle::MAX_FILE_BYTES;
use crate::trust::{MAX_LOOKUP_ROLES, MAX_ROOT_VERSIONS, MAX_TARGETS_BYTES};
use crate::{Digest, ModelName};
use header::{BLOCK, Header};

/// Name of the first member.
const INDEX: &str = "plimsoll-export.json";
const METADATA: &str = "metadata/";
const BLOBS: &str = "blobs/sha256/";
/// Largest index: two names are under 200 bytes.
const MAX_INDEX_BYTES: u64 = 4096;
/// Most documents: every root there may be, the other three top-level roles, and the roles of one look-up.
const MAX_DOCUMENTS: usize = MAX_ROOT_VERSIONS as usize + 3 + MAX_LOOKUP_ROLES;
/// Most metadata in all: targets and one role at their largest, and as much for roots, snapshot and the rest. It is
/// held in memory; that of 1,000 bundles in 50 roles is under 100 kB.
const MAX_METADATA_BYTES: u64 = 4 * MAX_TARGETS_BYTES;

/// What an export says that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Format: 1.
    pub plimsoll_export: u32,
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
}

/// An archive that was not read or not written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file ended, or the system failed.
    #[error("the export was cut off, or its medium failed")]
    Io(#[from] io::Error),
    /// It is not an export. Names the member and what is wrong with it.
    #[error("this is not an export that may be taken: {0}; make it again with `plimsoll bundle export`")]
    Refused(String),
}

impl ArchiveError {
    fn refused<T>(why: impl Into<String>) -> Result<T, Self> {
        Err(Self::Refused(why.into()))
    }
}

/// Reads an export front to back.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Read already, not yet handed out.
    next: Option<Header>,
    /// Bytes of the member under way that are still to come, and its padding.
    left: u64,
    padding: u64,
    blobs: BTreeSet<Digest>,
}

/// Signed documents by the names that they are fetched by.
pub type Documents = BTreeMap<String, Vec<u8>>;

impl<R: Read> Reader<R> {
    /// Reads the index and all metadata, up to the first blob.
    pub fn open(input: R) -> Result<(Index, Documents, Self), ArchiveError> {
        let mut this = Self { input, next: None, left: 0, padding: 0, blobs: BTreeSet::new() };
        let Some(first) = this.header()? else { return ArchiveError::refused("it is empty") };
        if first.name != INDEX {
            return ArchiveError::refused(format!("it begins with {:?} instead of {INDEX}", first.name));
        }
        let index: Index = serde_json::from_slice(&this.small(&first, MAX_INDEX_BYTES)?)
            .map_err(|e| ArchiveError::Refused(format!("{INDEX}: {e}")))?;
        if index.plimsoll_export != 1 {
            let why =
                format!("{INDEX}: format {} is not known here; update this program", index.plimsoll_export);
            return ArchiveError::refused(why);
        }
        let (mut documents, mut total) = (Documents::new(), 0);
        while let Some(header) = this.header()? {
            let Some(name) = header.name.strip_prefix(METADATA) else {
                this.next = Some(header);
                break;
            };
            if !is_document(name) {
                return ArchiveError::refused(format!("{:?} is not the name of a document", header.name));
            }
            total += header.size;
            if documents.len() >= MAX_DOCUMENTS || total > MAX_METADATA_BYTES {
                return ArchiveError::refused(format!(
                    "{:?} is more metadata than the {MAX_DOCUMENTS} documents of together {MAX_METADATA_BYTES} bytes \
                     that an export may have",
                    header.name
                ));
            }
            let bytes = this.small(&header, MAX_TARGETS_BYTES)?;
            if documents.insert(name.to_owned(), bytes).is_some() {
                return ArchiveError::refused(format!("{:?} is there twice", header.name));
            }
        }
        Ok((index, documents, this))
    }

    /// The next blob's name and size; `None` at the end. What was not read of the one before is skipped. Its bytes
    /// come from [`Reader::read`], and nobody has checked them.
    pub fn next_blob(&mut self) -> Result<Option<(Digest, u64)>, ArchiveError> {
        let Some(header) = self.next.take().map_or_else(|| self.header(), |h| Ok(Some(h)))? else {
            return Ok(None);
        };
        let digest = header.name.strip_prefix(BLOBS).and_then(|hex| hex.parse::<Digest>().ok());
        let Some(digest) = digest.filter(|d| header.name == blob_name(d)) else {
            return ArchiveError::refused(format!(
                "{:?} has no place in an export, or not this one",
                header.name
            ));
        };
        if header.size > MAX_FILE_BYTES {
            let why =
                format!("{:?} has {} bytes; a file has at most {MAX_FILE_BYTES}", header.name, header.size);
            return ArchiveError::refused(why);
        }
        if !self.blobs.insert(digest) {
            return ArchiveError::refused(format!("{:?} is there twice", header.name));
        }
        Ok(Some((digest, header.size)))
    }

    /// Bytes of the blob that [`Reader::next_blob`] named; 0 at its end. Never more than its size.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..most).filter(|part| !part.is_empty()) else { return Ok(0) };
        let got = self.input.read(part)?;
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left -= got as u64;
        Ok(got)
    }

    /// The next header, after the rest of the member before.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink())?;
        if skipped != rest {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block)?;
        let header = header::parse(&block).map_err(ArchiveError::Refused)?;
        if let Some(header) = &header {
            self.left = header.size;
            self.padding = padding(header.size);
        }
        Ok(header)
    }

    /// A member that is held in memory, which grows with what comes and not with what is declared.
    fn small(&mut self, header: &Header, max: u64) -> Result<Vec<u8>, ArchiveError> {
        if header.size > max {
            let why = format!("{:?} has {} bytes; at most {max} are read", header.name, header.size);
            return ArchiveError::refused(why);
        }
        let mut bytes = Vec::new();
        self.input.by_ref().take(header.size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != header.size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left = 0;
        Ok(bytes)
    }
}

/// Writes an export front to back.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Bytes of the blob under way that are still to come, and its padding.
    left: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the index and the metadata.
    pub fn start(
        out: W,
        model: &ModelName,
        version: &semver::Version,
        documents: &Documents,
    ) -> Result<Self, ArchiveError> {
        let mut this = Self::plain(out);
        let index = Index { plimsoll_export: 1, model: model.clone(), version: version.clone() };
        let json = serde_json::to_vec(&index).map_err(io::Error::from)?;
        this.file(INDEX, &json)?;
        for (name, bytes) in documents {
            this.file(&format!("{METADATA}{name}"), bytes)?;
        }
        Ok(this)
    }

    /// Begins an archive of other files, for whoever reads it with `tar`; a [`Reader`] refuses it.
    pub const fn plain(out: W) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// A whole file under a name of at most 100 visible ASCII characters.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.member(name, bytes.len() as u64)?;
        self.write(bytes)
    }

    /// Begins a blob of exactly `size` bytes, which [`Writer::write`] takes.
    pub fn blob(&mut self, digest: &Digest, size: u64) -> Result<(), ArchiveError> {
        self.member(&blob_name(digest), size)
    }

    /// Some of its bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left =
            left.ok_or_else(|| ArchiveError::Refused("a file is longer than it was said to be".into()))?;
        Ok(self.out.write_all(bytes)?)
    }

    /// Ends the archive, and gives back where it went.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.end_member()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn member(&mut self, name: &str, size: u64) -> Result<(), ArchiveError> {
        self.end_member()?;
        let header =
            header::encode(&Header { name: name.to_owned(), size }).map_err(ArchiveError::Refused)?;
        self.out.write_all(&header)?;
        (self.left, self.padding) = (size, padding(size));
        Ok(())
    }

    fn end_member(&mut self) -> Result<(), ArchiveError> {
        if self.left != 0 {
            return ArchiveError::refused("a file is shorter than it was said to be");
        }
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0); // under 512
        Ok(self.out.write_all([0; BLOCK].get(..padding).unwrap_or_default())?)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("{BLOBS}{digest}")
}

/// Bytes to the next whole block.
const fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// As [`crate::trust::file_name`] writes them.
fn is_document(name: &str) -> bool {
    let stem = name.strip_suffix(".json").unwrap_or_default();
    !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-~%".contains(&b))
}
