//! The changes of a repository, one function each: what differs is what is edited, the rest is [`land`].

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use plimsoll_protocol::api::{NewOnlineKeys, TrustState};
use plimsoll_protocol::bundle::target_path;
use plimsoll_protocol::trust::repository::{Edit, key_label, model_paths};
use plimsoll_protocol::trust::{FLEET_CA, Key, MAX_FLEET_FILE_BYTES};
use plimsoll_protocol::{Digest, ModelName};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use super::land::land;
use super::status::SOON_S;
use super::{Desk, ProposalArgs};
use crate::api::Api;
use crate::failure::{Refused, Usage};
use crate::keys::{KeyArgs, KeyRing, read_public};
use crate::output::Screen;
use crate::time;

/// Roles whose keys the server makes.
const ONLINE: [&str; 2] = ["snapshot", "timestamp"];
/// Digits of a key id that name a key, at least: fewer are a guess.
const MIN_ID_DIGITS: usize = 6;

/// What every change takes.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    proposal: ProposalArgs,
}

/// `plimsoll trust delegate MODEL`
#[derive(Debug, Args)]
pub struct Delegate {
    /// The model.
    model: ModelName,
    /// Public key that may sign: 64 hexadecimal digits, or a file (NAME.pub, PEM); repeat for several. Without it,
    /// release.key of --keys.
    #[arg(long = "key", value_name = "KEY")]
    public: Vec<String>,
    /// How many of them must sign together.
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    threshold: u32,
    #[command(flatten)]
    common: Common,
}

