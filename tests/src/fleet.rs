//! A server and its devices, each a process with a state folder of its own.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;

use crate::{Api, Binaries, Process, until};

/// A debug build starts in about a second; this is only the end of hope.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Listeners of the server: the flag that sets each, and its name in `addresses.json`.
const LISTENERS: [(&str, &str); 4] = [
    ("--listen-http", "http"),
    ("--listen-https", "https"),
    ("--listen-mqtt", "mqtt"),
    ("--listen-dashboard", "dashboard"),
];

/// Ordinary settings of server and agents, set short so that a story fits into minutes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seconds between two health reports of a device.
    pub health_interval_s: u32,
    /// Seconds of a measurement window.
    pub window_s: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { health_interval_s: 2, window_s: 5 }
    }
}

/// One device.
#[derive(Debug)]
pub struct Agent {
    /// Its name in the fleet.
    pub name: String,
    /// Where its application asks the model.
    pub listen: SocketAddr,
    /// Its state folder.
    pub state: PathBuf,
    /// Its service.
    pub process: Process,
}

impl Agent {
    /// Kills the process that serves the device's inferences.
    pub fn kill_serving(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.serving_pid()?)?).context("a process without a number")?;
        kill_process(pid, Signal::KILL).context("cannot kill the serving process")
    }

    /// The process that serves the device's inferences, a child of its agent.
    pub fn serving_pid(&self) -> Result<u32> {
        let parent = self.process.pid().context("the agent is not running")?;
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.context("cannot read the agent's children")?;
        for child in children.split_whitespace() {
            let command = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if command.split('\0').nth(1) == Some("serve") {
                return Ok(child.parse()?);
            }
        }
        bail!("{} has no serving process among {children:?}", self.name)
    }
}

/// A whole fleet.
#[derive(Debug)]
pub struct Fleet {
    /// Everything the fleet writes lies under it.
    pub dir: PathBuf,
    /// The programs.
    pub binaries: Binaries,
    /// The operators' API, as admin.
    pub api: Api,
    /// `host:port` of the dashboards' MQTT.
    pub dashboard: SocketAddr,
    /// `host:port` of the devices' MQTT.
    pub mqtt: SocketAddr,
    /// The server.
    pub server: Process,
    /// The devices that were added, in order.
    pub agents: Vec<Agent>,
    settings: Settings,
    https: SocketAddr,
}

impl Fleet {
    /// Starts a server with an empty state under `dir`.
    pub async fn start(dir: &Path, settings: Settings) -> Result<Self> {
        Self::start_with(dir, settings, &[]).await
    }

