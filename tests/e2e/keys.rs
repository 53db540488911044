//! The owners' side of trust, on the real programs: keys in several hands, new keys for old ones while devices follow,
//! a stolen server, and a version that is withdrawn.

#[path = "keys/owners.rs"]
mod owners;

use anyhow::{Context, Result, ensure};
use owners::{Owner, REFUSED, external_key};
use plimsoll_protocol::api::{DeviceInfo, RolloutInfo, RolloutStatus};
use plimsoll_protocol::trust::{Client, Response, Step};
use plimsoll_tests::{Fleet, MODEL, Order, STEP, Settings, Site, until};
use serde_json::{Value, json};

#[tokio::test(flavor = "current_thread")]
async fn three_owners_of_whom_two_must_sign() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fleet = Fleet::start(dir.path(), Settings::default()).await.expect("a server");
    if let Err(error) = owners_story(&fleet).await {
        panic!("{}", fleet.explain(error));
    }
    fleet.stop().await.expect("the server stops");
}

async fn owners_story(fleet: &Fleet) -> Result<()> {
    // Each has a folder and a way of their own: a passphrase by file descriptor, one from the environment, a command.
    std::fs::write(fleet.dir.join("anns"), "correct horse\n")?;
    let ann = Owner::new(fleet, "ann").descriptor("anns");
    let bob = Owner::new(fleet, "bob").environment("battery staple");
    ann.ok("make-key root-ann").await?;
    bob.ok("make-key root-bob").await?;
    let (command, public) = external_key(fleet, "eve").await?;
    let eve = Owner::new(fleet, "eve").external(&command, &public);

    let keys = format!("--root-key ann/root-ann.pub --root-key bob/root-bob.pub --root-key {public}");
    let begun = ann.ok(&format!("init {keys} --root-threshold 2")).await?;
    ensure!(begun["published"] == false, "one of two has signed: {begun}");
    let missing = begun["missing"].to_string();
    ensure!(missing.contains("needs 1 more") && missing.contains("root-bob ("), "{missing}");
    let change = begun["proposal"].as_str().context("no name of the change")?.to_owned();
    ensure!(ann.ok("status").await?["initialised"] == false, "it is published too early");
    ensure!(ann.ok("proposals").await?[0]["id"] == change.as_str(), "it does not wait");

    let wrong = Owner::new(fleet, "bob").environment("battery");
    let words = wrong.fails(&format!("sign-off {change} --yes"), 1).await?;
    ensure!(words.contains("the passphrase is wrong") && words.contains("root-bob.key"), "{words}");
    let words = ann.fails(&format!("sign-off {change} --yes"), REFUSED).await?;
    ensure!(words.contains("no key of") && words.contains("root-bob ("), "{words}");
    let done = bob.ok(&format!("sign-off {change} --yes")).await?;
    ensure!(done["published"] == true, "{done}");
    ensure!(done["changes"].to_string().contains("root: 2 of 3 keys must sign (before: nobody)"), "{done}");
    ensure!(bob.ok("proposals").await?.as_array().is_some_and(Vec::is_empty), "it waits still");

    // As a file, from a machine with a network to one without and back.
    let renewed = bob.ok("renew root --valid 200d --proposal change.json").await?;
    ensure!(renewed["published"] == false, "{renewed}");
    let mut liar = Owner::new(fleet, "eve");
    liar.args =
        ["--sign-with".into(), format!("echo {}", "ab".repeat(64)), "--sign-key".into(), public].into();
    let words = liar.fails("sign-off change.json --offline --yes", REFUSED).await?;
    ensure!(words.contains("does not verify"), "a signature of something else: {words}");
    for (field, value, expect) in
        [("expires", json!(1), "expired on 1970-01-01"), ("upload", json!({}), "was edited")]
    {
        let mut spoilt = owners::read(&fleet.dir.join("change.json"))?;
        spoilt[field] = value;
        std::fs::write(fleet.dir.join("spoilt.json"), spoilt.to_string())?;
        let words = eve.fails("sign-off spoilt.json --offline --yes", REFUSED).await?;
        ensure!(words.contains(expect), "{words}");
    }
    let signed = eve.offline("sign-off change.json --offline --yes").await?;
    ensure!(signed["complete"] == true && signed["published"] == false, "{signed}");

    // Meanwhile somebody adds a key: the file no longer follows, and says so.
    ann.ok("make-key targets-ann").await?;
    ann.ok("add-key targets --key ann/targets-ann.pub").await?;
    let added = bob.ok("sign-off --yes").await?;
    ensure!(added["published"] == true, "{added}");
    let words = bob.fails("sign-off change.json --yes", REFUSED).await?;
    ensure!(words.contains("root.json version 2") && words.contains("run the command again"), "{words}");
    let words = ann.fails("remove-key root --key root-ann --threshold 3", REFUSED).await?;
    ensure!(words.contains("would have 2 key(s) of which 3 must sign"), "{words}");
    let words = ann.fails("remove-key targets --key root-bob", REFUSED).await?;
    ensure!(words.contains("key root-bob is not in role targets"), "{words}");
    let words = Owner::new(fleet, "nobody").fails("renew root", REFUSED).await?;
    ensure!(words.contains("none of the keys that must sign") && words.contains("root-ann ("), "{words}");

    let again = bob.ok("renew root --valid 200d").await?;
    let change = again["proposal"].as_str().context("no name of the change")?;
    ensure!(eve.ok(&format!("sign-off {change} --yes")).await?["published"] == true, "eve's command signs");
    let status = eve.ok("status").await?;
    let root = &status["roles"][0];
    // Whole days: 200 within the second of the renewal.
    let days = root["expires_in_days"].as_i64();
    ensure!(root["role"] == "root" && matches!(days, Some(199 | 200)) && root["keys"] == 3, "{root}");
    ensure!(root["key_ids"].to_string().contains("root-ann ("), "{root}");
    let numbers = fleet.api.page("/metrics").await?;
    ensure!(numbers.contains("plimsoll_trust_role_expires_seconds{role=\"root\"}"), "{numbers}");

    // A change that nobody wants any more.
    let unwanted = bob.ok("renew root --valid 20d").await?;
    let unwanted = unwanted["proposal"].as_str().context("no name of the change")?;
    bob.ok(&format!("drop {unwanted}")).await?;
    let words = eve.fails(&format!("sign-off {unwanted} --yes"), REFUSED).await?;
    ensure!(words.contains("nothing waits"), "{words}");

    // Bob leaves and Dan comes: enough of the old holders and enough of the new ones must have signed.
    ann.ok("make-key root-dan").await?;
    let begun = ann.ok("rotate root --in ann/root-dan.pub --out root-bob").await?;
    let missing = begun["missing"].to_string();
    ensure!(begun["published"] == false && missing.contains("root 3 names"), "{begun}");
    ensure!(eve.ok("sign-off --yes").await?["published"] == true, "old and new holders have signed");
    let words = bob.fails("renew root", REFUSED).await?;
    ensure!(words.contains("none of the keys") && !words.contains("root-bob"), "{words}");
    let removed = ann.ok("remove-key root --key root-dan --threshold 1").await?;
    ensure!(removed["published"] == true, "two of the old holders' keys are ann's: {removed}");
    let status = ann.ok("status").await?;
    ensure!(status["roles"][0]["threshold"] == 1 && status["roles"][0]["keys"] == 2, "{status}");
    Ok(())
}

