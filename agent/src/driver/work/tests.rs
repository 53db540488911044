//! A whole fetch, from trust to slot, against a server that lies in one way at a time.

use std::path::Path;

use plimsoll_protocol::bundle::target_path;
use serde_json::json;

use super::super::testing::{NOW, World, model, model_file, version};
use super::*;
use crate::fetch::testing::{Fault, delta};
use crate::slots::Check;

impl World {
    async fn fetch_at(&self, text: &str, digest: Digest, now: UnixSeconds) -> Done {
        fetch(FetchJob {
            engines: Default::default(),
            source: self.server.source(None),
            trust: Trust::new(self.state.path()),
            slots: self.slots(),
            model: model(),
            version: version(text),
            digest,
            now,
            ram_bytes: 1 << 30,
        })
        .await
    }

    async fn fetch(&self, text: &str, digest: Digest) -> Done {
        self.fetch_at(text, digest, NOW).await
    }

    /// Fetches and expects this refusal.
    async fn refused(&self, text: &str, digest: Digest, code: &str, words: &str) {
        let done = self.fetch(text, digest).await;
        let refusal = done.refusal.clone().unwrap_or_else(|| panic!("{code}: nothing was refused: {done:?}"));
        assert_eq!(refusal.code, code, "{refusal:?}");
        assert!(refusal.text.contains(words), "{refusal:?} does not say {words:?}");
        assert!(matches!(done.what, ModelEvent::FetchFailed { .. }), "{done:?}");
        assert!(self.slots().observe(Check::Contents).unwrap().slots.is_empty(), "nothing may be installed");
    }
}

fn stored(state: &Path, name: &str) -> Vec<u8> {
    std::fs::read(state.join("tuf").join(name)).unwrap_or_default()
}

#[tokio::test]
async fn a_signed_bundle_is_fetched_verified_and_becomes_a_slot() {
    let mut world = World::new().await;
    let digest = world.publish("1.0.0", |_| {});
    let done = world.fetch("1.0.0", digest).await;
    assert_eq!((&done.what, done.issued), (&ModelEvent::FetchDone, Some(NOW - 90)), "{done:?}");
    assert_eq!(stage(world.slots(), digest).await, ModelEvent::Staged);
    assert_eq!(stage(world.slots(), digest).await, ModelEvent::Staged, "again, after a crash");
    let slot = world.slots().open_slot(digest, Check::Contents).unwrap();
    assert_eq!(slot.manifest.version, version("1.0.0"));
}

#[tokio::test]
async fn a_fetch_that_was_cut_is_continued_and_a_part_damaged_on_this_disk_is_fetched_again() {
    let mut world = World::new().await;
    let digest = world.publish("1.0.0", |_| {});
    world.server.fault(Fault::CutAfter(280_000));
    let done = world.fetch("1.0.0", digest).await;
    assert!(matches!(&done.what, ModelEvent::FetchFailed { failure: Failure::Transient, .. }), "{done:?}");
    let part = world.state.path().join("staging").join(digest.to_string()).join(".parts/0");
    let kept = std::fs::metadata(&part).unwrap().len();
    assert!(kept > 0, "what came before the cut is kept");
    world.server.fault(Fault::None);
    world.server.ranges();
    std::fs::write(&part, vec![9; kept as usize]).unwrap();
    assert_eq!(world.fetch("1.0.0", digest).await.what, ModelEvent::FetchDone);
    let ranges = world.server.ranges();
    assert!(ranges.contains(&Some(format!("bytes={kept}-"))), "{ranges:?}");
    assert_eq!(stage(world.slots(), digest).await, ModelEvent::Staged);
}

#[tokio::test]
async fn every_lie_about_a_bundle_is_refused_by_name() {
    let mut world = World::new().await;
    let good = world.publish("1.0.0", |_| {});

    // The order names other bytes than the key signed.
    world.refused("1.0.0", Digest::of(b"evil"), "order.wrong_bundle", "signed one counts").await;
    // The order names a version that nobody signed.
    world.refused("9.0.0", good, "trust.not_listed", "not signed by any role").await;
    // A file is not what the manifest lists.
    world.server.fault(Fault::Flipped);
    world.refused("1.0.0", good, "trust.refused", "its digest is").await;
    world.server.fault(Fault::None);
    let blob = format!("/blobs/sha256/{}", Digest::of(&model_file("1.0.0")));
    world.server.put(&blob, &vec![4; 400_000]);
    world.refused("1.0.0", good, "bundle.tampered", "model.onnx").await;
    world.server.put(&blob, &vec![4; 400_001]);
    world.refused("1.0.0", good, "fetch.refused", "400000 are signed").await;
    // A signed manifest whose path escapes, and one that passes itself off as another version.
    let escaping = world.publish("1.1.0", |m| m["files"][0]["path"] = json!("../../etc/passwd"));
    world.refused("1.1.0", escaping, "trust.refused", "etc/passwd").await;
    let posing = world.publish("1.2.0", |m| m["version"] = json!("3.0.0"));
    world.refused("1.2.0", posing, "trust.refused", &target_path(&model(), &version("3.0.0"))).await;
}

