//! Power cuts of a device: its state folder lies on the disk, and the cuts fall anywhere in its updates, while an
//! application asks its model and measurement windows are closed.
//!
//! After each cut, before the server can be reached again, it must answer with the version that it had or the one
//! that it was getting. Its counters have not gone back, what it found bad is still blocked, no report that had
//! waited for the server is missing, nothing had to be rebuilt or set aside. Each version is cut twice, one try less
//! than a device has, and then must come to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::ids::RolloutId;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::{SOURCE, ended_somehow, listed, order, version};
use super::{Log, some_cut};
use crate::disk::Disk;
use crate::{Feeder, Ledger, MODEL, Order, STEP, Site, until};

/// Cuts of one version: with a third one the device would rightly call its three tries used up.
const CUTS_A_VERSION: u32 = 2;
/// How often the device is asked how it stands before a cut.
const LOOK_EVERY: Duration = Duration::from_millis(60);
/// Of a version, bytes, and of the device's line, bytes a second: a fetch takes about a second.
const BALLAST: usize = 600_000;
/// See [`BALLAST`].
const BANDWIDTH: u64 = 500_000;
/// Longest time in which reports gather on a device that is out of reach: a window of 2 s is closed in it.
const GATHER_S: f64 = 3.0;
/// A version that fails its trial, to be remembered as bad.
const BAD: &str = "9.0.0";
/// What an agent says when something that it had is not there any more.
const LOST: [&str; 8] = [
    "anchor.rebuilt",
    "outbox set aside",
    "outbox.in_memory",
    "outbox.unreadable",
    "identity.lost",
    "disk.unwritable",
    "slot is damaged",
    "slot.lost",
];

/// What was done and seen.
#[derive(Debug, Default)]
pub struct DeviceCuts {
    /// Power cuts.
    pub cuts: u32,
    /// Where the update stood.
    pub phases: BTreeMap<String, u32>,
    /// How the rollouts ended under fire.
    pub ends: BTreeMap<String, u32>,
    /// Cuts with the server already out of reach, in which the reports that waited could be counted exactly.
    pub counted: u32,
    /// Those reports.
    pub reports: u64,
    /// Boots of the device that the server knows, and reports of them that it has: without a hole.
    pub boots: usize,
    /// See above.
    pub committed: u64,
}

impl fmt::Display for DeviceCuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} power cuts of a device, with its update {}; it answered at once after each; rollouts {}; {} reports \
             waited on its disk in {} of the cuts and none was lost; the server has {} reports of {} boots without a \
             hole",
            self.cuts,
            listed(&self.phases),
            listed(&self.ends),
            self.reports,
            self.counted,
            self.committed,
            self.boots
        )
    }
}

/// What the device has said of itself that no cut may undo.
#[derive(Debug, Default)]
struct Known {
    boot: u64,
    generation: u64,
    floor_s: i64,
    blocked: BTreeSet<String>,
}

impl Known {
    fn learn(&mut self, status: &Value) -> Result<()> {
        self.boot = number(status, "boot")?;
        self.generation = number(status, "generation")?;
        self.floor_s = status["trust"]["floor_s"].as_i64().context("no time floor")?;
        let blocked = status["blocked"].as_array().context("no list of blocked versions")?;
        self.blocked.extend(blocked.iter().map(|b| b["digest"].to_string()));
        Ok(())
    }

    /// Compares with a later start.
    fn holds(&self, status: &Value) -> Result<()> {
        let mut after = Self::default();
        after.learn(status)?;
        ensure!(after.boot > self.boot, "the boot counter went from {} to {}", self.boot, after.boot);
        ensure!(after.generation >= self.generation, "the generation fell: {} {status}", self.generation);
        ensure!(after.floor_s >= self.floor_s, "the time floor fell: {} {status}", self.floor_s);
        ensure!(after.blocked.is_superset(&self.blocked), "a bad version is forgotten: {self:?} {status}");
        ensure!(status["outbox_dropped"] == 0, "reports were dropped: {status}");
        Ok(())
    }
}