/// `plimsoll trust add-key ROLE`
#[derive(Debug, Args)]
pub struct AddKey {
    /// `root`, `targets`, or a model.
    role: String,
    /// Its public key: 64 hexadecimal digits, or a file (NAME.pub, PEM).
    #[arg(long, value_name = "KEY")]
    key: String,
    /// How many keys must sign from now on; as before without it.
    #[arg(long, value_name = "K")]
    threshold: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// `plimsoll trust remove-key ROLE`
#[derive(Debug, Args)]
pub struct RemoveKey {
    /// `root`, `targets`, or a model.
    role: String,
    /// The key: its name, the first digits of its id (`plimsoll trust status` shows both), or its public key.
    #[arg(long, value_name = "KEY")]
    key: String,
    /// How many keys must sign from now on; as before without it.
    #[arg(long, value_name = "K")]
    threshold: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// `plimsoll trust rotate ROLE…`
#[derive(Debug, Args)]
pub struct Rotate {
    /// `root`, `targets`, a model; `snapshot`, `timestamp`, or both.
    #[arg(required = true)]
    roles: Vec<String>,
    /// The key that comes: 64 hexadecimal digits, or a file (NAME.pub, PEM). Without it, one is made in --keys.
    #[arg(long = "in", value_name = "KEY")]
    comes: Option<String>,
    /// The key that goes: its name, the first digits of its id, or its public key. Needed when the role has several.
    #[arg(long = "out", value_name = "KEY")]
    goes: Option<String>,
    /// DANGEROUS: write the new key without a passphrase.
    #[arg(long)]
    insecure_unencrypted_keys: bool,
    #[command(flatten)]
    common: Common,
}

/// `plimsoll trust revoke MODEL@VERSION`
#[derive(Debug, Args)]
pub struct Revoke {
    /// The version: `meter-reader@1.4.0`.
    #[arg(value_parser = model_version)]
    what: (ModelName, semver::Version),
    #[command(flatten)]
    common: Common,
}

/// `plimsoll trust renew`
#[derive(Debug, Args)]
pub struct Renew {
    /// `root`, `targets`, models; without one, those that expire soon.
    roles: Vec<String>,
    /// What soon means.
    #[arg(long, value_name = "TIME", value_parser = time::seconds, default_value = "30d")]
    within: u32,
    /// How long they are valid from now on; without it, as long as when they were last signed.
    #[arg(long, value_name = "TIME", value_parser = valid)]
    valid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// `plimsoll trust publish-ca FILE`
#[derive(Debug, Args)]
pub struct PublishCa {
    /// PEM certificates that devices should trust: the old authority and the new one while they overlap.
    file: PathBuf,
    #[command(flatten)]
    common: Common,
}

fn model_version(text: &str) -> Result<(ModelName, semver::Version), String> {
    let (model, version) = text.split_once('@').ok_or_else(|| format!("{text:?} is not MODEL@VERSION"))?;
    let model = ModelName::new(model).map_err(|e| e.to_string())?;
    Ok((model, version.parse().map_err(|e| format!("{version:?} is not a version: {e}"))?))
}

/// A day at least: devices that are off at night must not wake up to expired metadata.
fn valid(text: &str) -> Result<u32, String> {
    match time::seconds(text)? {
        s if s >= 24 * 3600 => Ok(s),
        _ => Err(format!("{text:?} is less than a day; devices would refuse it before it is signed again")),
    }
}

/// Lets keys sign for a model.
pub async fn delegate(args: &Delegate, api: &Api, screen: &Screen) -> Result<()> {
    let desk = Desk::open(&args.common.keys, api, screen).await?;
    let keys = match args.public.as_slice() {
        [] => vec![desk.ring.public("release")?],
        given => given.iter().map(|text| read_public(text)).collect::<Result<_>>()?,
    };
    if args.threshold as usize > keys.len() {
        bail!(Usage(format!("{} keys cannot sign {} at a time", keys.len(), args.threshold)));
    }
    let (model, threshold) = (args.model.as_str(), args.threshold);
    let mut edit = desk.edit();
    edit.targets().delegate(model, &keys, threshold, model_paths(&args.model));
    edit.set_keys(model, &keys, threshold)?; // the same keys again: checked for doubles
    let public: Vec<String> = keys.iter().filter_map(Key::public).map(hex::encode).collect();
    let extra = json!({ "model": model, "keys": public, "threshold": threshold });
    let done = || format!("{threshold} of {} may sign bundles of {model} from now on.", public.join(", "));
    let why = format!("delegate {model}");
    land(&desk, &why, edit.finish()?, args.common.proposal.proposal.as_deref(), extra, done).await
}

/// One more key.
pub async fn add_key(args: &AddKey, api: &Api, screen: &Screen) -> Result<()> {
    let desk = Desk::open(&args.common.keys, api, screen).await?;
    let mut edit = desk.edit();
    let (mut keys, threshold) = holders(&desk, &edit, &args.role)?;
    let key = read_public(&args.key)?;
    if keys.iter().any(|k| k.is(&key)) {
        let label = key_label(&key.id(), Some(&key));
        bail!(Refused(format!("key {label} may sign for {} already", args.role)));
    }
    keys.push(key);
    edit.set_keys(&args.role, &keys, args.threshold.unwrap_or(threshold))?;
    let why = format!("add a key to {}", args.role);
    let done = || format!("Role {} has {} keys now.", args.role, keys.len());
    land(&desk, &why, edit.finish()?, args.common.proposal.proposal.as_deref(), json!({}), done).await
}

/// One key fewer.
pub async fn remove_key(args: &RemoveKey, api: &Api, screen: &Screen) -> Result<()> {
    let desk = Desk::open(&args.common.keys, api, screen).await?;
    let mut edit = desk.edit();
    let (mut keys, threshold) = holders(&desk, &edit, &args.role)?;
    let gone = find(&keys, &args.key, &args.role)?;
    keys.remove(gone);
    let threshold = args.threshold.unwrap_or(threshold);
    if threshold as usize > keys.len() {
        bail!(Refused(format!(
            "role {} would have {} key(s) of which {threshold} must sign: add one first, or lower --threshold",
            args.role,
            keys.len()
        )));
    }
    edit.set_keys(&args.role, &keys, threshold)?;
    let why = format!("remove a key from {}", args.role);
    let done = || format!("Role {} has {} key(s) now.", args.role, keys.len());
    land(&desk, &why, edit.finish()?, args.common.proposal.proposal.as_deref(), json!({}), done).await
}

/// New keys for old ones.
pub async fn rotate(args: &Rotate, api: &Api, screen: &Screen) -> Result<()> {
    let mut desk = Desk::open(&args.common.keys, api, screen).await?;
    let online: Vec<String> = args.roles.iter().filter(|r| ONLINE.contains(&r.as_str())).cloned().collect();
    let offline: Vec<&String> = args.roles.iter().filter(|r| !ONLINE.contains(&r.as_str())).collect();
    let named = args.comes.is_some() || args.goes.is_some();
    if named && (offline.len() != 1 || !online.is_empty()) {
        bail!(Usage(
            "--in and --out are about one role whose keys are not the server's: rotate it alone".into()
        ));
    }
    let mut changes: Vec<(String, Vec<Key>, u32)> = Vec::new();
    if !online.is_empty() {
        let state: TrustState =
            api.post("trust/online-keys", &NewOnlineKeys { roles: online.clone() }).await?;
        for role in &online {
            let next = if role == "snapshot" { &state.next_snapshot_key } else { &state.next_timestamp_key };
            let next = next.as_ref().with_context(|| format!("the server made no new {role} key"))?;
            let key = Key::from_hex(next).map_err(anyhow::Error::msg)?.named("server");
            changes.push((role.clone(), vec![key], 1));
        }
    }
    let mut made = Vec::new();
    for role in offline {
        let (mut keys, threshold) = holders(&desk, &desk.edit(), role)?;
        let goes = match &args.goes {
            Some(text) => find(&keys, text, role)?,
            None if keys.len() == 1 => 0,
            None => bail!(Usage(format!(
                "role {role} has {} keys; say which one goes with --out: {}",
                keys.len(),
                labels(&keys)
            ))),
        };
        let comes = match &args.comes {
            Some(text) => read_public(text)?,
            None => {
                let name = free_name(&desk.ring, role);
                desk.ring.make(&name, args.insecure_unencrypted_keys)?;
                made.push(name.clone());
                desk.ring.public(&name)?
            }
        };
        if let Some(place) = keys.get_mut(goes) {
            *place = comes;
        }
        changes.push((role.clone(), keys, threshold));
    }
    let mut edit = desk.edit();
    for (role, keys, threshold) in &changes {
        edit.set_keys(role, keys, *threshold)?;
    }
    let why = format!("rotate {}", args.roles.join(" "));
    let (dir, extra) = (desk.ring.dir().display().to_string(), json!({ "made": made }));
    let done = || {
        let new: String =
            made.iter().map(|name| format!(" New: {dir}/{name}.key; keep a copy elsewhere.")).collect();
        format!("Rotated {}; devices follow at their next refresh.{new}", args.roles.join(" and "))
    };
    let upload = edit.finish()?;
    land(&desk, &why, upload, args.common.proposal.proposal.as_deref(), extra, done).await
}

/// Withdraws a version.
pub async fn revoke(args: &Revoke, api: &Api, screen: &Screen) -> Result<()> {
    let desk = Desk::open(&args.common.keys, api, screen).await?;
    let (model, version) = &args.what;
    let path = target_path(model, version);
    let Some(target) = desk.current.target(&path)? else {
        let role = desk.current.roles.get(model.as_str());
        let listed: Vec<&str> = role.iter().flat_map(|d| d.body.targets.keys().map(String::as_str)).collect();
        let listed = if listed.is_empty() { "nothing".into() } else { listed.join(", ") };
        bail!(Refused(format!(
            "{model} {version} is not published, so there is nothing to revoke; published: {listed}"
        )));
    };
    let mut edit = desk.edit();
    let found = match target.role() {
        "targets" => edit.targets().remove_bundle(model, version),
        role => edit.role(role).remove_bundle(model, version),
    };
    if !found {
        bail!(Refused(format!("{path} is listed, but not as a bundle of {model}")));
    }
    let extra = json!({ "model": model, "version": version, "digest": target.sha256() });
    let why = format!("revoke {model} {version}");
    let done = || {
        format!(
            "{model} {version} is revoked: no device installs it any more, its rollouts end, and devices that run it \
             are ordered back to the version before. Follow them: plimsoll events, plimsoll device list"
        )
    };
    land(&desk, &why, edit.finish()?, args.common.proposal.proposal.as_deref(), extra, done).await
}

/// Signs again what expires soon.
pub async fn renew(args: &Renew, api: &Api, screen: &Screen) -> Result<()> {
    let desk = Desk::open(&args.common.keys, api, screen).await?;
    let current = &desk.current;
    let now = time::now();
    let mut known = vec![("root", &current.root.expires, current.root.issued)];
    known.push(("targets", &current.targets.expires, current.targets.issued));
    known.extend(current.roles.iter().map(|(name, doc)| (name.as_str(), &doc.expires, doc.issued)));
    if let Some(role) = args.roles.iter().find(|r| !known.iter().any(|(name, ..)| name == r)) {
        let hint = if ONLINE.contains(&role.as_str()) {
            "the server keeps it fresh by itself".into()
        } else {
            format!("{} can be", known.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", "))
        };
        bail!(Usage(format!("role {role} cannot be renewed: {hint}")));
    }
    let soon = |expires: i64| expires - now < i64::from(args.within);
    let wanted = |name: &str, expires: i64| {
        if args.roles.is_empty() { soon(expires) } else { args.roles.iter().any(|r| r == name) }
    };
    let mut edit = desk.edit();
    let mut renewed = Vec::new();
    for (name, expires, issued) in known.iter().filter(|(name, expires, _)| wanted(name, **expires)) {
        let before = issued.map_or(SOON_S, |at| **expires - at);
        edit.renew(name, args.valid.map_or(before, i64::from));
        renewed.push((*name).to_owned());
    }
    if renewed.is_empty() {
        return screen.show(&json!({ "what": "renew", "renewed": [], "published": false }), || {
            let first = known.iter().min_by_key(|(_, expires, _)| **expires);
            let first = first.map(|(name, at, _)| format!("; the first is {name}, on {}", time::date(**at)));
            format!("Nothing expires soon{}.", first.unwrap_or_default())
        });
    }
    let why = format!("renew {}", renewed.join(" "));
    let done = || format!("Renewed {}.", renewed.join(", "));
    let (upload, file) = (edit.finish()?, args.common.proposal.proposal.as_deref());
    land(&desk, &why, upload, file, json!({ "renewed": renewed }), done).await
}

/// Signs for the fleet's authorities.
pub async fn publish_ca(args: &PublishCa, api: &Api, screen: &Screen) -> Result<()> {
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
    let desk = Desk::open(&args.common.keys, api, screen).await?;
    let mut edit = desk.edit();
    edit.targets().add_file(FLEET_CA, &pem);
    let digest = Digest::of(&pem);
    api.put_stream(&format!("blobs/sha256/{digest}"), pem.into()).await?;
    let count = certificates.len();
    let extra = json!({ "path": FLEET_CA, "digest": digest, "certificates": count });
    let done = || {
        format!(
            "{count} certificate(s) of {name} are the fleet's authorities now; devices learn it at their next refresh."
        )
    };
    let why = format!("publish {FLEET_CA}");
    land(&desk, &why, edit.finish()?, args.common.proposal.proposal.as_deref(), extra, done).await
}

/// Keys and threshold of a role whose keys people hold.
fn holders(desk: &Desk<'_>, edit: &Edit<'_>, role: &str) -> Result<(Vec<Key>, u32)> {
    if ONLINE.contains(&role) {
        bail!(Usage(format!(
            "role {role} has one key, which the server makes and keeps: plimsoll trust rotate {role}"
        )));
    }
    edit.keys(role).ok_or_else(|| {
        let models =
            desk.current.targets.body.delegations.iter().flat_map(|d| &d.roles).map(|r| r.name.as_str());
        let known: Vec<&str> =
            ["root", "targets", "snapshot", "timestamp"].into_iter().chain(models).collect();
        Usage(format!("there is no role {role}: {}", known.join(", "))).into()
    })
}

/// The key that a person means.
fn find(keys: &[Key], text: &str, role: &str) -> Result<usize> {
    let public = read_public(text).ok();
    let means = |key: &Key| {
        key.name() == Some(text)
            || (text.len() >= MIN_ID_DIGITS && key.id().0.starts_with(text))
            || public.as_ref().is_some_and(|p| p.is(key))
    };
    let found: Vec<usize> = keys.iter().enumerate().filter(|(_, key)| means(key)).map(|(i, _)| i).collect();
    match found[..] {
        [one] => Ok(one),
        [] => bail!(Refused(format!("key {text} is not in role {role}, whose keys are: {}", labels(keys)))),
        _ => bail!(Usage(format!("{text} may be several keys of role {role}: {}", labels(keys)))),
    }
}

fn labels(keys: &[Key]) -> String {
    keys.iter().map(|key| key_label(&key.id(), Some(key))).collect::<Vec<_>>().join(", ")
}

/// `targets-2`, `targets-3`, …: the first that is not there.
fn free_name(ring: &KeyRing, role: &str) -> String {
    let mut number = 2;
    while ring.has(&format!("{role}-{number}")) {
        number += 1;
    }
    format!("{role}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::trust::{KeyPair, Signer};

    #[test]
    fn a_version_is_a_model_and_a_number() {
        assert_eq!(model_version("meter@1.2.3").unwrap().0.as_str(), "meter");
        for bad in ["meter", "meter@", "@1.0.0", "meter@1", "Me ter@1.0.0"] {
            assert!(model_version(bad).is_err(), "{bad}");
        }
        assert!(valid("23h").unwrap_err().contains("less than a day"));
    }

    #[test]
    fn a_key_is_meant_by_its_name_its_id_or_itself_and_never_by_a_guess() {
        let keys: Vec<Key> = [(1, "ann"), (2, "bob"), (3, "bob")]
            .map(|(s, n)| KeyPair::from_seed(&[s; 32]).key().named(n))
            .into();
        assert_eq!(find(&keys, "ann", "root").unwrap(), 0);
        assert_eq!(find(&keys, &keys[1].id().0[..8], "root").unwrap(), 1);
        assert_eq!(find(&keys, &keys[2].public().map(hex::encode).unwrap(), "root").unwrap(), 2);
        let error = find(&keys, "eve", "root").unwrap_err().to_string();
        assert!(error.contains("not in role root") && error.contains("ann ("), "{error}");
        assert!(find(&keys, "bob", "root").unwrap_err().to_string().contains("several keys"));
        assert!(find(&keys, &keys[1].id().0[..5], "root").is_err());
    }
}
