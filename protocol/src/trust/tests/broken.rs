//! Each way to break a repository, and the exact refusal. Nothing that was refused may have been stored.

use proptest::prelude::*;

use super::*;

type Change = fn(&mut World);

/// A device that knows version 2 of everything; the world is then broken and offered.
fn known() -> (World, Device) {
    let mut world = World::new();
    world.publish();
    let files = world.serve();
    let mut device = Device::enrolled(&files);
    device.look(&files, NOW, MANIFEST).unwrap();
    (world, device)
}

#[test]
fn each_expired_document_is_refused_as_expired_and_by_name() {
    let cases: [(&str, Change); 5] = [
        ("root", |w| w.roots[0].expires = NOW),
        ("timestamp", |w| w.timestamp.1 = NOW),
        ("snapshot", |w| w.snapshot.1 = NOW),
        ("targets", |w| w.targets.expires = NOW),
        ("meter", |w| w.roles.get_mut("meter").unwrap().expires = NOW),
    ];
    for (name, expire) in cases {
        let mut world = World::new();
        expire(&mut world);
        let files = world.serve();
        let mut device = Device::enrolled(&files);
        let error = refused(&mut device, &files, NOW);
        assert!(error.is_expired(), "{name}: {error}");
        assert!(matches!(&error, TrustError::Expired { role, .. } if role == name), "{name}: {error}");
        assert!(name == "root" || !device.stored.contains_key(&role_file(name)), "{name} was stored");
        // A second earlier it was good.
        assert!(
            matches!(Device::enrolled(&files).look(&files, NOW - 1, MANIFEST), Ok(Step::Found(_))),
            "{name}"
        );
    }
}

#[test]
fn trusted_documents_that_expire_block_and_stay_floors() {
    let (mut world, mut device) = known();
    let later = NOW + 2 * DAY; // past the timestamp
    assert!(refused(&mut device, &world.serve(), later).is_expired());
    (world.timestamp, world.snapshot) = ((1, later + DAY), (1, later + DAY));
    let error = refused(&mut device, &world.serve(), later);
    assert!(matches!(error, TrustError::Rollback { got: 1, trusted: 2, .. }), "{error}");
}

#[test]
fn a_root_that_skips_or_repeats_a_version_is_refused() {
    for version in [1, 3, u64::MAX] {
        let mut world = World::new();
        world.rotate(&[1, 2], |_| ());
        world.roots[1].version = version;
        let mut files = world.serve();
        let bytes = files[&file_name("root", version)].clone();
        files.insert("1.root.json".into(), World::new().serve()["1.root.json"].clone());
        files.insert("2.root.json".into(), bytes);
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(matches!(&error, TrustError::Version { role, expected: 2, .. } if role == "root"), "{error}");
    }
}

#[test]
fn a_root_must_be_signed_by_the_old_keys_and_by_its_own() {
    // Signed by its own keys only.
    let mut world = World::new();
    world.rotate(&[11, 12], |root| root.set("root", &[key(11).key(), key(12).key()], 2));
    let error = refused(&mut Device::enrolled(&world.serve()), &world.serve(), NOW);
    let TrustError::Signatures { role, version, delegator, valid, .. } = &error else { panic!("{error}") };
    assert_eq!((role.as_str(), *version, delegator.as_str(), *valid), ("root", 2, "root 1", 0));
    // Signed by the old keys only.
    let mut world = World::new();
    world.rotate(&[1, 2], |root| root.set("root", &[key(11).key(), key(12).key()], 2));
    let error = refused(&mut Device::enrolled(&world.serve()), &world.serve(), NOW);
    assert!(matches!(&error, TrustError::Signatures { delegator, .. } if delegator == "root 2"), "{error}");
}

#[test]
fn an_endless_chain_of_roots_ends() {
    let mut world = World::new();
    let first = world.serve();
    let mut client = Client::new(Device::enrolled(&first).stored, NOW).unwrap();
    let error = loop {
        world.roots[0].version += 1;
        if let Err(error) = client.supply(Response::Bytes(&signed(&world.roots[0], &[1, 2]))) {
            break error;
        }
    };
    assert!(matches!(error, TrustError::Endless { max: 1024, .. }), "{error}");
    assert_eq!(client.root_version(), 1025);
}

