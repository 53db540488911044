//! Whatever dies comes back to where it was: the server in the middle of a rollout, an agent in the middle of its
//! update, the network for a while. Reports made meanwhile arrive, each once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Agent, Feeder, Ledger, MODEL, Order, STEP, Site, until};

#[tokio::test(flavor = "current_thread")]
async fn a_server_killed_in_the_middle_of_a_rollout_goes_on_with_it() {
    Site::play(3, async |site| {
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let id = site.roll_out("1.1.0", Order { stages: "1,100%", trial_s: 3, ..Order::default() }).await?;
        until("the first device to be on trial", STEP, || async {
            let info = site.fleet.api.rollout(&id).await?;
            let first = &info.stages[0];
            ensure!(first.ordered == 1 && first.active == 0, "{:?}", info.stages);
            let devices = site.fleet.api.devices().await?;
            let new = devices.iter().flat_map(|d| &d.running).filter(|m| m.version.to_string() == "1.1.0");
            ensure!(new.count() == 1, "no device has taken it over yet");
            Ok(())
        })
        .await?;
        let starts = site.fleet.server.starts();
        site.fleet.server.kill_hard()?;
        let info = site.ended(&id, RolloutStatus::Completed).await?;
        ensure!(site.fleet.server.starts() > starts, "the server was not killed");
        ensure!(info.stages.iter().map(|s| s.active).sum::<u64>() == 3, "{:?}", info.stages);
        ensure!(info.stages.iter().all(|s| s.failed + s.silent == 0), "{:?}", info.stages);
        site.all_run("1.1.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_agent_killed_in_the_middle_of_its_update_comes_back_on_the_right_model() {
    Site::play(1, async |site| {
        for (version, moment) in [("1.1.0", "any"), ("1.1.1", "self_testing"), ("1.1.2", "probation")] {
            let bundle = site.pack("1.1.0", version).await?;
            site.publish(&bundle).await?;
            let id = site.roll_out(version, Order { trial_s: 2, ..Order::default() }).await?;
            let agent = &site.fleet.agents[0];
            // What the agent itself says of its order; a moment that passed unseen is as good as the next one.
            until(&format!("the update to {version} to be at {moment}"), STEP, || async {
                let status = site.fleet.status(agent).await?;
                let jobs = status["jobs"].as_array().context("no jobs")?;
                let job = jobs.iter().find(|j| j["version"] == version).context("not ordered yet")?;
                let phase = job["phase"].as_str().unwrap_or_default();
                let reached = [moment, "activating", "probation", "active"].contains(&phase);
                ensure!(moment == "any" || reached, "it is {phase}");
                Ok(())
            })
            .await?;
            let starts = agent.process.starts();
            agent.process.kill_hard()?;
            until("the agent to be started again", STEP, || async {
                ensure!(agent.process.starts() > starts, "it is not");
                Ok(())
            })
            .await?;
            site.ended(&id, RolloutStatus::Completed).await?;
            site.all_run(version).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn without_the_server_devices_serve_and_their_reports_arrive_afterwards_each_once() {
    Site::play(2, async |site| {
        let pause = std::time::Duration::from_millis(20);
        let feed = |agent: &Agent| {
            Feeder::start(agent.listen, MODEL, site.replay.clone(), 0, pause, |image| image.pixels.clone())
        };
        let feeders = site.fleet.agents.iter().map(feed).collect::<Result<Vec<_>>>()?;
        site.fleet.server.down().await?;
        until("the devices to notice", STEP, || async {
            for agent in &site.fleet.agents {
                let status = site.fleet.status(agent).await?;
                ensure!(status["connected"] == false, "{} is connected", agent.name);
            }
            Ok(())
        })
        .await?;
        site.still_run("1.0.0").await?;

        // The serving child of one device dies, which is an event; the other device loses power, agent and all.
        let [first, second] = &site.fleet.agents[..] else { anyhow::bail!("two devices") };
        first.kill_serving()?;
        until("the serving child to be back", STEP, || async {
            let status = site.fleet.status(first).await?;
            ensure!(status["serve_restarts"] == 1 && !status["inference"].is_null(), "{status}");
            site.ask(first).await.map(|_| ())
        })
        .await?;
        let boot = site.fleet.status(second).await?["boot"].as_u64().context("no boot counter")?;
        second.process.kill_hard()?;
        until("the device to serve again, with no server", STEP, || async {
            let status = site.fleet.status(second).await?;
            ensure!(status["boot"].as_u64() > Some(boot), "it is still boot {boot}");
            ensure!(status["connected"] == false, "it is connected");
            ensure!(site.ask(second).await? == "1.0.0", "another version answers");
            Ok(())
        })
        .await?;
        until("both devices to have measured for a while", STEP, || async {
            for agent in &site.fleet.agents {
                let waiting = site.fleet.status(agent).await?["outbox_entries"].as_u64().unwrap_or(0);
                ensure!(waiting >= 3, "{waiting} reports wait on {}", agent.name);
            }
            Ok(())
        })
        .await?;

        // Back, and at once gone again: what was committed and not acknowledged comes a second time.
        site.fleet.server.up()?;
        until("the server to have heard something", STEP, || async {
            let devices = site.fleet.api.devices().await?;
            ensure!(devices.iter().any(|d| d.online), "nobody is connected");
            Ok(())
        })
        .await?;
        site.fleet.server.kill_hard()?;
        site.event("serve.died", &["gone"]).await?;
        drop(feeders);
        until("every report to have been acknowledged", STEP, || async {
            for agent in &site.fleet.agents {
                let status = site.fleet.status(agent).await?;
                ensure!(status["connected"] == true, "{} is not connected", agent.name);
                ensure!(status["outbox_entries"] == 0, "{} wait on {}", status["outbox_entries"], agent.name);
                ensure!(status["outbox_dropped"] == 0, "reports were dropped on {}", agent.name);
            }
            Ok(())
        })
        .await?;
        let events = site.fleet.api.events().await?;
        let died = events.iter().filter(|e| e.code == "serve.died").count();
        ensure!(died == 1, "one death of the serving child is told {died} times: {events:#?}");
        site.fleet.server.down().await?;
        nothing_is_missing_or_twice(site)
    })
    .await;
}

/// Of each boot of each device the numbers without a hole; of each bundle the windows, each once.
fn nothing_is_missing_or_twice(site: &Site) -> Result<()> {
    let ledger = Ledger::read(&site.fleet.dir.join("server"))?;
    let boots = ledger.without_holes()?.len();
    ensure!(boots == 3, "{boots} boots of two devices, one of which was started twice, are known");
    let mut windows = BTreeMap::<String, BTreeSet<u64>>::new();
    for window in ledger.records.iter().filter_map(|(key, _)| key.strip_prefix("drift/")) {
        let parts: Vec<&str> = window.split('/').collect();
        let [device, _, digest, index, _] = parts[..] else { anyhow::bail!("window {window}") };
        let indices = windows.entry(format!("{device} {digest}")).or_default();
        ensure!(indices.insert(index.parse()?), "{window} is there twice");
    }
    ensure!(windows.len() == 2, "windows of {:?}", windows.keys());
    Ok(())
}
