//! `plimsoll bundle publish`: upload the files, sign for them, upload the signature.
//!
//! Files go first: the server refuses metadata that lists a bundle it cannot serve. What is signed on top of was
//! verified under the root that the key folder knows, so a server cannot slip a target under the signature.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream;
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_protocol::bundle::target_path;
use plimsoll_protocol::trust::repository::{describe, model_paths};
use plimsoll_protocol::{Digest, ModelName};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::files::LocalBundle;
use crate::api::Api;
use crate::failure::Refused;
use crate::keys::KeyArgs;
use crate::output::{Screen, bytes};
use crate::trust::land::{Signed, deliver, sign, tell};
use crate::trust::{Desk, ProposalArgs};

/// Bytes of an upload at a time: a few network round trips' worth.
const CHUNK: usize = 64 * 1024;

/// `plimsoll bundle publish DIR`
#[derive(Debug, clap::Args)]
pub struct Publish {
    /// The bundle's folder.
    dir: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    proposal: ProposalArgs,
}

/// Publishes a bundle.
pub async fn run(args: &Publish, api: &Api, screen: &Screen) -> Result<()> {
    let bundle = LocalBundle::open(&args.dir)?;
    bundle.verify()?;
    let (model, version) = (&bundle.manifest.model, &bundle.manifest.version);
    let desk = Desk::open(&args.keys, api, screen).await?;
    let path = target_path(model, version);
    let mut result = json!({ "model": model, "version": version, "digest": bundle.digest, "path": path });
    if let Some(published) = desk.current.target(&path)? {
        if published.sha256() != bundle.digest {
            bail!(Refused(format!(
                "{model} {version} is published with other contents ({}): a version never changes; pack a new one",
                published.sha256().short()
            )));
        }
        result["already_published"] = true.into();
        return screen.show(&result, || {
            format!("{model} {version} ({}) is published already.", bundle.digest.short())
        });
    }
    let mut edit = desk.edit();
    let first = desk.current.targets.body.delegated(model.as_str()).is_none();
    if first {
        edit.targets().delegate(model.as_str(), &[desk.ring.public("release")?], 1, model_paths(model));
    }
    edit.role(model.as_str()).add_bundle(model, version, &bundle.bytes);
    let upload = edit.finish()?;
    let changes = describe(Some(&desk.current), &upload)?;
    let signed = sign(&desk.ring, Some(&desk.current), &format!("publish {model} {version}"), upload)?;
    refuse_without(&desk, &signed, model, first, args.proposal.proposal.is_some())?;
    upload_files(&bundle, api).await?;
    let file = args.proposal.proposal.as_deref();
    let landed = deliver(&desk.ring, api, &desk.current.documents, &signed, file).await?;

    let own = signed.by.iter().filter(|(role, ..)| *role == model.as_str());
    let public: Vec<String> = own.filter_map(|(.., key)| key.public()).map(hex::encode).collect();
    let delegated = signed.signers("targets").join(", ");
    result["signed_with"] = json!(signed.signers(model.as_str()));
    result["public_keys"] = json!(public);
    result["delegated_with"] = if first { json!(delegated) } else { json!(null) };
    result["bytes"] = bundle.manifest.total_bytes().into();
    tell(screen, &signed, &landed, &changes, result, || {
        let mut text = String::new();
        if first {
            text = format!("First version of {model}: {delegated} now lets release.key sign for it.\n");
        }
        format!(
            "{text}{model} {version} is published ({}, {}).\n\
             Next: plimsoll rollout start --model {model} --version {version}",
            bundle.digest.short(),
            bytes(bundle.manifest.total_bytes()),
        )
    })
}

/// Before anything is uploaded: without one signature of those that are needed nothing can come of it here.
fn refuse_without(
    desk: &Desk<'_>,
    signed: &Signed,
    model: &ModelName,
    first: bool,
    file: bool,
) -> Result<()> {
    let dir = desk.ring.dir().display();
    if first && signed.signers("targets").is_empty() && !file {
        bail!(Refused(format!(
            "{model} is new, and delegating it needs a targets key, which {dir} does not hold: run this where \
             targets.key is kept, or let its owner run `plimsoll trust delegate {model}` first"
        )));
    }
    if signed.signers(model.as_str()).is_empty() && !file {
        bail!(Refused(format!(
            "{}: {dir} holds none of these keys. Publish where they are, or let another key sign: plimsoll trust \
             delegate {model} --key <public key>",
            signed.missing().join("; ")
        )));
    }
    Ok(())
}

async fn upload_files(bundle: &LocalBundle, api: &Api) -> Result<()> {
    let bar = ProgressBar::new(bundle.manifest.total_bytes() + bundle.bytes.len() as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    for entry in &bundle.manifest.files {
        bar.set_message(entry.path.to_string());
        let path = bundle.path(entry);
        let file =
            tokio::fs::File::open(&path).await.with_context(|| format!("cannot read {}", path.display()))?;
        let counted = bar.clone();
        let chunks = stream::try_unfold(file, move |mut file| {
            let bar = counted.clone();
            async move {
                let mut chunk = vec![0; CHUNK];
                let n = file.read(&mut chunk).await?;
                chunk.truncate(n);
                bar.inc(n as u64);
                Ok::<_, std::io::Error>((n > 0).then_some((Bytes::from(chunk), file)))
            }
        });
        put(api, &entry.sha256, reqwest::Body::wrap_stream(chunks)).await?;
    }
    put(api, &bundle.digest, bundle.bytes.clone().into()).await?;
    bar.finish_and_clear();
    Ok(())
}

async fn put(api: &Api, digest: &Digest, body: reqwest::Body) -> Result<()> {
    api.put_stream(&format!("blobs/sha256/{digest}"), body).await
}
