//! How fast a fetched file is hashed while it is written, beside the machine's own `sha256sum`: `name value unit`.
//!
//! The agent's path is the one of a fetch: chunks of 16 KiB (what a TLS record carries) through
//! [`FileWriter`](plimsoll_agent::slots::FileWriter), which hashes and writes, then flushes and renames. `sha256sum`
//! and `dd conv=fsync` read and write the same bytes on the same file system, so that the two parts can be told
//! apart. Every figure is the best of three: the least disturbed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use plimsoll_agent::slots::Slots;
use plimsoll_protocol::api::TrustUpload;
use plimsoll_protocol::bundle::{Manifest, target_path};
use plimsoll_protocol::trust::repository::{
    OFFLINE_LIFETIME_S, Online, ROLE_LIFETIME_S, Repository, RootKeys, model_paths, sign_next,
};
use plimsoll_protocol::trust::{
    Client, KeyPair, Response, Root, Signer, Step, Targets, TrustedDocs, Verified,
};
use plimsoll_protocol::{Digest, ModelName};

const NOW: i64 = 1_800_000_000;
/// Larger than a model of these devices, small enough for the page cache: the disk's reading is not measured.
const BYTES: usize = 256 * 1024 * 1024;
/// What one TLS record carries.
const CHUNK: usize = 16 * 1024;
const ROUNDS: u32 = 3;

fn main() {
    // Neither all zeros nor compressible, in case the file system looks.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(BYTES)
    .collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plain = folder.path().join("plain");
    std::fs::write(&plain, &content).expect("room for 256 MiB");

    report("hash_only.agent", || {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        content.chunks(CHUNK).for_each(|chunk| hash.update(chunk));
        assert!(!hash.finish().as_ref().is_empty());
    });
    report("hash_only.sha256sum", || run(Command::new("sha256sum").arg(&plain)));
    let manifest = manifest(&content);
    report("hash_write_flush.agent", || stage(&manifest, &content));
    report("write_flush.dd", || {
        let to = format!("of={}", folder.path().join("copy").display());
        run(Command::new("dd").arg(format!("if={}", plain.display())).arg(to).args([
            "bs=16K",
            "conv=fsync",
            "status=none",
        ]));
    });
}

fn report(name: &str, mut work: impl FnMut()) {
    let best = (0..ROUNDS).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    });
    println!("{name} {:.0} MB/s", BYTES as f64 / 1e6 / best.fold(f64::INFINITY, f64::min));
}

fn run(command: &mut Command) {
    assert!(command.stdout(Stdio::null()).status().is_ok_and(|s| s.success()), "{command:?}");
}

/// One fetch of the file into an empty state folder.
fn stage(manifest: &(Verified<Manifest>, Vec<u8>), content: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let slots = Slots::open(Path::new(folder.path())).expect("an empty state folder");
    let staging = slots.stage(&manifest.0, &manifest.1).expect("a sound manifest");
    let entry = staging.missing().remove(0);
    let mut file = staging.file(&entry).expect("room");
    content.chunks(CHUNK).for_each(|chunk| file.write(chunk).expect("room"));
    file.finish().expect("the digest of the manifest");
}

/// A signed manifest of one big file: a proof that only a whole trust repository can give.
fn manifest(content: &[u8]) -> (Verified<Manifest>, Vec<u8>) {
    let text = format!(
        r#"{{"format":1,"model":"big","version":"1.0.0","created":"2026-01-01T00:00:00Z",
            "files":[{{"path":"model.plan","size":{BYTES},"sha256":"{}"}}],
            "variants":[{{"name":"default","entry":"model.plan","runtime":{{"kind":"external","engine":"none"}}}}],
            "inputs":[{{"name":"x","datatype":"FP32","shape":[-1,2]}}],
            "outputs":[{{"name":"y","datatype":"FP32","shape":[-1,1]}}],
            "golden":{{"origin":"supplied","tolerance":{{"absolute":0.1,"relative":0.1}},"samples":[]}}}}"#,
        Digest::of(content)
    );
    let bytes = text.into_bytes();
    let key = |seed| KeyPair::from_seed(&[seed; 32]);
    let (online, root_key, release) = (Online { snapshot: key(1), timestamp: key(2) }, key(3), key(4));
    let root = Root::of(&RootKeys {
        root: (vec![root_key.key()], 1),
        targets: (vec![root_key.key()], 1),
        snapshot: online.snapshot.key(),
        timestamp: online.timestamp.key(),
    });
    let model = ModelName::new("big").expect("a name");
    let version = semver::Version::new(1, 0, 0);
    let (mut targets, mut role) = (Targets::default(), Targets::default());
    targets.delegate(model.as_str(), &[release.key()], 1, model_paths(&model));
    role.add_bundle(&model, &version, &bytes);
    let by = |key| [key as &dyn Signer];
    let upload = TrustUpload {
        root: Some(sign_next(None, root, NOW, OFFLINE_LIFETIME_S, &by(&root_key)).expect("signs")),
        targets: Some(sign_next(None, targets, NOW, OFFLINE_LIFETIME_S, &by(&root_key)).expect("signs")),
        roles: BTreeMap::from([(
            model.to_string(),
            sign_next(None, role, NOW, ROLE_LIFETIME_S, &by(&release)).expect("signs"),
        )]),
    };
    let repository = Repository::default().propose(&upload, &online, NOW).expect("sound").repository;
    let trusted =
        TrustedDocs::from([("root.json".to_owned(), repository.root().unwrap_or_default().to_vec())]);
    let mut client = Client::new(trusted, NOW).expect("sound");
    loop {
        match client.next() {
            Step::Fetch(fetch) => {
                let response = repository.document(&fetch.path).map_or(Response::NotFound, Response::Bytes);
                client.supply(response).expect("sound");
            }
            Step::Refreshed => client.find(&target_path(&model, &version)).expect("sound"),
            Step::Found(target) => {
                let target = target.by_sha256().expect("sound");
                return (target.admit_manifest(&bytes).expect("sound"), bytes);
            }
            Step::NotListed { path } => panic!("{path} is not listed"),
        }
    }
}
