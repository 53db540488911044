//! Power cuts of the server: its whole state folder lies on the disk, and the cuts fall anywhere in its work: devices
//! report, and an operator makes and revokes join tokens, publishes and rolls out.
//!
//! After each cut the server must open its store again, with nothing set aside, and everything that it had answered
//! to the operator must be there: tokens, revocations, rollouts, and published versions with every byte. In the end
//! no report that it had acknowledged may be missing: a device forgets what is acknowledged, so one that the server
//! lost would be a hole in the numbers of that device.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{JoinTokenInfo, RolloutStatus};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::super::{SOURCE, listed, offer, version};
use super::{Log, some_cut};
use crate::disk::Disk;
use crate::{Feeder, Ledger, MODEL, Order, RETURN, STEP, Site, until};

/// Between two cuts: the server starts in about half a second, and then some actions and dozens of reports fall.
const BETWEEN: std::ops::Range<f64> = 0.05..2.5;
/// What a server says when something that it had is not there any more.
const LOST: [&str; 3] = ["store set aside", "the store starts empty", "does not open"];

/// What was done and seen.
#[derive(Debug, Default)]
pub struct ServerCuts {
    /// Power cuts.
    pub cuts: u32,
    /// What was answered to the operator, and looked for after every cut since.
    pub answered: BTreeMap<&'static str, u32>,
    /// Boots of devices, and reports of them that the server has: without a hole.
    pub boots: usize,
    /// See above.
    pub committed: u64,
}

impl fmt::Display for ServerCuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} power cuts of the server; its store opened after each; of {} that were answered, all are there; it \
             has {} reports of {} boots without a hole",
            self.cuts,
            listed(&self.answered),
            self.committed,
            self.boots
        )
    }
}

/// What the operator was answered.
#[derive(Debug, Default)]
struct Answered {
    tokens: BTreeSet<String>,
    revoked: BTreeSet<String>,
    /// Oldest first.
    published: Vec<String>,
    rollouts: BTreeSet<String>,
}

/// Cuts the power of the site's server `cuts` times, at instants chosen by `seed`; `disk` is mounted at its state
/// folder. Ends with the server stopped. `say` hears of every cut.
pub async fn server(
    site: &mut Site,
    disk: &Disk,
    cuts: u32,
    seed: u64,
    mut say: impl FnMut(&str),
) -> Result<ServerCuts> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut answered = Answered::default();
    let pause = Duration::from_millis(20);
    let feed = |agent: &crate::Agent| {
        Feeder::start(agent.listen, MODEL, site.replay.clone(), 0, pause, |image| image.pixels.clone())
    };
    let feeders = site.fleet.agents.iter().map(feed).collect::<Result<Vec<_>>>()?;
    let mut seen = ServerCuts::default();
    while seen.cuts < cuts {
        seen.cuts += 1;
        let cut = seen.cuts;
        let failed = || format!("seed {seed}, cut {cut}");
        let next = version(cut);
        site.pack(SOURCE, &next).await?;
        let between = Duration::from_secs_f64(chance.random_range(BETWEEN));
        let how = some_cut(&mut chance);
        let end = Instant::now() + between;
        // What is under way when the power goes has no answer, and may be there or not.
        match timeout_at(end, act(site, &mut answered, &next)).await {
            Ok(Err(error)) => return Err(error.context(failed())),
            Ok(Ok(never)) => match never {},
            Err(_) => {}
        }
        disk.cut(how).await?;
        site.fleet.server.cut().await?;
        disk.power_on().await?;
        let log = site.fleet.dir.join("server.log");
        let log = Log::from_now(&log);
        site.fleet.server.up()?;
        until("the server to answer", STEP, || async { site.fleet.api.devices().await.map(|_| ()) })
            .await
            .with_context(failed)?;
        log.is_free_of(&LOST).with_context(failed)?;
        all_there(site, &answered).await.with_context(failed)?;
        say(&format!(
            "{cut} of {cuts} cuts: {how:?} after {} ms; {} tokens, {} revoked, {} versions, {} rollouts are there",
            between.as_millis(),
            answered.tokens.len(),
            answered.revoked.len(),
            answered.published.len(),
            answered.rollouts.len()
        ));
    }

    let last = cuts + 1;
    let id = offer(site, last).await?;
    site.ended(&id, RolloutStatus::Completed).await.context("after the last cut")?;
    site.all_run(&version(last)).await.context("after the last cut")?;
    drop(feeders);
    until("every report to be acknowledged", RETURN, || async {
        for agent in &site.fleet.agents {
            let status = site.fleet.status(agent).await?;
            ensure!(status["outbox_entries"] == 0, "{} wait", status["outbox_entries"]);
            ensure!(status["outbox_dropped"] == 0, "reports were dropped: {status}");
        }
        Ok(())
    })
    .await?;
    site.fleet.server.down().await?;
    let ledger = Ledger::read(&site.fleet.dir.join("server"))?;
    let boots = ledger.without_holes()?;
    ensure!(boots.len() == site.fleet.agents.len(), "no device was started twice: {boots:?}");
    (seen.boots, seen.committed) = (boots.len(), boots.values().sum());
    for (what, count) in [
        ("join tokens", answered.tokens.len()),
        ("revocations", answered.revoked.len()),
        ("published versions", answered.published.len()),
        ("rollouts", answered.rollouts.len()),
    ] {
        seen.answered.insert(what, u32::try_from(count)?);
    }
    Ok(seen)
}

