//! A small repository that every test breaks in one way, and a device that walks it.

mod broken;
mod cases;
mod corpus;
mod delegation;
mod keys;
mod publish;
mod vectors;

use std::collections::BTreeMap;

use serde_json::Value;

use super::repository::{RootKeys, sign, to_bytes};
use super::schema::{FileMeta, Snapshot, Targets, Timestamp};
use super::*;
use crate::ModelName;

pub const NOW: i64 = 1_800_000_000;
pub const DAY: i64 = 86_400;
pub const MANIFEST: &str = "bundles/meter/1.0.0/bundle.json";

pub fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

pub fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

/// What the server serves, by name; and what a device stores.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A repository as values: change one, then [`World::serve`] it signed.
pub struct World {
    pub roots: Vec<Doc<Root>>,
    pub targets: Doc<Targets>,
    pub roles: BTreeMap<String, Doc<Targets>>,
    /// Version and expiry.
    pub snapshot: (u64, i64),
    pub timestamp: (u64, i64),
    /// Seeds: root keys of each root, then one for each role.
    pub root_keys: Vec<Vec<u8>>,
    pub targets_key: u8,
    pub role_keys: BTreeMap<String, u8>,
    pub snapshot_key: u8,
    pub timestamp_key: u8,
}

pub fn root_keys(root: &[u8], threshold: u32, targets: u8, snapshot: u8, timestamp: u8) -> RootKeys {
    RootKeys {
        root: (root.iter().map(|s| key(*s).key()).collect(), threshold),
        targets: (vec![key(targets).key()], 1),
        snapshot: key(snapshot).key(),
        timestamp: key(timestamp).key(),
    }
}

pub fn targets_with(paths: &[(&str, &[u8])]) -> Targets {
    let targets = paths.iter().map(|(path, bytes)| ((*path).to_owned(), TargetMeta::of(bytes, None)));
    Targets { targets: targets.collect(), ..Targets::default() }
}

impl World {
    /// Two root keys of which both must sign, one targets key, one delegated model with one bundle.
    pub fn new() -> Self {
        let root = Root::of(&root_keys(&[1, 2], 2, 3, 4, 5));
        let mut targets = Targets::default();
        targets.delegate("meter", &[key(6).key()], 1, repository::model_paths(&model("meter")));
        Self {
            roots: vec![Doc::new(1, Some(NOW - 10 * DAY), NOW + 365 * DAY, root)],
            targets: Doc::new(1, Some(NOW - 9 * DAY), NOW + 365 * DAY, targets),
            roles: BTreeMap::from([(
                "meter".to_owned(),
                Doc::new(1, Some(NOW - DAY), NOW + 90 * DAY, targets_with(&[(MANIFEST, b"manifest")])),
            )]),
            snapshot: (1, NOW + 7 * DAY),
            timestamp: (1, NOW + DAY),
            root_keys: vec![vec![1, 2]],
            targets_key: 3,
            role_keys: BTreeMap::from([("meter".to_owned(), 6)]),
            snapshot_key: 4,
            timestamp_key: 5,
        }
    }

    /// The next root: changed, signed by `keys` (old and new ones).
    pub fn rotate(&mut self, keys: &[u8], change: impl FnOnce(&mut Root)) {
        let mut next = self.roots.last().unwrap().clone();
        next.version += 1;
        change(&mut next.body);
        self.roots.push(next);
        self.root_keys.push(keys.to_vec());
    }

    /// Everything newer by one, as after an honest publication.
    pub fn publish(&mut self) {
        self.targets.version += 1;
        self.roles.values_mut().for_each(|doc| doc.version += 1);
        self.snapshot.0 += 1;
        self.timestamp.0 += 1;
    }