#[test]
fn an_unknown_key_is_refused_for_every_role() {
    let cases: [(&str, Change); 4] = [
        ("timestamp", |w| w.timestamp_key = 99),
        ("snapshot", |w| w.snapshot_key = 99),
        ("targets", |w| w.targets_key = 99),
        ("meter", |w| _ = w.role_keys.insert("meter".into(), 99)),
    ];
    for (name, steal) in cases {
        let mut world = World::new();
        steal(&mut world);
        let error = refused(&mut Device::enrolled(&world.serve()), &world.serve(), NOW);
        assert!(matches!(&error, TrustError::Signatures { role, valid: 0, .. } if role == name), "{error}");
    }
}

#[test]
fn a_key_of_one_role_does_not_sign_for_another() {
    let mut world = World::new();
    (world.targets_key, world.snapshot_key) = (4, 3);
    let error = refused(&mut Device::enrolled(&world.serve()), &world.serve(), NOW);
    assert!(matches!(&error, TrustError::Signatures { role, .. } if role == "snapshot"), "{error}");
}

#[test]
fn a_document_of_one_kind_does_not_pass_for_another() {
    // Snapshot and timestamp look alike; give them one key and swap them.
    let mut world = World::new();
    world.rotate(&[1, 2], |root| root.set("timestamp", &[key(4).key()], 1));
    world.timestamp_key = 4;
    let mut files = world.serve();
    let snapshot = files["1.snapshot.json"].clone();
    files.insert("timestamp.json".into(), snapshot);
    let error = refused(&mut Device::enrolled(&files), &files, NOW);
    assert!(matches!(&error, TrustError::Parse { role, .. } if role == "timestamp"), "{error}");
}

#[test]
fn a_changed_signature_or_content_is_refused() {
    let mut files = World::new().serve();
    tamper(&mut files, "timestamp.json", |v| v["signed"]["version"] = 7.into());
    assert!(matches!(refused(&mut Device::enrolled(&files), &files, NOW), TrustError::Signatures { .. }));
    let mut files = World::new().serve();
    tamper(&mut files, "timestamp.json", |v| v["signatures"][0]["sig"] = "00".repeat(64).into());
    assert!(matches!(refused(&mut Device::enrolled(&files), &files, NOW), TrustError::Signatures { .. }));
}

#[test]
fn each_rollback_is_refused_and_the_store_keeps_the_newer() {
    // The timestamp itself.
    let (mut world, mut device) = known();
    world.timestamp.0 = 1;
    let before = device.stored.clone();
    let error = refused(&mut device, &world.serve(), NOW);
    assert!(
        matches!(&error, TrustError::Rollback { role, got: 1, trusted: 2, .. } if role == "timestamp"),
        "{error}"
    );
    assert_eq!(device.stored, before);
    // A newer timestamp with an older snapshot.
    let (mut world, mut device) = known();
    (world.timestamp.0, world.snapshot.0) = (3, 1);
    let before = device.stored.clone();
    let error = refused(&mut device, &world.serve(), NOW);
    assert!(
        matches!(&error, TrustError::Rollback { role, got: 1, trusted: 2, .. } if role == "snapshot"),
        "{error}"
    );
    assert_eq!(device.stored, before);
    // Newer timestamp and snapshot with an older role.
    for name in ["targets", "meter"] {
        let (mut world, mut device) = known();
        (world.timestamp.0, world.snapshot.0) = (3, 3);
        let doc = if name == "targets" { &mut world.targets } else { world.roles.get_mut(name).unwrap() };
        doc.version = 1;
        let snapshot = device.stored["snapshot.json"].clone();
        let error = refused(&mut device, &world.serve(), NOW);
        assert!(
            matches!(&error, TrustError::Rollback { role, got: 1, trusted: 2, .. } if role == name),
            "{error}"
        );
        assert_eq!(device.stored["snapshot.json"], snapshot);
    }
}

#[test]
fn a_snapshot_that_drops_a_role_is_refused() {
    let (mut world, mut device) = known();
    (world.timestamp.0, world.snapshot.0) = (3, 3);
    world.roles.clear();
    let error = refused(&mut device, &world.serve(), NOW);
    assert!(matches!(&error, TrustError::Dropped { role, version: 3 } if role == "meter"), "{error}");
}

