//! Arguments and dispatch.

use clap::{Args, Parser, Subcommand};

use crate::api::{Api, Connection};
use crate::output::{Form, Screen};
use crate::{bundle, ca, device, events, model, rollout, token, trust, tuf};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by a gate or a verification \
(bad signature, wrong digest, a model that does not run, golden samples that differ, a rollout that was rolled back).";

/// Ship ML models to a fleet of devices, and never past the line.
#[derive(Debug, Parser)]
#[command(name = "plimsoll", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Form of the result.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub output: Form,
    /// The server.
    #[command(flatten)]
    pub connection: Connection,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keys, and who may sign for which model
    #[command(subcommand)]
    Trust(trust::Command),
    /// Look at a model before it is packed
    #[command(subcommand)]
    Model(model::Command),
    /// Pack, inspect, verify and publish model versions
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Enrol, list and revoke devices
    #[command(subcommand)]
    Device(device::Command),
    /// The fleet's certificate authority, and its change
    #[command(subcommand)]
    Ca(ca::Command),
    /// Bring a model version to the fleet, stage by stage
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// What happened, newest first
    Events(events::Args),
    /// API tokens for people, pipelines and dashboards
    #[command(subcommand)]
    Token(token::Command),
    /// A plain client of any TUF repository, in the words of the public conformance suite
    #[command(hide = true)]
    Tuf(tuf::Tuf),
}

/// Runs a command.
pub async fn run(cli: Cli, screen: &Screen) -> anyhow::Result<()> {
    let api = || Api::new(&cli.global.connection);
    match cli.command {
        Command::Trust(command) => trust::run(command, &api()?, screen).await,
        Command::Model(command) => model::run(command, screen).await,
        Command::Bundle(command) => bundle::run(command, api, screen).await,
        Command::Device(command) => device::run(command, &api()?, screen).await,
        Command::Ca(command) => ca::run(command, &api()?, screen).await,
        Command::Rollout(command) => rollout::run(command, &api()?, screen).await,
        Command::Events(args) => events::run(&args, &api()?, screen).await,
        Command::Token(command) => token::run(command, &api()?, screen).await,
        Command::Tuf(args) => tuf::run(&args, cli.global.connection.ca.as_deref(), screen).await,
    }
}

/// `key=value` of a flag that may be repeated.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
    if key.is_empty() {
        return Err(format!("{text:?} has no key before the ="));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_command() {
        for args in [
            ["plimsoll", "--output", "json", "device", "list"],
            ["plimsoll", "device", "list", "--output", "json"],
        ] {
            assert_eq!(Cli::try_parse_from(args).unwrap().global.output, Form::Json);
        }
    }

    #[test]
    fn a_label_is_a_key_and_a_value() {
        assert_eq!(pair("site=lyon=2"), Ok(("site".into(), "lyon=2".into())));
        assert!(pair("site").is_err() && pair("=x").is_err());
    }
}
