//! Small files written so that a power cut leaves the old contents or the new ones, never a mixture.
//!
//! Write beside, fsync, rename, fsync the directory. An fsync that failed is an error of the whole write: the page
//! cache may have forgotten the data, so the caller writes again from memory and never only syncs again.

pub mod disk;
#[cfg(test)]
pub mod simulator;

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use disk::DiskFile;
use rustix::fs::OFlags;

/// A file operation that failed: what was tried on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct FileError {
    /// `write`, `create`, `read`, …
    pub what: &'static str,
    /// On which path.
    pub path: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Names an operation and its path around the system's error.
    pub fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self { what, path: path.display().to_string(), source }
    }

    /// As [`FileError::new`], for `map_err`.
    pub fn on(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(what, path, source)
    }
}

/// Mode of a file that only the agent may read: keys.
pub const SECRET: u32 = 0o600;
/// Mode of a file that anybody may read: certificates, metadata.
pub const PUBLIC: u32 = 0o644;

/// Writes a whole file atomically and durably, with these permission bits.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temp = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        // A left-over of a crash may carry other permissions: it is removed, not reused.
        disk::remove_file(&temp)?;
        let file = DiskFile::open(&temp, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        disk::rename(&temp, path)?;
        sync_parent(path)
    };
    write().map_err(|e| FileError::new("write", path, e))
}

/// Makes a rename or removal of `path` durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    disk::sync_dir(parent)
}

/// Creates a directory that only its owner may enter, with its parents. Leaves an existing one as it is.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    disk::create_dirs(path).map_err(FileError::on("create directory", path))
}

/// Reads a file of at most `max` bytes. A longer one is an error, not a truncation.
pub fn read_limited(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let read = || -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {max} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|e| FileError::new("read", path, e))
}

/// The permission bits of a file.
pub fn mode(path: &Path) -> io::Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_has_its_contents_its_mode_and_no_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        std::fs::write(path.with_extension("tmp"), "left over of a crash").unwrap();
        write_atomic(&path, b"one", SECRET).unwrap();
        write_atomic(&path, b"two", SECRET).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path).unwrap(), SECRET);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_over_its_limit_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        std::fs::write(&path, [0; 11]).unwrap();
        assert!(read_limited(&path, 11).is_ok());
        let error = read_limited(&path, 10).unwrap_err();
        assert!(error.to_string().contains("big"), "{error}");
    }
}
