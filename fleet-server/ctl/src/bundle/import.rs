//! `plimsoll bundle import`: from an export to a bundle's folder, checked as a device checks it.
//!
//! A server that no network reaches has keys of its own, so an export of another server is not published on it as it
//! is: it is imported here, starting from the root that this side knows, and signed again with `bundle publish`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::archive::{Documents, Index, Reader};
use plimsoll_protocol::bundle::{MANIFEST_FILE, Manifest, target_path};
use plimsoll_protocol::trust::{
    Client, MAX_ROOT_BYTES, Response, Schemes, Step, TrustedDocs, Verified, VerifiedTarget,
};
use serde_json::json;

use super::files::digest_of;
use super::subject;
use crate::failure::{Refused, Usage};
use crate::keys::{KeyArgs, KeyRing};
use crate::output::Screen;
use crate::time;

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// `plimsoll bundle import FILE --out DIR`
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The export.
    file: PathBuf,
    /// Folder of the keys, with the root.json to start from.
    #[arg(long, env = "PLIMSOLL_KEYS", value_name = "DIR", required_unless_present = "root")]
    keys: Option<PathBuf>,
    /// The root metadata to start from, instead of a folder of keys.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Folder of the bundle; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Imports an export.
pub fn run(args: &Import, screen: &Screen) -> Result<()> {
    if args.out.exists() {
        bail!(Usage(format!("{} exists already; name another folder with --out", args.out.display())));
    }
    let root = known_root(args)?;
    let name = || args.file.display().to_string();
    let file = File::open(&args.file).with_context(|| format!("cannot read {}", name()))?;
    let (index, documents, mut archive) = Reader::open(BufReader::new(file)).with_context(name)?;
    let target = verify(root, &index, &documents).with_context(name)?;
    // Beside its place until it is whole.
    let part = args.out.with_extension("part");
    let unpacked = unpack(&mut archive, &target, &part).with_context(name);
    let manifest = match unpacked {
        Ok(manifest) => manifest,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&part); // nothing of it was believed
            return Err(error);
        }
    };
    std::fs::rename(&part, &args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let result = json!({
        "model": manifest.model, "version": manifest.version, "digest": manifest.digest(), "dir": args.out,
        "signed_by": target.role(),
    });
    screen.show(&result, || {
        format!(
            "{} {} ({}), signed by role {}, is in {}.",
            manifest.model,
            manifest.version,
            manifest.digest().short(),
            target.role(),
            args.out.display()
        )
    })
}

fn known_root(args: &Import) -> Result<Vec<u8>> {
    if let Some(path) = &args.root {
        let file = File::open(path).with_context(|| format!("cannot read --root {}", path.display()))?;
        let mut bytes = Vec::new();
        file.take(MAX_ROOT_BYTES + 1).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let keys = args.keys.clone().unwrap_or_default(); // clap asks for one of the two
    let ring = KeyRing::open(&KeyArgs::at(keys.clone()))?;
    let none = || Usage(format!("{} holds no root.json to start from; give one with --root", keys.display()));
    Ok(ring.pinned_root()?.ok_or_else(none)?)
}

/// The client of the devices, fed from the archive.
fn verify(root: Vec<u8>, index: &Index, documents: &Documents) -> Result<VerifiedTarget> {
    let stored = TrustedDocs::from([("root.json".to_owned(), root)]);
    let mut device = Client::accepting(stored, time::now(), Schemes::BUILT_IN)?;
    let mut asked = false;
    loop {
        match device.next() {
            Step::Fetch(fetch) => {
                let bytes = documents.get(&fetch.path).map(Vec::as_slice);
                device.supply(bytes.map_or(Response::NotFound, Response::Bytes))?;
            }
            Step::Refreshed if !asked => {
                asked = true;
                device.find(&target_path(&index.model, &index.version))?;
            }
            Step::Found(target) => return Ok(target.by_sha256()?),
            _ => bail!(Refused(format!(
                "nobody who may signs for {} {} in this export",
                index.model, index.version
            ))),
        }
    }
}

fn unpack(
    archive: &mut Reader<impl Read>,
    target: &VerifiedTarget,
    dir: &Path,
) -> Result<Verified<Manifest>> {
    let (_, bytes) = subject::manifest(archive)?;
    let manifest = target.admit_manifest(&bytes)?;
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    std::fs::write(dir.join(MANIFEST_FILE), &bytes)?;
    let mut missing: Vec<_> = manifest.files.iter().collect();
    while let Some((digest, size)) = archive.next_blob()? {
        let mut of_it = missing.iter().filter(|f| f.sha256 == digest && f.size == size);
        let Some(first) = of_it.next() else {
            bail!(Refused(format!(
                "it holds sha256:{digest} of {size} bytes, which its bundle.json does not list"
            )));
        };
        let path = dir.join(first.path.as_str());
        place(archive, &path, digest).with_context(|| first.path.to_string())?;
        for same in of_it {
            let copy = dir.join(same.path.as_str());
            std::fs::create_dir_all(copy.parent().unwrap_or(dir))?;
            std::fs::copy(&path, &copy).with_context(|| same.path.to_string())?;
        }
        missing.retain(|f| f.sha256 != digest);
    }
    match missing.first() {
        Some(file) => bail!(Refused(format!("{} is missing in it", file.path))),
        None => Ok(manifest),
    }
}

/// Writes the blob under way to its place, and checks it.
fn place(archive: &mut Reader<impl Read>, path: &Path, digest: plimsoll_protocol::Digest) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    std::fs::create_dir_all(path.parent().unwrap_or(path)).with_context(failed)?;
    let mut out = BufWriter::new(File::create_new(path).with_context(failed)?);
    let (mut hash, mut part) = (ring::digest::Context::new(&ring::digest::SHA256), vec![0; CHUNK]);
    loop {
        let got = archive.read(&mut part)?;
        let Some(piece) = part.get(..got).filter(|piece| !piece.is_empty()) else { break };
        hash.update(piece);
        out.write_all(piece).with_context(failed)?;
    }
    out.flush().with_context(failed)?;
    let got = digest_of(hash);
    if got != digest {
        bail!(Refused(format!("its SHA-256 is {got}, bundle.json says {digest}")));
    }
    Ok(())
}