#[tokio::test(flavor = "current_thread")]
async fn a_device_that_knows_the_first_root_follows_every_rotation() {
    Site::play(1, async |site| {
        site.fleet.agents[0].process.down().await?;
        let owner = Owner::new(&site.fleet, "keys");
        owner.ok("rotate snapshot timestamp").await?;
        for role in ["targets", MODEL, "root"] {
            let rotated = owner.ok(&format!("rotate {role} --insecure-unencrypted-keys")).await?;
            ensure!(rotated["published"] == true, "{rotated}");
            std::fs::remove_file(site.fleet.dir.join(format!("keys/{role}.key"))).or_else(|error| {
                // A model is signed with release.key until then.
                std::fs::remove_file(site.fleet.dir.join("keys/release.key")).map_err(|_| error)
            })?;
        }
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;

        site.fleet.agents[0].process.up()?;
        let id = site.roll_out("1.1.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await?;
        let root: Value = owners::read(&site.fleet.agents[0].state.join("tuf/root.json"))?;
        // Snapshot and timestamp in one, targets, root; the model's key is named by targets.
        ensure!(root["signed"]["version"] == 4, "the device trusts root {}", root["signed"]["version"]);
        whole_repository(site).await
    })
    .await;
}

/// What is exported is a repository that a client accepts from its first root on, with every file under its name.
async fn whole_repository(site: &Site) -> Result<()> {
    let exported = Owner::new(&site.fleet, "keys").ok("export out").await?;
    ensure!(exported["targets"] == 2, "{exported}");
    let out = site.fleet.dir.join("out");
    let root = std::fs::read(out.join("metadata/1.root.json"))?;
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_secs())?;
    let mut client = Client::new([("root.json".to_owned(), root)].into(), now)?;
    let pump = |client: &mut Client| -> Result<Step> {
        loop {
            let Step::Fetch(fetch) = client.next() else { return Ok(client.next()) };
            let bytes = std::fs::read(out.join("metadata").join(&fetch.path)).ok();
            client.supply(bytes.as_deref().map_or(Response::NotFound, Response::Bytes))?;
        }
    };
    ensure!(pump(&mut client)? == Step::Refreshed, "the exported repository is not whole");
    client.find(&format!("bundles/{MODEL}/1.1.0/bundle.json"))?;
    let Step::Found(target) = pump(&mut client)? else { anyhow::bail!("1.1.0 is not listed in the export") };
    let target = target.by_sha256()?;
    let file = out.join(format!("targets/bundles/{MODEL}/1.1.0/{}.bundle.json", target.sha256()));
    let manifest =
        target.admit_manifest(&std::fs::read(&file).with_context(|| file.display().to_string())?)?;
    for file in &manifest.files {
        let bytes = std::fs::read(out.join("targets/blobs/sha256").join(file.sha256.to_string()))?;
        ensure!(bytes.len() as u64 == file.size, "{} is not whole", file.path);
    }
    Ok(())
}

