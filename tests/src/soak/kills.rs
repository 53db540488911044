//! SIGKILL for any process of a site, at random instants of its updates: the server, a device's agent, or the child
//! that serves its inferences.
//!
//! Every round publishes a version and rolls it out in two stages while the killer strikes. A round may end badly:
//! a version whose serving child dies in its trial is rolled back, and rightly. What may never be is a device without
//! a working model: after every strike each device must answer again, with the version that it had or the one that it
//! was getting. When the killing stops, the next version must reach every device.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{ended_somehow, listed, offer, version};
use crate::{RETURN, STEP, Site, until};

/// Strikes while one version is rolled out. Fewer than the three tries that a device has for a version, so that a
/// round that fails does so for a reason and not for want of tries.
const STRIKES: u32 = 2;

/// What was done and seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kills {
    /// How often each kind of process was killed.
    pub struck: BTreeMap<&'static str, u32>,
    /// How the rollouts ended under fire.
    pub ends: BTreeMap<String, u32>,
    /// Answers that were asked for and given after a strike.
    pub answers: u32,
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "killed: {}; rollouts under fire: {}; every device answered after every strike ({} answers)",
            listed(&self.struck),
            listed(&self.ends),
            self.answers
        )
    }
}

/// Kills `times` processes of `site`, chosen by `seed`, and then lets one more version through. `say` hears of every
/// round.
pub async fn kills(site: &mut Site, times: u32, seed: u64, mut say: impl FnMut(&str)) -> Result<Kills> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut seen = Kills::default();
    // An update takes so long here when nothing disturbs it; strikes fall anywhere in it.
    let began = Instant::now();
    let id = offer(site, 0).await?;
    site.ended(&id, RolloutStatus::Completed).await?;
    let took = began.elapsed();

    let mut round = 0;
    while seen.struck.values().sum::<u32>() < times {
        round += 1;
        let id = offer(site, round).await?;
        let mut story = Vec::new();
        for _ in 0..STRIKES {
            let instant = took.mul_f64(chance.random_range(0.0..0.6));
            tokio::time::sleep(instant).await; // an instant at random; nothing is waited for
            let victim = strike(site, &mut chance)?;
            *seen.struck.entry(victim.kind()).or_default() += 1;
            story.push(format!("{victim} after {} ms", instant.as_millis()));
            everyone_answers(site, round, &mut seen).await.with_context(|| {
                format!("seed {seed}, round {round}: {} was killed, and then", story.join(", "))
            })?;
        }
        let end = ended_somehow(site, &id).await?;
        say(&format!("round {round}: killed {}; the rollout is {end}", story.join(", ")));
        *seen.ends.entry(end).or_default() += 1;
    }

    let id = offer(site, round + 1).await?;
    site.ended(&id, RolloutStatus::Completed).await.context("after the last strike")?;
    site.all_run(&version(round + 1)).await.context("after the last strike")?;
    Ok(seen)
}

/// Who was killed.
enum Victim {
    Server,
    Agent(String),
    Serving(String),
}

impl Victim {
    fn kind(&self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent(_) => "agent",
            Self::Serving(_) => "serving child",
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("the server"),
            Self::Agent(device) => write!(f, "the agent of {device}"),
            Self::Serving(device) => write!(f, "the serving child of {device}"),
        }
    }
}

fn strike(site: &Site, chance: &mut StdRng) -> Result<Victim> {
    let agent = &site.fleet.agents[chance.random_range(0..site.fleet.agents.len())];
    match chance.random_range(0..3) {
        0 => {
            site.fleet.server.kill_hard()?;
            Ok(Victim::Server)
        }
        1 => {
            agent.process.kill_hard()?;
            Ok(Victim::Agent(agent.name.clone()))
        }
        // Between two of its lives there is nobody to kill; its agent then is as good.
        _ => match agent.kill_serving() {
            Ok(()) => Ok(Victim::Serving(agent.name.clone())),
            Err(_) => {
                agent.process.kill_hard()?;
                Ok(Victim::Agent(agent.name.clone()))
            }
        },
    }
}

/// Every device answers, with a version that it may have.
async fn everyone_answers(site: &Site, round: u32, seen: &mut Kills) -> Result<()> {
    for agent in &site.fleet.agents {
        let answered = until(&format!("{} to answer", agent.name), RETURN, || site.ask(agent)).await?;
        // A version that failed under fire stays behind on one device while the others go on.
        let known = (0..=round).any(|r| answered == version(r));
        ensure!(known, "{} answers with {answered}, which was never rolled out to it", agent.name);
        seen.answers += 1;
    }
    until("the server to answer", STEP, || async { site.fleet.api.devices().await.map(|_| ()) }).await
}
