//! A device in a drawer: switched off for more than a year, while the fleet's root keys were exchanged three times,
//! its certificate ended and its clock fell back to 1970. It is switched on, and nobody touches it.
//!
//! The years are made with Debian's `faketime`: every program of a scene believes another time.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use plimsoll_tests::{Api, Binaries, MODEL, Process, STEP, until};
use serde_json::Value;
use tokio::process::Command;

/// When the device was enrolled, installed its first version, and was switched off.
const THEN: &str = "-400d";
/// When the owners exchanged the root key, three times; everything that they had signed before has ended today.
const MEANWHILE: &str = "-60d";
/// What the device believes when it is switched on.
const FALLEN_BACK: &str = "@1970-01-03 00:00:00";
const DAY_S: i64 = 24 * 3600;
const DEVICE: &str = "camera-1";

#[tokio::test(flavor = "current_thread")]
async fn a_device_that_was_off_for_a_year_comes_back_by_itself() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut site = Site::new(dir.path()).expect("programs, ports and faketime");
    if let Err(error) = story(&mut site).await {
        let tails: String = site.server.iter().chain(&site.agent).map(Process::tail).collect();
        panic!("{error:#}\n{tails}");
    }
    for process in site.agent.take().into_iter().chain(site.server.take()) {
        process.stop().await.expect("it stops");
    }
}

async fn story(site: &mut Site) -> Result<()> {
    site.server_at(Some(THEN)).await?;
    site.plimsoll(THEN, "trust init --keys keys --insecure-unencrypted-keys").await?;
    let token = site.plimsoll(THEN, "device token --uses 1 --minutes 60").await?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    site.pack("1.0.0").await?;
    site.pack("1.1.0").await?;
    site.plimsoll(THEN, "bundle publish bundle-1.0.0 --keys keys").await?;
    site.enroll(THEN, &token).await?;
    site.roll_out(THEN, "1.0.0").await?;
    site.agent_at(THEN)?;
    let then = site.runs("1.0.0").await?;
    site.agent.take().context("no agent")?.stop().await?;
    site.server.take().context("no server")?.stop().await?;

    site.server_at(Some(MEANWHILE)).await?;
    for _ in 0..3 {
        site.plimsoll(MEANWHILE, "trust rotate root --keys keys --insecure-unencrypted-keys").await?;
    }
    site.plimsoll(MEANWHILE, "trust renew targets --keys keys").await?;
    site.plimsoll(MEANWHILE, "bundle publish bundle-1.1.0 --keys keys").await?;
    site.server.take().context("no server")?.stop().await?;

    // Today. The device is on and finds nobody: what it had runs.
    site.agent_at(FALLEN_BACK)?;
    let alone = site.runs("1.0.0").await?;
    ensure!(alone["trust"]["clock_believed"] == false, "1970 is believed: {alone}");
    site.server_at(None).await?;
    site.roll_out("+0d", "1.1.0").await?;
    let now = site.runs("1.1.0").await?;
    ensure!(now["trust"]["root_version"] == 4, "it has not followed the owners: {}", now["trust"]);
    let floor = |status: &Value| status["trust"]["floor_s"].as_i64().context("no time floor");
    let risen = floor(&now)? - floor(&then)?;
    ensure!(risen > 300 * DAY_S, "the time floor rose by {risen} s");
    Ok(())
}

/// One server, one device, and the times that they believe.
struct Site {
    dir: PathBuf,
    binaries: Binaries,
    faketime: PathBuf,
    listeners: Vec<(&'static str, SocketAddr)>,
    token: String,
    server: Option<Process>,
    agent: Option<Process>,
}

impl Site {
    fn new(dir: &Path) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // Err: somebody did
        let flags = ["--listen-http", "--listen-https", "--listen-mqtt", "--listen-dashboard", "--listen"];
        let mut listeners = Vec::new();
        for flag in flags {
            listeners.push((flag, TcpListener::bind("127.0.0.1:0")?.local_addr()?));
        }
        let mut places =
            std::fs::read_dir("/usr/lib")?.flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
        let faketime = places.find(|p| p.exists()).context("Debian's faketime is not installed")?;
        let binaries = Binaries::locate()?;
        Ok(Self {
            dir: dir.to_owned(),
            binaries,
            faketime,
            listeners,
            token: String::new(),
            server: None,
            agent: None,
        })
    }

    fn address(&self, flag: &str) -> SocketAddr {
        self.listeners.iter().find(|(name, _)| *name == flag).map_or(([127, 0, 0, 1], 0).into(), |(_, a)| *a)
    }

    /// What `env` is given so that a program believes a time. Timers go on: only the calendar lies.
    fn believing(&self, time: &str) -> Vec<OsString> {
        let preload = format!("LD_PRELOAD={}", self.faketime.display());
        let quiet = ["FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"].map(OsString::from);
        let mut args = vec![preload.into(), format!("FAKETIME={time}").into()];
        args.extend(quiet);
        args
    }