#[tokio::test(flavor = "current_thread")]
async fn after_a_stolen_server_new_online_keys_bring_every_device_back() {
    Site::play(1, async |site| {
        let agent = &mut site.fleet.agents[0];
        agent.process.down().await?;
        // Who holds the online keys has told this device of versions that the real server will not reach in years.
        owners::push_forward(&site.fleet.dir.join("server"), &agent.state.join("tuf"), 4_000_000_000)?;
        agent.process.up()?;
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        site.roll_out("1.1.0", Order::default()).await?;
        let job = site.job_end("camera-1", "1.1.0").await?;
        let reason = job.reason.unwrap_or_default();
        ensure!(reason.contains("rollback") && reason.contains("4000000000"), "it was not refused: {reason}");
        site.still_run("1.0.0").await?;

        let before = owners::read_key(&site.fleet.dir.join("server/timestamp.key"))?;
        let rotated = Owner::new(&site.fleet, "keys").ok("rotate snapshot timestamp").await?;
        ensure!(rotated["published"] == true, "{rotated}");
        let after = owners::read_key(&site.fleet.dir.join("server/timestamp.key"))?;
        ensure!(before != after, "the server signs with the stolen key");
        ensure!(!site.fleet.dir.join("server/timestamp.next.key").exists(), "the new key waits still");
        let id = site.roll_out("1.1.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn devices_leave_a_revoked_version_and_the_others_notice_nothing() {
    Site::play(2, async |site| {
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let mut order = vec!["rollout", "start", "--model", MODEL, "--version", "1.1.0", "--stages", "100%"];
        order.extend(["--selector", "device = camera-1", "--trial", "1s", "--soak", "0s", "--jitter", "0s"]);
        order.extend(["--trial-requests", "0", "--min-sample", "1"]);
        let started = site.fleet.plimsoll(&order).await?;
        let id = started["id"].as_str().context("no id")?.parse()?;
        site.ended(&id, RolloutStatus::Completed).await?;
        let other: DeviceInfo = site.fleet.api.get("devices/camera-2").await?;

        let owner = Owner::new(&site.fleet, "keys");
        let words = owner.fails(&format!("revoke {MODEL}@9.9.9"), REFUSED).await?;
        ensure!(words.contains("9.9.9 is not published") && words.contains("1.1.0/bundle.json"), "{words}");
        let revoked = owner.ok(&format!("revoke {MODEL}@1.1.0")).await?;
        ensure!(
            revoked["published"] == true && revoked["changes"].to_string().contains("REMOVED"),
            "{revoked}"
        );
        site.event("bundle.revoked", &["1.1.0 is revoked", "1 of its devices go back to 1.0.0"]).await?;
        site.all_run("1.0.0").await?;
        let info = until("the rollout to say why", STEP, || async {
            let info = site.fleet.api.rollout(&id).await?;
            ensure!(info.status == RolloutStatus::RolledBack, "it is {:?}: {}", info.status, info.reason);
            Ok(info)
        })
        .await?;
        ensure!(info.reason.contains("it was revoked, nobody signs for it any more"), "{}", info.reason);
        let unmoved: DeviceInfo = site.fleet.api.get("devices/camera-2").await?;
        ensure!(unmoved.generation == other.generation, "camera-2 was ordered something");
        let audit: Value = site.fleet.api.get("audit").await?;
        ensure!(audit.to_string().contains("bundle.revoke"), "the audit log does not know: {audit}");
        let (code, _, words) = site.fleet.plimsoll_raw(&order).await?;
        ensure!(code != 0 && words.contains("is not published"), "it can be rolled out again: {words}");

        // The only other version goes too: nothing is left to go back to, so what runs stays, and somebody is told.
        owner.ok(&format!("revoke {MODEL}@1.0.0")).await?;
        site.event("bundle.revoked-runs", &["1.0.0", "2 device(s)", "camera-1, camera-2"]).await?;
        site.still_run("1.0.0").await?;
        until("the devices to show why", STEP, || async {
            let devices = site.fleet.api.devices().await?;
            let told =
                |d: &DeviceInfo| d.waiting.as_deref().unwrap_or("").contains("never had another version");
            ensure!(devices.iter().all(told), "{:?}", devices.iter().map(|d| &d.waiting).collect::<Vec<_>>());
            let rollouts: Vec<RolloutInfo> = site.fleet.api.get("rollouts").await?;
            // Completed ones begin to roll back at the next tick only; a new rollout waits until they have.
            let over = rollouts.iter().all(|r| r.status == RolloutStatus::RolledBack);
            ensure!(over, "{:?}", rollouts.iter().map(|r| r.status).collect::<Vec<_>>());
            Ok(())
        })
        .await?;

        // A good version is the way out.
        let bundle = site.pack("1.1.0", "1.2.0").await?;
        site.publish(&bundle).await?;
        let id = site.roll_out("1.2.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.2.0").await?;
        ensure!(
            site.fleet.api.get::<Value>("models").await?.as_array().map(Vec::len) == Some(1),
            "{}",
            json!(1)
        );
        Ok(())
    })
    .await;
}
