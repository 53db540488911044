//! One supervised process: the part that systemd plays on a device.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// `RestartSec=` of the sample units, shortened tenfold: a story does not wait for what it has seen.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// A process that ignores SIGTERM for so long is killed: the longest drain of an agent is one inference timeout.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What a process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Run, and run again.
    Run,
    /// End in order.
    Stop,
    /// Be gone, with its children, at once.
    Cut,
}

/// A process that is started again whenever it ends, until it is stopped. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    log: PathBuf,
    pid: Arc<AtomicU32>,
    starts: Arc<AtomicU64>,
    wish: watch::Sender<Wish>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `program args…`; its output is appended to `log`.
    pub fn start(name: &str, program: &Path, args: &[OsString], log: &Path) -> Result<Self> {
        let mut process = Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args: args.to_vec(),
            log: log.to_owned(),
            pid: Arc::default(),
            starts: Arc::default(),
            wish: watch::Sender::new(Wish::Run),
            keeper: None,
        };
        process.up()?;
        Ok(process)
    }

    /// Starts it when it is down.
    pub fn up(&mut self) -> Result<()> {
        if self.keeper.is_some() {
            return Ok(());
        }
        let first = spawn(&self.program, &self.args, &self.log)?;
        self.wish.send_replace(Wish::Run);
        self.keeper = Some(tokio::spawn(keep(
            first,
            (self.program.clone(), self.args.clone(), self.log.clone()),
            (Arc::clone(&self.pid), Arc::clone(&self.starts)),
            self.wish.subscribe(),
        )));
        Ok(())
    }

    /// SIGTERM, and waits until it has ended; it stays down until [`Self::up`].
    pub async fn down(&mut self) -> Result<()> {
        self.end(Wish::Stop).await
    }

    /// What a power cut does to it: SIGKILL for it and its children in one moment. It stays down until [`Self::up`].
    pub async fn cut(&mut self) -> Result<()> {
        self.end(Wish::Cut).await
    }

    async fn end(&mut self, how: Wish) -> Result<()> {
        self.wish.send_replace(how);
        if let Some(keeper) = self.keeper.take() {
            keeper.await.with_context(|| format!("the keeper of {} failed", self.name))?;
        }
        Ok(())
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of the present run; `None` between two runs.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::SeqCst)).filter(|pid| *pid != 0)
    }

    /// How often it was started.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::SeqCst)
    }

    /// SIGKILL, as a power cut would: it is started again by its keeper.
    pub fn kill_hard(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Stops it where it stands, as if the machine had no time for it: connections stay and nobody answers.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGHUP: it reads its settings again.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|p| Pid::from_raw(i32::try_from(p).ok()?));
        let Some(pid) = pid else { bail!("{} is not running", self.name) };
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGTERM, and waits until it has ended; it is not started again.
    pub async fn stop(mut self) -> Result<()> {
        self.down().await
    }

    /// The last lines that it wrote, for a failure's message.
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        format!("--- {} ({} starts)\n{}\n", self.name, self.starts(), last.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort(); // the child is killed when its handle is dropped
        }
    }
}

fn spawn(program: &Path, args: &[OsString], log: &Path) -> Result<Child> {
    let out = OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| format!("cannot open the log {}", log.display()))?;
    let err = out.try_clone().with_context(|| format!("cannot share the log {}", log.display()))?;
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0) // Ctrl-C is for the supervisor, which then stops its children in order
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

async fn keep(
    first: Child,
    (program, args, log): (PathBuf, Vec<OsString>, PathBuf),
    (pid, starts): (Arc<AtomicU32>, Arc<AtomicU64>),
    mut wish: watch::Receiver<Wish>,
) {
    let mut next = Some(first);
    loop {
        let Some(mut child) = next.take().or_else(|| spawn(&program, &args, &log).ok()) else {
            tokio::time::sleep(RESTART_AFTER).await;
            continue;
        };
        pid.store(child.id().unwrap_or(0), Ordering::SeqCst);
        starts.fetch_add(1, Ordering::SeqCst);
        let asked_to = tokio::select! {
            _ = child.wait() => Wish::Run,
            how = asked(&mut wish) => how,
        };
        match asked_to {
            Wish::Run => {}
            Wish::Stop => end(&mut child).await,
            Wish::Cut => cut(&mut child).await,
        }
        pid.store(0, Ordering::SeqCst);
        if asked_to != Wish::Run {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(RESTART_AFTER) => {}
            _ = asked(&mut wish) => return,
        }
    }
}

/// Returns when the process is to end, and how, or its owner is gone.
async fn asked(wish: &mut watch::Receiver<Wish>) -> Wish {
    wish.wait_for(|wish| *wish != Wish::Run).await.map_or(Wish::Stop, |wish| *wish)
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

/// It leads a process group, in which its children are.
async fn cut(child: &mut Child) {
    if let Some(pid) = pid_of(child) {
        let _ = kill_process_group(pid, Signal::KILL); // it may have ended by itself
    }
    let _ = child.wait().await;
}

async fn end(child: &mut Child) {
    if let Some(pid) = pid_of(child) {
        let _ = kill_process(pid, Signal::TERM); // it may have ended by itself
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
