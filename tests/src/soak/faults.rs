//! A disk that fails: the calls by which the agent changes its disk answer EIO or ENOSPC, one by one or from one on,
//! in the middle of an update. `strace` puts the errors in; the agent is the real one.
//!
//! Whatever fails, the model that ran goes on answering, without one failed question while the agent lives; the agent
//! never panics; and when the disk works again the update reaches its goal, by itself or when it is ordered again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::{VERSIONS, ended_somehow, listed, publish_in_turn, version};
use crate::{Feeder, MODEL, Order, STEP, Site, until};

/// The calls that change a disk where it must survive: all contents are written by `pwrite64`.
pub const CALLS: [&str; 6] =
    ["pwrite64", "fsync", "fdatasync", "rename,renameat,renameat2", "mkdir,mkdirat", "unlink,unlinkat"];
/// What a dying disk says, and a full one.
pub const ERRORS: [&str; 2] = ["EIO", "ENOSPC"];
/// Bytes of a version: four writes of a fetch.
const BALLAST: usize = 200_000;
/// An update that has not ended under its faults after this long waits for the disk; undisturbed it takes a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// What is tried again by itself waits 2, 4, 8, 16 s at most.
const GOAL_LIMIT: Duration = Duration::from_secs(60);

/// Which calls fail, and how. `strace` counts each thread's calls for itself.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// One of [`CALLS`].
    pub calls: &'static str,
    /// One of [`ERRORS`].
    pub error: &'static str,
    /// The first that fails, from 1.
    pub nth: u32,
    /// Whether all after it fail too, until the disk works again.
    pub on: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, error, nth, on } = self;
        let call = calls.split(',').next().unwrap_or_default();
        write!(f, "{error} on {call} {nth}{}", if *on { " and all after it" } else { "" })
    }
}

/// What was done and seen.
#[derive(Debug, Default)]
pub struct Faults {
    /// Updates in which something failed.
    pub updates: u32,
    /// Calls that failed.
    pub calls: BTreeMap<&'static str, u32>,
    /// How the updates ended.
    pub ends: BTreeMap<String, u32>,
    /// Questions of the application that were answered meanwhile.
    pub answers: u64,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} updates on a failing disk, failed calls: {}; {}; {} questions meanwhile, all answered while the agent \
             lived; no panic",
            self.updates,
            listed(&self.calls),
            listed(&self.ends),
            self.answers
        )
    }
}

/// Publishes the versions that the device goes through.
pub async fn prepare(site: &Site) -> Result<()> {
    publish_in_turn(site, BALLAST).await
}

/// One update of the site's one device, to version number `n` in turn, under a fault. Answers how many calls failed:
/// 0 when the update has fewer of them.
pub async fn fault(site: &Site, n: u32, fault: Fault, seen: &mut Faults) -> Result<u32> {
    let before = site.ask(&site.fleet.agents[0]).await?;
    let target = version(n % VERSIONS);
    ensure!(before != target, "the device has {target} already");
    let scene = Scene { site, fault, may: [before, target] };
    let (hits, end, answers) = scene.play().await.with_context(|| fault.to_string())?;
    if hits > 0 {
        seen.updates += 1;
        *seen.calls.entry(fault.calls.split(',').next().unwrap_or_default()).or_default() += hits;
        *seen.ends.entry(end).or_default() += 1;
        seen.answers += answers;
    }
    Ok(hits)
}

/// Every call, each error, one by one until an update has no more of them, and all from one on; at most `most` of a
/// kind. `say` hears of every update.
pub async fn faults(site: &mut Site, most: u32, mut say: impl FnMut(&str)) -> Result<Faults> {
    prepare(site).await?;
    let (mut seen, mut n) = (Faults::default(), 0);
    for calls in CALLS {
        for error in ERRORS {
            for (nth, on) in (1..=most).map(|nth| (nth, false)).chain([(1, true), (3, true)]) {
                let one = Fault { calls, error, nth, on };
                let hits = fault(site, n, one, &mut seen).await?;
                say(&format!("{one}: {hits} failed"));
                n += 1;
                if hits == 0 && !on {
                    break;
                }
            }
        }
    }
    Ok(seen)
}

