//! A whole fetch, from trust to slot, against a server that lies in one way at a time.

use std::path::Path;

use plimsoll_protocol::api::TrustUpload;
use plimsoll_protocol::bundle::target_path;
use plimsoll_protocol::trust::repository::{Online, Repository, RootKeys, model_paths, sign_next, to_bytes};
use plimsoll_protocol::trust::{KeyPair, Root, Signer, Targets};
use serde_json::json;

use super::*;
use crate::fetch::testing::{Fault, Server};
use crate::slots::Check;

const NOW: UnixSeconds = 1_800_000_000;
const YEAR: i64 = 365 * 86_400;

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

fn model() -> ModelName {
    ModelName::new("meter").unwrap()
}

fn version(text: &str) -> semver::Version {
    text.parse().unwrap()
}

/// A fleet's server with a signed bundle, and a device that trusts its root.
struct World {
    server: Server,
    state: tempfile::TempDir,
    repository: Repository,
    role: Targets,
    role_version: u64,
}

fn model_file(version: &str) -> Vec<u8> {
    let mut bytes = vec![3; 400_000];
    bytes[..version.len()].copy_from_slice(version.as_bytes());
    bytes
}

fn manifest(version: &str, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let file = model_file(version);
    let mut value = json!({
        "format": 1, "model": "meter", "version": version, "created": "2026-01-01T00:00:00Z",
        "files": [
            {"path": "model.onnx", "size": file.len(), "sha256": Digest::of(&file)},
            {"path": "golden/input_0.pb", "size": 1, "sha256": Digest::of(b"i")},
            {"path": "golden/output_0.pb", "size": 1, "sha256": Digest::of(b"o")}
        ],
        "variants": [{"name": "default", "entry": "model.onnx", "runtime": {"kind": "onnx", "opsets": {"": 17}}}],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
        "golden": {"origin": "supplied", "tolerance": {"absolute": 1e-4, "relative": 1e-3, "top1": true},
            "samples": [{"inputs": ["golden/input_0.pb"], "outputs": ["golden/output_0.pb"]}]}
    });
    change(&mut value);
    value.to_string().into_bytes()
}

fn online() -> Online {
    Online { snapshot: key(4), timestamp: key(5) }
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await;
        let keys = RootKeys {
            root: (vec![key(1).key()], 1),
            targets: (vec![key(3).key()], 1),
            snapshot: key(4).key(),
            timestamp: key(5).key(),
        };
        let root = sign_next(None, Root::of(&keys), NOW - 100, YEAR, &[&key(1)]).unwrap();
        let mut targets = Targets::default();
        targets.delegate("meter", &[key(6).key()], 1, model_paths(&model()));
        let targets = sign_next(None, targets, NOW - 90, YEAR, &[&key(3)]).unwrap();
        let role = sign_next(None, Targets::default(), NOW - 80, YEAR, &[&key(6)]).unwrap();
        let upload = TrustUpload {
            root: Some(root.clone()),
            targets: Some(targets),
            roles: [("meter".to_owned(), role)].into(),
        };
        let change = Repository::default().propose(&upload, &online(), NOW).unwrap();
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("tuf")).unwrap();
        std::fs::write(state.path().join("tuf/root.json"), to_bytes(&root)).unwrap();
        let world = Self {
            server,
            state,
            repository: change.repository.clone(),
            role: Targets::default(),
            role_version: 1,
        };
        world.serve(&change.documents);
        world
    }

    fn serve(&self, documents: &[(String, Vec<u8>)]) {
        for (name, bytes) in documents {
            self.server.put(&format!("/tuf/{name}"), bytes);
        }
    }

    /// Signs and uploads what `change` does to the model's role.
    fn sign(&mut self, change: impl FnOnce(&mut Targets)) {
        change(&mut self.role);
        let role = sign_next(Some(self.role_version), self.role.clone(), NOW - 50, YEAR, &[&key(6)]).unwrap();
        self.role_version += 1;
        let upload = TrustUpload { roles: [("meter".to_owned(), role)].into(), ..TrustUpload::default() };
        let change = self.repository.propose(&upload, &online(), NOW).unwrap();
        self.repository = change.repository.clone();
        self.serve(&change.documents);
    }

    fn publish(&mut self, text: &str, change: impl FnOnce(&mut serde_json::Value)) -> Digest {
        let bytes = manifest(text, change);
        self.sign(|role| role.add_bundle(&model(), &version(text), &bytes));
        for blob in [model_file(text).as_slice(), b"i", b"o"] {
            self.server.put_blob(blob);
        }
        self.server.put_blob(&bytes)
    }

    fn slots(&self) -> Slots {
        Slots::open(self.state.path()).unwrap()
    }

    async fn fetch_at(&self, text: &str, digest: Digest, now: UnixSeconds) -> Done {
        fetch(FetchJob {
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
    world.refused("1.0.0", good, "trust.refused", "SHA-256").await;
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
    for (text, digest, words) in [("1.0.0", arch, "riscv64"), ("1.1.0", ram, "memory")] {
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
