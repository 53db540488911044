//! `plimsoll trust`: keys, and who may sign for which model.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use plimsoll_protocol::Digest;
use plimsoll_protocol::ModelName;
use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::trust::repository::{
    Current, OFFLINE_LIFETIME_S, RootKeys, model_paths, sign_next, to_bytes,
};
use plimsoll_protocol::trust::{FLEET_CA, Key, KeyId, KeyPair, MAX_FLEET_FILE_BYTES, Root, Signer, Targets};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::api::Api;
use crate::failure::{Refused, Usage};
use crate::keys::{KeyArgs, KeyRing};
use crate::output::{Screen, table};
use crate::time;

/// `plimsoll trust …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the keys of a new fleet and hand their public halves to the server
    Init(Init),
    /// Show roles, versions, expiries and which of the keys are here
    Status(KeyArgs),
    /// Let a team's key sign the versions of one model (needs the targets key)
    Delegate(Delegate),
    /// Sign for the fleet's certificate authorities, so that devices trust a new one (needs the targets key)
    PublishCa(PublishCa),
}

/// `plimsoll trust publish-ca FILE`
#[derive(Debug, Args)]
pub struct PublishCa {
    /// PEM certificates that devices should trust: the old authority and the new one while they overlap.
    file: std::path::PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
}

/// `plimsoll trust init`
#[derive(Debug, Args)]
pub struct Init {
    #[command(flatten)]
    keys: KeyArgs,
    /// Root keys to make; give each to another person.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
    root_keys: u32,
    /// Root keys that must sign together. 2 of 3 survives a lost key and a stolen one.
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=9))]
    root_threshold: u32,
    /// DANGEROUS: write the keys without a passphrase. For demos and throw-away fleets only.
    #[arg(long)]
    insecure_unencrypted_keys: bool,
}

/// `plimsoll trust delegate MODEL`
#[derive(Debug, Args)]
pub struct Delegate {
    /// The model.
    model: ModelName,
    /// Public key that may sign (64 hexadecimal digits); repeat for several. Without it, release.key of --keys.
    #[arg(long = "key", value_name = "HEX")]
    public: Vec<String>,
    /// How many of them must sign together.
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    threshold: u32,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    match command {
        Command::Init(args) => init(&args, api, screen).await,
        Command::Status(args) => status(&args, api, screen).await,
        Command::Delegate(args) => delegate(&args, api, screen).await,
        Command::PublishCa(args) => publish_ca(&args, api, screen).await,
    }
}

async fn init(args: &Init, api: &Api, screen: &Screen) -> Result<()> {
    if args.root_threshold > args.root_keys {
        bail!(Usage(format!("{} root keys cannot sign {} at a time", args.root_keys, args.root_threshold)));
    }
    let state: TrustState = api.get("trust").await?;
    if state.root.is_some() {
        bail!(Refused(format!(
            "the server {} has a trust repository already: see `plimsoll trust status`",
            api.base()
        )));
    }
    let mut ring = KeyRing::open(&args.keys)?;
    let root_names: Vec<String> = match args.root_keys {
        1 => vec!["root".into()],
        n => (1..=n).map(|i| format!("root-{i}")).collect(),
    };
    let mut made = Vec::new();
    for name in root_names.iter().map(String::as_str).chain(["targets", "release"]) {
        // A key that is there from an attempt that broke off is used, not replaced.
        if ring.make(name, args.insecure_unencrypted_keys)? {
            made.push(name.to_owned());
        }
    }
    let root = Root::of(&RootKeys {
        root: (root_names.iter().map(|n| ring.public(n)).collect::<Result<_>>()?, args.root_threshold),
        targets: (vec![ring.public("targets")?], 1),
        snapshot: Key::from_hex(&state.snapshot_key).map_err(anyhow::Error::msg)?,
        timestamp: Key::from_hex(&state.timestamp_key).map_err(anyhow::Error::msg)?,
    });
    let signers: Vec<KeyPair> = root_names.iter().map(|n| ring.secret(n)).collect::<Result<_>>()?;
    let signers: Vec<&dyn Signer> = signers.iter().map(|k| k as &dyn Signer).collect();
    let now = time::now();
    let root = sign_next(None, root, now, OFFLINE_LIFETIME_S, &signers)?;
    let targets = sign_next(None, Targets::default(), now, OFFLINE_LIFETIME_S, &[&ring.secret("targets")?])?;
    let pinned = to_bytes(&root);
    let upload = TrustUpload { root: Some(root), targets: Some(targets), roles: BTreeMap::new() };
    api.put("trust/metadata", &upload).await?;
    ring.pin_root(&pinned)?;

    let dir = ring.dir().display();
    let public = |name: &str| ring.public(name).ok().and_then(|k| k.public()).map(hex::encode);
    let names: Vec<&str> = root_names.iter().map(String::as_str).chain(["targets", "release"]).collect();
    let result = json!({
        "keys": ring.dir(),
        "made": made,
        "public": names.iter().map(|n| (*n, public(n))).collect::<BTreeMap<_, _>>(),
        "encrypted": !args.insecure_unencrypted_keys,
        "root_threshold": args.root_threshold,
        "expires": now + OFFLINE_LIFETIME_S,
    });
    if args.insecure_unencrypted_keys {
        screen.note("plimsoll: the keys are NOT encrypted: whoever reads the folder owns the fleet's models");
    }
    screen.show(&result, || {
        let roots = root_names.iter().map(|n| format!("{n}.key")).collect::<Vec<_>>().join(", ");
        format!(
            "Trust is initialised; root and targets are valid until {}.\n\n\
             Keys in {dir}:\n  \
             {roots}: signs who may hold the other roles. Keep OFFLINE, with a copy elsewhere; needed once a year.\n  \
             targets.key: decides which team signs which model. Keep OFFLINE; needed for each new model.\n  \
             release.key: signs model versions. Give it to whoever publishes, a pipeline for example.\n  \
             root.json: public; copy it along with release.key, so that its user knows this fleet.",
            time::date(now + OFFLINE_LIFETIME_S)
        )
    })
}

