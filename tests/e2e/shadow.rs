//! A candidate in shadow, on real programs: beside the version that runs, on what the application asks it, and never
//! in an answer.
//!
//! Four stories: a good version is compared under load and takes over; one whose makers measured it on wrongly scaled
//! pixels, and that passes its own expected outputs, is stopped before it has answered one request; an agent that is
//! killed in a shadow returns and finishes it; a serving process that dies in a shadow comes back with the version that
//! ran, and the order fails.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{RolloutInfo, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::{JobPhase, ShadowEnd};
use plimsoll_tests::{Agent, MODEL, STEP, Site, until};
use serde_json::{Value, json};

/// Between two requests of the application: fifty a second, so that a hundred rows take two seconds.
const PAUSE: Duration = Duration::from_millis(20);

/// An application that remembers which versions answered it.
struct Application {
    answered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    versions: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Application {
    fn start(site: &Site, agent: &Agent) -> Result<Self> {
        let url = format!("http://{}/v2/models/{MODEL}/infer", agent.listen);
        let client = reqwest::Client::builder().timeout(STEP).no_proxy().build()?;
        let replay = site.replay.clone();
        let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (versions, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (ok, bad, seen, end) = (answered.clone(), failed.clone(), versions.clone(), stop.clone());
        let task = tokio::spawn(async move {
            for image in replay.images.iter().cycle() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                match version_that_answers(&client, &url, &image.pixels).await {
                    Ok(version) => {
                        ok.fetch_add(1, Ordering::Relaxed);
                        seen.lock().map(|mut seen| seen.insert(version)).ok();
                    }
                    Err(_) => {
                        bad.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(PAUSE).await; // the application's own rhythm
            }
        });
        Ok(Self { answered, failed, versions, stop, task })
    }

    fn versions(&self) -> Vec<String> {
        self.versions.lock().map(|seen| seen.iter().cloned().collect()).unwrap_or_default()
    }

    /// Stops asking; requests answered and failed.
    async fn end(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        Ok((self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed)))
    }
}

async fn version_that_answers(client: &reqwest::Client, url: &str, pixels: &[f32]) -> Result<String> {
    let body =
        json!({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels}]});
    let response = client.post(url).json(&body).send().await?.error_for_status()?;
    let answer: Value = response.json().await?;
    answer["model_version"].as_str().map(str::to_owned).context("an answer without a version")
}

/// Packs and publishes the demo's model `version`, and starts its rollout with a shadow.
async fn roll_out(site: &Site, version: &str, shadow_s: u32, more: &[&str]) -> Result<RolloutId> {
    let bundle = site.pack(version, version).await?;
    site.publish(&bundle).await?;
    let shadow = format!("{shadow_s}s");
    let mut args = vec!["rollout", "start", "--model", MODEL, "--version", version, "--stages", "100%"];
    args.extend(["--trial", "1s", "--soak", "0s", "--jitter", "0s", "--trial-requests", "0"]);
    args.extend(["--min-sample", "1", "--silent-after", "60s", "--max-confidence-drop", "1"]);
    args.extend(["--shadow", &shadow, "--shadow-sample", "100", "--shadow-rows", "50"]);
    args.extend(more);
    let started = site.fleet.plimsoll(&args).await?;
    started["id"].as_str().with_context(|| format!("no id in {started}"))?.parse().context("the id")
}

