//! `plimsoll bundle verify`: is this bundle whole, is it signed, does it answer as expected?

use std::path::PathBuf;

use anyhow::{Result, bail};
use plimsoll_protocol::api::TrustState;
use plimsoll_protocol::bundle::target_path;
use serde_json::json;

use super::files::LocalBundle;
use crate::api::Api;
use crate::failure::Refused;
use crate::keys::{KeyArgs, KeyRing};
use crate::model::confined::{Room, self_test_bundle};
use crate::output::Screen;
use crate::trust::{NOT_INITIALISED, read_current};

/// `plimsoll bundle verify DIR`
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The bundle's folder.
    dir: PathBuf,
    /// Also check that the server publishes exactly this bundle, signed by a role that may sign it.
    #[arg(long)]
    signed: bool,
    /// The same, starting from the root.json in this folder instead of the server's word.
    #[arg(long, env = "PLIMSOLL_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Also run the golden samples (expected outputs) on this machine.
    #[arg(long)]
    self_test: bool,
}

/// Verifies a bundle.
pub async fn run(args: &Verify, api: impl Fn() -> Result<Api>, screen: &Screen) -> Result<()> {
    let bundle = LocalBundle::open(&args.dir)?;
    bundle.verify()?;
    let signer = if args.signed || args.keys.is_some() {
        Some(signed_by(args, &bundle, &api()?, screen).await?)
    } else {
        None
    };
    let report = if args.self_test { Some(answers(&bundle).await?) } else { None };
    let m = &bundle.manifest;
    let result = json!({
        "model": m.model, "version": m.version, "digest": bundle.digest, "files": m.files.len(),
        "signed_by": signer, "self_test": report,
    });
    screen.show(&result, || {
        let mut lines = vec![format!(
            "{} {}: all {} files are what bundle.json says.",
            m.model,
            m.version,
            m.files.len()
        )];
        lines.push(match &signer {
            Some(role) => {
                format!("The server publishes it ({}), signed by role {role}.", bundle.digest.short())
            }
            None => "The signature was not checked (--signed or --keys DIR does).".into(),
        });
        lines.extend(report.as_ref().map(|r| {
            format!("{} golden sample(s) hold here; largest difference {:.2e}.", r.samples, r.max_abs_error)
        }));
        lines.join("\n")
    })
}

async fn signed_by(args: &Verify, bundle: &LocalBundle, api: &Api, screen: &Screen) -> Result<String> {
    // Without a folder there is none to pin a root in; `read_current` says that the server is believed.
    let keys = args.keys.clone().unwrap_or_default();
    let ring = KeyRing::open(&KeyArgs::at(keys))?;
    let state: TrustState = api.get("trust").await?;
    let Some(current) = read_current(&ring, &state, screen)? else { bail!(Refused(NOT_INITIALISED.into())) };
    let path = target_path(&bundle.manifest.model, &bundle.manifest.version);
    match current.target(&path)? {
        None => bail!(Refused(format!(
            "nobody who may has signed {path}: it is not published, or it was revoked"
        ))),
        Some(target) => {
            target.admit_manifest(&bundle.bytes)?;
            Ok(target.role().to_owned())
        }
    }
}

async fn answers(bundle: &LocalBundle) -> Result<plimsoll_runtime::SelfTestReport> {
    let report = self_test_bundle(&bundle.dir, &bundle.manifest, Room::default()).await?;
    match &report.mismatch {
        Some(mismatch) => bail!(Refused(format!("bundle {}: {mismatch}", bundle.dir.display()))),
        None => Ok(report),
    }
}
