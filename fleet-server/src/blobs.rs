//! Files by digest: bundles' files and trust documents. Immutable, so any number of readers needs no lock.
//!
//! `<dir>/sha256/<2 digits>/<64 digits>`; a file is hashed while it is written to `<dir>/incoming`, fsynced, and
//! only then renamed to its name: whoever finds a blob finds all of it.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use plimsoll_protocol::Digest;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::secret;

/// Read at once: large enough that a system call is noise (~20 us of a disk's time), small enough for 1,000
/// downloads at once (64 MiB).
const CHUNK: usize = 64 * 1024;
/// Kept free on the file system, so that the store can still commit: 256 MiB are weeks of reports.
const RESERVE: u64 = 256 * 1024 * 1024;

/// Why a blob was not stored or not read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are others than announced.
    #[error(
        "the bytes sent have digest sha256:{got}, not sha256:{expected}: the transfer or the file is damaged"
    )]
    Mismatch {
        /// Announced.
        expected: Digest,
        /// Received.
        got: Digest,
    },
    /// Longer than allowed.
    #[error("blob {digest} is longer than {max} bytes")]
    TooBig {
        /// Announced.
        digest: Digest,
        /// The limit.
        max: u64,
    },
    /// The disk is nearly full.
    #[error("blob {0} is not stored: less than {RESERVE} bytes would stay free on the server's disk")]
    DiskFull(Digest),
    /// The sender went away.
    #[error("blob {digest}: the upload ended early: {why}")]
    Interrupted {
        /// Announced.
        digest: Digest,
        /// In the transport's words.
        why: String,
    },
    /// The file system.
    #[error("blob {digest}: {source}")]
    Io {
        /// Which.
        digest: Digest,
        /// Why.
        source: std::io::Error,
    },
}

/// The store of blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    /// Opens or creates it; uploads that an earlier run did not finish are removed.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let incoming = dir.join("incoming");
        match std::fs::remove_dir_all(&incoming) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => std::fs::create_dir_all(&incoming)?,
        }
        std::fs::create_dir_all(dir.join("sha256"))?;
        // Names that what is stored later hangs on.
        for dir in [Some(dir), dir.parent()].into_iter().flatten().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.dir.join("sha256").join(&hex[..2]).join(hex)
    }

    /// Its length, when it is there.
    pub async fn length(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).await.ok().map(|m| m.len())
    }

    /// Stores what arrives, when it has the digest announced. Answers its length.
    pub async fn put<S, E>(&self, digest: Digest, max: u64, mut body: S) -> Result<u64, BlobError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let io = |source| BlobError::Io { digest, source };
        let name = hex::encode(secret::random::<16>().map_err(io)?);
        let partial = Partial(self.dir.join("incoming").join(name));
        let mut file = File::create(&partial.0).await.map_err(io)?;
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut length = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| BlobError::Interrupted { digest, why: e.to_string() })?;
            length += chunk.len() as u64;
            if length > max {
                return Err(BlobError::TooBig { digest, max });
            }
            if self.free().is_some_and(|free| free < RESERVE + chunk.len() as u64) {
                return Err(BlobError::DiskFull(digest));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(io)?;
        }
        let mut got = [0; 32];
        got.copy_from_slice(hash.finish().as_ref());
        let got = Digest::from_bytes(got);
        if got != digest {
            return Err(BlobError::Mismatch { expected: digest, got });
        }
        file.flush().await.map_err(io)?;
        file.sync_all().await.map_err(io)?;
        drop(file);
        self.publish(partial, &digest).await.map_err(io)?;
        Ok(length)
    }

    /// Reads what arrives for a blob that is there already to its end, and forgets it: an answer before the end closes
    /// the connection under a sender that is still writing, who then hears of a broken pipe and not of success.
    pub async fn skip<S, E>(&self, digest: Digest, max: u64, mut body: S) -> Result<(), BlobError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let mut length = 0;
        while let Some(chunk) = body.next().await {
            length += chunk.map_err(|e| BlobError::Interrupted { digest, why: e.to_string() })?.len() as u64;
            if length > max {
                return Err(BlobError::TooBig { digest, max });
            }
        }
        Ok(())
    }

    /// Stores bytes in memory under their digest.
    pub async fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        if self.length(&digest).await != Some(bytes.len() as u64) {
            let once = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(
                Bytes::copy_from_slice(bytes),
            )]);
            self.put(digest, bytes.len() as u64, once).await?;
        }
        Ok(digest)
    }

    /// A small blob, whole, checked against its digest.
    pub async fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, BlobError> {
        let io = |source| BlobError::Io { digest: *digest, source };
        let mut bytes = Vec::new();
        let file = File::open(self.path(digest)).await.map_err(io)?;
        file.take(max + 1).read_to_end(&mut bytes).await.map_err(io)?;
        if bytes.len() as u64 > max {
            return Err(BlobError::TooBig { digest: *digest, max });
        }
        let got = Digest::of(&bytes);
        if got == *digest { Ok(bytes) } else { Err(BlobError::Mismatch { expected: *digest, got }) }
    }

    /// `length` bytes from `start`, as they are read.
    pub async fn stream(
        &self,
        digest: &Digest,
        start: u64,
        length: u64,
    ) -> std::io::Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
        let mut file = File::open(self.path(digest)).await?;
        file.seek(SeekFrom::Start(start)).await?;
        Ok(futures_util::stream::try_unfold((file, length), |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            let read = file.read(&mut buffer).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            buffer.truncate(read);
            Ok(Some((Bytes::from(buffer), (file, left - read as u64))))
        }))
    }

    /// Opens a blob for reading at any place, for work off the runtime's threads.
    pub fn open_file(&self, digest: &Digest) -> std::io::Result<std::fs::File> {
        std::fs::File::open(self.path(digest))
    }

    /// A place for a file that may become a blob; nothing is made there yet. The file goes away unless it is adopted.
    pub fn scratch(&self, name: &str) -> Partial {
        Partial(self.dir.join("incoming").join(name))
    }

    /// Makes a flushed scratch file the blob of this digest, which the caller has computed while writing it. Blocks.
    pub fn adopt(&self, partial: Partial, digest: &Digest) -> std::io::Result<()> {
        let path = self.path(digest);
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        std::fs::create_dir_all(&dir)?;
        std::fs::rename(&partial.0, &path)?;
        std::fs::File::open(&dir)?.sync_all()?;
        std::fs::File::open(self.dir.join("sha256"))?.sync_all()
    }

    /// Removes a blob that the server has made itself and can make again. Blocks.
    pub fn remove(&self, digest: &Digest) -> std::io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    async fn publish(&self, partial: Partial, digest: &Digest) -> std::io::Result<()> {
        let path = self.path(digest);
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        fs::create_dir_all(&dir).await?;
        fs::rename(&partial.0, &path).await?;
        File::open(&dir).await?.sync_all().await?;
        // The two-digit directory may be new.
        File::open(self.dir.join("sha256")).await?.sync_all().await
    }

    fn free(&self) -> Option<u64> {
        rustix::fs::statvfs(&self.dir).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize))
    }
}