#[test]
fn old_and_new_documents_do_not_mix() {
    let old = World::new().serve();
    let mut world = World::new();
    world.publish();
    // Every document of version 1 is offered in the place of version 2.
    for name in ["snapshot", "targets", "meter"] {
        let mut files = world.serve();
        files.insert(file_name(name, 2), old[&file_name(name, 1)].clone());
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(matches!(&error, TrustError::DigestMismatch { role, .. } if role == name), "{name}: {error}");
    }
}

/// Signs a snapshot whose entry for one role is changed.
fn with_meta(world: &World, role: &str, change: impl FnOnce(&mut FileMeta)) -> Files {
    let files = world.serve();
    let snapshot: Value = serde_json::from_slice(&files[&file_name("snapshot", world.snapshot.0)]).unwrap();
    let mut meta: BTreeMap<String, FileMeta> =
        serde_json::from_value(snapshot["signed"]["meta"].clone()).unwrap();
    change(meta.get_mut(&role_file(role)).unwrap());
    let mut online = Online { world, files };
    online.snapshot(meta);
    online.files
}

#[test]
fn the_snapshot_binds_version_length_and_digest_of_each_role() {
    let world = World::new();
    for name in ["targets", "meter"] {
        let mut files = with_meta(&world, name, |m| m.version = 2);
        files.insert(file_name(name, 2), files[&file_name(name, 1)].clone());
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(
            matches!(&error, TrustError::Version { role, got: 1, expected: 2, .. } if role == name),
            "{error}"
        );

        let files = with_meta(&world, name, |m| m.length = m.length.map(|l| l + 1));
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(matches!(&error, TrustError::LengthMismatch { role, .. } if role == name), "{error}");

        let files = with_meta(&world, name, |m| {
            m.hashes = Some(BTreeMap::from([("sha256".into(), "00".repeat(32))]));
        });
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(matches!(&error, TrustError::DigestMismatch { role, .. } if role == name), "{error}");

        // Digests of kinds that nobody can check are no digests.
        let files =
            with_meta(&world, name, |m| m.hashes = Some(BTreeMap::from([("md5".into(), "00".into())])));
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(matches!(&error, TrustError::DigestMismatch { role, .. } if role == name), "{error}");
    }
}

#[test]
fn an_oversized_document_is_refused_before_it_is_parsed() {
    let files = World::new().serve();
    let mut client = Client::new(Device::enrolled(&files).stored, NOW).unwrap();
    let big = vec![b' '; 1024 * 1024 + 1];
    let error = client.supply(Response::Bytes(&big)).unwrap_err();
    assert!(matches!(&error, TrustError::TooBig { role, max: 1_048_576, .. } if role == "root"), "{error}");
    client.supply(Response::NotFound).unwrap();
    let error = client.supply(Response::Bytes(&big[..16 * 1024 + 1])).unwrap_err();
    assert!(matches!(&error, TrustError::TooBig { role, max: 16_384, .. } if role == "timestamp"), "{error}");
    // A length that no role may have is refused where it is named.
    let files = with_meta(&World::new(), "meter", |m| m.length = Some(u64::MAX));
    let error = refused(&mut Device::enrolled(&files), &files, NOW);
    assert!(matches!(&error, TrustError::TooBig { role, .. } if role == "meter"), "{error}");
}

#[test]
fn a_document_that_is_missing_is_named() {
    for name in ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.meter.json"] {
        let mut files = World::new().serve();
        files.remove(name);
        let error = refused(&mut Device::enrolled(&files), &files, NOW);
        assert!(matches!(&error, TrustError::Missing { path, .. } if path == name), "{error}");
    }
}

#[test]
fn a_refusal_changes_nothing_and_the_good_document_is_still_taken() {
    let (good, mut bad) = (World::new().serve(), World::new().serve());
    tamper(&mut bad, "timestamp.json", |v| v["signed"]["version"] = 9.into());
    let mut device = Device::enrolled(&good);
    let mut client = Client::new(device.stored.clone(), NOW).unwrap();
    assert!(device.pump(&mut client, &bad).is_err());
    device.pump(&mut client, &good).unwrap();
    assert_eq!(client.next(), Step::Refreshed);
}

#[test]
fn deep_nesting_is_an_error_and_not_an_overflow() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let document = format!(r#"{{"signed":{deep},"signatures":[]}}"#);
    let stored = BTreeMap::from([("root.json".to_owned(), document.into_bytes())]);
    assert!(matches!(Client::new(stored, NOW), Err(TrustError::Parse { .. })));
}

