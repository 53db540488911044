//! Chapter 5: two lenses blur, and the fleet knows whose they are.
//!
//! Nobody is told that the lenses blur: the cameras go on, the model goes on answering, and what says so is the drift
//! of those two devices against the reference in the signed bundle, by their own judgement and by the server's.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use plimsoll_protocol::api::{DriftInfo, RolloutInfo};
use plimsoll_tests::{Fleet, until};

use crate::cast::{MODEL, STEP_LIMIT};
use crate::lens::Lens;
use crate::narrator::{Narrator, Outcome};

/// Positions in the fleet of the cameras whose lenses blur: at two sites, on devices that no rollout chose first.
const BLURRED: [usize; 2] = [1, 4];

/// Blurs the lenses of this chapter; nobody is told.
pub fn blur(lenses: &[Lens]) {
    BLURRED.iter().filter_map(|at| lenses.get(*at)).for_each(Lens::blur);
}

/// Blurs, waits until it is noticed, and holds what is said against what was done.
pub async fn tell(
    fleet: &Fleet,
    narrator: &Narrator,
    lenses: &[Lens],
    version: &str,
) -> Result<Vec<Outcome>> {
    let names: BTreeSet<String> =
        BLURRED.iter().filter_map(|at| fleet.agents.get(*at)).map(|a| a.name.clone()).collect();
    let listed = names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let before = rollouts(fleet).await?;
    let answered = sharp(fleet, &names).await?;
    ensure!(answered, "a camera drifts before its lens was touched: {:?}", drifting(fleet).await?);
    blur(lenses);
    narrator.say(&format!("   The lenses of {listed} blur. Nobody is told."));

    let words = format!("{MODEL}: the devices themselves ({listed}), not the model");
    let told = until("the drift to be noticed and attributed", STEP_LIMIT, || async {
        let (server, devices) = (drifting(fleet).await?, drifting_by_own_word(fleet).await?);
        ensure!(server.is_superset(&names), "the server holds {server:?} in alarm");
        ensure!(devices.is_superset(&names), "{devices:?} hold themselves in alarm");
        let events = fleet.api.events().await?;
        let told = events.into_iter().find(|e| e.code == "drift.attributed" && e.text.starts_with(&words));
        let Some(told) = told else { anyhow::bail!("the server has not said whose the drift is") };
        Ok(told.text)
    })
    .await?;
    narrator.say(&format!("   - {told}"));
    check(fleet, &names, version, &before, told).await
}

async fn check(
    fleet: &Fleet,
    names: &BTreeSet<String>,
    version: &str,
    before: &[String],
    told: String,
) -> Result<Vec<Outcome>> {
    let (server, devices) = (drifting(fleet).await?, drifting_by_own_word(fleet).await?);
    let alarmed: BTreeSet<String> = fleet
        .api
        .events()
        .await?
        .into_iter()
        .filter(|e| e.code == "drift.alarm" && e.text.starts_with(&format!("{MODEL} {version} ")))
        .filter_map(|e| e.device.map(|d| d.to_string()))
        .collect();
    let mut pictures = 0;
    for name in names {
        let drift: Vec<DriftInfo> = fleet.api.get(&format!("devices/{name}/drift")).await?;
        let sharpness = drift.iter().flat_map(|d| &d.features).find(|f| f.verdict.feature == "sharpness");
        pictures += usize::from(sharpness.is_some_and(|f| f.alarm && !f.bars.is_empty()));
    }
    let after = rollouts(fleet).await?;
    let running = fleet.api.devices().await?;
    let on_version =
        running.iter().filter(|d| d.running.iter().any(|m| m.version.to_string() == version)).count();
    let outcome = |outcome: &str, holds, seen: String| Outcome { outcome: outcome.into(), holds, seen };
    Ok(vec![
        outcome(
            "drift is reported for the two cameras with blurred lenses and for no other, by server and devices",
            server == *names && devices == *names && alarmed == *names,
            format!("server {server:?}, devices {devices:?}, alarms ever {alarmed:?}"),
        ),
        outcome("it is attributed to the devices, not to the model", told.contains("not the model"), told),
        outcome(
            "their sharpness is shown beside the baseline",
            pictures == names.len(),
            format!("{pictures} histograms in alarm"),
        ),
        outcome(
            "no rollout was touched by it",
            before == after && on_version == fleet.agents.len(),
            format!("{} rollouts as before, {on_version} devices on {version}", after.len()),
        ),
    ])
}

/// Whether none of them drifts yet: what follows would prove nothing.
async fn sharp(fleet: &Fleet, names: &BTreeSet<String>) -> Result<bool> {
    Ok(drifting(fleet).await?.is_disjoint(names) && drifting_by_own_word(fleet).await?.is_disjoint(names))
}

/// Devices in alarm by the server's judgement.
async fn drifting(fleet: &Fleet) -> Result<BTreeSet<String>> {
    let devices = fleet.api.devices().await?;
    Ok(devices.into_iter().filter(|d| !d.drift.is_empty()).map(|d| d.device.to_string()).collect())
}

/// Devices in alarm by what each says of itself.
async fn drifting_by_own_word(fleet: &Fleet) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for agent in &fleet.agents {
        let status = fleet.status(agent).await?;
        if status["drift"].as_array().is_some_and(|alarms| !alarms.is_empty()) {
            names.insert(agent.name.clone());
        }
    }
    Ok(names)
}

/// Every rollout with where it stands and how many decisions it took.
async fn rollouts(fleet: &Fleet) -> Result<Vec<String>> {
    let rollouts: Vec<RolloutInfo> = fleet.api.get("rollouts").await?;
    Ok(rollouts.iter().map(|r| format!("{} {:?} {}", r.id, r.status, r.history.len())).collect())
}