async fn status(args: &KeyArgs, api: &Api, screen: &Screen) -> Result<()> {
    let ring = KeyRing::open(args)?;
    let state: TrustState = api.get("trust").await?;
    let Some(current) = read_current(&ring, &state, screen)? else {
        return screen.show(&json!({ "initialised": false }), || {
            "The server has no trust repository yet: run `plimsoll trust init`.".into()
        });
    };
    let here = |keys: &BTreeMap<KeyId, Key>, ids: &[KeyId]| -> Vec<String> {
        let public = |id: &KeyId| keys.get(id).and_then(Key::public);
        let ours = |name: &String| {
            let key = ring.public(name).ok().and_then(|k| k.public());
            key.is_some() && ids.iter().any(|id| public(id) == key)
        };
        ring.names().filter(|n| ours(n)).cloned().collect()
    };
    let mut roles = Vec::new();
    for (name, role) in &current.root.body.roles {
        let document = match name.as_str() {
            "root" => Some((current.root.version, current.root.expires)),
            "targets" => Some((current.targets.version, current.targets.expires)),
            _ => None, // online: the server keeps it fresh
        };
        roles.push((
            name.clone(),
            document,
            role.threshold,
            role.keyids.len(),
            here(&current.root.body.keys, &role.keyids),
            0,
        ));
    }
    if let Some(delegations) = &current.targets.body.delegations {
        for role in &delegations.roles {
            let doc = current.roles.get(&role.name);
            let document = doc.map(|d| (d.version, d.expires));
            let listed = doc.map_or(0, |d| d.body.targets.len());
            roles.push((
                role.name.clone(),
                document,
                role.threshold,
                role.keyids.len(),
                here(&delegations.keys, &role.keyids),
                listed,
            ));
        }
    }
    let now = time::now();
    let json: Vec<_> = roles
        .iter()
        .map(|(name, document, threshold, keys, here, listed)| {
            json!({
                "role": name, "version": document.map(|d| d.0), "expires": document.map(|d| d.1),
                "expired": document.is_some_and(|d| d.1 <= now), "threshold": threshold, "keys": keys,
                "keys_here": here, "bundles": listed,
            })
        })
        .collect();
    screen.show(&json!({ "initialised": true, "roles": json }), || {
        let rows = roles.iter().map(|(name, document, threshold, keys, here, listed)| {
            let expires = match document {
                Some((_, expires)) if *expires <= now => format!("EXPIRED {}", time::date(*expires)),
                Some((_, expires)) => time::date(*expires),
                None if matches!(name.as_str(), "snapshot" | "timestamp") => {
                    "kept fresh by the server".into()
                }
                None => "nothing signed yet".into(),
            };
            let here = if here.is_empty() { "-".into() } else { here.join(", ") };
            let version = document.map_or("-".into(), |d| d.0.to_string());
            vec![name.clone(), version, expires, format!("{threshold} of {keys}"), here, listed.to_string()]
        });
        table(&["ROLE", "VERSION", "EXPIRES", "KEYS", "KEYS HERE", "BUNDLES"], &rows.collect::<Vec<_>>())
    })
}

async fn delegate(args: &Delegate, api: &Api, screen: &Screen) -> Result<()> {
    let ring = KeyRing::open(&args.keys)?;
    let state: TrustState = api.get("trust").await?;
    let Some(current) = read_current(&ring, &state, screen)? else { bail!(Refused(NOT_INITIALISED.into())) };
    let keys = match args.public.as_slice() {
        [] => vec![ring.public("release")?],
        given => {
            let keys = given.iter().map(|hex| Key::from_hex(hex)).collect::<Result<Vec<_>, _>>();
            keys.map_err(|e| anyhow::Error::new(Usage(e)))?
        }
    };
    if args.threshold as usize > keys.len() {
        bail!(Usage(format!("{} keys cannot sign {} at a time", keys.len(), args.threshold)));
    }
    let (targets, signer) = delegation(&ring, &current, &args.model, &keys, args.threshold)?;
    let upload = TrustUpload { targets: Some(targets), ..TrustUpload::default() };
    api.put("trust/metadata", &upload).await?;
    let public: Vec<_> = keys.iter().filter_map(Key::public).map(hex::encode).collect();
    screen.show(
        &json!({ "model": args.model, "keys": public, "threshold": args.threshold, "signed_by": signer }),
        || {
            format!(
                "{} of {} may sign bundles of {} from now on (signed with {signer}).",
                args.threshold,
                public.join(", "),
                args.model
            )
        },
    )
}

