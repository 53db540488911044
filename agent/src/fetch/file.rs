//! One file of a bundle, by the cheapest way that works: it is here, a delta to what is here, the whole file.
//!
//! All ways write the same bytes from the first to the last, so each goes on where another was cut off, and none is
//! believed: the writer compares the digest that was signed. A way that ends in other bytes is not tried again in this
//! attempt; the last one begins at the first byte.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use plimsoll_protocol::bundle::FileEntry;

use super::local::Local;
use super::patch::{OldFile, Patched};
use super::{BlobSink, FetchError, HttpSource};
use crate::slots::{FileWriter, SlotError, Staging};

/// Reading size of a copy on this device.
const BUFFER: usize = 64 * 1024;

/// How a file came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It was on this device, in another bundle.
    Here,
    /// As a delta to the file of this version.
    Delta(semver::Version),
    /// From the server, all of it.
    Whole,
}

/// How the files of a bundle came, for the operator.
#[derive(Debug, Default)]
pub struct Came {
    /// Each file with its size.
    pub files: Vec<(FileEntry, Way)>,
    /// Bytes that went over the network for them.
    pub received: u64,
}

impl Came {
    /// Bytes of all the files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|(file, _)| file.size).sum()
    }
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes came over the network", self.received, self.size())?;
        let (mut here, mut whole) = (0, 0);
        for (file, way) in &self.files {
            match way {
                Way::Delta(version) => write!(f, "; {} as a delta from {version}", file.path)?,
                Way::Here => here += 1,
                Way::Whole => whole += 1,
            }
        }
        write!(f, "; {whole} files whole, {here} were on this device already")
    }
}

/// Brings one file into its place.
pub async fn file(
    source: &HttpSource,
    local: &Local,
    staging: &Staging,
    entry: &FileEntry,
) -> Result<Way, FetchError> {
    if let Some(path) = local.same(entry) {
        match copy(writer(staging, entry)?, path).await {
            Ok(()) => return Ok(Way::Here),
            // Unreadable or damaged: the network has it too. A disk that is full says so again.
            Err(error) => tracing::warn!(%error, "a file that should be here is not usable; it is fetched"),
        }
    }
    if let Some((old, version)) = local.older(entry) {
        match patched(source, &old, staging, entry).await? {
            Ok(()) => return Ok(Way::Delta(version.clone())),
            Err(why) => {
                tracing::info!(fetch.file = %entry.path, why, "no use of a delta; the file is fetched whole")
            }
        }
    }
    whole(source, staging, entry).await.map(|()| Way::Whole)
}

fn writer(staging: &Staging, entry: &FileEntry) -> Result<FileWriter, FetchError> {
    staging.file(entry).map_err(slot_error)
}

/// Copies what is on this device, from where the writer stands.
async fn copy(mut writer: FileWriter, path: PathBuf) -> Result<(), FetchError> {
    blocking(move || {
        let unreadable = |source| SlotError::Io(crate::files::FileError::new("read", &path, source));
        let mut file = std::fs::File::open(&path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(writer.offset())).map_err(unreadable)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer).map_err(unreadable)? {
                0 => return writer.finish(),
                n => writer.write(&buffer[..n])?,
            }
        }
    })
    .await
}

/// Tries a delta. The inner error says why it was of no use.
async fn patched(
    source: &HttpSource,
    old: &OldFile,
    staging: &Staging,
    entry: &FileEntry,
) -> Result<Result<(), String>, FetchError> {
    let (writer, done) = source.patch(old, entry.sha256, entry.size, writer(staging, entry)?).await;
    match done.map_err(|e| named(entry, e))? {
        Patched::Useless(why) => Ok(Err(why)),
        Patched::Whole => match finish(writer, entry).await {
            Err(error) if !error.transient => Ok(Err(error.text)),
            end => end.map(Ok),
        },
    }
}

/// Fetches the whole file, or the rest of it. When a continued part turns out wrong it is fetched once more from its
/// start: what was damaged may have been the part on this disk.
async fn whole(source: &HttpSource, staging: &Staging, entry: &FileEntry) -> Result<(), FetchError> {
    loop {
        let writer = writer(staging, entry)?;
        let continued = writer.offset() > 0;
        let (writer, fetched) = source.blob(entry.sha256, entry.size, writer).await;
        fetched.map_err(|e| named(entry, e))?;
        match finish(writer, entry).await {
            Err(error) if continued && !error.transient => {
                tracing::warn!(%error, "a continued download was damaged; it is fetched again whole");
            }
            end => return end,
        }
    }
}

async fn finish(writer: Option<FileWriter>, entry: &FileEntry) -> Result<(), FetchError> {
    let lost = || named(entry, FetchError::transient("fetch.disk", "the disk task was lost"));
    let writer = writer.ok_or_else(lost)?;
    blocking(move || writer.finish()).await
}

fn named(entry: &FileEntry, error: FetchError) -> FetchError {
    FetchError { text: format!("file {}: {}", entry.path, error.text), ..error }
}

/// Runs disk work off the driver's thread.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SlotError> + Send + 'static,
) -> Result<T, FetchError> {
    let lost = |_| FetchError::transient("fetch.disk", "the disk task was lost");
    tokio::task::spawn_blocking(work).await.map_err(lost)?.map_err(slot_error)
}

/// An error of the disk may pass; wrong content does not.
pub fn slot_error(error: SlotError) -> FetchError {
    let text = crate::causes(&error);
    if error.is_transient() {
        FetchError::transient("fetch.disk", text)
    } else {
        FetchError::permanent("bundle.tampered", text)
    }
}

impl BlobSink for FileWriter {
    fn have(&self) -> u64 {
        self.offset()
    }
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        Self::write(self, bytes).map_err(std::io::Error::other)
    }
    fn restart(&mut self) -> std::io::Result<()> {
        Self::restart(self).map_err(std::io::Error::other)
    }
}
