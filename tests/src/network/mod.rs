//! Bad networks and bad servers, between a real agent and a real server.
//!
//! A [`Wire`] sits below TLS: it cuts, holds, throttles and corrupts what passes, and understands none of it. A
//! [`Liar`] has the fleet's authority, as a stolen server would: it answers as the real server does, except for the
//! one thing that it is told to lie about.

mod liar;
mod wire;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

pub use liar::{Liar, Lie};
pub use wire::{Weather, Wire};

/// Points an enrolled device at other addresses; before its service starts.
pub fn behind(state: &Path, https: SocketAddr, mqtt: SocketAddr) -> Result<()> {
    let path = state.join("identity.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut identity: Value = serde_json::from_slice(&text).context("identity.json")?;
    identity["https"] = format!("https://{https}").into();
    identity["mqtt"] = mqtt.to_string().into();
    std::fs::write(&path, identity.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
