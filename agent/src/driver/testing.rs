//! A fleet's server with signed bundles, and a device's state folder that trusts its root.

use plimsoll_protocol::api::TrustUpload;
use plimsoll_protocol::trust::repository::{Online, Repository, RootKeys, model_paths, sign_next, to_bytes};
use plimsoll_protocol::trust::{KeyPair, Root, Signer, Targets};
use plimsoll_protocol::{Digest, ModelName, UnixSeconds};
use serde_json::json;

use crate::fetch::testing::Server;
use crate::slots::Slots;

/// When everything is signed.
pub const NOW: UnixSeconds = 1_800_000_000;
const YEAR: i64 = 365 * 86_400;

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

pub fn model() -> ModelName {
    ModelName::new("meter").unwrap()
}

pub fn version(text: &str) -> semver::Version {
    text.parse().unwrap()
}

/// A fleet's server with a signed bundle, and a device that trusts its root.
pub struct World {
    pub server: Server,
    pub state: tempfile::TempDir,
    repository: Repository,
    role: Targets,
    role_version: u64,
}

pub fn model_file(version: &str) -> Vec<u8> {
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
    pub async fn new() -> Self {
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
    pub fn sign(&mut self, change: impl FnOnce(&mut Targets)) {
        change(&mut self.role);
        let role = sign_next(Some(self.role_version), self.role.clone(), NOW - 50, YEAR, &[&key(6)]).unwrap();
        self.role_version += 1;
        let upload = TrustUpload { roles: [("meter".to_owned(), role)].into(), ..TrustUpload::default() };
        let change = self.repository.propose(&upload, &online(), NOW).unwrap();
        self.repository = change.repository.clone();
        self.serve(&change.documents);
    }

    pub fn publish(&mut self, text: &str, change: impl FnOnce(&mut serde_json::Value)) -> Digest {
        let bytes = manifest(text, change);
        self.sign(|role| role.add_bundle(&model(), &version(text), &bytes));
        for blob in [model_file(text).as_slice(), b"i", b"o"] {
            self.server.put_blob(blob);
        }
        self.server.put_blob(&bytes)
    }

    pub fn slots(&self) -> Slots {
        Slots::open(self.state.path()).unwrap()
    }
}
