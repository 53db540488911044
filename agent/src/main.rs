//! `plimsoll-agent`: parses the command line and hands over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use plimsoll_agent::config::{ConfigError, Layer, Settings};
use plimsoll_agent::control::{self, Answer, Ask};
use plimsoll_agent::driver::BootError;
use plimsoll_agent::identity::{EnrollError, EnrollOptions, enroll};
use plimsoll_agent::serve::run::RunOptions;
use plimsoll_agent::{causes, check, diagnostics, driver, infer, logging, serve, tls};
use plimsoll_protocol::archive::ArchiveError;
use plimsoll_protocol::wire::v1::JoinToken;
use plimsoll_protocol::{DeviceId, ModelName};
use plimsoll_runtime::RuntimeError;

/// Something was tried and did not work.
const FAILED: u8 = 1;
/// The command line or the settings are wrong.
const USAGE: u8 = 2;
/// A file, a signature or a model is not what it must be.
const REFUSED: u8 = 3;

/// Runs signed machine-learning models on this device, and keeps them up to date with its fleet.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ok, 1 failed, 2 wrong usage or settings, 3 a verification refused it, 4 rows were skipped (infer)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent, or with --bundle serve one bundle without a fleet
    Run(Run),
    /// Get this device its certificate with a join token
    Enroll(Enroll),
    /// What runs, where orders stand, whether the server is reached
    Status(Local),
    /// Return a model to the version before
    Rollback {
        /// The model
        model: ModelName,
        #[command(flatten)]
        local: Local,
    },
    /// Hold the updates of this device, also after a restart; what runs goes on running
    Pause(Local),
    /// Let the updates of this device go on
    Resume(Local),
    /// For the application: no update takes over for a while
    NotNow {
        /// Seconds from now; 0 ends it. The setting not_now_max_s bounds it
        #[arg(long = "for", value_name = "S", default_value_t = 60)]
        for_s: u32,
        #[command(flatten)]
        local: Local,
    },
    /// Take a bundle over from a file that `plimsoll bundle export` wrote, for a device without a network
    Import {
        /// The export
        file: PathBuf,
        #[command(flatten)]
        local: Local,
    },
    /// The newest log lines of the running agent (older ones: journalctl -u plimsoll-agent)
    Logs(Local),
    /// Look for problems: permissions, disk, clock, memory, certificate, server
    Check(Local),
    /// One tar for whoever helps: status, settings, log, state; no keys, no passwords
    ExportDiagnostics {
        /// Where to write it; - for standard output
        #[arg(long, short, value_name = "FILE", default_value = "plimsoll-diagnostics.tar")]
        file: PathBuf,
        #[command(flatten)]
        local: Local,
    },
    /// Serve models for a driver that speaks on standard input (started by `run`)
    #[command(hide = true)]
    Serve,
    /// Rows from standard input (CSV or JSON lines) through a bundle's model, answers as JSON lines to standard output
    Infer(Infer),
    /// Run the golden samples of a bundle on this hardware; exits 3 when they differ, 4 when it does not load
    Selftest {
        /// The bundle
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Where the settings are.
#[derive(Args)]
struct At {
    /// Settings file [default: /etc/plimsoll/agent.toml, when it exists]
    #[arg(long, env = "PLIMSOLL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Layer,
}

/// The agent of this device, and how its answer is printed.
#[derive(Args)]
struct Local {
    #[command(flatten)]
    at: At,
    /// text for people, json for programs
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args)]
struct Run {
    /// Serve this bundle, without a fleet and without an enrolment; may be given several times
    #[arg(long, value_name = "DIR")]
    bundle: Vec<PathBuf>,
    #[command(flatten)]
    at: At,
}

#[derive(Args)]
struct Infer {
    /// The bundle
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// How rows are written
    #[arg(long, value_enum, default_value = "auto")]
    format: infer::Format,
    /// What a bad row does; skipped rows make the exit code 4
    #[arg(long, value_enum, default_value = "stop")]
    on_error: infer::OnError,
}