struct Scene<'a> {
    site: &'a Site,
    fault: Fault,
    /// What runs, and what is to run.
    may: [String; 2],
}

impl Scene<'_> {
    async fn play(&self) -> Result<(u32, String, u64)> {
        let Self { site, fault, may } = self;
        let agent = &site.fleet.agents[0];
        let pause = Duration::from_millis(20);
        let feeder = Feeder::start(agent.listen, MODEL, site.replay.clone(), 0, pause, |i| i.pixels.clone())?;
        let lives = || async {
            let status = site.fleet.status(agent).await?;
            Ok::<_, anyhow::Error>((agent.process.starts(), status["serve_restarts"].clone()))
        };
        let life = lives().await?;
        let pid = agent.process.pid().context("the agent is not running")?;
        let trace = site.fleet.dir.join("trace");
        let strace = attach(pid, fault, &trace).await?;
        let order = Order { trial_s: 0, readings_wait_s: Some(0), ..Order::default() };
        let id = site.roll_out(&may[1], order).await?;
        let began = Instant::now();
        let is_over = || async {
            let info = site.fleet.api.rollout(&id).await?;
            Ok::<_, anyhow::Error>(info.status.is_end() || info.status == RolloutStatus::Paused)
        };
        while began.elapsed() < PATIENCE && !is_over().await? {
            sleep(Duration::from_millis(50)).await;
        }
        let answered = until("an answer on a failing disk", STEP, || site.ask(agent)).await?;
        ensure!(may.contains(&answered), "{answered} answers, not one of {may:?}");
        detach(strace).await?;

        let mut end = match is_over().await? {
            true => "in spite of it",
            false => "when the disk worked again",
        };
        let how = until("the update to end", GOAL_LIMIT, || ended_somehow(site, &id)).await?;
        if how != "completed" {
            // The device has said that this version failed on it; a new order of a person is another try.
            end = "when it was ordered again";
            let status = site.fleet.status(agent).await?;
            let words = status["jobs"].to_string();
            let id = site.roll_out(&may[1], order).await?;
            let how = until("the update to end", GOAL_LIMIT, || ended_somehow(site, &id)).await?;
            ensure!(how == "completed", "ordered again it is {how}; the first time: {words}");
        }
        until("the new version to answer", STEP, || async {
            let answered = site.ask(agent).await?;
            ensure!(answered == may[1], "{answered} answers");
            Ok(())
        })
        .await?;

        let log = std::fs::read_to_string(site.fleet.dir.join(format!("{}.log", agent.name)))?;
        ensure!(!log.contains("panicked at"), "the agent panicked");
        let tally = feeder.tally();
        if lives().await? == life {
            ensure!(
                tally.failed == 0,
                "{} questions were not answered: {:?}",
                tally.failed,
                tally.last_failure
            );
        } else {
            end = "after a restart";
            ensure!(
                agent.process.starts() == life.0 || log.contains("plimsoll-agent: "),
                "it ended without words"
            );
        }
        let trace = std::fs::read_to_string(trace)?;
        let hits = trace.lines().filter(|line| line.contains("(INJECTED)")).count();
        Ok((u32::try_from(hits)?, format!("reached its goal {end}"), tally.answered))
    }
}

/// Puts the fault into a running process, its threads and the children that it will have.
async fn attach(pid: u32, fault: &Fault, trace: &Path) -> Result<Child> {
    let Fault { calls, error, nth, on } = fault;
    let inject = format!("inject={calls}:error={error}:when={nth}{}", if *on { "+" } else { "" });
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-p", &pid.to_string(), "-e", &format!("trace={calls}"), "-e", &inject, "-o"]);
    strace.arg(trace).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let child = strace.spawn().context("cannot run strace of Debian's strace")?;
    until("strace to hold the agent", STEP, || async {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
            ensure!(tracer.is_some_and(|tracer| tracer.trim() != "0"), "it does not");
        }
        Ok(())
    })
    .await?;
    Ok(child)
}

async fn detach(mut strace: Child) -> Result<()> {
    let pid = strace.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::INT); // it ends by itself with the agent
    }
    strace.wait().await.context("strace").map(|_| ())
}
