//! `plimsoll tuf`: a plain client of any TUF repository, in the words of the public conformance suite.
//!
//! Hidden: operators have `plimsoll bundle verify`. It exists so that others can judge our client, and drives the
//! very state machine that devices drive, with the schemes of ECDSA and RSA beside Ed25519:
//!
//! ```text
//! plimsoll tuf --metadata-dir D init ROOT
//! plimsoll tuf --metadata-dir D --metadata-url U refresh
//! plimsoll tuf --metadata-dir D --metadata-url U --target-name T … --target-base-url B --target-dir O download
//! ```
//!
//! In D lies what was verified and nothing else, under names without versions. Exit code 0 is full success; every
//! failure is 1, as the suite wants it.

mod remote;
mod store;
mod targets;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use plimsoll_protocol::trust::{
    Client, MAX_ROOT_BYTES, Response, Schemes, SignedTarget, Step, Store, TrustedDocs,
};
use serde_json::json;

use crate::output::{Screen, bytes};
use crate::time;
use remote::Remote;
use store::Metadata;
use targets::Targets;

/// `plimsoll tuf`
#[derive(Debug, clap::Args)]
pub struct Tuf {
    /// Folder of the trusted metadata.
    #[arg(long, value_name = "DIR")]
    metadata_dir: PathBuf,
    /// Where the repository's metadata are: http://… or https://…
    #[arg(long, value_name = "URL")]
    metadata_url: Option<String>,
    /// A target to download; may be repeated.
    #[arg(long = "target-name", value_name = "PATH")]
    target_names: Vec<String>,
    /// Where the repository's targets are.
    #[arg(long, value_name = "URL")]
    target_base_url: Option<String>,
    /// Folder for the targets.
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    /// The repository names its targets without their digests although it keeps consistent snapshots.
    #[arg(long)]
    plain_target_names: bool,
    /// What to do.
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Trust a root
    Init {
        /// The root.json to start from, got by a way that is trusted.
        root: PathBuf,
    },
    /// Bring the trusted metadata up to date
    Refresh,
    /// Bring the trusted metadata up to date and download targets
    Download,
}

/// Runs the command.
pub async fn run(args: &Tuf, ca: Option<&Path>, screen: &Screen) -> Result<()> {
    let result = match &args.action {
        Action::Init { root } => init(&Metadata::new(&args.metadata_dir), root, screen),
        Action::Refresh => refresh(args, ca, screen).await,
        Action::Download => download(args, ca, screen).await,
    };
    // Flattened, so that no cause claims an exit code of its own.
    result.map_err(|error| anyhow!("{error:#}"))
}

fn init(metadata: &Metadata, root: &Path, screen: &Screen) -> Result<()> {
    let bytes = store::read(root, MAX_ROOT_BYTES)?;
    let stored = TrustedDocs::from([("root.json".to_owned(), bytes.clone())]);
    let client = Client::accepting(stored, time::now(), Schemes::BUILT_IN)
        .with_context(|| format!("{} is not trusted", root.display()))?;
    metadata.init(&bytes)?;
    let version = client.root_version();
    screen.show(&json!({ "root": version }), || format!("Root version {version} is trusted."))
}

async fn refresh(args: &Tuf, ca: Option<&Path>, screen: &Screen) -> Result<()> {
    let session = Session::open(args, ca).await?;
    let version = session.client.root_version();
    screen.show(&json!({ "root": version }), || format!("Up to date under root version {version}."))
}

async fn download(args: &Tuf, ca: Option<&Path>, screen: &Screen) -> Result<()> {
    let (Some(url), Some(dir)) = (&args.target_base_url, &args.target_dir) else {
        bail!("download needs --target-base-url and --target-dir")
    };
    if args.target_names.is_empty() {
        bail!("download needs a --target-name");
    }
    let mut session = Session::open(args, ca).await?;
    let with_digest = session.client.consistent_snapshot() && !args.plain_target_names;
    let targets = Targets::new(dir, Remote::new(url, "--target-base-url", ca)?, with_digest)?;
    let mut done = Vec::new();
    for name in &args.target_names {
        let target = session.find(name).await?;
        let got = targets.get(&target).await?;
        screen.note(&format!(
            "{name}: {} {}, signed by role {}",
            bytes(target.length()),
            if got.fetched { "downloaded" } else { "here already" },
            target.role()
        ));
        done.push(json!({
            "name": name, "file": got.file, "bytes": target.length(), "fetched": got.fetched,
            "signed_by": target.role(),
        }));
    }
    screen.show(&json!({ "targets": done }), || format!("{} target(s) in {}.", done.len(), dir.display()))
}

/// A client with fresh top-level metadata, and what it works on.
struct Session {
    client: Client,
    metadata: Metadata,
    remote: Remote,
}

impl Session {
    async fn open(args: &Tuf, ca: Option<&Path>) -> Result<Self> {
        let metadata = Metadata::new(&args.metadata_dir);
        let client = Client::accepting(metadata.stored()?, time::now(), Schemes::BUILT_IN)
            .with_context(|| format!("--metadata-dir {}", args.metadata_dir.display()))?;
        let url = args.metadata_url.as_deref().context("--metadata-url is needed: where the metadata are")?;
        let remote = Remote::new(url, "--metadata-url", ca)?;
        let mut session = Self { client, metadata, remote };
        session.drive().await?;
        Ok(session)
    }

    async fn find(&mut self, path: &str) -> Result<SignedTarget> {
        self.client.find(path)?;
        match self.drive().await? {
            Step::Found(target) => Ok(target),
            _ => bail!("no role that may sign for {path} lists it: it does not exist, or it was removed"),
        }
    }

    /// Fetches what the client wants until it wants nothing more.
    async fn drive(&mut self) -> Result<Step> {
        loop {
            let fetch = match self.client.next() {
                Step::Fetch(fetch) => fetch,
                end => return Ok(end),
            };
            let got = self.remote.document(&fetch.path, fetch.max_bytes).await?;
            let response = got.as_deref().map_or(Response::NotFound, Response::Bytes);
            for change in self.client.supply(response)? {
                match change {
                    Store::Write { name, bytes } => self.metadata.write(&name, &bytes)?,
                    Store::Delete { name } => self.metadata.delete(&name)?,
                }
            }
        }
    }
}