/// Waits until the device says that it compares.
async fn compares(site: &Site, agent: &Agent) -> Result<()> {
    until("the shadow to have compared rows", STEP, || async {
        let status = site.fleet.status(agent).await?;
        let job = &status["jobs"][0];
        ensure!(job["phase"] == "shadowing", "its order is {job}");
        let reason = job["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("rows compared") && !reason.starts_with("0 "), "it says {reason:?}");
        Ok(())
    })
    .await
}

async fn reported(site: &Site, id: &RolloutId, end: ShadowEnd) -> Result<RolloutInfo> {
    until(&format!("a report of a shadow that is {end:?}"), STEP, || async {
        let info = site.fleet.api.rollout(id).await?;
        let shadow = info.shadow.as_ref().context("no report")?;
        let device = shadow.devices.first().context("no device")?;
        ensure!(device.end == end, "it is {device:?}");
        Ok(info)
    })
    .await
}

#[tokio::test(flavor = "current_thread")]
async fn a_good_version_is_compared_under_load_and_takes_over_without_a_failed_request() {
    Site::play(1, async |site| {
        let application = Application::start(site, &site.fleet.agents[0])?;
        let id = roll_out(site, "1.1.0", 10, &["--max-shadow-disagreement", "15"]).await?;
        compares(site, &site.fleet.agents[0]).await?;
        let devices: Value = site.fleet.plimsoll(&["device", "show", "camera-1"]).await?;
        ensure!(devices["jobs"][0]["phase"] == "shadowing", "the server does not know: {devices}");
        ensure!(application.versions() == ["1.0.0"], "answered by {:?}", application.versions());
        site.ended(&id, RolloutStatus::Completed).await?;
        let info = reported(site, &id, ShadowEnd::Agreed).await?;
        let device = &info.shadow.context("no shadow")?.devices[0];
        let totals = &device.totals;
        ensure!(totals.rows >= 50 && totals.failed == 0, "{totals:?}");
        ensure!(totals.differ * 100 <= totals.rows * 15, "two good versions differ: {totals:?}");
        ensure!(
            totals.distance.is_some_and(|d| d.max > 0.0),
            "two versions with the same scores: {totals:?}"
        );
        ensure!(totals.candidate_p50_us > 0 && totals.current_p50_us > 0, "{totals:?}");
        ensure!(device.current.as_ref().is_some_and(|v| v.to_string() == "1.0.0"), "{device:?}");
        site.all_run("1.1.0").await?;
        let told: Value = site.fleet.plimsoll(&["rollout", "status", id.as_str()]).await?;
        ensure!(told["shadow"]["rows"].as_u64() == Some(totals.rows), "{told}");
        let (answered, failed) = application.end().await?;
        ensure!(failed == 0 && answered > 100, "{failed} of {} requests failed", answered + failed);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_version_that_knows_nothing_in_the_field_is_stopped_before_it_answered_anybody() {
    Site::play(1, async |site| {
        let application = Application::start(site, &site.fleet.agents[0])?;
        let id = roll_out(site, "1.2.0", 60, &["--max-shadow-disagreement", "5"]).await?;
        let info = site.ended(&id, RolloutStatus::RolledBack).await?;
        ensure!(info.reason.contains("in shadow on 1 device"), "{}", info.reason);
        ensure!(info.reason.contains("answers differ from those of 1.0.0"), "{}", info.reason);
        let info = reported(site, &id, ShadowEnd::Differs).await?;
        let device = info.shadow.context("no shadow")?.devices.remove(0);
        let why = device.reason.context("no reason")?;
        ensure!(why.starts_with("in shadow it answered ") && why.contains("otherwise than 1.0.0"), "{why}");
        let totals = device.totals;
        ensure!(totals.rows >= 50 && totals.differ * 10 > totals.rows, "{totals:?}");
        let after = application.answered.load(Ordering::Relaxed) + 20;
        until("the application to be served on", STEP, || async {
            let now = application.answered.load(Ordering::Relaxed);
            ensure!(now >= after, "{now} of {after}");
            Ok(())
        })
        .await?;
        ensure!(application.versions() == ["1.0.0"], "answered by {:?}", application.versions());
        let (_, failed) = application.end().await?;
        ensure!(failed == 0, "{failed} requests failed");
        site.still_run("1.0.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_agent_that_is_killed_in_a_shadow_returns_and_finishes_it() {
    Site::play(1, async |site| {
        let application = Application::start(site, &site.fleet.agents[0])?;
        let id = roll_out(site, "1.1.0", 10, &["--max-shadow-disagreement", "15"]).await?;
        let agent = &site.fleet.agents[0];
        compares(site, agent).await?;
        let boot = site.fleet.status(agent).await?["boot"].as_u64().context("no boot counter")?;
        agent.process.kill_hard()?;
        until("the agent to be back in its shadow", STEP, || async {
            let status = site.fleet.status(agent).await?;
            ensure!(status["boot"].as_u64() > Some(boot), "it is still boot {boot}");
            Ok(())
        })
        .await?;
        compares(site, agent).await?;
        ensure!(application.versions() == ["1.0.0"], "answered by {:?}", application.versions());
        site.ended(&id, RolloutStatus::Completed).await?;
        reported(site, &id, ShadowEnd::Agreed).await?;
        site.all_run("1.1.0").await?;
        application.end().await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_serving_process_that_dies_in_a_shadow_returns_with_what_ran_and_the_order_fails() {
    Site::play(1, async |site| {
        let application = Application::start(site, &site.fleet.agents[0])?;
        roll_out(site, "1.1.0", 60, &["--tries", "1", "--on-breach", "pause"]).await?;
        let agent = &site.fleet.agents[0];
        compares(site, agent).await?;
        agent.kill_serving()?;
        let job = site.job_end("camera-1", "1.1.0").await?;
        ensure!(job.phase == Some(JobPhase::Failed), "{job:?}");
        let why = job.reason.context("no reason")?;
        ensure!(why.contains("its shadow broke 1 times: the serving process died"), "{why}");
        site.all_run("1.0.0").await?;
        ensure!(application.versions() == ["1.0.0"], "answered by {:?}", application.versions());
        application.end().await?;
        Ok(())
    })
    .await;
}
