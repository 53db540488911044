//! A clock that jumps by years, forward and back, while an update is fetched, waits for the application or its
//! maintenance hours, and is on trial. The device believes its clock. Nothing may be rolled back or given up for it;
//! what waits goes on waiting for as long as it was told, and the update reaches its goal.
//!
//! The jumps are made with Debian's `faketime`, from a file that is read at every look at the calendar.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Feeder, Ledger, MODEL, Order, Process, STEP, Site, until};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

const TODAY: &str = "+0";
/// Five years, and from there six back.
const AHEAD: &str = "+1826d";
const BEHIND: &str = "-365d";
const YEAR_S: i64 = 365 * 24 * 3600;
/// A version of this many bytes over a line of so many a second is under way for two seconds.
const BALLAST: usize = 400_000;
const BANDWIDTH: usize = 200_000;

#[tokio::test(flavor = "current_thread")]
async fn jumps_of_years_undo_nothing_and_hold_up_nothing() {
    Site::play(1, async |site| {
        let clock = Clock::put_into(site).await?;
        let pause = std::time::Duration::from_millis(50);
        let agent = &site.fleet.agents[0];
        let feeder = Feeder::start(agent.listen, MODEL, site.replay.clone(), 0, pause, |i| i.pixels.clone())?;

        on_trial(site, &clock, "2.0.0").await.context("on trial")?;
        while_it_is_fetched(site, &clock, "2.1.0").await.context("while it is fetched")?;
        not_now(site, &clock, "2.2.0").await.context("while the application says not now")?;
        outside_hours(site, &clock, "2.3.0").await.context("outside the maintenance hours")?;

        let tally = feeder.tally();
        ensure!(tally.failed == 0, "{} questions were not answered: {:?}", tally.failed, tally.last_failure);
        let status = site.fleet.status(&site.fleet.agents[0]).await?;
        ensure!(status["serve_restarts"] == 0 && status["outbox_dropped"] == 0, "{status}");
        ensure!(site.fleet.agents[0].process.starts() == 1, "the agent was started again");
        drop(feeder);
        windows_are_sane(site).await
    })
    .await;
}

/// The trial goes on by a clock that does not jump.
async fn on_trial(site: &Site, clock: &Clock, version: &str) -> Result<()> {
    publish(site, version).await?;
    let id = site.roll_out(version, Order { trial_s: 4, ..Order::default() }).await?;
    let agent = &site.fleet.agents[0];
    let phase = async |wanted: &str| {
        until(&format!("{version} to be at {wanted}"), STEP, || async {
            let job = job(site, version).await?;
            ensure!(job["phase"] == wanted, "{job}");
            Ok(())
        })
        .await
    };
    phase("probation").await?;
    for jump in [AHEAD, BEHIND] {
        clock.set(jump)?;
        // It answers, and has not taken five years for the end of its trial.
        ensure!(site.ask(agent).await? == version, "another version answers at {jump}");
        let status = site.fleet.status(agent).await?;
        let time = status["trust"]["time_s"].as_i64().context("no time")?;
        ensure!(
            (time > today()? + 4 * YEAR_S) == (jump == AHEAD),
            "the device does not see {jump}: {status}"
        );
        ensure!(status["models"][0]["trial_passed"] == false, "the jump to {jump} ended the trial: {status}");
    }
    phase("active").await?;
    clock.set(TODAY)?;
    site.ended(&id, RolloutStatus::Completed).await?;
    site.all_run(version).await
}

/// Certificates and metadata seem to have ended five years ago, in the middle of a fetch; when the clock is right again
/// the fetch is brought to its end.
async fn while_it_is_fetched(site: &Site, clock: &Clock, version: &str) -> Result<()> {
    let mut ballast = vec![0; BALLAST];
    StdRng::seed_from_u64(1).fill_bytes(&mut ballast);
    let (onnx, _) = site.weigh_down("1.1.0", "weighed", &ballast)?;
    let bundle = site.pack_file(&onnx, "1.1.0", version).await?;
    site.publish(&bundle).await?;
    let id = site.roll_out(version, Order::default()).await?;
    until("the fetch to be under way", STEP, || async {
        let staged = bytes_under(&site.fleet.agents[0].state.join("staging"));
        ensure!(staged > 50_000, "{staged} bytes are there");
        Ok(())
    })
    .await?;
    for jump in [AHEAD, BEHIND, AHEAD] {
        clock.set(jump)?;
        let job = job(site, version).await?;
        ensure!(!["failed", "rolled_back"].contains(&job["phase"].as_str().unwrap_or_default()), "{job}");
    }
    clock.set(TODAY)?;
    site.ended(&id, RolloutStatus::Completed).await?;
    site.all_run(version).await
}

/// What was put off for a while is put off for that while: not for years, and not over at once.
async fn not_now(site: &Site, clock: &Clock, version: &str) -> Result<()> {
    publish(site, version).await?;
    let agent = &site.fleet.agents[0];
    let (code, out, err) = site.fleet.agent_raw(&agent.state, &["not-now", "--for", "8"]).await?;
    ensure!(code == 0, "{out}{err}");
    let id = site.roll_out(version, Order::default()).await?;
    waits(site, version, "not now").await?;
    for jump in [AHEAD, BEHIND] {
        clock.set(jump)?;
        let status = site.fleet.status(agent).await?;
        let left = status["not_now_s"].as_u64().context("no seconds")?;
        ensure!((1..=8).contains(&left), "{left} s are left at {jump}");
    }
    clock.set(AHEAD)?;
    until("the time to be over", STEP, || async {
        let status = site.fleet.status(agent).await?;
        ensure!(status["not_now_s"] == 0, "{} s are left", status["not_now_s"]);
        Ok(())
    })
    .await?;
    clock.set(TODAY)?;
    site.ended(&id, RolloutStatus::Completed).await?;
    site.all_run(version).await
}