/// Cuts the power of the site's one device `cuts` times, at instants chosen by `seed`; `disk` is mounted at its state
/// folder. Ends with the server stopped. `say` hears of every version.
pub async fn device(
    site: &mut Site,
    disk: &Disk,
    cuts: u32,
    seed: u64,
    mut say: impl FnMut(&str),
) -> Result<DeviceCuts> {
    let mut chance = StdRng::seed_from_u64(seed);
    let (mut seen, mut known) = (DeviceCuts::default(), Known::default());
    let pause = Duration::from_millis(20);
    let (listen, replay) = (site.fleet.agents[0].listen, site.replay.clone());
    let feeder = Feeder::start(listen, MODEL, replay, 0, pause, |image| image.pixels.clone())?;
    find_one_bad(site).await?;
    slow_down(site).await?;
    let id = offer(site, 0).await?;
    let began = Instant::now();
    site.ended(&id, RolloutStatus::Completed).await?;
    let took = began.elapsed();

    let mut round = 0;
    while seen.cuts < cuts {
        round += 1;
        let had = site.ask(&site.fleet.agents[0]).await?;
        let trusted = trusted(&site.fleet.agents[0].state)?; // nothing goes on: all of it has long been flushed
        let id = offer(site, round).await?;
        let mut story = Vec::new();
        for _ in 0..CUTS_A_VERSION.min(cuts - seen.cuts) {
            let mut cut = Scene { site, disk, chance: &mut chance, seen: &mut seen, known: &mut known };
            let words = cut.play(took, [had.clone(), version(round)], &trusted).await;
            story.push(
                words.with_context(|| format!("seed {seed}, version {}, after {story:?}", version(round)))?,
            );
        }
        let end = match ended_somehow(site, &id).await {
            Ok(end) => end,
            Err(error) => {
                let status = site.fleet.status(&site.fleet.agents[0]).await?;
                let known: Value = site.fleet.api.get("devices").await?;
                return Err(error.context(format!("seed {seed}, after {story:?}: {status} {known}")));
            }
        };
        say(&format!("{} of {cuts} cuts: {}: {}: {end}", seen.cuts, version(round), story.join(", ")));
        *seen.ends.entry(end).or_default() += 1;
    }

    let id = offer(site, round + 1).await?;
    site.ended(&id, RolloutStatus::Completed).await.context("after the last cut")?;
    site.all_run(&version(round + 1)).await.context("after the last cut")?;
    drop(feeder);
    until("every report to be acknowledged", STEP, || async {
        let status = site.fleet.status(&site.fleet.agents[0]).await?;
        ensure!(status["outbox_entries"] == 0, "{} wait", status["outbox_entries"]);
        Ok(())
    })
    .await?;
    site.fleet.server.down().await?;
    let ledger = Ledger::read(&site.fleet.dir.join("server"))?;
    let boots = ledger.without_holes()?;
    (seen.boots, seen.committed) = (boots.len(), boots.values().sum());
    Ok(seen)
}

/// One cut.
struct Scene<'a> {
    site: &'a mut Site,
    disk: &'a Disk,
    chance: &'a mut StdRng,
    seen: &'a mut DeviceCuts,
    known: &'a mut Known,
}

impl Scene<'_> {
    /// At an instant of an update that takes about so long; `may` are the versions that may answer afterwards.
    async fn play(
        &mut self,
        took: Duration,
        may: [String; 2],
        trusted: &BTreeMap<String, u64>,
    ) -> Result<String> {
        // Half of them before the trial, which takes a second or more and writes little.
        let share = if self.chance.random_bool(0.5) { 1.1 } else { 0.5 };
        let mut instant = took.mul_f64(self.chance.random_range(0.0..share));
        // In half of the cuts the server is out of reach before: then nothing leaves the outbox any more.
        let alone = self.chance.random_bool(0.5).then(|| instant.mul_f64(self.chance.random_range(0.3..0.9)));
        if alone.is_some() {
            instant += Duration::from_secs_f64(self.chance.random_range(0.0..GATHER_S));
        }
        let how = some_cut(self.chance);
        let before = self.watch(instant, alone).await?;
        self.disk.cut(how).await?;
        self.site.fleet.agents[0].process.cut().await?;
        if alone.is_none() {
            self.site.fleet.server.freeze()?;
        }
        self.disk.power_on().await?;

        let Site { fleet, .. } = &mut *self.site;
        let log = fleet.dir.join(format!("{}.log", fleet.agents[0].name));
        let log = Log::from_now(&log);
        let state = fleet.agents[0].state.clone();
        still_trusted(&state, trusted)?;
        fleet.agents[0].process.up()?;
        let agent = &self.site.fleet.agents[0];
        let answered = until("it to answer, with no server", STEP, || self.site.ask(agent)).await?;
        ensure!(may.contains(&answered), "{answered} answers, not one of {may:?}");
        let status = self.site.fleet.status(agent).await?;
        ensure!(status["connected"] == false, "the server was not out of reach");
        self.known.holds(&status)?;
        let phase =
            before.as_ref().map_or_else(|| "not heard of".into(), |before| phase(&before.status, &may[1]));
        if let Some(Before { status: before, alone: true }) = &before {
            let [before, after] = [before, &status].map(|s| number(s, "outbox_entries"));
            let (before, after) = (before?, after?);
            ensure!(after >= before, "of {before} reports that waited {after} are there");
            self.seen.counted += 1;
            self.seen.reports += before;
        }
        log.is_free_of(&LOST)?;
        self.known.learn(&status)?;
        self.site.fleet.server.thaw()?;
        self.seen.cuts += 1;
        let words = format!("{how:?} at {phase} ({} ms)", instant.as_millis());
        *self.seen.phases.entry(phase).or_default() += 1;
        Ok(words)
    }

    /// Looks on until the instant, and takes the server away at another. Gives what the device said last.
    async fn watch(&mut self, instant: Duration, alone: Option<Duration>) -> Result<Option<Before>> {
        let began = Instant::now();
        let (end, mut alone) = (began + instant, alone.map(|at| began + at));
        let is_alone = alone.is_some();
        let mut last = None;
        while Instant::now() < end {
            if alone.is_some_and(|at| Instant::now() >= at) {
                self.site.fleet.server.freeze()?;
                (alone, last) = (None, None);
            }
            let agent = &self.site.fleet.agents[0];
            // It may be between two of its lives' first words.
            if let Ok(Ok(status)) = timeout_at(end, self.site.fleet.status(agent)).await {
                self.known.learn(&status)?;
                last = Some(Before { status, alone: is_alone && alone.is_none() });
            }
            sleep_until(end.min(Instant::now() + LOOK_EVERY)).await;
        }
        if alone.is_some() {
            self.site.fleet.server.freeze()?;
        }
        Ok(last)
    }
}

