//! `plimsoll token`: access for people, pipelines and dashboards.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use plimsoll_protocol::api::{NewToken, Role, TokenCreated};

use crate::api::Api;
use crate::output::Screen;
use crate::time::utc;

/// `plimsoll token …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an API token
    New {
        /// Whose or what for, for people.
        #[arg(long)]
        name: String,
        /// What it may do.
        #[arg(long, value_enum)]
        role: RoleName,
        /// Days until it ends.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

/// The roles, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Reads everything, subscribes to telemetry.
    Viewer,
    /// Runs rollouts and devices.
    Operator,
    /// Operator who may also approve stages.
    Approver,
    /// Viewer who may also upload blobs and signed metadata.
    Publisher,
    /// Everything.
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Operator => Self::Operator,
            RoleName::Approver => Self::Approver,
            RoleName::Publisher => Self::Publisher,
            RoleName::Admin => Self::Admin,
        }
    }
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    let Command::New { name, role, days } = command;
    let created: TokenCreated = api.post("tokens", &NewToken { name, role: role.into(), days }).await?;
    screen.show(&created, || {
        format!("{}\n\nUntil {} UTC; it is not shown again.", created.token, utc(created.expires_ms))
    })
}
