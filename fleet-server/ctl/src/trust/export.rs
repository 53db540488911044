//! The whole repository as files, in the layout that any TUF client reads: `metadata/` and `targets/`, with versions
//! and digests in their names (consistent snapshots). Serve the folder with any web server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use plimsoll_protocol::trust::repository::Current;
use plimsoll_protocol::trust::{Doc, Root, Snapshot, TargetMeta, file_name};
use serde_json::json;

use super::Desk;
use crate::api::Api;
use crate::failure::{Refused, Usage};
use crate::keys::KeyArgs;
use crate::output::{Screen, bytes};

/// `plimsoll trust export DIR`
#[derive(Debug, Args)]
pub struct Export {
    /// Folder to write; a new one, or one that was exported before.
    dir: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Writes it.
pub async fn export(args: &Export, api: &Api, screen: &Screen) -> Result<()> {
    let dir = &args.dir;
    let metadata = dir.join("metadata");
    let foreign = dir.is_dir() && !metadata.is_dir() && std::fs::read_dir(dir)?.next().is_some();
    if foreign || (dir.exists() && !dir.is_dir()) {
        bail!(Usage(format!("{} holds something else: name a new folder", dir.display())));
    }
    let desk = Desk::open(&args.keys, api, screen).await?;
    let names = documents(&desk.current)?;
    let files = files(&desk.current);
    let bar = ProgressBar::new((names.len() + files.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let (mut count, mut written) = (0_u64, 0_u64);
    let mut save = |path: PathBuf, contents: &[u8]| -> Result<()> {
        count += 1;
        written += contents.len() as u64;
        write(&path, contents)
    };
    for (path, meta) in &files {
        bar.set_message(path.clone());
        bar.inc(1);
        let digest = meta.sha256().with_context(|| format!("{path} has no SHA-256"))?;
        let contents = blob(api, &digest).await?;
        if path.ends_with(MANIFEST_FILE) && contents.len() as u64 <= MAX_MANIFEST_BYTES {
            let manifest = Manifest::parse(&contents).with_context(|| path.clone())?;
            bar.inc_length(manifest.files.len() as u64);
            for file in &manifest.files {
                bar.inc(1);
                let to = dir.join("targets/blobs/sha256").join(file.sha256.to_string());
                // Named by its digest: what an earlier export wrote is the same.
                if std::fs::metadata(&to).is_ok_and(|m| m.len() == file.size) {
                    continue;
                }
                save(to, &blob(api, &file.sha256).await?)?;
            }
        }
        save(dir.join("targets").join(prefixed(path, &digest)), &contents)?;
    }
    // The timestamp comes last: until then a folder that was exported before is whole.
    for name in &names {
        bar.set_message(name.clone());
        bar.inc(1);
        save(metadata.join(name), &api.bytes(&format!("trust/documents/{name}")).await?)?;
    }
    bar.finish_and_clear();
    let result = json!({ "dir": dir, "documents": names.len(), "targets": files.len(), "files": count, "bytes": written });
    screen.show(&result, || {
        format!(
            "{}: {} documents in metadata/, {} targets in targets/ ({}). A client starts from metadata/1.root.json.",
            dir.display(),
            names.len(),
            files.len(),
            bytes(written)
        )
    })
}

/// Names of all documents; the timestamp last.
fn documents(current: &Current) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for root in &current.documents.roots {
        let doc = Doc::<Root>::read_unverified(root).map_err(anyhow::Error::msg)?;
        names.push(file_name("root", doc.version));
    }
    names.push(file_name("targets", current.targets.version));
    names.extend(current.roles.iter().map(|(role, doc)| file_name(role, doc.version)));
    let snapshot = current.documents.snapshot.as_ref().context("the server shows no snapshot")?;
    let snapshot = Doc::<Snapshot>::read_unverified(snapshot).map_err(anyhow::Error::msg)?;
    names.push(file_name("snapshot", snapshot.version));
    names.push("timestamp.json".into());
    Ok(names)
}

fn files(current: &Current) -> Vec<(String, TargetMeta)> {
    let docs = std::iter::once(&current.targets).chain(current.roles.values());
    docs.flat_map(|doc| doc.body.targets.clone()).collect()
}

/// `bundles/m/1.0.0/<digest>.bundle.json`
fn prefixed(path: &str, digest: &Digest) -> String {
    match path.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/{digest}.{name}"),
        None => format!("{digest}.{path}"),
    }
}

async fn blob(api: &Api, digest: &Digest) -> Result<Vec<u8>> {
    let contents = api.bytes(&format!("blobs/sha256/{digest}")).await?;
    let got = Digest::of(&contents);
    if got != *digest {
        bail!(Refused(format!(
            "the server sent sha256:{got} as sha256:{digest}: it is damaged there, or on the way"
        )));
    }
    Ok(contents.to_vec())
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let fail = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(fail)?;
    }
    std::fs::write(path, contents).with_context(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_stands_before_the_last_part_of_a_path() {
        let digest = Digest::of(b"x");
        assert_eq!(
            prefixed("bundles/m/1.0.0/bundle.json", &digest),
            format!("bundles/m/1.0.0/{digest}.bundle.json")
        );
        assert_eq!(prefixed("a", &digest), format!("{digest}.a"));
    }
}
