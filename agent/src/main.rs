//! `plimsoll-agent`: parses the command line and hands over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use plimsoll_agent::config::{Layer, Settings};
use plimsoll_agent::control::{self, Answer, Ask};
use plimsoll_agent::driver::BootError;
use plimsoll_agent::identity::{EnrollError, EnrollOptions, enroll};
use plimsoll_agent::serve::run::RunOptions;
use plimsoll_agent::{causes, check, driver, infer, serve, tls};
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
    Status {
        #[command(flatten)]
        at: At,
        /// text for people, json for programs
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Return a model to the version before
    Rollback {
        /// The model
        model: ModelName,
        #[command(flatten)]
        at: At,
    },
    /// Look for problems: permissions, disk, clock, certificate, server
    Check {
        #[command(flatten)]
        at: At,
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
        let file = Layer::from_file(self.config.as_deref()).map_err(|e| End(USAGE, causes(&e)))?;
        self.settings.over(file).resolve().map_err(|e| End(USAGE, causes(&e)))
    }
}

fn main() -> ExitCode {
    // Broken pipes are errors of a write, not the end of the process: Rust ignores SIGPIPE, and so does this agent.
    tls::install_ring();
    let end = match Cli::parse().command {
        Command::Run(run) => run_agent(run),
        Command::Enroll(args) => run_enroll(args),
        Command::Status { at, output } => run_status(at, output),
        Command::Rollback { model, at } => run_rollback(model, at),
        Command::Check { at } => run_check(at),
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
    let settings = run.at.resolve()?;
    log_to_stderr(&settings.log)?;
    if !run.bundle.is_empty() {
        let Settings { listen, socket, bridge, .. } = settings;
        let options = RunOptions { bundles: run.bundle, listen, socket, bridge };
        return status(serve::run::run(&options));
    }
    block_on(driver::run(settings))?.map_err(|error| {
        let code = if matches!(error, BootError::NotEnrolled(_)) { USAGE } else { FAILED };
        End(code, causes(&error))
    })
}

/// The serving child. Its log goes where the driver's goes; standard output is the control channel.
fn serve_as_child() -> Result<(), End> {
    log_to_stderr(&std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "info".into()))?;
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

/// Logs go to standard error, where systemd's journal takes them.
fn log_to_stderr(filter: &str) -> Result<(), End> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|e| {
        End(USAGE, format!("setting log = {filter:?}: {e}; try info, debug, or module=level"))
    })?;
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    Ok(())
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

fn run_status(at: At, output: Output) -> Result<(), End> {
    match ask(at, &Ask::Status)? {
        Answer::Status(status) if output == Output::Json => {
            let json = serde_json::to_string_pretty(&status).map_err(|e| End(FAILED, e.to_string()))?;
            println!("{json}");
        }
        Answer::Status(status) => print!("{}", control::render(&status)),
        Answer::Done { text } | Answer::Refused { text } => return Err(End(FAILED, text)),
    }
    Ok(())
}

fn run_rollback(model: ModelName, at: At) -> Result<(), End> {
    match ask(at, &Ask::Rollback { model })? {
        Answer::Done { text } => println!("{text}"),
        Answer::Refused { text } => return Err(End(FAILED, text)),
        Answer::Status(_) => return Err(End(FAILED, "the agent answered something else".into())),
    }
    Ok(())
}

fn ask(at: At, what: &Ask) -> Result<Answer, End> {
    let settings = at.resolve()?;
    block_on(control::ask(&settings.state_dir, what))?.map_err(|text| End(FAILED, text))
}

fn run_check(at: At) -> Result<(), End> {
    let settings = at.resolve()?;
    let findings = block_on(check::check(&settings))?;
    for finding in &findings {
        println!("{finding}");
    }
    let problems = findings.iter().filter(|f| !f.ok).count();
    if problems > 0 {
        return Err(End(FAILED, format!("{problems} problems")));
    }
    Ok(())
}