    pub fn serve(&self) -> Files {
        let mut files = Files::new();
        for (doc, keys) in self.roots.iter().zip(&self.root_keys) {
            files.insert(file_name("root", doc.version), signed(doc, keys));
        }
        let mut meta = BTreeMap::new();
        let targets = ("targets", &self.targets, self.targets_key);
        let roles = self.roles.iter().map(|(name, doc)| (name.as_str(), doc, self.role_keys[name]));
        for (name, doc, seed) in roles.chain([targets]) {
            let bytes = signed(doc, &[seed]);
            meta.insert(format!("{name}.json"), FileMeta::of(doc.version, &bytes));
            files.insert(file_name(name, doc.version), bytes);
        }
        let mut world = Online { world: self, files };
        world.snapshot(meta);
        world.files
    }
}

/// The server's part, redone by tests that alter what lies below it.
pub struct Online<'a> {
    pub world: &'a World,
    pub files: Files,
}

impl Online<'_> {
    pub fn snapshot(&mut self, meta: BTreeMap<String, FileMeta>) {
        let (version, expires) = self.world.snapshot;
        let doc = Doc::new(version, None, expires, Snapshot { meta, extra: BTreeMap::new() });
        let bytes = signed(&doc, &[self.world.snapshot_key]);
        let meta = BTreeMap::from([("snapshot.json".to_owned(), FileMeta::of(version, &bytes))]);
        self.files.insert(file_name("snapshot", version), bytes);
        let (version, expires) = self.world.timestamp;
        let doc = Doc::new(version, None, expires, Timestamp { meta, extra: BTreeMap::new() });
        self.files.insert("timestamp.json".into(), signed(&doc, &[self.world.timestamp_key]));
    }
}

pub fn signed<T: RoleType>(doc: &Doc<T>, seeds: &[u8]) -> Vec<u8> {
    let keys: Vec<KeyPair> = seeds.iter().map(|s| key(*s)).collect();
    let signers: Vec<&dyn Signer> = keys.iter().map(|k| k as &dyn Signer).collect();
    to_bytes(&sign(doc, &signers).unwrap())
}

/// Changes a served document without signing it again.
pub fn tamper(files: &mut Files, name: &str, change: impl FnOnce(&mut Value)) {
    let bytes = files.get_mut(name).unwrap_or_else(|| panic!("no {name}"));
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    change(&mut value);
    *bytes = serde_json::to_vec(&value).unwrap();
}

/// A device: its store, and what it fetched.
#[derive(Clone, Default)]
pub struct Device {
    pub stored: Files,
    pub fetched: Vec<String>,
}

impl Device {
    /// Enrolled with the first root.
    pub fn enrolled(files: &Files) -> Self {
        Self {
            stored: BTreeMap::from([("root.json".to_owned(), files["1.root.json"].clone())]),
            fetched: vec![],
        }
    }

    pub fn refresh(&mut self, files: &Files, now: i64) -> Result<Client, TrustError> {
        let mut client = Client::new(self.stored.clone(), now)?;
        self.pump(&mut client, files)?;
        Ok(client)
    }

    pub fn look(&mut self, files: &Files, now: i64, path: &str) -> Result<Step, TrustError> {
        let mut client = self.refresh(files, now)?;
        client.find(path)?;
        self.pump(&mut client, files)?;
        Ok(client.next())
    }

    pub fn pump(&mut self, client: &mut Client, files: &Files) -> Result<(), TrustError> {
        while let Step::Fetch(fetch) = client.next() {
            self.fetched.push(fetch.path.clone());
            let response = files.get(&fetch.path).map_or(Response::NotFound, |b| Response::Bytes(b));
            for change in client.supply(response)? {
                match change {
                    Store::Write { name, bytes } => self.stored.insert(name, bytes),
                    Store::Delete { name } => self.stored.remove(&name),
                };
            }
        }
        Ok(())
    }
}

/// The refusal of a look-up of the bundle by a device that trusts `stored`, which must not change what was trusted
/// of the refused role.
#[track_caller]
pub fn refused(device: &mut Device, files: &Files, now: i64) -> TrustError {
    match device.look(files, now, MANIFEST) {
        Ok(step) => panic!("accepted: {step:?}"),
        Err(error) => error,
    }
}