    /// Starts a server with an empty state under `dir` and these further flags.
    pub async fn start_with(dir: &Path, settings: Settings, flags: &[&str]) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // Err: another fleet of this process did
        let binaries = Binaries::locate()?;
        let state = dir.join("server");
        std::fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
        let mut args: Vec<OsString> = vec!["serve".into(), "--state-dir".into(), state.clone().into()];
        let mut listeners = Vec::new();
        for (flag, _) in LISTENERS {
            // Fixed for the life of the fleet, so that a restarted server is found where it was.
            let address = free_address()?;
            args.extend([flag.into(), address.to_string().into()]);
            listeners.push(address);
        }
        args.extend(["--public-host".into(), "127.0.0.1".into()]);
        args.extend(flags.iter().map(Into::into));
        let server = Process::start("server", &binaries.server(), &args, &dir.join("server.log"))?;
        let [http, https, mqtt, dashboard] = listeners[..] else { bail!("a server has four listeners") };
        let base = format!("http://{http}");
        let token = until("the server's first start", START_LIMIT, || ready(&base, &state)).await;
        let token = token.map_err(|e| e.context(server.tail()))?;
        let api = Api::new(&base, &token)?;
        Ok(Self {
            dir: dir.to_owned(),
            binaries,
            api,
            dashboard,
            mqtt,
            server,
            agents: Vec::new(),
            settings,
            https,
        })
    }

    /// Runs the operator's command with `--output json` and gives back what it printed.
    pub async fn plimsoll(&self, args: &[&str]) -> Result<Value> {
        let (status, out, err) = self.plimsoll_raw(args).await?;
        if status != 0 {
            bail!("plimsoll {}: exit {status}: {err}{out}", args.join(" "));
        }
        serde_json::from_str(&out).with_context(|| format!("plimsoll {} printed: {out}", args.join(" ")))
    }

    /// Runs the operator's command and gives back exit code, standard output and standard error.
    pub async fn plimsoll_raw(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let output = Command::new(self.binaries.ctl())
            .args(["--output", "json"])
            .args(args)
            .env("PLIMSOLL_SERVER", self.api.base())
            .env("PLIMSOLL_TOKEN", self.api.token())
            .current_dir(&self.dir)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run plimsoll")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// Enrols a device with a join token and starts its service.
    pub async fn add_agent(&mut self, name: &str, token: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.enroll_agent(name, token).await?;
        self.start_agent(name, labels)
    }

    /// Enrols a device; its service is not started. Gives back its state folder.
    pub async fn enroll_agent(&self, name: &str, token: &str) -> Result<PathBuf> {
        let state = self.dir.join(name);
        std::fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
        self.enroll(name, token, &state).await?;
        Ok(state)
    }

    /// Starts the service of an enrolled device.
    pub fn start_agent(&mut self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let state = self.dir.join(name);
        let listen = free_address()?;
        let config = self.dir.join(format!("{name}.toml"));
        std::fs::write(&config, agent_config(&state, listen, &self.settings, labels))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let args: Vec<OsString> = vec!["run".into(), "--config".into(), config.into()];
        let log = self.dir.join(format!("{name}.log"));
        let process = Process::start(name, &self.binaries.agent(), &args, &log)?;
        self.agents.push(Agent { name: name.to_owned(), listen, state, process });
        Ok(())
    }

    /// `plimsoll-agent enroll`, as on a device.
    pub async fn enroll(&self, name: &str, token: &str, state: &Path) -> Result<String> {
        let url = self.device_url();
        let args = ["enroll", "--server", &url, "--token", token, "--device", name];
        let (code, out, err) = self.agent_raw(state, &args).await?;
        ensure!(code == 0, "plimsoll-agent enroll: exit {code}: {out}{err}");
        Ok(out + &err)
    }

    /// Runs the device's command on a state folder and gives back exit code, standard output and standard error.
    pub async fn agent_raw(&self, state: &Path, args: &[&str]) -> Result<(i32, String, String)> {
        let output = Command::new(self.binaries.agent())
            .args(args)
            .arg("--state-dir")
            .arg(state)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run plimsoll-agent")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// `plimsoll-agent status --output json` of a device.
    pub async fn status(&self, agent: &Agent) -> Result<Value> {
        let (code, out, err) = self.agent_raw(&agent.state, &["status", "--output", "json"]).await?;
        ensure!(code == 0, "status of {}: {err}", agent.name);
        serde_json::from_str(&out).with_context(|| format!("status of {}", agent.name))
    }

    /// `host:port` of the devices' listener.
    pub const fn https(&self) -> SocketAddr {
        self.https
    }

    /// `https://host:port` of the devices' listener.
    pub fn device_url(&self) -> String {
        format!("https://{}", self.https)
    }

    /// Stops everything in order: devices first, so that each says goodbye to a server that still listens.
    pub async fn stop(self) -> Result<()> {
        for agent in self.agents {
            agent.process.stop().await?;
        }
        self.server.stop().await
    }

    /// The ends of all logs, for a failure's message.
    pub fn tails(&self) -> String {
        let agents = self.agents.iter().map(|a| a.process.tail());
        std::iter::once(self.server.tail()).chain(agents).collect()
    }

    /// The ends of all logs, and after them the error: what is cut off a long report is its beginning.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        anyhow!("{}\n\n{error:#}", self.tails())
    }
}

/// The admin's token, once the server answers.
async fn ready(base: &str, state: &Path) -> Result<String> {
    let token = std::fs::read_to_string(state.join("admin.token")).context("no admin.token yet")?;
    let token = token.trim().to_owned();
    let api = Api::new(base, &token)?;
    api.get::<Value>("server").await?;
    Ok(token)
}

/// An address of loopback that nobody listens on.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?;
    listener.local_addr().context("no local address")
}

fn agent_config(state: &Path, listen: SocketAddr, settings: &Settings, labels: &[(&str, &str)]) -> String {
    let labels: String = labels.iter().map(|(k, v)| format!("{k} = {v:?}\n")).collect();
    format!(
        "state_dir = {:?}\nlisten = \"{listen}\"\nhealth_interval_s = {}\nwindow_s = {}\nfirst_contact_spread_s = 0\n\n[labels]\n{labels}",
        state.display().to_string(),
        settings.health_interval_s,
        settings.window_s,
    )
}
