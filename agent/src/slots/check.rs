//! Whole or damaged: a directory against the digest that names it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{FileEntry, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use rustix::fs::{Mode, OFlags};

use super::{PARTS, PROVEN, SlotError, flush_dir, manifest_path};
use crate::files::read_limited;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The manifest's digest; the names, kinds and sizes of all files.
    Sizes,
    /// And every byte: 1.2 MB take milliseconds, 1 GB on a small ARM core ten seconds.
    Contents,
}

/// Bundles are public; their directory is not.
pub(super) const BUNDLE_MODE: u32 = 0o644;
/// Reading size of the hash: two of them fit a small core's second-level cache.
const BUFFER: usize = 64 * 1024;

/// The manifest of a directory that holds exactly the bundle, or what is wrong with it.
pub(super) fn check(dir: &Path, digest: Digest, how: Check) -> Result<Manifest, SlotError> {
    let damaged = |why: String| SlotError::Damaged { digest, why };
    let mut there = files(dir).map_err(|e| match e {
        Walk::Io(path, e) => SlotError::io("read", &path)(e),
        Walk::Odd(path) => damaged(format!("{path} is neither a file nor a directory")),
    })?;
    if there.remove(MANIFEST_FILE).is_none() {
        return Err(damaged(format!("it has no {MANIFEST_FILE}")));
    }
    let path = manifest_path(dir);
    let bytes = read_limited(&path, MAX_MANIFEST_BYTES)?;
    if Digest::of(&bytes) != digest {
        return Err(damaged(format!("its {MANIFEST_FILE} has digest {}", Digest::of(&bytes))));
    }
    let manifest = Manifest::parse(&bytes).map_err(|e| damaged(e.to_string()))?;
    for entry in &manifest.files {
        match there.remove(entry.path.as_str()) {
            None => return Err(damaged(format!("file {} is missing", entry.path))),
            Some(size) if size != entry.size => {
                return Err(damaged(format!(
                    "file {} has {size} bytes instead of {}",
                    entry.path, entry.size
                )));
            }
            Some(_) => {}
        }
    }
    if let Some(extra) = there.keys().next() {
        return Err(damaged(format!("it holds {extra}, which its manifest does not list")));
    }
    if how == Check::Contents {
        for entry in &manifest.files {
            check_file(dir, entry, digest)?;
        }
    }
    Ok(manifest)
}

fn check_file(dir: &Path, entry: &FileEntry, digest: Digest) -> Result<(), SlotError> {
    let path = dir.join(entry.path.as_str());
    let got = hash_file(&path).map_err(SlotError::io("read", &path))?;
    if got != entry.sha256 {
        let why = format!("file {} has digest {got} instead of {}", entry.path, entry.sha256);
        return Err(SlotError::Damaged { digest, why });
    }
    Ok(())
}

/// SHA-256 of a file that is not reached through a symbolic link.
pub(super) fn hash_file(path: &Path) -> io::Result<Digest> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut file = open_no_follow(path, OFlags::RDONLY)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return finish(hash),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The end of a running SHA-256.
pub(super) fn finish(hash: ring::digest::Context) -> io::Result<Digest> {
    let bytes = <[u8; 32]>::try_from(hash.finish().as_ref()).map_err(io::Error::other)?;
    Ok(Digest::from_bytes(bytes))
}

/// Opens a file, never through a symbolic link in its last part.
pub(super) fn open_no_follow(path: &Path, flags: OFlags) -> io::Result<File> {
    let mode = Mode::from_raw_mode(BUNDLE_MODE);
    Ok(rustix::fs::open(path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?.into())
}

enum Walk {
    Io(PathBuf, io::Error),
    Odd(String),
}

/// All files of a directory with their sizes, by their path in it; the agent's own marks are not counted.
fn files(dir: &Path) -> Result<BTreeMap<String, u64>, Walk> {
    let mut found = BTreeMap::new();
    let mut open = vec![(dir.to_owned(), String::new())];
    while let Some((dir, prefix)) = open.pop() {
        let io = |e| Walk::Io(dir.clone(), e);
        for entry in std::fs::read_dir(&dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if [PROVEN, ".proven.tmp", PARTS].contains(&path.as_str()) {
                continue;
            }
            // Of the entry itself: a symbolic link is neither a directory nor a file.
            let meta = entry.metadata().map_err(io)?;
            if meta.is_dir() {
                open.push((entry.path(), format!("{path}/")));
            } else if meta.is_file() {
                found.insert(path, meta.len());
            } else {
                return Err(Walk::Odd(path));
            }
        }
    }
    Ok(found)
}

/// Flushes a directory and all below it, the deepest first.
pub(super) fn flush_dirs(dir: &Path) -> Result<(), SlotError> {
    for path in super::children(dir)? {
        if std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            flush_dirs(&path)?;
        }
    }
    flush_dir(dir)
}

/// Bytes of all files below a directory; what cannot be read counts nothing.
pub(super) fn tree_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => tree_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.filter_map(|e| e.ok().map(size)).sum()
}
