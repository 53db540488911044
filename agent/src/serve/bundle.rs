//! A folder with a bundle: whether its files are the listed ones, and `plimsoll-agent selftest`.

use std::io::Read;
use std::path::Path;

use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{FileEntry, MANIFEST_FILE, Manifest};
use plimsoll_runtime::{RuntimeError, SelfTestReport, architecture, self_test};

use super::control::{SelfTestLine, cut_reason};
use super::hosted::read_manifest;

/// Largest request body without a configuration: 16 rows of 3 x 512 x 512 FP32 pixels as JSON take about 100 MB; as
/// binary tensors 50. What one sends by hand is far smaller.
pub const DEFAULT_MAX_BODY: u64 = 64 * 1024 * 1024;

/// Runs the golden samples of the bundle in `dir` in this process. For the driver's child, and for people.
pub fn self_test_bundle(dir: &Path) -> Result<SelfTestReport, RuntimeError> {
    let manifest = read_manifest(dir, None)?;
    self_test(dir, &manifest, architecture())
}

/// What `selftest` prints, and its exit status.
pub fn self_test_line(dir: &Path) -> (SelfTestLine, u8) {
    match self_test_bundle(dir) {
        Ok(report) => {
            let status = if report.ok { 0 } else { 3 };
            (SelfTestLine::Report(report), status)
        }
        Err(error) => (SelfTestLine::Broken { error: cut_reason(error.to_string()) }, 4),
    }
}

/// Checks size and digest of every file that the manifest lists. Returns the digest of `bundle.json`.
///
/// Says that the folder is whole, not who made it: without a fleet there is no signature to check.
pub fn verify_files(dir: &Path) -> Result<(Manifest, Digest), RuntimeError> {
    let manifest = read_manifest(dir, None)?;
    manifest.files.iter().try_for_each(|file| verify_file(dir, file))?;
    let path = dir.join(MANIFEST_FILE);
    let bytes = std::fs::read(&path).map_err(|source| RuntimeError::Io { path, source })?;
    Ok((manifest, Digest::of(&bytes)))
}

fn verify_file(dir: &Path, entry: &FileEntry) -> Result<(), RuntimeError> {
    let path = dir.join(entry.path.as_str());
    let io = |source| RuntimeError::Io { path: path.clone(), source };
    let mut file = std::fs::File::open(&path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size != entry.size {
        return Err(RuntimeError::Refused(format!(
            "{} has {size} bytes, bundle.json says {}",
            path.display(),
            entry.size
        )));
    }
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    if hash.finish().as_ref() != entry.sha256.as_bytes() {
        return Err(RuntimeError::Refused(format!(
            "{} is not the file that bundle.json lists",
            path.display()
        )));
    }
    Ok(())
}
