//! `plimsoll bundle export`: a version with everything that proves it, as one file.
//!
//! This command walks the repository as a device that knows nothing but its first root, and what that device asked
//! for is what the file holds. Freshness alone is signed anew, to last as long as the journey.

use std::fs::{File, OpenOptions};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_protocol::api::{Freshness, NewFreshness};
use plimsoll_protocol::archive::{Documents, Writer};
use plimsoll_protocol::bundle::target_path;
use plimsoll_protocol::trust::{Client, Response, Schemes, Step, TrustedDocs, VerifiedTarget};
use reqwest::StatusCode;
use serde_json::json;

use super::files::digest_of;
use super::subject::Named;
use crate::api::{Api, ApiError};
use crate::failure::{Refused, Usage};
use crate::output::{Screen, bytes};
use crate::time;

/// `plimsoll bundle export MODEL@VERSION -o FILE`
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Which version, meter-reader@1.2.0 for example.
    version: Named,
    /// How long devices take it: a day is 1d, at most 90d. Its holder can keep a device that has seen nothing newer on
    /// it for that long.
    #[arg(long, default_value = "30d", value_parser = time::seconds, value_name = "TIME")]
    valid: u32,
    /// The file to write; it must not exist.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

/// Exports a version.
pub async fn run(args: &Export, api: &Api, screen: &Screen) -> Result<()> {
    if args.out.exists() {
        bail!(Usage(format!("{} exists already; name another file with --out", args.out.display())));
    }
    let wanted = NewFreshness { valid_s: i64::from(args.valid) };
    let fresh: Freshness = api.post("trust/freshness", &wanted).await?;
    let (documents, target) = walk(&args.version, &fresh, api).await?;
    // Beside its place until it is whole.
    let part = args.out.with_extension("part");
    let written = write(&part, &args.version, &documents, &target, api, screen).await;
    let size = match written {
        Ok(size) => size,
        Err(error) => {
            let _ = std::fs::remove_file(&part); // what is left of it is of no use
            return Err(error);
        }
    };
    std::fs::rename(&part, &args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let until = time::now() + i64::from(args.valid);
    let result = json!({
        "file": args.out, "bytes": size, "model": args.version.model, "version": args.version.version,
        "digest": target.sha256(), "signed_by": target.role(), "valid_until": until,
        "documents": documents.keys().collect::<Vec<_>>(),
    });
    screen.show(&result, || {
        format!(
            "{}: {} in {}, signed by role {}; devices take it until {}.\nOn the device: plimsoll-agent import FILE",
            args.out.display(),
            args.version,
            bytes(size),
            target.role(),
            time::date(until)
        )
    })
}

/// The documents that a device needs, and the target that they end in.
async fn walk(named: &Named, fresh: &Freshness, api: &Api) -> Result<(Documents, VerifiedTarget)> {
    let mut documents = Documents::new();
    let first = document("1.root.json", api).await?;
    let Some(first) = first else {
        bail!(Refused("the server has no root metadata: `plimsoll trust init`".into()))
    };
    documents.insert("1.root.json".into(), first.clone());
    let stored = TrustedDocs::from([("root.json".to_owned(), first)]);
    // Whoever holds keys of other kinds knows whether the devices take them; they say so themselves.
    let mut device = Client::accepting(stored, time::now(), Schemes::BUILT_IN)?;
    let mut asked = false;
    loop {
        match device.next() {
            Step::Fetch(fetch) => {
                let bytes = match fresh.documents.get(&fetch.path) {
                    Some(text) => Some(text.clone().into_bytes()),
                    None => document(&fetch.path, api).await?,
                };
                device.supply(bytes.as_deref().map_or(Response::NotFound, Response::Bytes))?;
                documents.extend(bytes.map(|b| (fetch.path, b)));
            }
            Step::Refreshed if !asked => {
                asked = true;
                device.find(&target_path(&named.model, &named.version))?;
            }
            Step::Found(target) => return Ok((documents, target.by_sha256()?)),
            _ => bail!(Refused(format!(
                "{named} is not published, or it was revoked: nobody who may signs for it"
            ))),
        }
    }
}

/// A document to the byte; `None` when there is none.
async fn document(name: &str, api: &Api) -> Result<Option<Vec<u8>>> {
    match api.bytes(&format!("trust/documents/{name}")).await {
        Ok(bytes) => Ok(Some(bytes.to_vec())),
        Err(error) => {
            let missing =
                error.downcast_ref::<ApiError>().is_some_and(|e| e.status() == StatusCode::NOT_FOUND);
            if missing { Ok(None) } else { Err(error) }
        }
    }
}

/// Writes the archive; gives back its size. Every blob is checked on the way.
async fn write(
    path: &Path,
    named: &Named,
    documents: &Documents,
    target: &VerifiedTarget,
    api: &Api,
    screen: &Screen,
) -> Result<u64> {
    let place = || format!("cannot write {}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).with_context(place)?;
    let mut archive = Writer::start(BufWriter::new(file), &named.model, &named.version, documents)?;
    let json = api.bytes(&format!("blobs/sha256/{}", target.sha256())).await?;
    let manifest = target.admit_manifest(&json)?;
    archive.blob(&target.sha256(), json.len() as u64)?;
    archive.write(&json)?;
    let bar = if screen.is_json() { ProgressBar::hidden() } else { ProgressBar::new(manifest.total_bytes()) };
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let mut seen = std::collections::BTreeSet::new();
    for entry in manifest.files.iter().filter(|e| seen.insert(e.sha256)) {
        bar.set_message(entry.path.as_str().to_owned());
        archive.blob(&entry.sha256, entry.size)?;
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let blob = format!("blobs/sha256/{}", entry.sha256);
        let pieces = api.download(&blob, |piece| {
            hash.update(piece);
            bar.inc(piece.len() as u64);
            Ok(archive.write(piece)?)
        });
        pieces.await.with_context(|| entry.path.to_string())?;
        if digest_of(hash) != entry.sha256 {
            bail!(Refused(format!(
                "{}: what the server sent has not the signed digest {}",
                entry.path, entry.sha256
            )));
        }
    }
    bar.finish_and_clear();
    let file: File =
        archive.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(place)?;
    file.sync_all().with_context(place)?;
    Ok(file.metadata().with_context(place)?.len())
}
