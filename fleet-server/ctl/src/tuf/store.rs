//! The folder of trusted metadata, and files that are replaced whole.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::trust::{MAX_TARGETS_BYTES, TrustedDocs};

/// `root.json`, `timestamp.json`, `<role>.json`.
pub struct Metadata {
    dir: PathBuf,
}

impl Metadata {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Starts with a root that was verified. A folder that trusts a root already keeps it: to go back to an older
    /// root is a decision that nobody should take by repeating a command.
    pub fn init(&self, root: &[u8]) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let path = self.dir.join("root.json");
        if path.exists() {
            bail!("{} trusts a root already: take an empty folder", self.dir.display());
        }
        write_whole(&path, root)
    }

    /// Everything that was trusted.
    pub fn stored(&self) -> Result<TrustedDocs> {
        let unreadable =
            || format!("cannot read --metadata-dir {}: `init` makes it from a root.json", self.dir.display());
        let mut docs = TrustedDocs::new();
        for entry in fs::read_dir(&self.dir).with_context(unreadable)? {
            let entry = entry.with_context(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") && !name.starts_with(".new.") {
                docs.insert(name, read(&entry.path(), MAX_TARGETS_BYTES)?);
            }
        }
        Ok(docs)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_whole(&self.dir.join(name), bytes)
    }

    pub fn delete(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot delete {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a file of limited size.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > max {
        bail!("{} has more than {max} bytes: that is no such document", path.display());
    }
    Ok(bytes)
}

/// Replaces a file: a crash leaves the old or the new one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Replacement::new(path)?;
    file.write(bytes)?;
    file.commit()
}

/// The next contents of a file, under another name until they are whole. Dropped before, they are deleted.
pub struct Replacement {
    path: PathBuf,
    part: PathBuf,
    file: File,
}

impl Replacement {
    pub fn new(path: &Path) -> Result<Self> {
        let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
        let part = path.with_file_name(format!(".new.{}", name.to_string_lossy()));
        let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        Ok(Self { path: path.to_owned(), part, file })
    }

    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).with_context(|| format!("cannot write {}", self.part.display()))
    }

    pub fn commit(self) -> Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        self.file.sync_all().with_context(failed)?;
        fs::rename(&self.part, &self.path).with_context(failed)?;
        let dir = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).with_context(failed)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit there is nothing under this name.
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_that_is_not_committed_leaves_the_old_contents_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.json");
        write_whole(&path, b"old").unwrap();
        let mut next = Replacement::new(&path).unwrap();
        next.write(b"half").unwrap();
        drop(next);
        assert_eq!(read(&path, 10).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(read(&path, 2).is_err());
    }

    #[test]
    fn a_trusted_root_is_not_replaced_by_repeating_init() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = Metadata::new(&dir.path().join("m"));
        metadata.init(b"one").unwrap();
        assert!(metadata.init(b"two").unwrap_err().to_string().contains("already"));
        assert_eq!(metadata.stored().unwrap()["root.json"], b"one");
        metadata.delete("timestamp.json").unwrap();
    }
}
