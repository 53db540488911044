//! `plimsoll-server`: serve a fleet, or say what is wrong with a server.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use plimsoll_server::app::Addresses;
use plimsoll_server::config::{Config, Raw};
use plimsoll_server::server::Server;
use plimsoll_server::store::embedded::{Probe, probe};
use plimsoll_server::{clock, doctor};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Workers of the runtime: the machines this is for have two cores, and nothing here computes for long.
const WORKERS: usize = 2;

/// The fleet server of Plimsoll: enrolment, trust, rollouts and telemetry, in one process.
///
/// Exit codes: 0 ok, 1 failed or something is wrong, 2 bad usage or configuration.
#[derive(Parser)]
#[command(name = "plimsoll-server", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve {
        #[command(flatten)]
        settings: Box<Raw>,
        /// TOML file with the same settings (snake_case); flags win.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Say what is wrong with the state folder and its server, and what to do.
    Doctor {
        #[command(flatten)]
        settings: Box<Raw>,
    },
    /// Open a store, read every record, exit: what a start after an unclean stop tries first.
    #[command(hide = true)]
    StoreProbe {
        /// The store's folder.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sled=warn")),
        )
        .init();
    let done = match cli.command {
        Command::Serve { settings, config } => match settings_of(*settings, config) {
            Ok(config) => serve(config),
            Err(error) => {
                eprintln!("plimsoll-server: {error:#}");
                return ExitCode::from(2);
            }
        },
        Command::Doctor { settings } => match settings_of(*settings, None) {
            Ok(config) => return examine(&config),
            Err(error) => Err(error),
        },
        Command::StoreProbe { dir } => probe(&dir).map(|_| ()).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plimsoll-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings_of(flags: Raw, file: Option<PathBuf>) -> Result<Config> {
    let file = file.map(|path| Raw::read(&path)).transpose()?.unwrap_or_default();
    let mut config = flags.over(file).check()?;
    config.probe = Probe::Child(std::env::current_exe().context("cannot find this program's own file")?);
    Ok(config)
}

fn serve(config: Config) -> Result<()> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(async {
        // Before the start: a signal during a long recovery must not be lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (state_dir, open) = (config.state_dir.clone(), config.open_pages);
        let server = Server::start(config).await?;
        greet(&server.addresses()?, &state_dir, open);
        notify(NotifyState::Ready);
        let watchdog = tokio::spawn(watchdog(std::sync::Arc::clone(server.app())));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify(NotifyState::Stopping);
        tracing::info!("stopping");
        watchdog.abort();
        server.stop().await;
        Ok(())
    })
}

/// Tells systemd that the server lives, as long as the reconciler's loop turns.
async fn watchdog(app: std::sync::Arc<plimsoll_server::app::App>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut last = (u64::MAX, clock::now_ms());
    loop {
        tokio::time::sleep((limit / 2).max(Duration::from_millis(100))).await;
        let ticks = app.metrics.ticks.load(std::sync::atomic::Ordering::Relaxed);
        if ticks != last.0 {
            last = (ticks, clock::now_ms());
            notify(NotifyState::Watchdog);
        }
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn greet(addresses: &Addresses, state_dir: &std::path::Path, open: bool) {
    let Addresses { http, https, mqtt, dashboard } = addresses;
    let scheme = if http.ip().is_loopback() { "http" } else { "https" };
    println!("Plimsoll fleet server {}", env!("CARGO_PKG_VERSION"));
    println!("  page and API       {scheme}://{http}/");
    println!("  devices            https://{https}, mqtts://{mqtt}");
    println!("  dashboards (MQTT)  {dashboard}, any user name, a token as password");
    println!("  admin token        {}", state_dir.join("admin.token").display());
    if open {
        println!("  The page can be read without a token on this machine. From elsewhere:");
        println!("    ssh -L {0}:{http} <this machine>, then http://127.0.0.1:{0}/", http.port());
    } else {
        println!("  The page asks for a token: {scheme}://{http}/login");
    }
    println!("  next: PLIMSOLL_TOKEN=$(cat {}) plimsoll trust init", state_dir.join("admin.token").display());
}

fn examine(config: &Config) -> ExitCode {
    let findings = doctor::examine(&config.state_dir);
    for finding in &findings {
        println!("{} {}", if finding.good { "ok     " } else { "PROBLEM" }, finding.text);
    }
    if findings.iter().all(|f| f.good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
