//! What the story promised, held against what devices, applications and server say. Each check looks at two sides
//! that could disagree.

use std::path::Path;

use anyhow::{Context, Result};
use plimsoll_protocol::api::{DeviceInfo, JobInfo, RolloutInfo};
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_tests::Fleet;

use crate::cast::{MODEL, Story};
use crate::narrator::Outcome;

fn outcome(promise: impl Into<String>, holds: bool, seen: impl Into<String>) -> Outcome {
    Outcome { outcome: promise.into(), holds, seen: seen.into() }
}

/// Six devices, each with a key and a certificate of its own, known to the server under its own name.
pub async fn enrolled(fleet: &Fleet) -> Result<Vec<Outcome>> {
    let devices = fleet.api.devices().await?;
    let online = devices.iter().filter(|d| d.online).count();
    let mut certificates = std::collections::BTreeSet::new();
    for agent in &fleet.agents {
        let path = agent.state.join("device.crt");
        certificates.insert(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let expect = fleet.agents.len();
    Ok(vec![
        outcome(
            "six devices enrolled over TLS and are connected",
            online == expect && devices.len() == expect,
            format!("server: {online} of {} connected", devices.len()),
        ),
        outcome(
            "each device has a certificate of its own",
            certificates.len() == expect,
            format!("{} different certificates on {expect} devices", certificates.len()),
        ),
    ])
}

/// Every device runs the version: by the server's records, by the device's own word, and by its inference endpoint.
pub async fn rolled_out(fleet: &Fleet, rollout: &RolloutInfo, version: &str) -> Result<Vec<Outcome>> {
    let devices = fleet.api.devices().await?;
    let by_server = devices.iter().filter(|d| runs(d, rollout)).count();
    let jobs_ended_well = devices.iter().flat_map(|d| &d.jobs);
    let jobs_ended_well =
        jobs_ended_well.filter(|j| j.digest == rollout.digest && j.phase == Some(JobPhase::Active)).count();
    let mut by_device = 0;
    for agent in &fleet.agents {
        let status = fleet.status(agent).await?;
        let digest = rollout.digest.to_string();
        by_device += usize::from(status["models"].as_array().is_some_and(|models| {
            models
                .iter()
                .any(|m| m["model"] == MODEL && m["version"] == version && m["digest"] == digest.as_str())
        }));
    }
    let expect = fleet.agents.len();
    Ok(vec![
        outcome(
            format!("{MODEL} {version} runs on all devices, by the server's records"),
            by_server == expect && jobs_ended_well == expect,
            format!("{by_server} run it, {jobs_ended_well} trials passed"),
        ),
        outcome(
            format!("{MODEL} {version} runs on all devices, by their own word"),
            by_device == expect,
            format!("{by_device} of {expect} with digest {}", rollout.digest.short()),
        ),
    ])
}

fn runs(device: &DeviceInfo, rollout: &RolloutInfo) -> bool {
    device.running.iter().any(|m| m.model.as_str() == MODEL && m.digest == rollout.digest && m.trial_passed)
}

/// It runs the version, and the trial of its order passed.
pub fn settled(device: &DeviceInfo, rollout: &RolloutInfo) -> bool {
    let passed = |j: &JobInfo| j.digest == rollout.digest && j.phase == Some(JobPhase::Active);
    runs(device, rollout) && device.jobs.iter().any(passed)
}

/// A promise that was checked before and still holds.
pub fn again(outcome: Outcome) -> Outcome {
    Outcome { outcome: format!("again: {}", outcome.outcome), ..outcome }
}

/// The version was stopped for what it answered, and only the canaries ever had it.
pub async fn stopped(fleet: &Fleet, rollout: &RolloutInfo, before: &[DeviceInfo]) -> Result<Vec<Outcome>> {
    let ordered: Vec<u64> = rollout.stages.iter().map(|s| s.ordered).collect();
    let failed: u64 = rollout.stages.iter().map(|s| s.failed).sum();
    let evidence = rollout.evidence.clone().unwrap_or_default();
    let canaries: Vec<&str> = evidence.canaries.iter().map(|d| d.device.as_str()).collect();
    let digest = rollout.digest.to_string();
    let mut had_it = Vec::new();
    for agent in &fleet.agents {
        if was_here(&agent.state, &digest)? {
            had_it.push(agent.name.as_str());
        }
    }
    // An order is a new generation of what a device should run; a control got none.
    let now = fleet.api.devices().await?;
    let ordered_anew =
        |d: &&DeviceInfo| !before.iter().any(|b| b.device == d.device && b.generation == d.generation);
    let got_orders: Vec<&str> = now.iter().filter(ordered_anew).map(|d| d.device.as_str()).collect();
    let (sure, unsure) = evidence.means.unwrap_or_default();
    Ok(vec![
        outcome(
            "1.2.0 passed its expected outputs on two canaries, and went no further",
            ordered.iter().sum::<u64>() == 2 && failed == 0,
            format!("ordered by stage: {ordered:?}, {failed} failed"),
        ),
        outcome(
            "1.2.0 was rolled back, and the reason names its confidence",
            evidence.stopped && rollout.reason.contains("confidence on") && sure - unsure > evidence.allowed,
            rollout.reason.clone(),
        ),
        outcome(
            "the other four never had 1.2.0, by the server's orders and by their disks",
            got_orders == canaries && had_it.iter().all(|name| canaries.contains(name)),
            format!("canaries {canaries:?}; orders went to {got_orders:?}, on the disks of {had_it:?}"),
        ),
    ])
}

/// Whether a bundle lies in a device's state folder, whole or in parts.
fn was_here(state: &Path, digest: &str) -> Result<bool> {
    for folder in ["slots", "staging"] {
        let path = state.join(folder);
        let Ok(entries) = std::fs::read_dir(&path) else { continue }; // not made yet
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", path.display()))?;
            if entry.file_name().to_string_lossy() == digest {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The answers that the applications got: the right version, the accuracy that training measured.
pub fn answers(version: &str, story: &Story, at_least: f64) -> Outcome {
    let tallies: Vec<_> = story.feeders.iter().map(plimsoll_tests::Feeder::tally).collect();
    let answered: u64 = tallies.iter().map(|t| t.answered).sum();
    let correct: u64 = tallies.iter().map(|t| t.correct).sum();
    let accuracy = correct as f64 / answered.max(1) as f64;
    let right_version = tallies.iter().all(|t| t.version.as_deref() == Some(version));
    outcome(
        format!("the cameras read with {version}, accuracy at least {at_least}"),
        right_version && accuracy >= at_least,
        format!("{correct} of {answered} digits right ({accuracy:.3})"),
    )
}

/// Not one request failed while versions were swapped under load.
pub fn nothing_failed(story: &Story) -> Outcome {
    let tallies: Vec<_> = story.feeders.iter().map(plimsoll_tests::Feeder::tally).collect();
    let failed: u64 = tallies.iter().map(|t| t.failed).sum();
    let answered: u64 = tallies.iter().map(|t| t.answered).sum();
    let last = tallies.iter().find_map(|t| t.last_failure.clone()).unwrap_or_default();
    outcome(
        "no request failed while the version changed",
        failed == 0,
        format!("{failed} of {} failed {last}", answered + failed),
    )
}

/// The canary stage was done before the second stage got its first order.
pub fn staged(rollout: &RolloutInfo) -> Outcome {
    let sizes: Vec<u64> = rollout.stages.iter().map(|s| s.devices).collect();
    let active: u64 = rollout.stages.iter().map(|s| s.active).sum();
    let position = |needle: &str| rollout.history.iter().position(|d| d.text.contains(needle));
    let done = position("stage 1").zip(position("stage 2"));
    let in_order = done.is_some_and(|(first, second)| first < second);
    outcome(
        "1.1.0 reached the fleet stage by stage, each waiting for trials",
        sizes == [2, 4] && active == 6 && in_order,
        format!("stages of {sizes:?} devices, {active} active, {} decisions", rollout.history.len()),
    )
}
