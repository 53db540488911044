//! Updates without an end: one device goes from version to version, and what it takes must not grow.
//!
//! Three versions in turn: a device keeps two, so each of them has gone from the disk when it is ordered again, and is
//! fetched, staged, tested, tried and swapped in as for the first time. Its footprint is taken at the same place of
//! every turn, when the device is idle: after a warm-up, on the way, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;

use super::{VERSIONS, publish_in_turn, version};
use crate::{Agent, Feeder, MODEL, Order, RETURN, Site, until};

/// Updates after which everything that is made once has been made: allocator arenas, the outbox's file, every slot
/// that is deleted later.
const WARM_UP: u32 = 2 * VERSIONS;
/// Bytes of a version beside the model: enough for a fetch and a delta, little enough for a thousand.
const BALLAST: usize = 50_000;
/// What a footprint may be above the first one whatever is repeated, bytes of memory: the arenas of a loaded machine
/// differ by some of that from moment to moment.
const MEMORY_SLACK: u64 = 4 << 20;
/// A leak that matters: one report (under 3 KiB) or one session (a model here takes 50 KB) kept of every update.
const MEMORY_AN_UPDATE: u64 = 2 * 1024;
/// The outbox's file grows by whole pages to the size of its busiest moment; metadata by a digit.
const DISK_SLACK: u64 = 1 << 20;
/// A connection that is being opened or closed, and the question that asks.
const DESCRIPTOR_SLACK: u64 = 4;
/// The disk's two blocking threads come and go.
const THREAD_SLACK: u64 = 2;

/// What a device takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Of the state folder, in blocks of the disk, bytes.
    pub disk: u64,
    /// Files and folders of the state folder.
    pub files: BTreeSet<PathBuf>,
    /// Slots.
    pub slots: u64,
    /// Both files of the anchor, bytes.
    pub anchor: u64,
    /// The outbox's file, bytes.
    pub outbox: u64,
    /// Of the driver and of the serving child: descriptors, threads, memory.
    pub driver: Taken,
    /// See above.
    pub serve: Taken,
}

/// What one process takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// Open files.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Memory of its own, bytes: the anonymous part of its proportional set size. The other part is the program's
    /// file, whose share depends on who else runs it.
    pub anonymous: u64,
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, files, slots, anchor, outbox, driver, serve } = self;
        write!(
            f,
            "disk {disk} B in {} files, {slots} slots, anchor {anchor} B, outbox {outbox} B; ",
            files.len()
        )?;
        write!(f, "driver {driver}; serving child {serve}")
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} MB, {} descriptors, {} threads",
            self.anonymous as f64 / 1e6,
            self.descriptors,
            self.threads
        )
    }
}

/// The first footprint and the last.
#[derive(Debug)]
pub struct Updates {
    /// Updates between them.
    pub updates: u32,
    /// After the warm-up.
    pub first: Footprint,
    /// At the end.
    pub last: Footprint,
}

impl fmt::Display for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after the warm-up: {}", self.first)?;
        write!(f, "{} updates later: {}", self.updates, self.last)
    }
}

/// Updates the site's one device so many times. `say` hears now and then.
pub async fn updates(site: &mut Site, times: u32, mut say: impl FnMut(&str)) -> Result<Updates> {
    publish_in_turn(site, BALLAST).await?;
    let agent = &site.fleet.agents[0];
    let pause = Duration::from_millis(100);
    let _feeder = Feeder::start(agent.listen, MODEL, site.replay.clone(), 0, pause, |i| i.pixels.clone())?;
    for n in 0..WARM_UP {
        update(site, n).await?;
    }
    let first = until("the device to be idle", RETURN, || at_rest(site)).await?;
    say(&format!("after {WARM_UP} updates: {first}"));
    // Of whole turns, so that the same versions lie on the disk as at the first look.
    let times = times.next_multiple_of(VERSIONS);
    for n in 0..times {
        update(site, WARM_UP + n).await.with_context(|| format!("update {n}"))?;
        if (n + 1) % (VERSIONS * 8) == 0 {
            let now =
                until("the device to take no more than before", RETURN, || no_more(site, &first, n + 1));
            say(&format!("{} updates later: {}", n + 1, now.await?));
        }
    }
    let last =
        until("the device to take no more than before", RETURN, || no_more(site, &first, times)).await?;
    Ok(Updates { updates: times, first, last })
}