/// Maintenance hours are the device's own: a jump by whole days changes nothing, and one into them opens them.
async fn outside_hours(site: &Site, clock: &Clock, version: &str) -> Result<()> {
    publish(site, version).await?;
    let agent = &site.fleet.agents[0];
    let status: Value = site.fleet.status(agent).await?;
    ensure!(status["maintenance_hours"] == "any time", "{status}");
    let hour = local_hour().await?;
    let hours = format!("{:02}:00-{:02}:00", (hour + 11) % 24, (hour + 14) % 24);
    let before = std::fs::read_to_string(&clock.config)?;
    std::fs::write(&clock.config, format!("maintenance_hours = [\"{hours}\"]\n{before}"))?;
    agent.process.reload()?;
    let id = site.roll_out(version, Order::default()).await?;
    waits(site, version, "maintenance hours").await?;
    for jump in [AHEAD, BEHIND] {
        clock.set(jump)?;
        waits(site, version, "maintenance hours").await.with_context(|| format!("at {jump}"))?;
        site.still_run("2.2.0").await?;
    }
    clock.set("+12h")?;
    site.ended(&id, RolloutStatus::Completed).await?;
    clock.set(TODAY)?;
    site.all_run(version).await
}

/// The server has windows of the device, and none that closed before it opened.
async fn windows_are_sane(site: &mut Site) -> Result<()> {
    until("every report to be acknowledged", STEP, || async {
        let status = site.fleet.status(&site.fleet.agents[0]).await?;
        ensure!(status["outbox_entries"] == 0 && status["connected"] == true, "{status}");
        Ok(())
    })
    .await?;
    site.fleet.server.down().await?;
    let ledger = Ledger::read(&site.fleet.dir.join("server"))?;
    ledger.without_holes()?;
    let mut seen = 0;
    for (key, record) in ledger.records.iter().filter(|(key, _)| key.starts_with("drift/")) {
        let at = |name: &str| {
            record["report"]["window"][name].as_i64().with_context(|| format!("{key}: {record}"))
        };
        let (opened, closed) = (at("opened")?, at("closed")?);
        ensure!(opened <= closed, "{key} opened at {opened} and closed at {closed}");
        seen += 1;
    }
    ensure!(seen > 0, "no window came");
    Ok(())
}

/// The device's calendar.
struct Clock {
    file: PathBuf,
    config: PathBuf,
}

impl Clock {
    /// Starts the site's device again, with a calendar of its own and the belief that it is right.
    async fn put_into(site: &mut Site) -> Result<Self> {
        let mut places =
            std::fs::read_dir("/usr/lib")?.flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
        let library = places.find(|p| p.exists()).context("Debian's faketime is not installed")?;
        let agent = &mut site.fleet.agents[0];
        agent.process.down().await?;
        let config = site.fleet.dir.join(format!("{}.toml", agent.name));
        let before = std::fs::read_to_string(&config)?;
        std::fs::write(&config, format!("clock = \"trusted\"\nbandwidth = {BANDWIDTH}\n{before}"))?;
        let clock = Self { file: site.fleet.dir.join("faketime"), config };
        clock.set(TODAY)?;
        let set = |name: &str, value: &Path| format!("{name}={}", value.display()).into();
        let args = [
            set("LD_PRELOAD", &library),
            set("FAKETIME_TIMESTAMP_FILE", &clock.file),
            "FAKETIME_NO_CACHE=1".into(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
            "DONT_FAKE_MONOTONIC=1".into(),
            site.fleet.binaries.agent().into(),
            "run".into(),
            "--config".into(),
            clock.config.clone().into(),
        ];
        let log = site.fleet.dir.join(format!("{}.log", agent.name));
        agent.process = Process::start(&agent.name.clone(), Path::new("/usr/bin/env"), &args, &log)?;
        site.all_run("1.0.0").await?;
        Ok(clock)
    }

    /// By one rename: whoever looks sees the old time or the new one.
    fn set(&self, time: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{time}\n"))?;
        Ok(std::fs::rename(&new, &self.file)?)
    }
}

async fn publish(site: &Site, version: &str) -> Result<()> {
    let bundle = site.pack("1.1.0", version).await?;
    site.publish(&bundle).await
}

async fn job(site: &Site, version: &str) -> Result<Value> {
    let status = site.fleet.status(&site.fleet.agents[0]).await?;
    let jobs = status["jobs"].as_array().context("no jobs")?;
    jobs.iter().find(|job| job["version"] == version).cloned().context("not ordered yet")
}

async fn waits(site: &Site, version: &str, words: &str) -> Result<()> {
    until(&format!("{version} to wait: {words}"), STEP, || async {
        let job = job(site, version).await?;
        let reason = job["reason"].as_str().unwrap_or_default();
        ensure!(job["phase"] == "waiting" && reason.contains(words), "{job}");
        Ok(())
    })
    .await
}

fn bytes_under(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_under(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Seconds since 1970, here.
fn today() -> Result<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_secs())?)
}

/// The hour of this machine's local time.
async fn local_hour() -> Result<u64> {
    let output = tokio::process::Command::new("date").arg("+%H").output().await?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
