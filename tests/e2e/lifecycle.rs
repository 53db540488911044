//! Who may make an update wait, and what a device says meanwhile: its application, the person at it, its maintenance
//! hours, a server that is not heard; and what it answers to a bundle that is not for it. Real agents, real server.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Agent, Order, STEP, Site, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Runs a command of the device and gives back its exit code and what it printed.
async fn on_device(site: &Site, agent: &Agent, args: &[&str]) -> Result<(i32, String)> {
    let (code, out, err) = site.fleet.agent_raw(&agent.state, args).await?;
    Ok((code, out + &err))
}

async fn done(site: &Site, agent: &Agent, args: &[&str]) -> Result<String> {
    let (code, text) = on_device(site, agent, args).await?;
    ensure!(code == 0, "plimsoll-agent {args:?}: exit {code}: {text}");
    Ok(text)
}

/// Waits until the device says, by itself, that its order waits for a reason with these words.
async fn waits(site: &Site, agent: &Agent, version: &str, words: &str) -> Result<()> {
    until(&format!("{version} to wait: {words}"), STEP, || async {
        let status = site.fleet.status(agent).await?;
        let jobs = status["jobs"].as_array().context("no jobs")?;
        let job = jobs.iter().find(|j| j["version"] == version).context("not ordered yet")?;
        let reason = job["reason"].as_str().unwrap_or_default();
        ensure!(job["phase"] == "waiting" && reason.contains(words), "{job}");
        Ok(())
    })
    .await
}

async fn next(site: &Site, version: &str) -> Result<()> {
    let bundle = site.pack("1.1.0", version).await?;
    site.publish(&bundle).await
}

fn signal(agent: &Agent, signal: Signal) -> Result<()> {
    let pid = i32::try_from(agent.process.pid().context("the agent is not running")?)?;
    kill_process(Pid::from_raw(pid).context("no process")?, signal).context("cannot signal the agent")
}

