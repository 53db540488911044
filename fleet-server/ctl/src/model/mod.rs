//! `plimsoll model`: what is known of a model's file before it is packed.

mod check;
pub mod confined;

use anyhow::Result;
use clap::Subcommand;

use crate::output::Screen;
pub use check::{does_not_run, size};

/// `plimsoll model …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether a model will run on the agent: operators, opset, datatypes, memory and time measured here; and for
    /// each node that will not, what to do about it
    Check(check::Check),
    /// One piece of work on a model, asked for on standard input; started by other commands, with limits
    #[command(hide = true)]
    Confined,
}

/// Dispatch.
pub async fn run(command: Command, screen: &Screen) -> Result<()> {
    match command {
        Command::Check(args) => check::run(&args, screen).await,
        Command::Confined => confined::child(),
    }
}
