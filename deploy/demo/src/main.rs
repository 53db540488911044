//! `cargo demo`: a fleet server and six devices on this machine, and the story of three versions of one model.
//!
//! Everything is real: the programs are the ones that ship, started as processes with state folders of their own;
//! the operator's part is played by running the `plimsoll` command; the application's part by asking each device's
//! local endpoint. Only waits are set short, by the same settings that a user has.

mod build;
mod cast;
mod chapter5;
mod chapter6;
mod checks;
mod lens;
mod narrator;
mod operator;
mod story;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use narrator::Narrator;
use plimsoll_tests::{Fleet, Settings};

/// Plays a staged rollout of signed models on a fleet of six devices, on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "cargo demo --",
    after_help = "Exit codes: 0 every outcome holds, 1 one does not or something failed, 2 wrong usage."
)]
struct Args {
    /// Play the story to the end, check every outcome, print a table and exit.
    #[arg(long)]
    once: bool,
    /// How the outcomes are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Use programs that are already built (they lie beside this one, or in PLIMSOLL_BIN_DIR).
    #[arg(long)]
    no_build: bool,
    /// Keep the state folders and logs here instead of a temporary folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// How the outcomes are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Words and a table.
    Text,
    /// One JSON document on standard output; the words go to standard error.
    Json,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\ncargo demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<bool> {
    if !args.no_build {
        build::programs()?;
    }
    let narrator = Narrator::new(args.output == Output::Json);
    let home = Home::new(args.keep.as_deref())?;
    let mut fleet = Fleet::start(home.path(), Settings::default()).await?;
    narrator.dashboard(&fleet);
    let told = tokio::select! {
        told = story::tell(&mut fleet, &narrator) => told,
        _ = tokio::signal::ctrl_c() => {
            narrator.say("Interrupted: stopping all processes.");
            fleet.stop().await?;
            return Ok(false);
        }
    };
    let (story, outcomes) = match told {
        Ok(told) => told,
        Err(error) => return Err(fleet.explain(error)),
    };
    let all_hold = narrator.summary(&outcomes)?;
    if !args.once {
        chapter5::blur(&story.lenses);
        narrator.say(
            "\nThe fleet keeps running, and its cameras keep reading meters; two lenses blur again, so that",
        );
        narrator.say("the page shows drift. Ctrl-C stops everything and cleans up.");
        narrator.dashboard(&fleet);
        tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    }
    drop(story);
    fleet.stop().await?;
    Ok(all_hold)
}

/// Where the fleet's state lies: a temporary folder that goes with the demo, or one that stays.
enum Home {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Home {
    fn new(keep: Option<&Path>) -> Result<Self> {
        let Some(dir) = keep else {
            let dir = tempfile::Builder::new().prefix("plimsoll-demo-").tempdir();
            return dir.map(Self::Temporary).context("cannot make a temporary folder");
        };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let full = std::fs::read_dir(dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .next()
            .is_some();
        anyhow::ensure!(!full, "{} is not empty: name a new folder for --keep", dir.display());
        Ok(Self::Kept(
            std::path::absolute(dir).with_context(|| format!("no absolute path of {}", dir.display()))?,
        ))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }
}
