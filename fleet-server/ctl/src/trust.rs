//! `plimsoll trust`: keys, and who may sign for what.
//!
//! Every change takes the same way: it is made on top of what is published and verified ([`change`]), signed with the
//! keys that are here, and published; or, when more people must sign, left for them ([`land`], [`signoff`]).

mod change;
mod export;
mod init;
pub mod land;
mod signoff;
mod status;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::trust::repository::{Current, Edit, standing, to_bytes};

use crate::api::Api;
use crate::failure::Refused;
use crate::keys::{KeyArgs, KeyRing};
use crate::output::Screen;
use crate::time;

/// `plimsoll trust …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the keys of a new fleet and hand their public halves to the server
    Init(init::Init),
    /// Make one key, to be named in a role by its owner
    MakeKey(init::MakeKey),
    /// Show roles, expiries, which of the keys are here, and what waits for signatures
    Status(KeyArgs),
    /// Let a team's key sign the versions of one model (needs the targets key)
    Delegate(change::Delegate),
    /// Let one more key sign for a role
    AddKey(change::AddKey),
    /// Take a key out of a role
    RemoveKey(change::RemoveKey),
    /// Put a new key in the place of an old one: of root, targets or a model; of snapshot and timestamp, which the
    /// server makes itself
    Rotate(change::Rotate),
    /// Withdraw a version: no device installs it any more, and those that run it go back
    Revoke(change::Revoke),
    /// Sign again what expires soon
    Renew(change::Renew),
    /// Sign for the fleet's certificate authorities, so that devices trust a new one (needs the targets key)
    PublishCa(change::PublishCa),
    /// Look at a change that waits for signatures, and add yours
    SignOff(signoff::SignOff),
    /// List the changes that wait for signatures
    Proposals(KeyArgs),
    /// Forget a change that waits for signatures
    Drop {
        /// Its name, as `plimsoll trust proposals` shows it.
        id: String,
    },
    /// Write the whole repository to a folder, in the layout that any TUF client reads
    Export(export::Export),
}

/// How a change that needs more signatures than there are here goes on.
#[derive(Debug, Args)]
pub struct ProposalArgs {
    /// When more people must sign: write the change to this file for them, instead of leaving it with the server.
    #[arg(long, value_name = "FILE")]
    pub proposal: Option<PathBuf>,
}

/// What every change starts from: the keys that are here, and what is published, verified.
pub struct Desk<'a> {
    /// Keys.
    pub ring: KeyRing,
    /// Where it is published.
    pub api: &'a Api,
    /// For people.
    pub screen: &'a Screen,
    /// What is published.
    pub current: Current,
}

impl<'a> Desk<'a> {
    /// Reads and verifies what is published.
    pub async fn open(keys: &KeyArgs, api: &'a Api, screen: &'a Screen) -> Result<Self> {
        let ring = KeyRing::open(keys)?;
        let state: TrustState = api.get("trust").await?;
        match read_current(&ring, &state, screen)? {
            Some(current) => Ok(Self { ring, api, screen, current }),
            None => bail!(Refused(NOT_INITIALISED.into())),
        }
    }

    /// A change on top of it.
    pub fn edit(&self) -> Edit<'_> {
        Edit::new(&self.current, time::now())
    }
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    match command {
        Command::Init(args) => init::init(&args, api, screen).await,
        Command::MakeKey(args) => init::make_key(&args, screen),
        Command::Status(args) => status::status(&args, api, screen).await,
        Command::Delegate(args) => change::delegate(&args, api, screen).await,
        Command::AddKey(args) => change::add_key(&args, api, screen).await,
        Command::RemoveKey(args) => change::remove_key(&args, api, screen).await,
        Command::Rotate(args) => change::rotate(&args, api, screen).await,
        Command::Revoke(args) => change::revoke(&args, api, screen).await,
        Command::Renew(args) => change::renew(&args, api, screen).await,
        Command::PublishCa(args) => change::publish_ca(&args, api, screen).await,
        Command::SignOff(args) => signoff::sign_off(&args, api, screen).await,
        Command::Proposals(args) => signoff::list(&args, api, screen).await,
        Command::Drop { id } => signoff::forget(&id, api, screen).await,
        Command::Export(args) => export::export(&args, api, screen).await,
    }
}

/// Without a repository there is nothing to sign on top of.
pub const NOT_INITIALISED: &str = "the server has no trust repository yet: run `plimsoll trust init` first";

/// Verifies what is published under the root that the key folder knows, and remembers its successor. A folder that
/// knows none takes the server's, and says so; unless a key of this folder has signed that root.
pub fn read_current(ring: &KeyRing, state: &TrustState, screen: &Screen) -> Result<Option<Current>> {
    let pinned = ring.pinned_root()?;
    let current = Current::read(state, pinned.as_deref()).with_context(|| {
        format!("what the server publishes was checked against {}", ring.dir().join("root.json").display())
    })?;
    if let (Some(_), Some(root)) = (&current, &state.root) {
        let published = to_bytes(root);
        if pinned.is_none() && !signed_here(ring, root) {
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

/// Whether a key that is here has signed this root, so that its owner has seen it.
fn signed_here(ring: &KeyRing, root: &serde_json::Value) -> bool {
    let change = TrustUpload { root: Some(root.clone()), ..TrustUpload::default() };
    let signed = standing(None, &change).unwrap_or_default();
    let mut signed = signed.iter().flat_map(|s| &s.needs).flat_map(|need| &need.signed);
    signed.any(|(_, key)| ring.holder(key).is_some())
}
