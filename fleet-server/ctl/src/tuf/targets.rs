//! Targets on the disk: fetched once, checked while they stream, replaced whole.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::trust::SignedTarget;

use super::remote::Remote;
use super::store::Replacement;
use crate::api::encoded;

/// Bytes read at a time: enough that a system call costs nothing against hashing, little enough to stay in cache.
const CHUNK: usize = 64 * 1024;

/// Where targets come from and go to.
pub struct Targets {
    dir: PathBuf,
    remote: Remote,
    /// `<digest>.<name>` instead of `<name>` on the server.
    with_digest: bool,
}

/// A target that is there.
pub struct Got {
    pub file: PathBuf,
    /// Whether it had to be fetched.
    pub fetched: bool,
}

impl Targets {
    pub fn new(dir: &Path, remote: Remote, with_digest: bool) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make --target-dir {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), remote, with_digest })
    }

    /// Fetches a target unless its signed bytes are there already.
    pub async fn get(&self, target: &SignedTarget) -> Result<Got> {
        let file = self.dir.join(file_name(target.path()));
        if is_there(&file, target)? {
            return Ok(Got { file, fetched: false });
        }
        let path = self.path(target)?;
        let response = self.remote.get(&path).await?;
        let mut response =
            response.with_context(|| format!("the server has no {path}, which is signed for"))?;
        let (mut next, mut check) = (Replacement::new(&file)?, target.checker());
        while let Some(piece) = response.chunk().await.with_context(|| format!("{path} broke off"))? {
            check.update(&piece)?;
            next.write(&piece)?;
        }
        check.finish()?;
        next.commit()?;
        Ok(Got { file, fetched: true })
    }

    /// Its path on the server, percent-encoded.
    fn path(&self, target: &SignedTarget) -> Result<String> {
        let mut parts: Vec<String> = target.path().split('/').map(encoded).collect();
        if parts.iter().any(|part| matches!(part.as_str(), "" | "." | "..")) {
            bail!("{:?} cannot be asked for by HTTP: it has an empty part, or . or ..", target.path());
        }
        if let (true, Some(name)) = (self.with_digest, parts.last_mut()) {
            let hashes = target.hashes();
            let digest = hashes.get("sha256").or_else(|| hashes.get("sha512"));
            let digest = digest.with_context(|| {
                format!("role {} gives {} no sha256 or sha512", target.role(), target.path())
            })?;
            *name = format!("{}.{name}", encoded(digest));
        }
        Ok(parts.join("/"))
    }
}

/// One file for each path, inside of the folder whatever the path is.
fn file_name(path: &str) -> String {
    let name = encoded(path);
    // `.`, `..` and hidden files; a `%` of the path itself is `%25`, so no other path gets this name.
    match name.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => name,
    }
}

fn is_there(path: &Path, target: &SignedTarget) -> Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let (mut check, mut buffer) = (target.checker(), vec![0; CHUNK]);
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            return Ok(check.finish().is_ok());
        }
        if check.update(&buffer[..n]).is_err() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_folder_and_no_two_share_a_file() {
        for (path, name) in [
            ("a.txt", "a.txt"),
            ("a/b.txt", "a%2Fb.txt"),
            ("a%2Fb.txt", "a%252Fb.txt"),
            ("..", "%2E."),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".new.a", "%2Enew.a"),
        ] {
            assert_eq!(file_name(path), name);
        }
    }
}
