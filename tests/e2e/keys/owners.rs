//! People with keys: each has a folder, and a way to open it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use plimsoll_protocol::trust::repository::{DAY_S, sign, to_bytes};
use plimsoll_protocol::trust::{Doc, FileMeta, KeyPair, Signer, Snapshot, Timestamp};
use plimsoll_tests::Fleet;
use serde_json::Value;
use tokio::process::Command;

/// Exit code of a refusal, as `plimsoll` documents it.
pub const REFUSED: i32 = 3;

/// Somebody who runs `plimsoll trust`.
pub struct Owner<'a> {
    fleet: &'a Fleet,
    folder: String,
    descriptor: Option<String>,
    environment: Option<String>,
    /// Further arguments of every command.
    pub args: Vec<String>,
}

impl<'a> Owner<'a> {
    /// Keys in a folder of the fleet's, not encrypted.
    pub fn new(fleet: &'a Fleet, folder: &str) -> Self {
        let folder = folder.to_owned();
        Self { fleet, folder, descriptor: None, environment: None, args: Vec::new() }
    }

    /// The passphrase comes through a file descriptor, from this file.
    pub fn descriptor(self, file: &str) -> Self {
        Self { descriptor: Some(file.to_owned()), args: vec!["--passphrase-fd".into(), "3".into()], ..self }
    }

    /// The passphrase stands in the environment.
    pub fn environment(self, passphrase: &str) -> Self {
        Self { environment: Some(passphrase.to_owned()), ..self }
    }

    /// A command signs.
    pub fn external(self, command: &str, public: &str) -> Self {
        let args = ["--sign-with", command, "--sign-key", public].map(str::to_owned).into();
        Self { args, ..self }
    }

    /// `plimsoll trust LINE`; what it printed.
    pub async fn ok(&self, line: &str) -> Result<Value> {
        let (code, out, err) = self.run(line, self.fleet.api.base()).await?;
        ensure!(code == 0, "trust {line} of {}: exit {code}: {err}", self.folder);
        serde_json::from_str(&out).with_context(|| format!("trust {line} printed: {out}"))
    }

    /// The same where no server can be reached.
    pub async fn offline(&self, line: &str) -> Result<Value> {
        let (code, out, err) = self.run(line, "http://127.0.0.1:1").await?;
        ensure!(code == 0, "trust {line} of {}: exit {code}: {err}", self.folder);
        serde_json::from_str(&out).with_context(|| format!("trust {line} printed: {out}"))
    }

    /// The same, refused with this exit code; what it said.
    pub async fn fails(&self, line: &str, expect: i32) -> Result<String> {
        let (code, out, err) = self.run(line, self.fleet.api.base()).await?;
        ensure!(code == expect, "trust {line} of {}: exit {code}, not {expect}: {err}{out}", self.folder);
        Ok(err)
    }

    async fn run(&self, line: &str, server: &str) -> Result<(i32, String, String)> {
        // A process has no third descriptor unless its parent opens one: the shell does.
        let open = self.descriptor.as_ref().map_or(String::new(), |file| format!(" 3< '{file}'"));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\"{open}")]).arg(self.fleet.binaries.ctl());
        command.args(["--output", "json", "trust"]).args(line.split_whitespace());
        let takes_keys = !line.starts_with("drop");
        if takes_keys {
            command.args(["--keys", &self.folder]).args(&self.args);
        }
        command.env("PLIMSOLL_SERVER", server).env("PLIMSOLL_TOKEN", self.fleet.api.token());
        command
            .env_remove("PLIMSOLL_PASSPHRASE")
            .envs(self.environment.as_ref().map(|p| ("PLIMSOLL_PASSPHRASE", p)));
        // Without a terminal: nobody can be asked.
        let output = command
            .current_dir(&self.fleet.dir)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run plimsoll")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }
}

/// A key that only OpenSSL knows: the command that signs with it, and the file with its public half.
pub async fn external_key(fleet: &Fleet, name: &str) -> Result<(String, String)> {
    let make = format!(
        "openssl genpkey -algorithm ed25519 -out {name}.pem && openssl pkey -in {name}.pem -pubout -out {name}.public"
    );
    let made = Command::new("sh").args(["-c", &make]).current_dir(&fleet.dir).output().await?;
    if !made.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
    }
    let sign = format!(
        "cat > {name}.message && openssl pkeyutl -sign -rawin -inkey {name}.pem -in {name}.message | base64 -w0"
    );
    Ok((sign, format!("{name}.public")))
}

/// Reads JSON.
pub fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

/// A key of the server, as whoever steals the machine reads it.
pub fn read_key(path: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed).with_context(|| path.display().to_string())?;
    Ok(seed)
}

/// Fast-forward: the thief signs a timestamp and a snapshot of a version far ahead. A device that heard them keeps
/// them, and refuses everything older; they are put where it would have stored them.
pub fn push_forward(server: &Path, device: &Path, version: u64) -> Result<()> {
    let key =
        |role: &str| read_key(&server.join(format!("{role}.key"))).map(|seed| KeyPair::from_seed(&seed));
    let known = Doc::<Snapshot>::read_unverified(&read(&device.join("snapshot.json"))?)
        .map_err(anyhow::Error::msg)?;
    let expires = known.expires + 30 * DAY_S;
    let snapshot = sign(&Doc::new(version, None, expires, known.body), &[&key("snapshot")? as &dyn Signer])?;
    let snapshot = to_bytes(&snapshot);
    let meta = BTreeMap::from([("snapshot.json".to_owned(), FileMeta::of(version, &snapshot))]);
    let body = Timestamp { meta, extra: BTreeMap::new() };
    let timestamp = sign(&Doc::new(version, None, expires, body), &[&key("timestamp")? as &dyn Signer])?;
    std::fs::write(device.join("snapshot.json"), snapshot)?;
    std::fs::write(device.join("timestamp.json"), to_bytes(&timestamp))?;
    Ok(())
}
