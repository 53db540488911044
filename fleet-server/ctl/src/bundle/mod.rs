//! `plimsoll bundle`: from an ONNX file to a published, signed model version.

mod diff;
mod export;
mod files;
mod import;
mod inspect;
mod pack;
mod publish;
mod subject;
mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use plimsoll_protocol::api::ModelVersion;

use crate::api::Api;
use crate::output::{Screen, bytes, table};
pub(crate) use pack::{data_sets, numbered};

/// `plimsoll bundle …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a bundle of an ONNX model: describe it, check or record golden samples (expected outputs), measure the
    /// drift baseline
    Pack(Box<pack::Pack>),
    /// Show what a bundle says of itself; nothing is verified
    Inspect {
        /// The bundle's folder.
        dir: PathBuf,
    },
    /// Check every file of a bundle against its digests, and on request its signature and its golden samples
    Verify(verify::Verify),
    /// Sign a bundle and upload it
    Publish(publish::Publish),
    /// Show what changes from one version to another; nothing is verified
    Diff(diff::Diff),
    /// Write a published version with everything that proves it into one file, for devices without a network
    Export(export::Export),
    /// Check an export as a device would, and unpack it into a bundle's folder
    Import(import::Import),
    /// List the published versions
    List,
}

/// Dispatch. The server is only prepared for commands that need it.
pub async fn run(command: Command, api: impl Fn() -> Result<Api>, screen: &Screen) -> Result<()> {
    match command {
        Command::Pack(args) => pack::run(&args, screen).await,
        Command::Inspect { dir } => inspect::run(&dir, screen),
        Command::Verify(args) => verify::run(&args, api, screen).await,
        Command::Publish(args) => publish::run(&args, &api()?, screen).await,
        Command::Diff(args) => diff::run(&args, api, screen).await,
        Command::Export(args) => export::run(&args, &api()?, screen).await,
        Command::Import(args) => import::run(&args, screen),
        Command::List => list(&api()?, screen).await,
    }
}

async fn list(api: &Api, screen: &Screen) -> Result<()> {
    let versions: Vec<ModelVersion> = api.get("models").await?;
    screen.show(&versions, || {
        if versions.is_empty() {
            return "Nothing is published yet: `plimsoll bundle publish` signs and uploads a bundle.".into();
        }
        let rows = versions.iter().map(|v| {
            let (model, version, digest) = (v.model.to_string(), v.version.to_string(), v.digest.short());
            vec![model, version, digest, bytes(v.bytes), v.signed_by.clone(), v.devices.to_string()]
        });
        table(&["MODEL", "VERSION", "DIGEST", "SIZE", "SIGNED BY", "DEVICES"], &rows.collect::<Vec<_>>())
    })
}
