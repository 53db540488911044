//! `plimsoll bundle publish`: upload the files, sign for them, upload the signature.
//!
//! Files go first: the server refuses metadata that lists a bundle it cannot serve. What is signed on top of was
//! verified under the root that the key folder knows, so a server cannot slip a target under the signature.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream;
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::bundle::target_path;
use plimsoll_protocol::trust::repository::{Current, ROLE_LIFETIME_S, sign_next};
use plimsoll_protocol::trust::{Doc, KeyPair, Signer, Targets};
use plimsoll_protocol::{Digest, ModelName};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::files::LocalBundle;
use crate::api::Api;
use crate::failure::Refused;
use crate::keys::{KeyArgs, KeyRing};
use crate::output::{Screen, bytes};
use crate::time;
use crate::trust::{NOT_INITIALISED, delegation, read_current};

/// Bytes of an upload at a time: a few network round trips' worth.
const CHUNK: usize = 64 * 1024;

/// `plimsoll bundle publish DIR`
#[derive(Debug, clap::Args)]
pub struct Publish {
    /// The bundle's folder.
    dir: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Who signs, and what else must be signed first.
struct Signing {
    signers: Vec<(String, KeyPair)>,
    /// The next targets document, when the model was not delegated yet, and which key file signed it.
    delegation: Option<(Value, String)>,
}

/// Publishes a bundle.
pub async fn run(args: &Publish, api: &Api, screen: &Screen) -> Result<()> {
    let bundle = LocalBundle::open(&args.dir)?;
    bundle.verify()?;
    let (model, version) = (&bundle.manifest.model, &bundle.manifest.version);
    let ring = KeyRing::open(&args.keys)?;
    let state: TrustState = api.get("trust").await?;
    let Some(current) = read_current(&ring, &state, screen)? else { bail!(Refused(NOT_INITIALISED.into())) };
    let path = target_path(model, version);
    let mut result = json!({ "model": model, "version": version, "digest": bundle.digest, "path": path });
    if let Some(published) = current.target(&path)? {
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
    let signing = who_signs(&ring, &current, model)?;
    upload_files(&bundle, api).await?;

    let previous = current.roles.get(model.as_str());
    let mut body: Targets = previous.map(|doc| doc.body.clone()).unwrap_or_default();
    body.add_bundle(model, version, &bundle.bytes);
    let pairs: Vec<&dyn Signer> = signing.signers.iter().map(|(_, pair)| pair as &dyn Signer).collect();
    let last = previous.map(|doc| doc.version).or_else(|| undelegated_version(&state, model));
    let role = sign_next(last, body, time::now(), ROLE_LIFETIME_S, &pairs)?;
    let upload = TrustUpload {
        root: None,
        targets: signing.delegation.as_ref().map(|(targets, _)| targets.clone()),
        roles: [(model.to_string(), role)].into(),
    };
    api.put("trust/metadata", &upload).await?;

    let files: Vec<String> = signing.signers.iter().map(|(name, _)| format!("{name}.key")).collect();
    let public: Vec<String> = signing.signers.iter().map(|(_, pair)| pair.public_hex()).collect();
    result["signed_with"] = json!(files);
    result["public_keys"] = json!(public);
    result["delegated_with"] = json!(signing.delegation.as_ref().map(|(_, name)| name));
    result["bytes"] = bundle.manifest.total_bytes().into();
    screen.show(&result, || {
        let mut text = String::new();
        if let Some((_, name)) = &signing.delegation {
            text = format!("First version of {model}: {name} now lets release.key sign for it.\n");
        }
        let signers =
            files.iter().zip(&public).map(|(name, key)| format!("{name} ({})", key.get(..12).unwrap_or(key)));
        format!(
            "{text}{model} {version} is published ({}, {}), signed with {}.\n\
             Next: plimsoll rollout start --model {model} --version {version}",
            bundle.digest.short(),
            bytes(bundle.manifest.total_bytes()),
            signers.collect::<Vec<_>>().join(" and ")
        )
    })
}

fn who_signs(ring: &KeyRing, current: &Current, model: &ModelName) -> Result<Signing> {
    let Some(role) = current.targets.body.delegated(model.as_str()) else {
        let key = ring.public("release")?;
        let delegation = delegation(ring, current, model, &[key], 1)?;
        return Ok(Signing {
            signers: vec![("release".into(), ring.secret("release")?)],
            delegation: Some(delegation),
        });
    };
    let keys =
        current.targets.body.delegations.as_ref().map(|d| &d.keys).context("a role without delegations")?;
    let signers = ring.unlock(keys, &role.keyids, role.threshold as usize)?;
    if signers.len() < role.threshold as usize {
        let public = role.keyids.iter().filter_map(|id| keys.get(id)?.public()).map(hex::encode);
        bail!(Refused(format!(
            "{model} is signed by {} of these keys: {}; {} holds {} of them. Publish where they are, or let another \
             key sign: plimsoll trust delegate {model} --key <public key>",
            role.threshold,
            public.collect::<Vec<_>>().join(", "),
            ring.dir().display(),
            signers.len()
        )));
    }
    Ok(Signing { signers, delegation: None })
}

/// A role that was delegated once, undelegated, and is delegated again goes on counting.
fn undelegated_version(state: &TrustState, model: &ModelName) -> Option<u64> {
    Some(Doc::<Targets>::read_unverified(state.roles.get(model.as_str())?).ok()?.version)
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