/// An operator at work, without an end: publishes `next` and rolls it out, and makes tokens, every second of which is
/// revoked again.
async fn act(site: &Site, answered: &mut Answered, next: &str) -> Result<std::convert::Infallible> {
    let bundle = format!("bundle-{next}");
    for n in 0_u32.. {
        let name = format!("cam-{}-{n}", next.replace('.', "-"));
        site.fleet.plimsoll(&["device", "token", "--names", &name]).await?;
        answered.tokens.insert(name.clone());
        if n % 2 == 1 {
            let id = token_of(site, &name).await?.id;
            site.fleet.plimsoll(&["device", "revoke-token", &id]).await?;
            answered.revoked.insert(name);
        }
        if n == 0 {
            site.fleet.plimsoll(&["bundle", "publish", &bundle, "--keys", "keys"]).await?;
            answered.published.push(next.to_owned());
        }
        if n == 1 {
            let id = site.roll_out(next, Order { stages: "1,100%", ..Order::default() }).await?;
            answered.rollouts.insert(id.to_string());
        }
    }
    anyhow::bail!("an operator who has made 4,294,967,296 tokens")
}

async fn token_of(site: &Site, name: &str) -> Result<JoinTokenInfo> {
    let tokens: Vec<JoinTokenInfo> = site.fleet.api.get("join-tokens").await?;
    let token = tokens.into_iter().find(|token| token.names.as_deref() == Some(name));
    token.with_context(|| format!("the token for {name} was answered and is not there"))
}

/// Everything that was answered is there.
async fn all_there(site: &Site, answered: &Answered) -> Result<()> {
    let tokens: Vec<JoinTokenInfo> = site.fleet.api.get("join-tokens").await?;
    let tokens: BTreeMap<_, _> = tokens.into_iter().filter_map(|t| Some((t.names?, t.revoked))).collect();
    for name in &answered.tokens {
        ensure!(tokens.contains_key(name), "the token for {name} was answered and is not there");
    }
    for name in &answered.revoked {
        ensure!(tokens.get(name) == Some(&true), "the token for {name} was revoked and is not");
    }
    for id in &answered.rollouts {
        site.fleet.api.get::<Value>(&format!("rollouts/{id}")).await.context("a rollout that was started")?;
    }
    let models: Vec<Value> = site.fleet.api.get("models").await?;
    for version in &answered.published {
        let there = models.iter().any(|model| model["version"] == version.as_str());
        ensure!(there, "{version} was published and is not there");
    }
    // The newest one is read to its last byte; the ones before it were, after earlier cuts.
    if let Some(version) = answered.published.last() {
        let version = format!("{MODEL}@{version}");
        site.fleet.plimsoll(&["bundle", "export", &version, "-o", "proof.tar"]).await?;
        std::fs::remove_file(site.fleet.dir.join("proof.tar"))?;
    }
    Ok(())
}