/// The device's last words before a cut.
struct Before {
    status: Value,
    /// The server was out of reach when it said them.
    alone: bool,
}

fn number(status: &Value, name: &str) -> Result<u64> {
    status[name].as_u64().with_context(|| format!("no {name} in {status}"))
}

/// Where the order of a version stands.
fn phase(status: &Value, version: &str) -> String {
    let jobs = status["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let job = jobs.iter().find(|job| job["version"] == version);
    job.and_then(|job| job["phase"].as_str()).unwrap_or("not heard of").replace('_', " ")
}

/// Versions of the signed metadata that lie on the device.
fn trusted(state: &Path) -> Result<BTreeMap<String, u64>> {
    let mut versions = BTreeMap::new();
    for entry in std::fs::read_dir(state.join("tuf"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            let bytes = std::fs::read(&path)?;
            let document: Value =
                serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
            let version = document["signed"]["version"].as_u64().context("no version")?;
            versions.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), version);
        }
    }
    Ok(versions)
}

fn still_trusted(state: &Path, before: &BTreeMap<String, u64>) -> Result<()> {
    let after = trusted(state).context("what is trusted, after the cut")?;
    for (name, version) in before {
        let now = after.get(name);
        ensure!(now >= Some(version), "{name} was trusted in version {version}, and now is in {now:?}");
    }
    Ok(())
}

/// A version heavy enough that its fetch is no instant. Of two that differ in a few bytes the second comes as a delta.
async fn offer(site: &Site, round: u32) -> Result<RolloutId> {
    let mut ballast = vec![0; BALLAST];
    StdRng::seed_from_u64(u64::from(round / 2)).fill_bytes(&mut ballast);
    ballast[..4].copy_from_slice(&round.to_le_bytes());
    let (onnx, _) = site.weigh_down(SOURCE, "heavy", &ballast)?;
    let bundle = site.pack_file(&onnx, SOURCE, &version(round)).await?;
    order(site, round, &bundle).await
}

/// Gives the device a narrow line, as a setting of its own.
async fn slow_down(site: &Site) -> Result<()> {
    let agent = &site.fleet.agents[0];
    let config = site.fleet.dir.join(format!("{}.toml", agent.name));
    let before = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("bandwidth = {BANDWIDTH}\n{before}"))?;
    let starts = agent.process.starts();
    agent.process.kill_hard()?;
    until("the device to be back", STEP, || async {
        ensure!(agent.process.starts() > starts, "not yet");
        site.ask(agent).await
    })
    .await
    .map(|_| ())
}

/// Lets the device find a version bad: its serving child is killed in the trial.
async fn find_one_bad(site: &Site) -> Result<()> {
    let bundle = site.pack("1.1.0", BAD).await?;
    site.publish(&bundle).await?;
    site.roll_out(BAD, Order { trial_s: 30, ..Order::default() }).await?;
    let agent = &site.fleet.agents[0];
    until("a bad version to be blocked", STEP, || async {
        let status = site.fleet.status(agent).await?;
        if status["blocked"].as_array().is_some_and(|blocked| !blocked.is_empty()) {
            return Ok(());
        }
        if status["models"][0]["version"] == BAD {
            agent.kill_serving()?;
        }
        anyhow::bail!("{status}")
    })
    .await
}
