//! `plimsoll`: the command of ML engineers and operators.
//!
//! It talks to a server over `/api/v1` only, and to nothing else; what it signs, it signs here, with keys that never
//! leave this machine, on top of documents that it verified itself. One file a command:
//!
//! - [`cli`]: arguments and dispatch
//! - [`trust`]: keys, who may sign for what, and changes that several people sign
//! - [`model`]: whether a model runs on the agent, and the limited process that tries it
//! - [`bundle`]: pack, inspect, verify, publish
//! - [`ca`]: change the fleet's certificate authority
//! - [`device`], [`rollout`], [`events`], [`token`]: operate the fleet
//! - [`tuf`]: hidden; a plain TUF client for the public conformance suite
//! - [`api`], [`keys`], [`output`], [`failure`]: what the commands share
//!
//! Exit codes are part of the interface: 0 done, 1 failed, 2 wrong usage, 3 refused by a gate or a verification.

pub mod api;
pub mod bundle;
pub mod ca;
pub mod cli;
pub mod device;
pub mod events;
pub mod failure;
mod join;
pub mod keys;
pub mod model;
pub mod output;
pub mod rollout;
pub mod time;
pub mod token;
pub mod trust;
pub mod tuf;

use std::process::ExitCode;

use clap::Parser;

/// The whole program.
pub fn main() -> ExitCode {
    // An Err says that a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version with code 0, mistakes with code 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let screen = output::Screen::new(cli.global.output);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(cli::run(cli, &screen)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<failure::Told>() {
                screen.error(&error);
            }
            ExitCode::from(failure::exit_code(&error))
        }
    }
}