#[test]
fn a_target_admits_the_signed_bytes_only() {
    let files = World::new().serve();
    let Step::Found(target) = Device::enrolled(&files).look(&files, NOW, MANIFEST).unwrap() else { panic!() };
    let target = target.by_sha256().unwrap();
    assert_eq!(target.admit(b"manifest".to_vec()).unwrap().digest(), crate::Digest::of(b"manifest"));
    for (bytes, expect) in
        [(&b"manifesT"[..], "digest is"), (b"manifest2", "9 bytes, 8 are signed for"), (b"", "0 bytes")]
    {
        let error = target.admit(bytes.to_vec()).unwrap_err().to_string();
        assert!(error.contains(expect) && error.contains(MANIFEST), "{error}");
    }
    // Signed, but not a manifest.
    assert!(matches!(target.admit_manifest(b"manifest"), Err(TrustError::Target { .. })));
}

#[test]
fn a_manifest_must_be_that_of_its_path() {
    let manifest = |version: &str| {
        serde_json::to_vec(&serde_json::json!({
            "format": 1, "model": "meter", "version": version, "created": "2026-01-01T00:00:00Z",
            "files": [{"path": "m.bin", "size": 1, "sha256": crate::Digest::of(b"m")}],
            "variants": [{"name": "npu", "entry": "m.bin", "runtime": {"kind": "external", "engine": "x"}}],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}],
            "golden": {"origin": "supplied", "samples": [], "tolerance": {"absolute": 0.0, "relative": 0.0}}
        }))
        .unwrap()
    };
    for (version, good) in [("1.0.0", true), ("1.0.1", false)] {
        let bytes = manifest(version);
        let mut world = World::new();
        world.roles.get_mut("meter").unwrap().body = targets_with(&[(MANIFEST, &bytes)]);
        let files = world.serve();
        let Step::Found(target) = Device::enrolled(&files).look(&files, NOW, MANIFEST).unwrap() else {
            panic!()
        };
        let target = target.by_sha256().unwrap();
        assert_eq!(target.admit_manifest(&bytes).is_ok(), good, "{:?}", target.admit_manifest(&bytes));
    }
}

/// Offers one spoilt document of a good repository; whatever becomes of the others, it must not be accepted.
fn spoil(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<Step, TrustError> {
    let mut files = World::new().serve();
    let mut device = Device::enrolled(&files);
    change(files.get_mut(name).unwrap());
    if name == "1.root.json" {
        device = Device::enrolled(&files);
    }
    device.look(&files, NOW, MANIFEST)
}

const NAMES: [&str; 5] =
    ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.meter.json"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_flipped_bit_is_accepted(name in prop::sample::select(&NAMES[..]), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let result = spoil(name, |bytes| { let i = at.index(bytes.len()); bytes[i] ^= 1 << bit; });
        prop_assert!(result.is_err(), "{name}: {result:?}");
    }

    #[test]
    fn no_truncation_is_accepted(name in prop::sample::select(&NAMES[..]), at in any::<prop::sample::Index>()) {
        let result = spoil(name, |bytes| { let n = at.index(bytes.len()); bytes.truncate(n); });
        prop_assert!(result.is_err(), "{name}: {result:?}");
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(name in prop::sample::select(&NAMES[..]), junk in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(spoil(name, |bytes| *bytes = junk).is_err());
    }

    #[test]
    fn arbitrary_json_in_place_of_a_part_is_refused_without_a_panic(
        name in prop::sample::select(&NAMES[..]),
        part in prop::sample::select(&["_type", "version", "expires", "roles", "keys", "meta", "targets", "delegations"][..]),
        junk in prop::sample::select(&["null", "-1", "[]", "{}", "\"\"", "18446744073709551615", "[[[]]]", "{\"a\":{}}"][..]),
    ) {
        let result = spoil(name, |bytes| {
            let mut value: Value = serde_json::from_slice(bytes).unwrap();
            let junk: Value = serde_json::from_str(junk).unwrap();
            // An empty map in the place of an empty map is no damage.
            value["signed"][part] = if value["signed"].get(part) == Some(&junk) { Value::Null } else { junk };
            *bytes = serde_json::to_vec(&value).unwrap();
        });
        prop_assert!(result.is_err(), "{name}: {result:?}");
    }
}