#[derive(Args)]
struct Enroll {
    /// Address of the fleet's server: https://host:8443
    #[arg(long, value_name = "URL")]
    server: String,
    /// Join token, made by an operator with `plimsoll device token`
    #[arg(long, env = "PLIMSOLL_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: String,
    /// Name to ask for [default: this machine's host name]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Replace an existing enrolment
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// An end that is not a success: its exit code, and what is told.
struct End(u8, String);

impl At {
    fn resolve(self) -> Result<Settings, End> {
        self.read().map_err(|e| End(USAGE, causes(&e)))
    }

    /// Reads the file; may be called again when it has changed.
    fn read(&self) -> Result<Settings, ConfigError> {
        let file = Layer::from_file(self.config.as_deref())?;
        self.settings.clone().over(file).resolve()
    }
}

fn main() -> ExitCode {
    // Broken pipes are errors of a write, not the end of the process: Rust ignores SIGPIPE, and so does this agent.
    tls::install_ring();
    let end = match Cli::parse().command {
        Command::Run(run) => run_agent(run),
        Command::Enroll(args) => run_enroll(args),
        Command::Status(local) => ask(local, &Ask::Status),
        Command::Rollback { model, local } => ask(local, &Ask::Rollback { model }),
        Command::Pause(local) => ask(local, &Ask::Pause),
        Command::Resume(local) => ask(local, &Ask::Resume),
        Command::NotNow { for_s, local } => ask(local, &Ask::NotNow { for_s }),
        Command::Import { file, local } => run_import(file, local),
        Command::Logs(local) => ask(local, &Ask::Logs),
        Command::Check(local) => run_check(local),
        Command::ExportDiagnostics { file, local } => run_export(&file, local),
        Command::Serve => serve_as_child(),
        Command::Infer(args) => {
            let options =
                infer::Options { bundle: args.bundle, format: args.format, on_error: args.on_error };
            status(infer::main(&options))
        }
        Command::Selftest { dir } => status(serve::selftest_main(&dir)),
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(End(code, text)) => {
            if !text.is_empty() {
                eprintln!("plimsoll-agent: {text}");
            }
            ExitCode::from(code)
        }
    }
}

/// One thread for everything that waits, at most two for the disk: the driver's memory is what its threads cost.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
    runtime.map(|r| r.block_on(work)).map_err(|e| End(FAILED, format!("the runtime did not start: {e}")))
}

fn run_agent(run: Run) -> Result<(), End> {
    let settings = run.at.read().map_err(|e| End(USAGE, causes(&e)))?;
    start_log(&settings.log, run.bundle.is_empty())?;
    if !run.bundle.is_empty() {
        let Settings { listen, socket, bridge, .. } = settings;
        let options = RunOptions { bundles: run.bundle, listen, socket, bridge };
        return status(serve::run::run(&options));
    }
    let at = run.at;
    let reload = Box::new(move || at.read().map_err(|e| causes(&e)));
    block_on(driver::run(settings, reload))?.map_err(|error| {
        let code = if matches!(error, BootError::NotEnrolled(_)) { USAGE } else { FAILED };
        End(code, causes(&error))
    })
}

/// The serving child. Its log goes where the driver's goes; standard output is the control channel.
fn serve_as_child() -> Result<(), End> {
    start_log(&std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "info".into()), false)?;
    status(serve::child_main())
}

/// An exit status of its own as an end; what it means was printed already.
fn status(end: anyhow::Result<u8>) -> Result<(), End> {
    match end {
        Ok(0) => Ok(()),
        Ok(code) => Err(End(code, String::new())),
        Err(error) => {
            let refused =
                matches!(error.downcast_ref(), Some(RuntimeError::Refused(_) | RuntimeError::Manifest(_)));
            Err(End(if refused { REFUSED } else { FAILED }, format!("{error:#}")))
        }
    }
}