async fn publish_ca(args: &PublishCa, api: &Api, screen: &Screen) -> Result<()> {
    let name = args.file.display();
    let pem = std::fs::read(&args.file).with_context(|| format!("cannot read {name}"))?;
    if pem.len() as u64 > MAX_FLEET_FILE_BYTES {
        bail!(Usage(format!("{name} has {} bytes; at most {MAX_FLEET_FILE_BYTES} are taken", pem.len())));
    }
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| Usage(format!("{name} is not a file of PEM certificates: {e}")))?;
    if certificates.is_empty() {
        bail!(Usage(format!(
            "{name} holds no PEM certificate: give the authorities that devices should trust"
        )));
    }
    let ring = KeyRing::open(&args.keys)?;
    let state: TrustState = api.get("trust").await?;
    let Some(current) = read_current(&ring, &state, screen)? else { bail!(Refused(NOT_INITIALISED.into())) };
    let mut body: Targets = current.targets.body.clone();
    body.add_file(FLEET_CA, &pem);
    let (targets, signer) = sign_targets(&ring, &current, body, FLEET_CA)?;
    let digest = Digest::of(&pem);
    api.put_stream(&format!("blobs/sha256/{digest}"), pem.into()).await?;
    api.put("trust/metadata", &TrustUpload { targets: Some(targets), ..TrustUpload::default() }).await?;
    let count = certificates.len();
    screen.show(
        &json!({ "path": FLEET_CA, "digest": digest, "certificates": count, "signed_by": signer }),
        || format!("{count} certificate(s) of {name} are the fleet's authorities now (signed with {signer}); devices learn it at their next refresh."),
    )
}

/// Without a repository there is nothing to sign on top of.
pub const NOT_INITIALISED: &str = "the server has no trust repository yet: run `plimsoll trust init` first";

/// Verifies what is published under the root that the key folder knows, and remembers its successor. A folder that
/// knows none takes the server's, and says so.
pub fn read_current(ring: &KeyRing, state: &TrustState, screen: &Screen) -> Result<Option<Current>> {
    let pinned = ring.pinned_root()?;
    let current = Current::read(state, pinned.as_deref()).with_context(|| {
        format!("what the server publishes was checked against {}", ring.dir().join("root.json").display())
    })?;
    if let (Some(_), Some(root)) = (&current, &state.root) {
        let published = to_bytes(root);
        if pinned.is_none() {
            let digest = plimsoll_protocol::Digest::of(&published);
            screen.note(&format!(
                "plimsoll: {} has no root.json, so the server's is taken at its word from now on (SHA-256 {}); \
                 compare it with the owner's",
                ring.dir().display(),
                digest.short()
            ));
        }
        if pinned.as_deref() != Some(&published) && ring.dir().is_dir() {
            ring.pin_root(&published)?;
        }
    }
    Ok(current)
}

/// The next targets document, in which `keys` may sign for `model`; and which key file signed it.
pub fn delegation(
    ring: &KeyRing,
    current: &Current,
    model: &ModelName,
    keys: &[Key],
    threshold: u32,
) -> Result<(serde_json::Value, String)> {
    let mut body: Targets = current.targets.body.clone();
    body.delegate(model.as_str(), keys, threshold, model_paths(model));
    sign_targets(ring, current, body, &format!("delegating {model}"))
}

/// The next targets document with this body; and which key file signed it.
fn sign_targets(
    ring: &KeyRing,
    current: &Current,
    body: Targets,
    what: &str,
) -> Result<(serde_json::Value, String)> {
    let role = current.root.body.roles.get("targets").context("the root names no targets role")?;
    let signers = ring.unlock(&current.root.body.keys, &role.keyids, role.threshold as usize)?;
    if signers.len() < role.threshold as usize {
        bail!(Refused(format!(
            "{what} needs {} targets key(s), and {} holds {}: run this where targets.key is kept",
            role.threshold,
            ring.dir().display(),
            signers.len()
        )));
    }
    let names = signers.iter().map(|(name, _)| format!("{name}.key")).collect::<Vec<_>>().join(", ");
    let pairs: Vec<&dyn Signer> = signers.iter().map(|(_, pair)| pair as &dyn Signer).collect();
    Ok((sign_next(Some(current.targets.version), body, time::now(), OFFLINE_LIFETIME_S, &pairs)?, names))
}
