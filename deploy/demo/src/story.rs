//! The story, as an operator would act it: every step is a command or a look at what devices and server report.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Feeder, Fleet, Replay, until};

use crate::cast::{DEVICES, MODEL, STEP_LIMIT, Story};
use crate::lens::Lens;
use crate::narrator::{Narrator, Outcome};
use crate::operator::{finished, publish, settled, start_rollout};
use crate::{chapter5, chapter6, checks};

/// A camera reads a meter so often: six cameras are 120 requests a second, a few percent of a core.
const READ_EVERY: Duration = Duration::from_millis(50);
/// Reads that each camera makes before its accuracy is judged: 2 s of reading, 240 reads over the fleet.
const READS: u64 = 40;

/// Plays the story and says what happens; gives back what was promised and seen.
pub async fn tell(fleet: &mut Fleet, narrator: &Narrator) -> Result<(Story, Vec<Outcome>)> {
    let mut outcomes = Vec::new();

    narrator.chapter(1, "Trust is made, and six cameras join");
    trust_and_enrol(fleet, narrator).await?;
    outcomes.extend(checks::enrolled(fleet).await?);

    narrator.chapter(2, &format!("{MODEL} 1.0.0 is packed, signed, published and rolled out to all"));
    publish(fleet, narrator, "1.0.0", "1.0.0").await?;
    let id = start_rollout(fleet, narrator, "1.0.0", "100%").await?;
    let rollout = finished(fleet, narrator, &id, RolloutStatus::Completed).await?;
    let story = feed(fleet)?;
    narrator.say("   The cameras begin to read meters with it.");
    read(&story).await?;
    outcomes.extend(checks::rolled_out(fleet, &rollout, "1.0.0").await?);
    outcomes.push(checks::answers("1.0.0", &story, 0.85));

    narrator.chapter(3, "1.1.0, a better model, goes canary -> all, while the cameras keep reading");
    publish(fleet, narrator, "1.1.0", "1.1.0").await?;
    let id = start_rollout(fleet, narrator, "1.1.0", "2,100%").await?;
    let rollout = finished(fleet, narrator, &id, RolloutStatus::Completed).await?;
    outcomes.extend(checks::rolled_out(fleet, &rollout, "1.1.0").await?);
    outcomes.push(checks::staged(&rollout));
    outcomes.push(checks::nothing_failed(&story));
    read(&story).await?;
    outcomes.push(checks::answers("1.1.0", &story, 0.95));

    narrator.chapter(4, "1.2.0 passes its expected outputs, is unsure in the field, and stops itself");
    narrator.say("   It was trained on wrongly scaled pixels. Nothing but what it answers shows it.");
    publish(fleet, narrator, "1.2.0", "1.2.0").await?;
    let good = rollout;
    let before = fleet.api.devices().await?;
    let id = start_rollout(fleet, narrator, "1.2.0", "2,100%").await?;
    let stopped = finished(fleet, narrator, &id, RolloutStatus::RolledBack).await?;
    settled(fleet, &good).await?;
    outcomes.extend(checks::stopped(fleet, &stopped, &before).await?);
    outcomes.extend(checks::rolled_out(fleet, &good, "1.1.0").await?.into_iter().map(checks::again));
    outcomes.push(checks::again(checks::nothing_failed(&story)));
    read(&story).await?;
    outcomes.push(checks::again(checks::answers("1.1.0", &story, 0.95)));

    narrator.chapter(5, "Two lenses blur: the devices drift, not the model");
    outcomes.extend(chapter5::tell(fleet, narrator, &story.lenses, "1.1.0").await?);

    narrator.chapter(
        6,
        "Power cuts: a device in the middle of its update, the server in the middle of a rollout",
    );
    outcomes.extend(chapter6::tell(fleet, narrator, &story).await?);
    Ok((story, outcomes))
}

async fn trust_and_enrol(fleet: &mut Fleet, narrator: &Narrator) -> Result<()> {
    // The keys of a demo live as long as the demo; `plimsoll trust init` encrypts them unless told otherwise.
    fleet.plimsoll(&["trust", "init", "--keys", "keys", "--insecure-unencrypted-keys"]).await?;
    narrator.say("   Root, targets and release keys were made on this machine; the server holds only what keeps metadata fresh.");
    let token = fleet.plimsoll(&["device", "token", "--uses", "6", "--minutes", "60"]).await?;
    let token = token["token"].as_str().context("`plimsoll device token` printed no token")?.to_owned();
    for (name, site) in DEVICES {
        fleet.add_agent(name, &token, &[("site", site)]).await?;
    }
    until("all devices to be connected", STEP_LIMIT, || async {
        let online = fleet.api.devices().await?.iter().filter(|d| d.online).count();
        ensure!(online == DEVICES.len(), "{online} of {} devices are connected", DEVICES.len());
        Ok(())
    })
    .await?;
    narrator.say("   Each made its own key, enrolled over TLS with a join token, got its certificate, and is connected.");
    Ok(())
}

fn feed(fleet: &Fleet) -> Result<Story> {
    let replay = Replay::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/replay.csv"))?;
    let replay = Arc::new(replay);
    let lenses: Vec<Lens> = fleet.agents.iter().map(|_| Lens::default()).collect();
    let feeders = fleet.agents.iter().zip(&lenses).enumerate().map(|(i, (agent, lens))| {
        // Each camera begins elsewhere in the set, so that six cameras together read all of it.
        let first = i * replay.images.len() / fleet.agents.len();
        let lens = lens.clone();
        Feeder::start(agent.listen, MODEL, Arc::clone(&replay), first, READ_EVERY, move |image| {
            lens.see(image)
        })
    });
    Ok(Story { feeders: feeders.collect::<Result<_>>()?, lenses })
}

/// Counts from zero until every camera has read enough to be judged.
async fn read(story: &Story) -> Result<()> {
    story.feeders.iter().for_each(Feeder::reset);
    until("every camera to read meters", STEP_LIMIT, || async {
        let least = story.feeders.iter().map(|f| f.tally().answered).min().unwrap_or(0);
        let failure = story.feeders.iter().find_map(|f| f.tally().last_failure).unwrap_or_default();
        ensure!(least >= READS, "the slowest camera has {least} answers of {READS}; {failure}");
        Ok(())
    })
    .await
}
