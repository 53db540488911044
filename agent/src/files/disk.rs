//! Every change that the agent makes to the disk where it must survive a power cut: one function an operation.
//!
//! In the agent these are calls of the system and nothing else. In tests each is also written down, so that
//! [`super::simulator`] can say what a power cut after any of them may have left, and the real code can be shown
//! that. Reading is not here: what is read is what the simulator made.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

#[cfg(test)]
use super::simulator::{Op, record};

/// A file that is written where it must survive.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    #[cfg(test)]
    path: std::path::PathBuf,
}

impl DiskFile {
    /// Opens a file, never through a symbolic link in its last part. `mode` counts when it is created.
    pub fn open(path: &Path, flags: OFlags, mode: u32) -> io::Result<Self> {
        #[cfg(test)]
        let existed = path.exists();
        let mode = Mode::from_raw_mode(mode);
        let file = File::from(rustix::fs::open(path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?);
        #[cfg(test)]
        if !existed {
            record(Op::Create(path.to_owned()));
        }
        Ok(Self {
            file,
            #[cfg(test)]
            path: path.to_owned(),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes all of it at an offset.
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        record(Op::Write(self.path.clone(), at, bytes.to_vec()));
        self.file.write_all_at(bytes, at)
    }

    /// Reads what is there from an offset on, at most the buffer; 0 at the end.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }

    /// Fills the whole buffer from an offset.
    pub fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// Cuts or extends it.
    pub fn set_len(&self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        record(Op::SetLen(self.path.clone(), length));
        self.file.set_len(length)
    }

    /// Makes its contents durable; not its name, which is its directory's.
    pub fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()?;
        #[cfg(test)]
        record(Op::Sync(self.path.clone()));
        Ok(())
    }

    /// As [`DiskFile::sync_all`], without times and permissions.
    pub fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        #[cfg(test)]
        record(Op::Sync(self.path.clone()));
        Ok(())
    }

    /// Takes the lock of the file, which ends with it; an error when another process has it.
    pub fn try_lock(&self) -> Result<(), std::fs::TryLockError> {
        self.file.try_lock()
    }
}

/// Moves a file or a directory; what was in its new place is gone.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    #[cfg(test)]
    record(Op::Rename(from.to_owned(), to.to_owned()));
    Ok(())
}

/// Removes a file; one that is not there is removed already.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    }
    #[cfg(test)]
    record(Op::Remove(path.to_owned()));
    Ok(())
}

/// Removes a directory tree or a stray file; what is not there is removed already.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(meta) if !meta.is_dir() => return remove_file(path),
        Ok(_) => {}
    }
    #[cfg(test)]
    super::simulator::record_tree(path);
    std::fs::remove_dir_all(path)
}

/// Creates a directory that only its owner may enter, with its parents. Leaves existing ones as they are.
pub fn create_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dirs(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result?,
    }
    #[cfg(test)]
    record(Op::MakeDir(path.to_owned()));
    Ok(())
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    #[cfg(test)]
    record(Op::SyncDir(path.to_owned()));
    Ok(())
}
