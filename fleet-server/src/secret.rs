//! Files that only the server may read, written so that a crash leaves the old one, the new one or none.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use plimsoll_protocol::Digest;

/// `N` random bytes from the operating system.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| io::Error::other(format!("no random numbers from the system: {e}")))?;
    Ok(bytes)
}

/// Writes a file with mode 0600: temporary name, fsync, rename, fsync of the directory.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    write(path, contents, 0o600)
}

/// Writes a file that everybody may read, with the same care.
pub fn write_public(path: &Path, contents: &[u8]) -> io::Result<()> {
    write(path, contents, 0o644)
}

fn write(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(named)?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(named)?;
    std::fs::rename(&temporary, path).map_err(named)?;
    match path.parent() {
        Some(dir) => File::open(dir).and_then(|d| d.sync_all()).map_err(named),
        None => Ok(()),
    }
}

/// The stored form of a secret.
pub fn hash(secret: &str) -> Digest {
    Digest::of(secret.as_bytes())
}

/// Compares two hashes in a time that does not depend on where they differ.
pub fn same(a: &Digest, b: &Digest) -> bool {
    let difference = a.as_bytes().iter().zip(b.as_bytes()).fold(0u8, |acc, (x, y)| acc | (x ^ y));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_file_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn equal_hashes_are_the_same_and_others_are_not() {
        assert!(same(&hash("a"), &hash("a")));
        assert!(!same(&hash("a"), &hash("b")));
    }
}