#[tokio::test(flavor = "current_thread")]
async fn an_application_that_says_not_now_is_not_interrupted_and_a_server_that_is_not_heard_ends_the_lease() {
    Site::play(1, async |site| {
        next(site, "1.1.0").await?;
        let said = done(site, &site.fleet.agents[0], &["not-now", "--for", "600"]).await?;
        ensure!(said.contains("600 s"), "{said}");
        let mut args = vec!["rollout", "start", "--model", plimsoll_tests::MODEL, "--version", "1.1.0"];
        args.extend(["--selector", "site = lyon", "--stages", "100%", "--trial", "1s", "--soak", "0s"]);
        args.extend(["--jitter", "0s", "--trial-requests", "0", "--min-sample", "1", "--lease", "2s"]);
        args.extend(["--silent-after", "120s"]);
        let started = site.fleet.plimsoll(&args).await?;
        waits(site, &site.fleet.agents[0], "1.1.0", "not now").await?;
        site.still_run("1.0.0").await?;

        // What may have been stopped meanwhile is not activated.
        site.fleet.server.down().await?;
        until("the device to notice", STEP, || async {
            let status = site.fleet.status(&site.fleet.agents[0]).await?;
            ensure!(status["connected"] == false, "{}", status["connection"]);
            Ok(())
        })
        .await?;
        // The lease counts from the last word of the server; the device has to outlive it.
        let gone = std::time::Instant::now();
        until("the lease to end", STEP, || async {
            ensure!(gone.elapsed() > std::time::Duration::from_secs(3), "not yet");
            Ok(())
        })
        .await?;
        done(site, &site.fleet.agents[0], &["not-now", "--for", "0"]).await?;
        waits(site, &site.fleet.agents[0], "1.1.0", "not heard within 2 s").await?;
        site.still_run("1.0.0").await?;

        site.fleet.server.up()?;
        let id = started["id"].as_str().context("no id")?.parse()?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn maintenance_hours_come_with_a_reload_and_a_pause_survives_a_restart() {
    Site::play(1, async |site| {
        next(site, "1.1.0").await?;
        let agent = &site.fleet.agents[0];
        let config = site.fleet.dir.join(format!("{}.toml", agent.name));
        let before = std::fs::read_to_string(&config)?;
        // Twelve hours from now, in UTC and so in no zone before eleven hours from now at the least.
        let hour = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() / 3600 % 24;
        let local = local_hour().await.unwrap_or(hour);
        let span = format!("{:02}:00-{:02}:00", (local + 12) % 24, (local + 13) % 24);
        let closed = format!("maintenance_hours = [\"{span}\"]\noutbox_bytes = 1000000\n{before}");
        std::fs::write(&config, closed)?;
        signal(agent, Signal::HUP)?;
        until("the new settings", STEP, || async {
            let status = site.fleet.status(agent).await?;
            ensure!(status["maintenance_hours"] == span, "{}", status["maintenance_hours"]);
            Ok(())
        })
        .await?;
        site.event("settings.restart_needed", &["outbox_bytes"]).await?;
        ensure!(agent.process.starts() == 1, "the agent was restarted");
        let id = site.roll_out("1.1.0", Order::default()).await?;
        waits(site, agent, "1.1.0", "maintenance hours").await?;
        let job = until("the server to know why", STEP, || async {
            let device = site.fleet.plimsoll(&["device", "show", &agent.name]).await?;
            ensure!(device.to_string().contains("maintenance hours"), "{device}");
            Ok(device)
        })
        .await?;
        ensure!(job["device"] == agent.name.as_str(), "{job}");

        // A mistake in the file changes nothing and is told.
        std::fs::write(&config, "maintenance_hours = [\"at night\"]\n")?;
        signal(agent, Signal::HUP)?;
        site.event("settings.refused", &["at night"]).await?;

        // A person pauses the device; the hours open; the pause outlives a restart.
        let said = done(site, agent, &["pause", "--output", "json"]).await?;
        ensure!(serde_json::from_str::<Value>(&said)?["answer"] == "done", "{said}");
        std::fs::write(&config, &before)?;
        signal(agent, Signal::HUP)?;
        waits(site, agent, "1.1.0", "plimsoll-agent resume").await?;
        agent.process.kill_hard()?;
        until("the agent to be back, and paused", STEP, || async {
            ensure!(agent.process.starts() > 1, "not yet");
            ensure!(site.fleet.status(agent).await?["paused_here"] == true, "it is not paused");
            Ok(())
        })
        .await?;
        waits(site, agent, "1.1.0", "plimsoll-agent resume").await?;
        site.all_run("1.0.0").await?;

        // The operator lets it go on, from the server.
        let sent = site.fleet.plimsoll(&["device", "command", &agent.name, "resume"]).await?;
        let command = sent["id"].as_str().context("no id")?.to_owned();
        site.event("command.done", &[&command, "go on"]).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await
    })
    .await;
}

/// The hour of this machine's local time.
async fn local_hour() -> Option<u64> {
    let output = tokio::process::Command::new("date").arg("+%H").output().await.ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[tokio::test(flavor = "current_thread")]
async fn a_bundle_that_is_not_for_this_device_is_answered_before_a_file_is_fetched() {
    Site::play(1, async |site| {
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        let path = bundle.join("bundle.json");
        let mut manifest: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        manifest["requires"]["agent_version"] = json!("99.0.0");
        std::fs::write(&path, manifest.to_string())?;
        site.publish(&bundle).await?;
        site.roll_out("1.1.0", Order::default()).await?;
        let job = site.job_end(&site.fleet.agents[0].name, "1.1.0").await?;
        let job = serde_json::to_value(&job)?;
        ensure!(job["phase"] == "not_applicable", "{job}");
        ensure!(job["reason"].to_string().contains("agent 99.0.0"), "{job}");
        let staging = site.fleet.agents[0].state.join("staging");
        ensure!(std::fs::read_dir(&staging)?.count() == 0, "something was fetched");
        site.still_run("1.0.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_device_explains_itself_to_whoever_stands_before_it_and_stops_with_a_word() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let logs = done(site, agent, &["logs"]).await?;
        ensure!(logs.contains("agent started") && logs.contains("model serves"), "{logs}");
        let config = site.fleet.dir.join(format!("{}.toml", agent.name));
        let (code, findings) =
            on_device(site, agent, &["check", "--output", "json", "--config", &config.to_string_lossy()])
                .await?;
        ensure!(code == 0, "{findings}");
        let findings: Value = serde_json::from_str(&findings)?;
        let findings = findings.as_array().context("no findings")?;
        ensure!(findings.iter().all(|f| f["ok"] == true) && findings.len() >= 8, "{findings:?}");
        let tar = site.fleet.dir.join("d.tar");
        done(site, agent, &["export-diagnostics", "--file", &tar.to_string_lossy()]).await?;
        no_secret_in(&tar, &agent.state)?;
        let text = String::from_utf8_lossy(&std::fs::read(&tar)?).into_owned();
        for words in [
            "status.json",
            "\"generation\"",
            "agent started",
            "meter-reader",
            "\"check.json\"",
            "trial_passed",
        ] {
            ensure!(text.contains(words.trim_matches('"')), "{words} is not in the tar");
        }

        // SIGTERM: it drains and says goodbye, so that nobody takes a stop for a crash.
        site.fleet.agents[0].process.down().await?;
        let log = std::fs::read_to_string(site.fleet.dir.join("camera-1.log"))?;
        ensure!(log.contains("agent stops"), "it did not drain: {log}");
        let devices = site.fleet.api.devices().await?;
        ensure!(devices.iter().all(|d| !d.online), "the server was not told");
        site.fleet.agents[0].process.up()?;
        site.all_run("1.0.0").await
    })
    .await;
}

/// No line of the device's private key is in a file.
fn no_secret_in(file: &Path, state: &Path) -> Result<()> {
    let text = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
    let key = std::fs::read_to_string(state.join("device.key")).context("the device's key")?;
    for line in key.lines().filter(|l| l.len() > 20 && !l.starts_with("-----")) {
        ensure!(!text.contains(line), "a line of the private key is in {}", file.display());
    }
    Ok(())
}
