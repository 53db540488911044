//! The first documents of a repository, and single keys for those who will hold a role.

use anyhow::{Result, bail};
use clap::Args;
use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::trust::repository::{OFFLINE_LIFETIME_S, RootKeys, describe, sign_next};
use plimsoll_protocol::trust::{Key, Root, Targets};
use serde_json::{Value, json};

use super::ProposalArgs;
use super::land::{Landed, deliver, sign, tell};
use crate::api::Api;
use crate::failure::{Refused, Usage};
use crate::keys::{KeyArgs, KeyRing, read_public};
use crate::output::Screen;
use crate::time;

/// `plimsoll trust init`
#[derive(Debug, Args)]
pub struct Init {
    #[command(flatten)]
    keys: KeyArgs,
    /// Root keys to make; give each to another person.
    #[arg(
        long, default_value_t = 1, value_name = "N", conflicts_with = "root_key",
        value_parser = clap::value_parser!(u32).range(1..=9)
    )]
    root_keys: u32,
    /// Root keys that must sign together. 2 of 3 survives a lost key and a stolen one.
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=9))]
    root_threshold: u32,
    /// A root key that its owner has made already (`plimsoll trust make-key`): 64 hexadecimal digits, or a file with
    /// the public key. Repeat for each owner; no root key is made here then.
    #[arg(long, value_name = "KEY")]
    root_key: Vec<String>,
    /// DANGEROUS: write the keys without a passphrase. For demos and throw-away fleets only.
    #[arg(long)]
    insecure_unencrypted_keys: bool,
    #[command(flatten)]
    proposal: ProposalArgs,
}

/// `plimsoll trust make-key NAME`
#[derive(Debug, Args)]
pub struct MakeKey {
    /// Whose key it is, or what for: it becomes NAME.key, and NAME.pub for everybody.
    #[arg(value_parser = key_name)]
    name: String,
    #[command(flatten)]
    keys: KeyArgs,
    /// DANGEROUS: write the key without a passphrase.
    #[arg(long)]
    insecure_unencrypted_keys: bool,
}

fn key_name(text: &str) -> Result<String, String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if text.is_empty() || text.len() > 60 || !text.bytes().all(fine) {
        return Err("a key's name has 1 to 60 letters, digits, - and _".into());
    }
    Ok(text.to_owned())
}

/// Makes one key.
pub fn make_key(args: &MakeKey, screen: &Screen) -> Result<()> {
    let mut ring = KeyRing::open(&args.keys)?;
    if !ring.make(&args.name, args.insecure_unencrypted_keys)? {
        let file = ring.dir().join(format!("{}.key", args.name));
        bail!(Refused(format!(
            "{} exists already and is never overwritten: choose another name",
            file.display()
        )));
    }
    let key = ring.public(&args.name)?;
    let public = key.public().map(hex::encode);
    let (name, dir) = (&args.name, ring.dir().display().to_string());
    screen.show(&json!({ "name": name, "keys": ring.dir(), "public": public, "id": key.id() }), || {
        format!(
            "{dir}/{name}.key: keep it to yourself, with a copy elsewhere.\n\
             {dir}/{name}.pub: public; give it to whoever names this key in a role.\n\
             Public key: {}",
            public.unwrap_or_default()
        )
    })
}