#[tokio::test]
async fn metadata_that_is_forged_old_or_expired_is_refused_and_never_stored() {
    let mut world = World::new().await;
    let digest = world.publish("1.0.0", |_| {});
    assert_eq!(world.fetch("1.0.0", digest).await.what, ModelEvent::FetchDone);
    world.slots().discard(digest).unwrap();
    let trusted = stored(world.state.path(), "timestamp.json");

    // Signed by a key that root does not name.
    let mut envelope: serde_json::Value = serde_json::from_slice(&trusted).unwrap();
    envelope["signed"]["version"] = json!(99);
    world.server.put("/tuf/timestamp.json", envelope.to_string().as_bytes());
    world.refused("1.0.0", digest, "trust.refused", "timestamp").await;
    assert_eq!(stored(world.state.path(), "timestamp.json"), trusted, "what was refused is not stored");

    // An older one than was trusted before.
    world.server.put("/tuf/timestamp.json", &trusted);
    let newer = world.publish("1.1.0", |_| {});
    assert_eq!(world.fetch("1.1.0", newer).await.what, ModelEvent::FetchDone);
    world.slots().discard(newer).unwrap();
    let current = stored(world.state.path(), "timestamp.json");
    world.server.put("/tuf/timestamp.json", &trusted);
    world.refused("1.1.0", newer, "trust.refused", "rollback").await;
    world.server.put("/tuf/timestamp.json", &current);

    // Old enough to be expired: worth another try later, and said as such.
    let done = world.fetch_at("1.0.0", digest, NOW + 30 * 86_400).await;
    let refusal = done.refusal.unwrap();
    assert_eq!((refusal.code, refusal.transient), ("trust.expired", true), "{refusal:?}");
}

#[tokio::test]
async fn a_revoked_version_is_not_fetched_any_more() {
    let mut world = World::new().await;
    let digest = world.publish("1.0.0", |_| {});
    world.sign(|role| assert!(role.remove_bundle(&model(), &version("1.0.0"))));
    world.refused("1.0.0", digest, "trust.not_listed", "revoked").await;
}

#[tokio::test]
async fn what_this_device_cannot_run_is_not_applicable_before_a_file_is_fetched() {
    let mut world = World::new().await;
    let arch = world.publish("1.0.0", |m| m["requires"] = json!({"architectures": ["riscv64"]}));
    let ram = world.publish("1.1.0", |m| m["requires"] = json!({"min_ram_bytes": 1_u64 << 40}));
    let operator = world.publish("1.2.0", |m| {
        m["variants"][0]["runtime"]["operators"] = json!({"": ["Relu", "Loop"], "ai.onnx.ml": ["Scaler"]});
    });
    let all = [
        ("1.0.0", arch, "riscv64"),
        ("1.1.0", ram, "memory"),
        ("1.2.0", operator, "operator Loop of ai.onnx,"),
    ];
    for (text, digest, words) in all {
        world.server.ranges();
        let done = world.fetch(text, digest).await;
        let ModelEvent::NotApplicable { reason } = &done.what else { panic!("{done:?}") };
        assert!(reason.contains(words), "{reason}");
        assert_eq!(world.server.ranges().len(), 1, "only the manifest was asked for");
    }
}

#[tokio::test]
async fn a_server_without_the_files_or_without_metadata_is_worth_another_try() {
    let mut world = World::new().await;
    let digest = world.publish("1.0.0", |_| {});
    world.server.remove(&format!("/blobs/sha256/{}", Digest::of(b"o")));
    let done = world.fetch("1.0.0", digest).await;
    assert!(matches!(done.what, ModelEvent::FetchFailed { failure: Failure::Transient, .. }), "{done:?}");
    world.server.remove("/tuf/timestamp.json");
    let done = world.fetch("1.0.0", digest).await;
    assert!(matches!(done.what, ModelEvent::FetchFailed { failure: Failure::Transient, .. }), "{done:?}");
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again_and_what_resembles_it_comes_as_a_delta() {
    let mut world = World::new().await;
    let old = world.publish("1.0.0", |_| {});
    assert_eq!(world.fetch("1.0.0", old).await.what, ModelEvent::FetchDone);
    assert_eq!(stage(world.slots(), old).await, ModelEvent::Staged);
    let new = world.publish("1.1.0", |_| {});
    let (from, to) = (model_file("1.0.0"), model_file("1.1.0"));
    let good = delta(&from, &to, 50_000);
    let mut wrong = good.clone();
    *wrong.last_mut().unwrap() ^= 1; // well-formed, and makes another file
    for (offered, words) in
        [(good, "model.onnx as a delta from 1.0.0; 0 files whole"), (wrong, "; 1 files whole")]
    {
        world.server.put_delta(&from, &to, &offered);
        let done = world.fetch("1.1.0", new).await;
        assert_eq!(done.what, ModelEvent::FetchDone, "{done:?}");
        let came = done.came.unwrap();
        let (came, downloads) = came;
        assert!(came.contains(words) && came.contains("2 were on this device"), "{came}");
        assert_eq!(downloads.saved() > 0, words.contains("0 files whole"), "{downloads:?}");
        assert_eq!(stage(world.slots(), new).await, ModelEvent::Staged);
        let file = world.slots().dir(new).join("model.onnx");
        assert!(std::fs::read(file).unwrap() == to, "another file was installed");
        world.slots().delete(new).unwrap();
    }
}
