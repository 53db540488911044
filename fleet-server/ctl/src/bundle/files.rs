//! A bundle on this machine's disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{FileEntry, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};

use crate::failure::{Refused, Usage};

/// Bytes read at a time: enough that a system call costs nothing against hashing, little enough to stay in cache.
const CHUNK: usize = 64 * 1024;

/// A bundle whose manifest was parsed. Nobody has vouched for it.
#[derive(Debug)]
pub struct LocalBundle {
    /// Its folder.
    pub dir: PathBuf,
    /// What it says.
    pub manifest: Manifest,
    /// `bundle.json` as it is.
    pub bytes: Vec<u8>,
    /// Its digest, by which the bundle is known.
    pub digest: Digest,
}

impl LocalBundle {
    /// Reads a bundle's manifest.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let file = File::open(&path).map_err(|e| {
            Usage(format!("{} is not a bundle: cannot read {}: {e}", dir.display(), path.display()))
        })?;
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .with_context(|| path.display().to_string())?;
        let manifest = Manifest::parse(&bytes).with_context(|| path.display().to_string())?;
        let digest = Digest::of(&bytes);
        Ok(Self { dir: dir.to_owned(), manifest, bytes, digest })
    }

    /// The path of a listed file.
    pub fn path(&self, entry: &FileEntry) -> PathBuf {
        self.dir.join(entry.path.as_str())
    }

    /// Checks that every listed file is there with its size and digest, and that nothing else is.
    pub fn verify(&self) -> Result<()> {
        for entry in &self.manifest.files {
            self.verify_file(entry).with_context(|| format!("bundle {}", self.dir.display()))?;
        }
        let listed: BTreeSet<&str> = self.manifest.files.iter().map(|f| f.path.as_str()).collect();
        for path in walk(&self.dir, Path::new(""))? {
            if path != MANIFEST_FILE && !listed.contains(path.as_str()) {
                bail!(Refused(format!(
                    "bundle {}: {path} is there, but bundle.json does not list it",
                    self.dir.display()
                )));
            }
        }
        Ok(())
    }

    fn verify_file(&self, entry: &FileEntry) -> Result<()> {
        let path = self.path(entry);
        let refuse = |why: String| Err(Refused(format!("{}: {why}", entry.path)).into());
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return refuse("it is missing".into()),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        if !meta.is_file() {
            return refuse("it is not an ordinary file".into());
        }
        if meta.len() != entry.size {
            return refuse(format!("it has {} bytes, bundle.json says {}", meta.len(), entry.size));
        }
        let (_, digest) = hash(&path)?;
        if digest != entry.sha256 {
            return refuse(format!("its SHA-256 is {digest}, bundle.json says {}", entry.sha256));
        }
        Ok(())
    }
}

/// Length and SHA-256 of a file of any size.
pub fn hash(path: &Path) -> Result<(u64, Digest)> {
    let fail = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(fail)?;
    let mut hasher = ring::digest::Context::new(&ring::digest::SHA256);
    let (mut buffer, mut length) = (vec![0; CHUNK], 0);
    loop {
        let n = file.read(&mut buffer).with_context(fail)?;
        let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else { break };
        hasher.update(read);
        length += n as u64;
    }
    Ok((length, digest_of(hasher)))
}

/// The digest of everything that was hashed.
pub fn digest_of(hasher: ring::digest::Context) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(hasher.finish().as_ref());
    Digest::from_bytes(digest)
}

/// Every file below a folder, by its path from there. Links are not followed: they are named like files.
fn walk(dir: &Path, below: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let folder = dir.join(below);
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(walk(dir, &path)?);
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{REFUSED, exit_code};
    use plimsoll_runtime::testing;

    #[track_caller]
    fn refused(spoil: impl FnOnce(&Path), expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let manifest = testing::classifier_manifest(3, 2);
        testing::write_bundle(dir.path(), &testing::classifier(3, 2, 1.0), manifest);
        LocalBundle::open(dir.path()).unwrap().verify().unwrap();
        spoil(dir.path());
        let error = LocalBundle::open(dir.path()).and_then(|b| b.verify()).unwrap_err();
        assert_eq!(exit_code(&error), REFUSED, "{error:#}");
        assert!(format!("{error:#}").contains(expect), "{error:#} does not say {expect:?}");
    }

    #[test]
    fn each_way_to_tamper_with_a_bundle_is_refused_by_name() {
        let model = |dir: &Path| dir.join("model.onnx");
        let flip = |dir: &Path| {
            let mut bytes = std::fs::read(model(dir)).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(model(dir), bytes).unwrap();
        };
        refused(flip, "model.onnx: its SHA-256 is");
        refused(|dir| std::fs::write(model(dir), b"short").unwrap(), "model.onnx: it has 5 bytes");
        refused(|dir| std::fs::remove_file(model(dir)).unwrap(), "model.onnx: it is missing");
        refused(|dir| std::fs::write(dir.join("more.bin"), b"x").unwrap(), "more.bin is there");
        refused(|dir| std::fs::write(dir.join("bundle.json"), b"{}").unwrap(), "does not parse");
        let link = |dir: &Path| {
            std::fs::rename(model(dir), dir.with_extension("onnx")).unwrap();
            std::os::unix::fs::symlink(dir.with_extension("onnx"), model(dir)).unwrap();
        };
        refused(link, "model.onnx: it is not an ordinary file");
    }

    #[test]
    fn a_digest_is_that_of_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(hash(&path).unwrap(), (200_000, Digest::of(&bytes)));
    }
}
