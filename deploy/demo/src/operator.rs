//! The operator's part: each step is a `plimsoll` command, and a look at what became of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{RolloutInfo, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_tests::{Fleet, until};

use crate::cast::{DEVICES, MODEL, STEP_LIMIT};
use crate::checks;
use crate::narrator::Narrator;

/// Packs the trained network `network` as `version`, signs and publishes it.
pub async fn publish(fleet: &Fleet, narrator: &Narrator, version: &str, network: &str) -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = here.join("models").join(network);
    let text = |p: PathBuf| p.to_string_lossy().into_owned();
    // 1.2.0 was trained on other pixels than the cameras deliver, and its makers measured it on those.
    let own = here.join(format!("data/reference-{network}.csv"));
    let reference = if own.is_file() { own } else { here.join("data/reference.csv") };
    let out = format!("bundles/{MODEL}-{version}");
    fleet
        .plimsoll(&[
            "bundle",
            "pack",
            &text(source.join("model.onnx")),
            "--model",
            MODEL,
            "--version",
            version,
            "--out",
            &out,
            "--golden",
            &text(source.join("golden")),
            "--reference",
            &text(reference),
            "--labels",
            "0,1,2,3,4,5,6,7,8,9",
        ])
        .await?;
    narrator.say("   Packed with golden samples (scikit-learn's own answers) and a drift baseline.");
    fleet.plimsoll(&["bundle", "publish", &out, "--keys", "keys"]).await?;
    narrator.say("   Signed with the model's release key, and published: the server checked it with the code of the devices.");
    Ok(())
}

/// Starts a rollout with ordinary settings, set short; its id.
pub async fn start_rollout(
    fleet: &Fleet,
    narrator: &Narrator,
    version: &str,
    stages: &str,
) -> Result<RolloutId> {
    let started = fleet
        .plimsoll(&[
            "rollout",
            "start",
            "--model",
            MODEL,
            "--version",
            version,
            "--stages",
            stages,
            // Ordinary settings, set short: a trial of 4 s, 3 s of stage wait, 1 s of jitter.
            "--soak",
            "3s",
            "--trial",
            "4s",
            "--trial-requests",
            "0",
            "--jitter",
            "1s",
            "--silent-after",
            "60s",
            "--min-sample",
            "1",
            // Two windows of 5 s have some 180 readings: half of one is enough to see a version that is lost.
            "--min-readings",
            "50",
        ])
        .await?;
    let id = started["id"].as_str().with_context(|| format!("`plimsoll rollout start` printed {started}"))?;
    narrator.say(&format!("   Rollout {id} starts: {stages} of the fleet."));
    id.parse().context("the id of the rollout")
}

/// Follows a rollout, saying every new decision, until it stands at `end`.
pub async fn finished(
    fleet: &Fleet,
    narrator: &Narrator,
    id: &RolloutId,
    end: RolloutStatus,
) -> Result<RolloutInfo> {
    let said = std::cell::Cell::new(0);
    until(&format!("rollout {id} to be {end:?}"), STEP_LIMIT, || async {
        let rollout = fleet.api.rollout(id).await?;
        for decision in rollout.history.iter().skip(said.get()) {
            narrator.say(&format!("   - {}", decision.text));
        }
        said.set(rollout.history.len());
        ensure!(rollout.status == end, "it is {:?}: {}", rollout.status, rollout.reason);
        Ok(rollout)
    })
    .await
}

/// Waits until every device runs the version of `rollout` and its trial has passed.
pub async fn settled(fleet: &Fleet, rollout: &RolloutInfo) -> Result<()> {
    let version = &rollout.spec.version;
    until(&format!("every device to run {version}"), STEP_LIMIT, || async {
        let devices = fleet.api.devices().await?;
        let there = devices.iter().filter(|d| checks::settled(d, rollout)).count();
        ensure!(there == DEVICES.len(), "{there} of {} devices run {version}", DEVICES.len());
        Ok(())
    })
    .await
}
