//! Chapter 6: a power cut on a device in the middle of its update, and one on the server in the middle of the rollout.
//!
//! Both are SIGKILL, which no program can prepare for; systemd's part (starting them again) is the harness's.

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{RolloutInfo, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_tests::{Feeder, Fleet, until};

use crate::cast::{STEP_LIMIT, Story};
use crate::checks;
use crate::lens::Lens;
use crate::narrator::{Narrator, Outcome};
use crate::operator::{finished, publish, settled, start_rollout};

/// The network of 1.1.0, packed again: what changes in this chapter is not the model.
const VERSION: &str = "1.1.1";
const NETWORK: &str = "1.1.0";

/// Starts a rollout, cuts one device and then the server, and holds the end against what was promised.
pub async fn tell(fleet: &Fleet, narrator: &Narrator, story: &Story) -> Result<Vec<Outcome>> {
    // A canary that blurs between before and after looks like a worse version, and rightly goes to a person.
    story.lenses.iter().for_each(Lens::wipe);
    narrator.say("   The lenses are wiped.");
    publish(fleet, narrator, VERSION, NETWORK).await?;
    story.feeders.iter().for_each(Feeder::reset);
    let (server_starts, agent_starts) = (fleet.server.starts(), starts(fleet));
    let id = start_rollout(fleet, narrator, VERSION, "2,100%").await?;

    let (at, phase) =
        until("a device to be in the middle of its update", STEP_LIMIT, || updating(fleet, &id)).await?;
    let cut = &fleet.agents[at];
    cut.process.kill_hard()?;
    narrator.say(&format!("   {} is killed in its {phase:?} phase.", cut.name));

    until("the second stage to be under way", STEP_LIMIT, || async {
        let stages = fleet.api.rollout(&id).await?.stages;
        let last = stages.last().context("no stages")?;
        ensure!(last.ordered > 0 && last.active < last.devices, "stage 2 has {} orders", last.ordered);
        Ok(())
    })
    .await?;
    fleet.server.kill_hard()?;
    narrator.say("   The server is killed in the middle of stage 2.");

    let rollout = finished(fleet, narrator, &id, RolloutStatus::Completed).await?;
    settled(fleet, &rollout).await?;
    let others_failed: u64 = failed(story, |i| i != at);
    let mut outcomes = vec![
        Outcome {
            outcome: "a device killed in the middle of its update came back, on the right model".into(),
            holds: starts(fleet)[at] > agent_starts[at] && runs(fleet, at, &rollout).await?,
            seen: format!(
                "{} killed in {phase:?}, started {} times, runs {VERSION}; {} of its requests met a dead endpoint",
                fleet.agents[at].name,
                starts(fleet)[at],
                failed(story, |i| i == at)
            ),
        },
        Outcome {
            outcome: "the server was killed in the middle of the rollout, and the rollout went on".into(),
            holds: fleet.server.starts() > server_starts && rollout.status == RolloutStatus::Completed,
            seen: format!("server started {} times; {}", fleet.server.starts(), rollout.reason),
        },
        Outcome {
            outcome: "no other device failed a request meanwhile".into(),
            holds: others_failed == 0,
            seen: format!("{others_failed} failed"),
        },
    ];
    outcomes.extend(checks::rolled_out(fleet, &rollout, VERSION).await?);
    Ok(outcomes)
}

/// A device of the first stage that has begun and not ended: its place in the fleet, and where it stands.
async fn updating(fleet: &Fleet, id: &RolloutId) -> Result<(usize, JobPhase)> {
    let digest = fleet.api.rollout(id).await?.digest;
    for device in fleet.api.devices().await? {
        let phase = device.jobs.iter().find(|j| j.digest == digest).and_then(|j| j.phase);
        let begun = phase.filter(|p| !p.is_end() && *p != JobPhase::Waiting);
        let at = fleet.agents.iter().position(|a| a.name == device.device.as_str());
        if let (Some(phase), Some(at)) = (begun, at) {
            return Ok((at, phase));
        }
    }
    anyhow::bail!("no device has begun")
}

async fn runs(fleet: &Fleet, at: usize, rollout: &RolloutInfo) -> Result<bool> {
    let status = fleet.status(&fleet.agents[at]).await?;
    let digest = rollout.digest.to_string();
    Ok(status["models"]
        .as_array()
        .is_some_and(|models| models.iter().any(|m| m["digest"] == digest.as_str())))
}

fn starts(fleet: &Fleet) -> Vec<u64> {
    fleet.agents.iter().map(|a| a.process.starts()).collect()
}

fn failed(story: &Story, whose: impl Fn(usize) -> bool) -> u64 {
    story.feeders.iter().enumerate().filter(|(i, _)| whose(*i)).map(|(_, f)| f.tally().failed).sum()
}
