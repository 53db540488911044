//! The worst day: somebody has the server, with everything that lies in its folder. A real agent, which serves its
//! model the whole time, meets every lie that the stolen keys can tell. It refuses each by name; and what the thief
//! *can* do, which SECURITY.md lists, is shown too.

#[path = "attack/thief.rs"]
mod thief;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::trust::{KeyPair, Targets, file_name};
use plimsoll_tests::{MODEL, Order, STEP, Site, until};
use serde_json::{Value, json};
use thief::{END_OF_TIME, Repository, Said, Thief, blob, envelope};

/// What every scene begins and all but the last end with.
const RUNS: &str = "1.0.0";
/// What a device says of a version that no role lists which may.
const NOT_LISTED: &str = "is not signed by any role that may sign for it";

#[tokio::test(flavor = "current_thread")]
async fn whoever_has_the_server_cannot_make_a_device_run_what_the_owners_did_not_sign() {
    Site::play(1, async |site| {
        let good = site.pack("1.1.0", "1.1.0").await?;
        let withdrawn = site.pack("1.1.0", "1.2.0").await?;
        for bundle in [&good, &withdrawn] {
            site.publish(bundle).await?;
        }
        let old = Repository::copy(site).await?;
        let args = ["trust", "revoke", &format!("{MODEL}@1.2.0"), "--keys", "keys"];
        site.fleet.plimsoll(&args).await?;
        // A second team, with a key of its own, which the thief has stolen too.
        let other_team = KeyPair::from_seed(&[77; 32]);
        let args = ["trust", "delegate", "gate-counter", "--keys", "keys", "--key", &other_team.public_hex()];
        site.fleet.plimsoll(&args).await?;
        let honest = Repository::copy(site).await?;
        sees_the_removal(site, RUNS).await?;

        let mut thief = Thief::rob(site, honest).await?;
        ours_alone(site, &mut thief, &other_team).await?;
        what_was(site, &mut thief, &old, &withdrawn).await?;
        bytes_and_lengths(site, &mut thief, &good).await?;
        the_end_of_time(site, &mut thief).await?;
        too_late(site, &mut thief, &good).await?;
        what_a_thief_can_do(site, &mut thief, &good).await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_device_notices_a_removal_tells_it_and_never_returns_to_what_was_removed() {
    Site::play(1, async |site| {
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let id = site.roll_out("1.1.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await?;
        site.fleet.plimsoll(&["trust", "revoke", &format!("{MODEL}@1.0.0"), "--keys", "keys"]).await?;
        sees_the_removal(site, "1.1.0").await?;
        site.event("model.revoked", &["1.0.0", "does not return to it"]).await?;
        let trust = trust_status(site).await?;
        ensure!(trust["revoked"][0] == format!("{MODEL} 1.0.0"), "{trust}");
        let back = site.fleet.agent_raw(&site.fleet.agents[0].state, &["rollback", MODEL]).await?;
        ensure!(back.0 != 0 && back.2.contains("the previous version was revoked"), "{back:?}");
        site.still_run("1.1.0").await
    })
    .await;
}

/// A bundle that nobody who may has signed: by nobody, by a stranger, by another team; and an order for other bytes.
async fn ours_alone(site: &Site, thief: &mut Thief, other_team: &KeyPair) -> Result<()> {
    let forged = site.pack("1.1.0", "3.0.0").await?;
    let stranger = KeyPair::from_seed(&[66; 32]);
    let manifest = std::fs::read(forged.join("bundle.json"))?;

    shows(thief, |_| Ok(()))?;
    let digest = thief.stock(&forged)?;
    refused(site, thief, "3.0.0", digest, NOT_LISTED).await?;

    // In the model's own role, signed by the keys that the thief has.
    let (_, role) = thief.honest(None)?.role(MODEL)?;
    let mut body = role.body.clone();
    body.add_bundle(&MODEL.parse()?, &"3.0.0".parse()?, &manifest);
    for key in [&stranger, other_team] {
        let signed = envelope(role.version, role.issued, role.expires, body.clone(), key)?;
        shows(thief, |repository| repository.list(MODEL, &signed))?;
        thief.stock(&forged)?;
        refused(site, thief, "3.0.0", digest, "meter-reader.json").await?;
    }

    // In the other team's role, with that team's own key: for a path that was never delegated to it.
    let mut other = Targets::default();
    other.add_bundle(&MODEL.parse()?, &"3.0.0".parse()?, &manifest);
    let signed = envelope(1, role.issued, role.expires, other, other_team)?;
    // It stays listed from here on: a snapshot that drops a role is refused for that already.
    thief.remember(|repository| repository.list("gate-counter", &signed))?;
    shows(thief, |_| Ok(()))?;
    thief.stock(&forged)?;
    refused(site, thief, "3.0.0", digest, NOT_LISTED).await?;

    // A listed version, and the digest of something else.
    refused(site, thief, "1.1.0", digest, "the signed one counts and the order is refused").await
}

/// Changes the owners' repository, signs that it is current, and serves it.
fn shows(thief: &mut Thief, change: impl FnOnce(&mut Repository) -> Result<()>) -> Result<()> {
    let mut repository = thief.honest(None)?;
    change(&mut repository)?;
    thief.sign(&mut repository, None)?;
    thief.show(repository.shop());
    Ok(())
}

/// Old metadata, a version that was withdrawn, and documents that do not belong together.
async fn what_was(
    site: &Site,
    thief: &mut Thief,
    old: &Repository,
    withdrawn: &std::path::Path,
) -> Result<()> {
    let digest = Digest::of(&std::fs::read(withdrawn.join("bundle.json"))?);
    // As it was published when the version was listed.
    thief.show(old.shop());
    thief.stock(withdrawn)?;
    refused(site, thief, "1.2.0", digest, "timestamp").await?;

    // Freshly signed, and listing the role as it was.
    let (was, before) = old.role(MODEL)?;
    shows(thief, |repository| repository.list(MODEL, &was))?;
    thief.stock(withdrawn)?;
    refused(site, thief, "1.2.0", digest, MODEL).await?;

    // Listed as it is, served as it was.
    let mut repository = thief.honest(None)?;
    let (_, is) = repository.role(MODEL)?;
    ensure!(is.version > before.version, "the removal did not raise the role's version");
    repository.documents.insert(file_name(MODEL, is.version), serde_json::to_vec(&was)?);
    thief.show(repository.shop());
    thief.stock(withdrawn)?;
    // What the device keeps of the role is good and is what is listed: it asks for no other.
    refused(site, thief, "1.2.0", digest, NOT_LISTED).await
}

/// Other bytes, too many bytes.
async fn bytes_and_lengths(site: &Site, thief: &mut Thief, good: &std::path::Path) -> Result<()> {
    let digest = Digest::of(&std::fs::read(good.join("bundle.json"))?);
    let mut model = std::fs::read(good.join("model.onnx"))?;
    let place = blob(&Digest::of(&model));
    let honest = thief.honest(None)?;
    thief.show(honest.shop());
    thief.stock(good)?;
    let middle = model.len() / 2;
    model[middle] ^= 1;
    thief.also(&place, Said::Bytes(model));
    refused(site, thief, "1.1.0", digest, "model.onnx").await?;
    thief.also(&place, Said::Endless);
    refused(site, thief, "1.1.0", digest, "refused as endless data").await?;

    thief.also("/tuf/timestamp.json", Said::Endless);
    refused(site, thief, "1.1.0", digest, "refused as endless data").await?;
    let mut huge = honest.documents["timestamp.json"].clone();
    huge.resize(17 * 1024, b' ');
    thief.also("/tuf/timestamp.json", Said::Bytes(huge));
    refused(site, thief, "1.1.0", digest, "refused as endless data").await
}

/// Times that the stolen keys sign move nothing on a device.
async fn the_end_of_time(site: &Site, thief: &mut Thief) -> Result<()> {
    let before = trust_status(site).await?["floor_s"].as_i64().context("no floor")?;
    let shop = thief.honest(Some(END_OF_TIME - 1))?.shop();
    thief.show(shop);
    refused(site, thief, "9.9.9", Digest::of(b"nothing"), NOT_LISTED).await?;
    let after = trust_status(site).await?["floor_s"].as_i64().context("no floor")?;
    ensure!(after == before, "a time that was signed online moved the floor from {before} to {after}");
    Ok(())
}

/// Metadata that has ended blocks installs and raises an alarm, which ends by itself; what runs is not concerned.
async fn too_late(site: &Site, thief: &mut Thief, good: &std::path::Path) -> Result<()> {
    let digest = Digest::of(&std::fs::read(good.join("bundle.json"))?);
    let mut repository = thief.honest(None)?;
    thief.sign_until(&mut repository, None, 1_000_000_000)?;
    thief.show(repository.shop());
    let generation = thief.order("1.1.0", digest).await?;
    until("the alarm over metadata that has ended", STEP, || async {
        let job = job(site, generation).await?;
        ensure!(job["phase"] == "waiting" && job["reason"].to_string().contains("expired"), "{job}");
        let trust = trust_status(site).await?;
        ensure!(trust["expired"] == true && trust["problem"].to_string().contains("timestamp"), "{trust}");
        Ok(())
    })
    .await?;
    still_runs(site, RUNS).await?;

    let shop = thief.honest(None)?.shop();
    thief.show(shop);
    thief.order("9.9.9", Digest::of(b"nothing")).await?;
    until("the alarm to end", STEP, || async {
        let trust = trust_status(site).await?;
        ensure!(trust["expired"] == false && trust["problem"].is_null(), "{trust}");
        Ok(())
    })
    .await?;
    still_runs(site, RUNS).await
}

/// Deny, delay, and choose among what the owners sign for.
async fn what_a_thief_can_do(site: &Site, thief: &mut Thief, good: &std::path::Path) -> Result<()> {
    let digest = Digest::of(&std::fs::read(good.join("bundle.json"))?);
    let shop = thief.honest(None)?.shop();
    thief.show(shop.clone());
    thief.also("/tuf/timestamp.json", Said::Busy);
    let generation = thief.order("1.1.0", digest).await?;
    until("an order that is denied to wait", STEP, || async {
        let job = job(site, generation).await?;
        ensure!(job["phase"] == "waiting" && job["reason"].to_string().contains("next try"), "{job}");
        Ok(())
    })
    .await?;
    still_runs(site, RUNS).await?;

    // The same metadata for as long as the owners' documents live: what the device does not see it cannot miss.
    thief.show(shop);
    thief.stock(good)?;
    thief.order("1.1.0", digest).await?;
    site.all_run("1.1.0").await
}

/// Orders a version, which the device must refuse with these words while it goes on.
async fn refused(site: &Site, thief: &mut Thief, version: &str, digest: Digest, words: &str) -> Result<()> {
    let generation = thief.order(version, digest).await?;
    let what = format!("the order of {version} to be refused with {words:?}");
    until(&what, STEP, || async {
        let job = job(site, generation).await?;
        ensure!(job["phase"] == "failed", "it is {job}");
        Ok(())
    })
    .await?;
    let job = job(site, generation).await?;
    ensure!(job["reason"].to_string().contains(words), "it was refused otherwise: {job}");
    still_runs(site, RUNS).await
}

async fn job(site: &Site, generation: u64) -> Result<Value> {
    let status = site.fleet.status(&site.fleet.agents[0]).await?;
    let jobs = status["jobs"].as_array().context("no jobs")?;
    let job = jobs.iter().find(|job| job["generation"] == json!(generation));
    job.cloned().with_context(|| format!("order {generation} has not arrived: {status}"))
}

async fn still_runs(site: &Site, version: &str) -> Result<()> {
    site.still_run(version).await
}

async fn trust_status(site: &Site) -> Result<Value> {
    Ok(site.fleet.status(&site.fleet.agents[0]).await?["trust"].clone())
}

/// A look of the device at the honest server, after the removal.
async fn sees_the_removal(site: &Site, runs: &str) -> Result<()> {
    let agent = &site.fleet.agents[0];
    let starts = agent.process.starts();
    agent.process.kill_hard()?;
    until("a look at the metadata after a restart", STEP, || async {
        ensure!(agent.process.starts() > starts, "it has not started");
        let trust = trust_status(site).await?;
        ensure!(!trust["fresh_s_ago"].is_null(), "{trust}");
        Ok(())
    })
    .await?;
    site.all_run(runs).await
}