async fn update(site: &Site, n: u32) -> Result<()> {
    let version = version(n % VERSIONS);
    // Nothing to wait for: all three give the same answers.
    let order = Order { trial_s: 0, readings_wait_s: Some(0), ..Order::default() };
    let id = site.roll_out(&version, order).await?;
    site.ended(&id, RolloutStatus::Completed).await?;
    let answered = site.ask(&site.fleet.agents[0]).await?;
    ensure!(answered == version, "{answered} answers after an update to {version}");
    Ok(())
}

/// The footprint, once nothing waits and the version before the last two is deleted.
async fn at_rest(site: &Site) -> Result<Footprint> {
    let agent = &site.fleet.agents[0];
    let status = site.fleet.status(agent).await?;
    ensure!(status["outbox_entries"] == 0, "{} reports wait", status["outbox_entries"]);
    let taken = footprint(agent)?;
    ensure!(taken.slots == 2, "{} slots", taken.slots);
    Ok(taken)
}

/// The footprint, when it is within bounds.
async fn no_more(site: &Site, first: &Footprint, updates: u32) -> Result<Footprint> {
    let now = at_rest(site).await?;
    ensure!(now.anchor == first.anchor, "the anchor: {now}");
    ensure!(
        now.files.len() <= first.files.len(),
        "files: {:?} beside those of before",
        now.files.difference(&first.files).collect::<Vec<_>>()
    );
    ensure!(now.disk <= first.disk + DISK_SLACK, "disk: {now}, at first {first}");
    for (name, now, first) in
        [("driver", &now.driver, &first.driver), ("serving child", &now.serve, &first.serve)]
    {
        let memory = first.anonymous + MEMORY_SLACK + u64::from(updates) * MEMORY_AN_UPDATE;
        ensure!(now.anonymous <= memory, "memory of the {name}: {now}, at first {first}");
        ensure!(
            now.descriptors <= first.descriptors + DESCRIPTOR_SLACK,
            "descriptors of the {name}: {now}, at first {first}"
        );
        ensure!(
            now.threads <= first.threads + THREAD_SLACK,
            "threads of the {name}: {now}, at first {first}"
        );
    }
    Ok(now)
}

fn footprint(agent: &Agent) -> Result<Footprint> {
    let mut taken = Footprint::default();
    measure(&agent.state, &mut taken)?;
    let size = |name: &str| Ok::<_, std::io::Error>(std::fs::metadata(agent.state.join(name))?.len());
    taken.anchor = size("anchor.a")? + size("anchor.b")?;
    taken.outbox = size("outbox.redb")?;
    taken.slots = std::fs::read_dir(agent.state.join("slots"))?.count() as u64;
    taken.driver = process(agent.process.pid().context("the agent is not running")?)?;
    taken.serve = process(agent.serving_pid()?)?;
    Ok(taken)
}

fn measure(dir: &Path, taken: &mut Footprint) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let meta = entry.metadata().with_context(|| entry.path().display().to_string())?;
        taken.disk += meta.blocks() * 512;
        taken.files.insert(entry.path());
        if meta.is_dir() {
            measure(&entry.path(), taken)?;
        }
    }
    Ok(())
}

fn process(pid: u32) -> Result<Taken> {
    let count = |what: &str| {
        Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{pid}/{what}"))?.count() as u64)
    };
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines: BTreeMap<_, _> = rollup.lines().filter_map(|line| line.split_once(':')).collect();
    let kib = lines
        .get("Pss_Anon")
        .and_then(|v| v.split_whitespace().next())
        .context("no Pss_Anon")?
        .parse::<u64>()?;
    Ok(Taken { descriptors: count("fd")?, threads: count("task")?, anonymous: kib * 1024 })
}