fn start_log(filter: &str, remember: bool) -> Result<(), End> {
    logging::start(filter, remember).map_err(|e| End(USAGE, format!("setting log: {e}")))
}

fn run_enroll(args: Enroll) -> Result<(), End> {
    let token: JoinToken = args.token.parse().map_err(|e| End(USAGE, format!("{e}")))?;
    let name = args.device.unwrap_or_else(host_name);
    let device = DeviceId::new(&name).map_err(|e| End(USAGE, format!("{e}; give a name with --device")))?;
    let settings = args.at.resolve()?;
    let labels: BTreeMap<String, String> = settings.labels.clone();
    let options = EnrollOptions {
        server: args.server,
        token,
        device,
        labels,
        state: settings.state_dir,
        force: args.force,
    };
    let identity = block_on(enroll(options))?.map_err(|error| {
        let code = if matches!(error, EnrollError::Exists(_)) { USAGE } else { FAILED };
        End(code, causes(&error))
    })?;
    println!("enrolled as {} at {}", identity.who, identity.https);
    Ok(())
}

/// The host name with everything replaced that an identifier may not hold.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = name.split('.').next().unwrap_or_default();
    short.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

/// Asks the running agent and prints its answer; a refusal is a failure.
/// A refusal here is one of a verification. The agent is told the whole path: it runs in another folder.
fn run_import(file: PathBuf, local: Local) -> Result<(), End> {
    let file = file.canonicalize().map_err(|e| End(USAGE, format!("cannot read {}: {e}", file.display())))?;
    ask_or(REFUSED, local, &Ask::Import { file })
}

fn ask(local: Local, what: &Ask) -> Result<(), End> {
    ask_or(FAILED, local, what)
}

/// Asks, and prints the answer; a refusal ends with this exit code.
fn ask_or(refused: u8, local: Local, what: &Ask) -> Result<(), End> {
    let settings = local.at.resolve()?;
    let answer = block_on(control::ask(&settings.state_dir, what))?.map_err(|text| End(FAILED, text))?;
    match answer {
        Answer::Refused { text } => return Err(End(refused, text)),
        Answer::Status(status) if local.output == Output::Json => print_json(&status)?,
        answer if local.output == Output::Json => print_json(&answer)?,
        Answer::Status(status) => print!("{}", control::render(&status)),
        Answer::Done { text } => println!("{text}"),
        Answer::Logs { lines } => lines.iter().for_each(|line| println!("{line}")),
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), End> {
    let json = serde_json::to_string_pretty(value).map_err(|e| End(FAILED, e.to_string()))?;
    println!("{json}");
    Ok(())
}

fn run_check(local: Local) -> Result<(), End> {
    let settings = local.at.resolve()?;
    let findings = block_on(check::check(&settings))?;
    if local.output == Output::Json {
        print_json(&findings)?;
    } else {
        findings.iter().for_each(|finding| println!("{finding}"));
    }
    let problems = findings.iter().filter(|f| !f.ok).count();
    if problems > 0 {
        return Err(End(FAILED, format!("{problems} problems")));
    }
    Ok(())
}

fn run_export(file: &Path, local: Local) -> Result<(), End> {
    let settings = local.at.resolve()?;
    let failed = |e: ArchiveError| End(FAILED, format!("cannot write {}: {}", file.display(), causes(&e)));
    let export = async |to: &mut dyn std::io::Write| {
        let findings = check::check(&settings).await;
        diagnostics::export(&settings, &findings, to).await
    };
    if file == Path::new("-") {
        return block_on(export(&mut std::io::stdout().lock()))?.map_err(failed);
    }
    let mut to = std::fs::File::create(file).map_err(|e| failed(e.into()))?;
    block_on(export(&mut to))?.map_err(failed)?;
    match local.output {
        Output::Json => print_json(&serde_json::json!({ "file": file })),
        Output::Text => {
            println!("written to {}; it holds no keys and no passwords", file.display());
            Ok(())
        }
    }
}
