//! What a refusal leaves behind: nothing that was refused is stored, and what was trusted stays. The ways to break a
//! repository, each with its exact refusal, are folders: see `corpus`.

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
fn an_oversized_document_is_refused_before_it_is_parsed() {
    let files = World::new().serve();
    let mut client = Client::new(Device::enrolled(&files).stored, NOW).unwrap();
    let big = vec![b' '; 1024 * 1024 + 1];
    let error = client.supply(Response::Bytes(&big)).unwrap_err();
    assert!(matches!(&error, TrustError::TooBig { role, max: 1_048_576, .. } if role == "root"), "{error}");
    client.supply(Response::NotFound).unwrap();
    let error = client.supply(Response::Bytes(&big[..16 * 1024 + 1])).unwrap_err();
    assert!(matches!(&error, TrustError::TooBig { role, max: 16_384, .. } if role == "timestamp"), "{error}");
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
fn a_target_is_checked_piece_by_piece_by_every_digest_that_is_known() {
    use sha2::Digest as _;
    let sha512 = hex::encode(sha2::Sha512::digest(b"manifest"));
    let sha256 = crate::Digest::of(b"manifest").to_string();
    for (hashes, good) in [
        (vec![("sha512", sha512.as_str())], true),
        (vec![("sha256", &sha256), ("sha512", &sha512), ("md5", "00")], true),
        (vec![("sha256", &sha256), ("sha512", &sha256)], false),
        (vec![("md5", "00")], false),
    ] {
        let mut world = World::new();
        let mut meta = TargetMeta::of(b"manifest", None);
        meta.hashes =
            hashes.iter().map(|(kind, digest)| ((*kind).to_owned(), (*digest).to_owned())).collect();
        world.roles.get_mut("meter").unwrap().body.targets.insert(MANIFEST.into(), meta);
        let files = world.serve();
        let Step::Found(target) = Device::enrolled(&files).look(&files, NOW, MANIFEST).unwrap() else {
            panic!()
        };
        let mut check = target.checker();
        check.update(b"mani").unwrap();
        check.update(b"fest").unwrap();
        assert!(check.update(b"s").is_err(), "a byte too many");
        let mut check = target.checker();
        check.update(b"manifest").unwrap();
        assert_eq!(check.finish().is_ok(), good, "{hashes:?}");
        assert!(target.checker().finish().is_err(), "nothing is not the target");
    }
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