/// A file that goes away unless it was renamed.
#[derive(Debug)]
pub struct Partial(PathBuf);

impl Partial {
    /// Where it is, or will be.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed: not there any more. Not renamed and not removable: the next start removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, Infallible>> + Unpin + use<> {
        futures_util::stream::iter(
            parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect::<Vec<_>>(),
        )
    }

    #[tokio::test]
    async fn a_blob_is_what_its_name_says_or_it_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let wrong = blobs.put(digest, 100, chunks(&["hello", "world"])).await.unwrap_err();
        assert!(matches!(wrong, BlobError::Mismatch { .. }), "{wrong}");
        assert_eq!(blobs.length(&digest).await, None);
        let big = blobs.put(digest, 10, chunks(&["hello ", "world"])).await.unwrap_err();
        assert!(matches!(big, BlobError::TooBig { .. }), "{big}");
        assert_eq!(blobs.put(digest, 11, chunks(&["hello ", "world"])).await.unwrap(), 11);
        assert_eq!(blobs.read(&digest, 11).await.unwrap(), b"hello world");
        assert_eq!(
            std::fs::read_dir(dir.path().join("incoming")).unwrap().count(),
            0,
            "partial files are removed"
        );
    }

    #[tokio::test]
    async fn what_arrives_again_is_read_to_its_end_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = blobs.put_bytes(b"hello world").await.unwrap();
        let mut again = chunks(&["hello ", "world"]);
        blobs.skip(digest, 11, &mut again).await.unwrap();
        assert!(again.next().await.is_none(), "the sender was cut off");
        let long = blobs.skip(digest, 10, chunks(&["hello ", "world"])).await.unwrap_err();
        assert!(matches!(long, BlobError::TooBig { .. }), "{long}");
    }

    #[tokio::test]
    async fn a_part_is_streamed_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let digest = blobs.put_bytes(&bytes).await.unwrap();
        let parts: Vec<_> = Box::pin(blobs.stream(&digest, 1_000, 150_000).await.unwrap()).collect().await;
        let got: Vec<u8> = parts.into_iter().flat_map(|p| p.unwrap().to_vec()).collect();
        assert_eq!(got, bytes[1_000..151_000]);
    }

    #[tokio::test]
    async fn a_blob_damaged_on_disk_is_noticed_when_it_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = blobs.put_bytes(b"good").await.unwrap();
        std::fs::write(blobs.path(&digest), b"evil").unwrap();
        assert!(matches!(blobs.read(&digest, 10).await, Err(BlobError::Mismatch { .. })));
    }
}
