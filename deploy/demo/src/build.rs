//! Builds the programs that the demo starts, in the profile that the demo itself was built in.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// `cargo build` of the three programs. The first build compiles the inference runtime and takes some minutes;
/// cargo shows its own progress.
pub fn programs() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!(
        "Building the server, the agent and the command line (minutes the first time, seconds after) …"
    );
    let mut build = Command::new(cargo);
    // The whole workspace, as the test command builds it: one set of features, so that neither rebuilds the other's.
    build.args(["build", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let status = build.status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed: see above");
    Ok(())
}