/// Makes the repository, or the proposal of one when its root keys are in several hands.
pub async fn init(args: &Init, api: &Api, screen: &Screen) -> Result<()> {
    let count = if args.root_key.is_empty() { args.root_keys as usize } else { args.root_key.len() };
    if args.root_threshold as usize > count {
        bail!(Usage(format!("{count} root keys cannot sign {} at a time", args.root_threshold)));
    }
    let given = args.root_key.iter().map(|text| read_public(text)).collect::<Result<Vec<Key>>>()?;
    if let Some(twice) = given.iter().enumerate().find(|(i, k)| given.iter().take(*i).any(|o| o.is(k))) {
        bail!(Usage(format!(
            "--root-key {} is given twice",
            args.root_key.get(twice.0).map_or("", String::as_str)
        )));
    }
    let state: TrustState = api.get("trust").await?;
    if state.root.is_some() {
        bail!(Refused(format!(
            "the server {} has a trust repository already: see `plimsoll trust status`",
            api.base()
        )));
    }
    let mut ring = KeyRing::open(&args.keys)?;
    let root_names: Vec<String> = match (given.is_empty(), args.root_keys) {
        (false, _) => Vec::new(),
        (true, 1) => vec!["root".into()],
        (true, n) => (1..=n).map(|i| format!("root-{i}")).collect(),
    };
    let mut made = Vec::new();
    for name in root_names.iter().map(String::as_str).chain(["targets", "release"]) {
        // A key that is there from an attempt that broke off is used, not replaced.
        if ring.make(name, args.insecure_unencrypted_keys)? {
            made.push(name.to_owned());
        }
    }
    let own = root_names.iter().map(|n| ring.public(n)).collect::<Result<Vec<Key>>>()?;
    let root = Root::of(&RootKeys {
        root: (if given.is_empty() { own } else { given }, args.root_threshold),
        targets: (vec![ring.public("targets")?], 1),
        snapshot: Key::from_hex(&state.snapshot_key).map_err(anyhow::Error::msg)?.named("server"),
        timestamp: Key::from_hex(&state.timestamp_key).map_err(anyhow::Error::msg)?.named("server"),
    });
    let now = time::now();
    let upload = TrustUpload {
        root: Some(sign_next(None, root, now, OFFLINE_LIFETIME_S, &[])?),
        targets: Some(sign_next(None, Targets::default(), now, OFFLINE_LIFETIME_S, &[])?),
        ..TrustUpload::default()
    };
    let changes = describe(None, &upload)?;
    let signed = sign(&ring, None, "the first documents of this fleet", upload)?;
    let landed = deliver(&ring, api, &state, &signed, args.proposal.proposal.as_deref()).await?;
    if args.insecure_unencrypted_keys {
        screen.note("plimsoll: the keys are NOT encrypted: whoever reads the folder owns the fleet's models");
    }
    let public = |name: &str| ring.public(name).ok().and_then(|k| k.public()).map(hex::encode);
    let names = root_names.iter().map(String::as_str).chain(["targets", "release"]);
    let extra = json!({
        "keys": ring.dir(),
        "made": made,
        "public": names.map(|n| (n.to_owned(), json!(public(n)))).collect::<serde_json::Map<String, Value>>(),
        "encrypted": !args.insecure_unencrypted_keys,
        "root_threshold": args.root_threshold,
        "expires": now + OFFLINE_LIFETIME_S,
    });
    let changes = if matches!(landed, Landed::Published) { &[][..] } else { &changes };
    tell(screen, &signed, &landed, changes, extra, || keep(&ring, &root_names, now))
}

/// What to keep where.
fn keep(ring: &KeyRing, root_names: &[String], now: i64) -> String {
    let roots = root_names.iter().map(|n| format!("{n}.key")).collect::<Vec<_>>().join(", ");
    let roots = if roots.is_empty() { "the root keys of their owners".into() } else { roots };
    format!(
        "Trust is initialised; root and targets are valid until {}.\n\n\
         Keys in {}:\n  \
         {roots}: signs who may hold the other roles. Keep OFFLINE, with a copy elsewhere; needed once a year.\n  \
         targets.key: decides which team signs which model. Keep OFFLINE; needed for each new model.\n  \
         release.key: signs model versions. Give it to whoever publishes, a pipeline for example.\n  \
         root.json: public; copy it along with release.key, so that its user knows this fleet.",
        time::date(now + OFFLINE_LIFETIME_S),
        ring.dir().display()
    )
}
