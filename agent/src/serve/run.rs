//! `plimsoll-agent run --bundle`: folders with bundles, and no fleet. The endpoint, the models, their queues and their
//! checks are those of the service; what is missing is whoever signs, orders and listens to reports. A model that computes
//! without end has its process replaced here, too: by the program itself, which keeps its process id.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::{Digest, UnixMillis};
use plimsoll_runtime::{RuntimeError, Tensor, read_sample};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::bridge::{self, Bridge};
use super::bundle::{DEFAULT_MAX_BODY, verify_files};
use super::control::SelfTestLine;
use super::hosted::{Hosted, on_own_thread};
use super::http::{self, Bounds, Endpoint};
use super::listen::{Listener, SocketAt};

/// Elements that fit an example command line.
const EXAMPLE_ELEMENTS: usize = 256;

/// How often a run without end is looked for: a small part of the 20 s after which a run is taken for one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Folders. Of several versions of one model the first answers requests that name none.
    pub bundles: Vec<PathBuf>,
    /// Of loopback.
    pub listen: SocketAddr,
    /// Beside it.
    pub socket: Option<SocketAt>,
    /// Sensors' readings on a local broker.
    pub bridge: Option<Bridge>,
}

/// A bundle whose files are those that it lists.
struct Whole {
    dir: PathBuf,
    manifest: Manifest,
    digest: Digest,
}

/// Why it stopped to serve.
enum Stopped {
    /// A signal said so.
    Asked,
    /// A model computes without end, on a thread that ends with its process only.
    Hangs(String),
}

/// Serves until SIGINT or SIGTERM. Returns the exit status.
pub fn run(options: &RunOptions) -> anyhow::Result<u8> {
    super::bound(&plimsoll_runtime::Bounds::serving());
    let mut bundles = Vec::with_capacity(options.bundles.len());
    for dir in &options.bundles {
        bundles.push(check(dir).with_context(|| format!("bundle {}", dir.display()))?);
    }
    let runtime = super::runtime()?;
    let served = runtime.block_on(serve(options, bundles));
    runtime.shutdown_background();
    match served? {
        Stopped::Asked => Ok(0),
        Stopped::Hangs(why) => {
            eprintln!("{why}; this process is replaced");
            Err(replacement()?.exec()).context("this process could not be replaced")
        }
    }
}

/// This very command.
fn replacement() -> anyhow::Result<Command> {
    let mut command = Command::new(this_program()?);
    command.args(std::env::args_os().skip(1));
    Ok(command)
}

fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("this program does not know where it lies")
}

/// Verifies a bundle's files, then runs its golden samples in a process of their own, as the service does: a model that
/// crashes there does not crash here, and the memory of the test is given back.
fn check(dir: &Path) -> anyhow::Result<Whole> {
    let (manifest, digest) = verify_files(dir)?;
    let output = Command::new(this_program()?)
        .arg("selftest")
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("the self-test could not be started")?;
    let line = String::from_utf8_lossy(&output.stdout);
    let line: Option<SelfTestLine> =
        line.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
    match line {
        Some(SelfTestLine::Report(report)) if report.ok && output.status.success() => {
            eprintln!("{} {}: {} golden samples passed", manifest.model, manifest.version, report.samples);
            Ok(Whole { dir: dir.to_owned(), manifest, digest })
        }
        Some(SelfTestLine::Report(report)) => {
            let why = report.mismatch.map_or_else(|| output.status.to_string(), |m| m.to_string());
            Err(RuntimeError::Refused(format!("its golden samples are answered wrongly: {why}")).into())
        }
        Some(SelfTestLine::Broken { error }) => Err(RuntimeError::Refused(error).into()),
        None => Err(anyhow!("its self-test crashed: {}", output.status)),
    }
}