    async fn server_at(&mut self, time: Option<&str>) -> Result<()> {
        let state = self.dir.join("server");
        std::fs::create_dir_all(&state)?;
        let mut args = time.map(|t| self.believing(t)).unwrap_or_default();
        args.extend([
            self.binaries.server().into(),
            "serve".into(),
            "--state-dir".into(),
            state.clone().into(),
        ]);
        for (flag, address) in self.listeners.iter().filter(|(flag, _)| *flag != "--listen") {
            args.extend([OsString::from(flag), address.to_string().into()]);
        }
        args.extend(["--public-host".into(), "127.0.0.1".into()]);
        let log = self.dir.join("server.log");
        self.server = Some(Process::start("server", Path::new("/usr/bin/env"), &args, &log)?);
        let base = format!("http://{}", self.address("--listen-http"));
        self.token = until("the server to answer", STEP, || async {
            let token = std::fs::read_to_string(state.join("admin.token")).context("no admin.token yet")?;
            Api::new(&base, token.trim())?.get::<Value>("server").await?;
            Ok(token.trim().to_owned())
        })
        .await?;
        Ok(())
    }

    fn agent_at(&mut self, time: &str) -> Result<()> {
        let config = self.dir.join("agent.toml");
        let text = format!(
            "state_dir = {:?}\nlisten = \"{}\"\nhealth_interval_s = 1\nwindow_s = 2\nfirst_contact_spread_s = 0\n\n[labels]\nsite = \"lyon\"\n",
            self.state().display().to_string(),
            self.address("--listen")
        );
        std::fs::write(&config, text)?;
        let mut args = self.believing(time);
        args.extend([self.binaries.agent().into(), "run".into(), "--config".into(), config.into()]);
        let log = self.dir.join("agent.log");
        self.agent = Some(Process::start(DEVICE, Path::new("/usr/bin/env"), &args, &log)?);
        Ok(())
    }

    fn state(&self) -> PathBuf {
        self.dir.join(DEVICE)
    }

    async fn enroll(&self, time: &str, token: &str) -> Result<()> {
        let url = format!("https://{}", self.address("--listen-https"));
        let mut args = self.believing(time);
        args.extend([self.binaries.agent().into(), "enroll".into(), "--server".into(), url.into()]);
        args.extend(["--device".into(), DEVICE.into(), "--token".into(), token.into()]);
        args.extend(["--state-dir".into(), self.state().into()]);
        self.run(&args).await.map(drop)
    }

    async fn plimsoll(&self, time: &str, words: &str) -> Result<Value> {
        let words: Vec<&str> = words.split(' ').collect();
        self.plimsoll_with(time, &words).await
    }

    async fn plimsoll_with(&self, time: &str, words: &[&str]) -> Result<Value> {
        let mut args = self.believing(time);
        args.extend([self.binaries.ctl().into(), "--output".into(), "json".into()]);
        args.extend(words.iter().map(OsString::from));
        let out = self.run(&args).await?;
        serde_json::from_str(&out).with_context(|| format!("{words:?} printed {out}"))
    }

    async fn run(&self, args: &[OsString]) -> Result<String> {
        let output = Command::new("/usr/bin/env")
            .args(args)
            .env("PLIMSOLL_SERVER", format!("http://{}", self.address("--listen-http")))
            .env("PLIMSOLL_TOKEN", &self.token)
            .current_dir(&self.dir)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run env")?;
        if !output.status.success() {
            bail!("{args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn pack(&self, version: &str) -> Result<()> {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo/models").join(version);
        let (onnx, golden) =
            (demo.join("model.onnx").display().to_string(), demo.join("golden").display().to_string());
        let out = format!("bundle-{version}");
        let words = [
            "bundle",
            "pack",
            &onnx,
            "--model",
            MODEL,
            "--version",
            version,
            "--out",
            &out,
            "--golden",
            &golden,
        ];
        self.plimsoll_with(THEN, &words).await.map(drop)
    }

    async fn roll_out(&self, time: &str, version: &str) -> Result<()> {
        let mut words = vec!["rollout", "start", "--model", MODEL, "--version", version];
        words.extend(["--selector", "site = lyon", "--stages", "100%", "--trial", "1s", "--soak", "0s"]);
        words.extend([
            "--jitter",
            "0s",
            "--trial-requests",
            "0",
            "--min-sample",
            "1",
            "--silent-after",
            "9000s",
        ]);
        words.extend(["--on-breach", "pause", "--supersede"]);
        self.plimsoll_with(time, &words).await.map(drop)
    }

    /// Waits until the device runs a version, by its own word, past its trial; gives back its status.
    async fn runs(&self, version: &str) -> Result<Value> {
        until(&format!("the device to run {version}"), STEP * 2, || async {
            let args = [
                self.binaries.agent().into(),
                "status".into(),
                "--output".into(),
                "json".into(),
                "--state-dir".into(),
                self.state().into(),
            ];
            let status: Value = serde_json::from_str(&self.run(&args).await?)?;
            let runs = &status["models"][0];
            ensure!(runs["version"] == version && runs["trial_passed"] == true, "{status}");
            Ok(status)
        })
        .await
    }
}
