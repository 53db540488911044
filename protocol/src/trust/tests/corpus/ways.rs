//! The ways. Each starts from a sound repository and breaks one thing; where a broken part is covered by digests
//! above it, those are made to fit, so that the refusal is of the broken part.

use serde_json::json;

use super::super::*;
use super::{Offer, SOUND};
use crate::trust::canonical;

type Way = (&'static str, fn() -> Offer);

/// Seeds of the sound repository's keys.
const ROOT: &[u8] = &[1, 2];
const TARGETS: &[u8] = &[3];
const SNAPSHOT: &[u8] = &[4];
const TIMESTAMP: &[u8] = &[5];
const METER: &[u8] = &[6];

/// All of them, with what they make.
pub fn all() -> impl Iterator<Item = (&'static str, Offer)> {
    [ROOTS, TIMESTAMPS, SNAPSHOTS, TARGETS_WAYS, ROLES]
        .concat()
        .into_iter()
        .map(|(name, make)| (name, make()))
}

const ROOTS: &[Way] = &[
    (SOUND, || fresh(|_| ())),
    ("root-is-not-json", || root_bytes(b"{\"signed\":".to_vec())),
    ("root-with-a-fraction", || root(ROOT, |v| v["x-note"] = json!(1.5), "1.root.json")),
    ("root-of-another-type", || root(ROOT, |v| v["_type"] = json!("targets"), "1.root.json")),
    ("root-of-tuf-2", || root(ROOT, |v| v["spec_version"] = json!("2.0.0"), "1.root.json")),
    ("root-version-zero", || root(ROOT, |v| v["version"] = json!(0), "1.root.json")),
    ("root-without-timestamp-role", || {
        root(ROOT, |v| drop(v["roles"].as_object_mut().unwrap().remove("timestamp")), "1.root.json")
    }),
    ("root-with-threshold-zero", || {
        root(ROOT, |v| v["roles"]["targets"]["threshold"] = json!(0), "1.root.json")
    }),
    ("root-lists-a-key-id-twice", || {
        root(
            ROOT,
            |v| v["roles"]["root"]["keyids"][1] = v["roles"]["root"]["keyids"][0].clone(),
            "1.root.json",
        )
    }),
    ("root-unsigned", || root(&[], |_| (), "1.root.json")),
    ("root-below-threshold", || root(&[1], |_| (), "1.root.json")),
    ("root-signed-twice-by-one-key", || root(&[1, 1], |_| (), "1.root.json")),
    ("root-with-one-key-under-two-ids", one_key_under_two_ids),
    ("root-expired", || fresh(|w| w.roots[0].expires = NOW)),
    ("next-root-skips-a-version", || next_root(&[1, 2], |w| w.roots[1].version = 3)),
    ("next-root-repeats-the-version", || next_root(&[1, 2], |w| w.roots[1].version = 1)),
    ("next-root-without-the-old-keys", || {
        next_root(&[11, 12], |w| w.roots[1].body.set("root", &[key(11).key(), key(12).key()], 2))
    }),
    ("next-root-without-its-own-keys", || {
        next_root(&[1, 2], |w| w.roots[1].body.set("root", &[key(11).key(), key(12).key()], 2))
    }),
    ("next-root-one-signature-short", || next_root(&[1], |_| ())),
    ("next-root-expired", || next_root(&[1, 2], |w| w.roots[1].expires = NOW)),
    ("next-root-in-capitals", || {
        let mut offer = next_root(&[1, 2], |_| ());
        tamper(&mut offer.served, "2.root.json", |v| {
            for one in v["signatures"].as_array_mut().unwrap() {
                one["sig"] = one["sig"].as_str().unwrap().to_uppercase().into();
            }
        });
        offer
    }),
];

const TIMESTAMPS: &[Way] = &[
    ("timestamp-missing", || without("timestamp.json")),
    ("timestamp-cut-short", || bytes("timestamp.json", |b| b.truncate(b.len() / 2))),
    ("timestamp-oversized", || bytes("timestamp.json", |b| b.resize(16 * 1024 + 1, b' '))),
    ("timestamp-changed", || changed("timestamp.json", |v| v["signed"]["version"] = json!(7))),
    ("timestamp-with-a-false-signature", || {
        changed("timestamp.json", |v| v["signatures"][0]["sig"] = json!("00".repeat(64)))
    }),
    ("timestamp-by-another-key", || fresh(|w| w.timestamp_key = 99)),
    ("timestamp-by-the-snapshot-key", || fresh(|w| w.timestamp_key = 4)),
    ("timestamp-expired", || fresh(|w| w.timestamp.1 = NOW)),
    ("timestamp-is-a-snapshot", || {
        let mut world = World::new();
        world.rotate(ROOT, |root| root.set("timestamp", &[key(4).key()], 1));
        world.timestamp_key = 4;
        let mut offer = offered(&world);
        offer.served.insert("timestamp.json".into(), offer.served["1.snapshot.json"].clone());
        offer
    }),
    ("timestamp-without-a-snapshot", || signed_again("timestamp.json", TIMESTAMP, |v| v["meta"] = json!({}))),
    ("timestamp-names-an-endless-snapshot", || {
        signed_again("timestamp.json", TIMESTAMP, |v| v["meta"]["snapshot.json"]["length"] = json!(u64::MAX))
    }),
    ("timestamp-rolled-back", || known(|w| w.timestamp.0 = 1)),
    ("timestamp-with-a-rolled-back-snapshot", || known(|w| (w.timestamp.0, w.snapshot.0) = (3, 1))),
];

const SNAPSHOTS: &[Way] = &[
    ("snapshot-missing", || without("1.snapshot.json")),
    ("snapshot-by-another-key", || fresh(|w| w.snapshot_key = 99)),
    ("snapshot-by-the-targets-key", || fresh(|w| w.snapshot_key = 3)),
    ("snapshot-of-an-older-state", || older("snapshot")),
    ("snapshot-of-another-length", || bytes("1.snapshot.json", |b| b.push(b' '))),
    ("snapshot-of-another-version", || {
        signed_again("timestamp.json", TIMESTAMP, |v| v["meta"]["snapshot.json"] = json!({"version": 2}))
            .renamed("1.snapshot.json", "2.snapshot.json")
    }),
    ("snapshot-expired", || fresh(|w| w.snapshot.1 = NOW)),
    ("snapshot-without-targets", || {
        resealed(|v| drop(v["meta"].as_object_mut().unwrap().remove("targets.json")))
    }),
    ("snapshot-drops-a-role", || {
        known(|w| {
            (w.timestamp.0, w.snapshot.0) = (3, 3);
            w.roles.clear();
        })
    }),
    ("snapshot-with-rolled-back-targets", || {
        known(|w| (w.timestamp.0, w.snapshot.0, w.targets.version) = (3, 3, 1))
    }),
    ("snapshot-with-a-rolled-back-role", || {
        known(|w| {
            (w.timestamp.0, w.snapshot.0) = (3, 3);
            w.roles.get_mut("meter").unwrap().version = 1;
        })
    }),
    ("snapshot-with-digests-of-no-known-kind", || {
        resealed(|v| v["meta"]["targets.json"]["hashes"] = json!({"md5": "00"}))
    }),
    ("snapshot-names-an-endless-role", || resealed(|v| v["meta"]["meter.json"]["length"] = json!(u64::MAX))),
];

const TARGETS_WAYS: &[Way] = &[
    ("targets-missing", || without("1.targets.json")),
    ("targets-by-another-key", || fresh(|w| w.targets_key = 99)),
    ("targets-of-an-older-state", || older("targets")),
    ("targets-of-another-length", || resealed(|v| v["meta"]["targets.json"]["length"] = json!(1))),
    ("targets-of-another-digest", || {
        resealed(|v| v["meta"]["targets.json"]["hashes"]["sha256"] = json!("00".repeat(32)))
    }),
    ("targets-of-another-version", || {
        resealed(|v| v["meta"]["targets.json"] = json!({"version": 2}))
            .renamed("1.targets.json", "2.targets.json")
    }),
    ("targets-expired", || fresh(|w| w.targets.expires = NOW)),
    ("targets-delegate-a-role-twice", || {
        delegations(|d| {
            let first = d["roles"][0].clone();
            d["roles"].as_array_mut().unwrap().push(first);
        })
    }),
    ("targets-delegate-the-root", || delegations(|d| d["roles"][0]["name"] = json!("root"))),
    ("targets-delegate-with-threshold-zero", || delegations(|d| d["roles"][0]["threshold"] = json!(0))),
    ("targets-delegate-by-paths-and-by-digests", || {
        delegations(|d| d["roles"][0]["path_hash_prefixes"] = json!(["0"]))
    }),
    ("targets-delegate-to-a-key-of-unknown-kind", || {
        delegations(|d| {
            for key in d["keys"].as_object_mut().unwrap().values_mut() {
                key["scheme"] = json!("ed448");
            }
        })
    }),
    ("targets-delegate-to-a-key-that-is-none", || {
        delegations(|d| {
            for key in d["keys"].as_object_mut().unwrap().values_mut() {
                key["keyval"]["public"] = json!("zz");
            }
        })
    }),
];

const ROLES: &[Way] = &[
    ("role-missing", || without("1.meter.json")),
    ("role-not-in-the-snapshot", || {
        resealed(|v| drop(v["meta"].as_object_mut().unwrap().remove("meter.json")))
    }),
    ("role-by-another-key", || fresh(|w| _ = w.role_keys.insert("meter".into(), 99))),
    ("role-by-the-targets-key", || fresh(|w| _ = w.role_keys.insert("meter".into(), 3))),
    ("role-of-an-older-state", || older("meter")),
    ("role-of-another-digest", || {
        resealed(|v| v["meta"]["meter.json"]["hashes"]["sha256"] = json!("00".repeat(32)))
    }),
    ("role-of-another-version", || {
        resealed(|v| v["meta"]["meter.json"] = json!({"version": 2})).renamed("1.meter.json", "2.meter.json")
    }),
    ("role-expired", || fresh(|w| w.roles.get_mut("meter").unwrap().expires = NOW)),
    ("role-lists-no-sha256", || {
        let mut offer = fresh(|_| ());
        sign_again(&mut offer.served, "1.meter.json", METER, |v| {
            v["targets"][MANIFEST]["hashes"] = json!({"sha512": "00".repeat(64)});
        });
        reseal(&mut offer.served, |_| ());
        offer
    }),
    ("delegations-without-an-end", || {
        fresh(|w| {
            w.targets.body.delegations = None;
            w.targets.body.delegate("d0", &[key(100).key()], 1, vec!["bundles/*/*/*".into()]);
            for i in 0..12_u8 {
                let mut body = Targets::default();
                let next = key(101 + i).key();
                body.delegate(&format!("d{}", i + 1), &[next], 1, vec!["bundles/*/*/*".into()]);
                w.roles.insert(format!("d{i}"), Doc::new(1, None, NOW + DAY, body));
                w.role_keys.insert(format!("d{i}"), 100 + i);
            }
        })
    }),
    ("delegations-without-number", || {
        fresh(|w| {
            w.targets.body.delegations = None;
            for i in 0..40_u8 {
                let name = format!("w{i}");
                w.targets.body.delegate(&name, &[key(100).key()], 1, vec!["bundles/*/*/*".into()]);
                let roles = &mut w.targets.body.delegations.as_mut().unwrap().roles;
                roles.last_mut().unwrap().terminating = false;
                w.roles.insert(name.clone(), Doc::new(1, None, NOW + DAY, Targets::default()));
                w.role_keys.insert(name, 100);
            }
        })
    }),
];

impl Offer {
    /// A document under another name.
    fn renamed(mut self, from: &str, to: &str) -> Self {
        let bytes = self.served.remove(from).unwrap();
        self.served.insert(to.to_owned(), bytes);
        self
    }
}

/// To a device that was enrolled with the first root.
fn offered(world: &World) -> Offer {
    let served = world.serve();
    let stored = Files::from([("root.json".to_owned(), served["1.root.json"].clone())]);
    Offer { stored, served }
}

/// The sound repository with another value, all of it signed.
fn fresh(change: impl FnOnce(&mut World)) -> Offer {
    let mut world = World::new();
    change(&mut world);
    offered(&world)
}

/// The same to a device that trusts version 2 of everything.
fn known(change: impl FnOnce(&mut World)) -> Offer {
    let mut world = World::new();
    world.publish();
    let mut device = Device::enrolled(&world.serve());
    device.look(&world.serve(), NOW, MANIFEST).unwrap();
    change(&mut world);
    Offer { stored: device.stored, served: world.serve() }
}

/// A root after the first, signed by `keys`.
fn next_root(keys: &[u8], change: impl FnOnce(&mut World)) -> Offer {
    let mut world = World::new();
    world.rotate(keys, |_| ());
    change(&mut world);
    let version = world.roots[1].version;
    let served = world.serve();
    let next = served[&file_name("root", version)].clone();
    let mut offer = fresh(|_| ());
    offer.served.insert("2.root.json".into(), next);
    offer
}

/// The root that a device starts from, changed and signed by `keys`.
fn root(keys: &[u8], change: impl FnOnce(&mut Value), name: &str) -> Offer {
    let mut offer = fresh(|_| ());
    sign_again(&mut offer.served, name, keys, change);
    root_bytes(offer.served[name].clone())
}

fn root_bytes(bytes: Vec<u8>) -> Offer {
    let mut offer = fresh(|_| ());
    offer.served.insert("1.root.json".into(), bytes.clone());
    offer.stored.insert("root.json".into(), bytes);
    offer
}

fn one_key_under_two_ids() -> Offer {
    let mut capitals = key(1).key();
    capitals.keyval.insert("public".into(), key(1).public_hex().to_uppercase().into());
    let mut offer = fresh(|_| ());
    sign_again(&mut offer.served, "1.root.json", &[1], |v| {
        v["keys"][capitals.id().to_string()] = serde_json::to_value(&capitals).unwrap();
        v["roles"]["root"]["keyids"] = json!([key(1).id(), capitals.id()]);
    });
    tamper(&mut offer.served, "1.root.json", |v| {
        let signature = v["signatures"][0]["sig"].clone();
        v["signatures"].as_array_mut().unwrap().push(json!({"keyid": capitals.id(), "sig": signature}));
    });
    root_bytes(offer.served["1.root.json"].clone())
}

fn without(name: &str) -> Offer {
    let mut offer = fresh(|_| ());
    offer.served.remove(name).unwrap();
    offer
}

fn bytes(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Offer {
    let mut offer = fresh(|_| ());
    change(offer.served.get_mut(name).unwrap());
    offer
}

/// Changed, not signed again.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Offer {
    let mut offer = fresh(|_| ());
    tamper(&mut offer.served, name, change);
    offer
}

fn signed_again(name: &str, keys: &[u8], change: impl FnOnce(&mut Value)) -> Offer {
    let mut offer = fresh(|_| ());
    sign_again(&mut offer.served, name, keys, change);
    offer
}

/// The document of version 1 where version 2 is current.
fn older(role: &str) -> Offer {
    let old = World::new().serve();
    let mut offer = fresh(World::publish);
    offer.served.insert(file_name(role, 2), old[&file_name(role, 1)].clone());
    offer
}

/// The snapshot changed and signed again, and a timestamp that names it.
fn resealed(change: impl FnOnce(&mut Value)) -> Offer {
    let mut offer = fresh(|_| ());
    reseal(&mut offer.served, change);
    offer
}

/// The top-level delegations changed, and everything above them made to fit.
fn delegations(change: impl FnOnce(&mut Value)) -> Offer {
    let mut offer = fresh(|_| ());
    sign_again(&mut offer.served, "1.targets.json", TARGETS, |v| change(&mut v["delegations"]));
    reseal(&mut offer.served, |_| ());
    offer
}

/// Signs a changed document with keys that nobody asks whether it makes sense.
fn sign_again(files: &mut Files, name: &str, keys: &[u8], change: impl FnOnce(&mut Value)) {
    tamper(files, name, |v| {
        change(&mut v["signed"]);
        let message = canonical(&v["signed"]).unwrap_or_default();
        let sign = |seed: &u8| json!({"keyid": key(*seed).id(), "sig": hex::encode(key(*seed).sign(&message).unwrap())});
        v["signatures"] = keys.iter().map(sign).collect();
    });
}

/// Snapshot and timestamp for the documents as they are, and `change` to the snapshot.
fn reseal(files: &mut Files, change: impl FnOnce(&mut Value)) {
    let documents: Vec<(&str, Value)> = ["targets", "meter"]
        .map(|role| (role, serde_json::to_value(FileMeta::of(1, &files[&file_name(role, 1)])).unwrap()))
        .into();
    sign_again(files, "1.snapshot.json", SNAPSHOT, |v| {
        for (role, meta) in documents {
            v["meta"][format!("{role}.json")] = meta;
        }
        change(v);
    });
    let meta = FileMeta::of(1, &files["1.snapshot.json"]);
    sign_again(files, "timestamp.json", TIMESTAMP, |v| {
        v["meta"]["snapshot.json"] = serde_json::to_value(&meta).unwrap();
    });
}