async fn serve(options: &RunOptions, bundles: Vec<Whole>) -> anyhow::Result<Stopped> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_millis() as UnixMillis);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let endpoint = Arc::new(Endpoint::new(version, Bounds::of_body(DEFAULT_MAX_BODY), super::nonce()?));
    endpoint.registry().expect(bundles.iter().map(|b| b.manifest.model.clone()));
    // Listening first: a taken address is told before a model is loaded. Nobody is ready yet.
    let (tcp, addr) = Listener::tcp(options.listen).await.map_err(|why| anyhow!(why))?;
    let unix = options.socket.as_ref().map(Listener::unix).transpose().map_err(|why| anyhow!(why))?;
    let (stopping, stopped) = watch::channel(false);
    let accept = |listener| tokio::spawn(http::accept(listener, endpoint.clone(), stopped.clone()));
    let accepting: Vec<_> = std::iter::once(tcp).chain(unix).map(accept).collect();
    // The first of a model is served last, so that it answers for the model.
    for bundle in bundles.iter().rev() {
        let hosted = load(bundle).await.with_context(|| format!("bundle {}", bundle.dir.display()))?;
        let mut registry = endpoint.registry();
        registry.add(hosted);
        registry.serve(&bundle.manifest.model, bundle.digest, now);
    }
    if let Some(bridge) = options.bridge.clone() {
        tokio::spawn(bridge::run(bridge, endpoint.clone(), stopped.clone()));
    }
    // A closed standard output is no reason to stop serving.
    let _ = announce(options, addr, &bundles);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        why = hangs(&endpoint) => return Ok(Stopped::Hangs(why)),
    }
    stopping.send_replace(true);
    for accept in accepting {
        let _ = accept.await; // ends within its own limit
    }
    Ok(Stopped::Asked)
}

/// Waits for a run that will not end, and says which.
async fn hangs(endpoint: &Endpoint) -> String {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(hang) = endpoint.registry().hangs(Instant::now()) {
            return hang.reason;
        }
    }
}

async fn load(bundle: &Whole) -> anyhow::Result<Hosted> {
    let (done, loaded) = oneshot::channel();
    let (dir, digest) = (bundle.dir.clone(), bundle.digest);
    on_own_thread("load", move || {
        let fault = Box::new(|reason: String| tracing::error!(%reason, "the model crashed"));
        let _ = done.send(Hosted::load(&dir, digest, 0, fault)); // dropped only when the program stops
    })?;
    Ok(loaded.await.map_err(|_| anyhow!("the thread that loaded the model panicked"))??)
}

fn announce(options: &RunOptions, addr: SocketAddr, bundles: &[Whole]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "serving on http://{addr}")?;
    if let Some(socket) = &options.socket {
        writeln!(output, "serving on unix:{}", socket.path.display())?;
    }
    for bundle in bundles {
        let Manifest { model, version, .. } = &bundle.manifest;
        writeln!(
            output,
            "{model} {version} is unsigned here: its files are whole, nobody's signature was checked"
        )?;
        writeln!(output, "try:  {}", example_command(addr, bundle))?;
    }
    output.flush()
}

fn example_command(addr: SocketAddr, bundle: &Whole) -> String {
    let url = format!("http://{addr}/v2/models/{}", bundle.manifest.model);
    match example_request(bundle) {
        Some(body) => format!("curl -s {url}/infer -d '{body}'"),
        None => {
            format!("curl -s {url}    # its inputs are larger than a command line; POST them to {url}/infer")
        }
    }
}

/// The first golden sample as a request, when it fits a command line.
fn example_request(bundle: &Whole) -> Option<String> {
    let sample = bundle.manifest.golden.samples.first()?;
    let (inputs, _) = read_sample(&bundle.dir, sample).ok()?;
    if inputs.iter().map(Tensor::len).sum::<usize>() > EXAMPLE_ELEMENTS {
        return None;
    }
    let specs = bundle.manifest.inputs.iter().zip(&inputs);
    let inputs: Option<Vec<serde_json::Value>> = specs
        .map(|(spec, tensor)| {
            spec.datatype.width()?; // texts would need quoting for the shell as well
            let numbers: Vec<f32> = tensor.to_f32();
            Some(serde_json::json!({
                "name": spec.name, "datatype": spec.datatype, "shape": tensor.shape(), "data": numbers,
            }))
        })
        .collect();
    Some(serde_json::json!({ "inputs": inputs? }).to_string())
}
