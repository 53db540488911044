//! What must work: a first visit, a second, rotations, recovery.

use super::*;

#[track_caller]
fn found(step: &Step) -> VerifiedTarget {
    match step {
        Step::Found(target) => target.clone().by_sha256().unwrap(),
        other => panic!("not found: {other:?}"),
    }
}

#[test]
fn a_new_device_walks_from_the_first_root_to_the_bundle() {
    let files = World::new().serve();
    let mut device = Device::enrolled(&files);
    let step = device.look(&files, NOW, MANIFEST).unwrap();
    let target = found(&step);
    assert_eq!((target.path(), target.length(), target.role()), (MANIFEST, 8, "meter"));
    assert_eq!(target.sha256(), crate::Digest::of(b"manifest"));
    let expect = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.meter.json"];
    assert_eq!(device.fetched, expect);
    let stored: Vec<_> = device.stored.keys().map(String::as_str).collect();
    assert_eq!(stored, ["meter.json", "root.json", "snapshot.json", "targets.json", "timestamp.json"]);
}

#[test]
fn a_second_visit_fetches_only_what_may_have_changed() {
    let files = World::new().serve();
    let mut device = Device::enrolled(&files);
    device.look(&files, NOW, MANIFEST).unwrap();
    device.fetched.clear();
    found(&device.look(&files, NOW, MANIFEST).unwrap());
    assert_eq!(device.fetched, ["2.root.json", "timestamp.json"]);
}

#[test]
fn a_removed_bundle_is_not_listed_any_more() {
    let mut world = World::new();
    let mut device = Device::enrolled(&world.serve());
    found(&device.look(&world.serve(), NOW, MANIFEST).unwrap());
    world.publish();
    world.roles.get_mut("meter").unwrap().body.targets.clear();
    let step = device.look(&world.serve(), NOW, MANIFEST).unwrap();
    assert_eq!(step, Step::NotListed { path: MANIFEST.into() });
}

#[test]
fn an_older_bundle_that_is_still_listed_can_be_found_again() {
    let mut world = World::new();
    let mut device = Device::enrolled(&world.serve());
    let newer = "bundles/meter/1.1.0/bundle.json";
    let role = world.roles.get_mut("meter").unwrap();
    role.body.targets.insert(newer.into(), TargetMeta::of(b"newer", None));
    world.publish();
    found(&device.look(&world.serve(), NOW, newer).unwrap());
    found(&device.look(&world.serve(), NOW, MANIFEST).unwrap());
}

#[test]
fn the_root_chain_is_walked_to_its_end_and_each_link_is_stored() {
    let mut world = World::new();
    let mut device = Device::enrolled(&world.serve());
    world.rotate(&[1, 2, 11], |root| root.set("root", &[key(1).key(), key(11).key()], 2));
    world.rotate(&[1, 11, 12], |root| root.set("root", &[key(11).key(), key(12).key()], 2));
    found(&device.look(&world.serve(), NOW, MANIFEST).unwrap());
    assert_eq!(device.stored["root.json"], world.serve()["3.root.json"]);
}

#[test]
fn an_expired_root_in_the_middle_of_the_chain_is_no_obstacle() {
    let mut world = World::new();
    world.roots[0].expires = NOW - DAY;
    let mut device = Device::enrolled(&world.serve());
    world.rotate(&[1, 2], |_| ());
    world.roots[1].expires = NOW + DAY;
    found(&device.look(&world.serve(), NOW, MANIFEST).unwrap());
}

#[test]
fn rotating_the_online_keys_recovers_from_a_fast_forward_attack() {
    let mut world = World::new();
    let mut device = Device::enrolled(&world.serve());
    let honest = (world.snapshot, world.timestamp);
    (world.snapshot.0, world.timestamp.0) = (u64::MAX - 1, u64::MAX - 1);
    found(&device.look(&world.serve(), NOW, MANIFEST).unwrap());
    // The honest server cannot go on without a rotation …
    (world.snapshot, world.timestamp) = ((2, honest.0.1), (2, honest.1.1));
    assert!(matches!(refused(&mut device, &world.serve(), NOW), TrustError::Rollback { .. }));
    // … of both keys, or of the snapshot's alone, which the high numbers in the timestamp hang on.
    for (snapshot, timestamp) in [(14, 15), (14, 5)] {
        let mut device = device.clone();
        let mut world = World::new();
        (world.snapshot.0, world.timestamp.0) = (2, 2);
        world.rotate(&[1, 2], |root| {
            root.set("snapshot", &[key(snapshot).key()], 1);
            root.set("timestamp", &[key(timestamp).key()], 1);
        });
        (world.snapshot_key, world.timestamp_key) = (snapshot, timestamp);
        found(&device.look(&world.serve(), NOW, MANIFEST).unwrap());
    }
}

#[test]
fn a_rotation_of_other_keys_keeps_the_floors() {
    let mut world = World::new();
    world.publish();
    let mut device = Device::enrolled(&world.serve());
    device.refresh(&world.serve(), NOW).unwrap();
    world.rotate(&[1, 2], |root| root.set("targets", &[key(13).key()], 1));
    world.targets_key = 13;
    (world.snapshot.0, world.timestamp.0) = (1, 1);
    assert!(matches!(refused(&mut device, &world.serve(), NOW), TrustError::Rollback { .. }));
}

#[test]
fn a_spoilt_store_is_fetched_again() {
    let files = World::new().serve();
    for name in ["timestamp.json", "snapshot.json", "targets.json", "meter.json"] {
        let mut device = Device::enrolled(&files);
        device.look(&files, NOW, MANIFEST).unwrap();
        device.stored.insert(name.into(), b"{\"signed\":".to_vec());
        found(&device.look(&files, NOW, MANIFEST).unwrap());
        let restored = if name == "timestamp.json" { name.to_owned() } else { format!("1.{name}") };
        assert_eq!(device.stored[name], files[&restored], "{name}");
    }
}

#[test]
fn unknown_fields_stay_under_the_signature() {
    let mut world = World::new();
    world.targets.body.extra.insert("x-note".into(), "for people".into());
    let files = world.serve();
    found(&Device::enrolled(&files).look(&files, NOW, MANIFEST).unwrap());
    // The snapshot's digest would notice too; the root has nothing but its signatures.
    world.roots[0].body.extra.insert("x-note".into(), "for people".into());
    let mut files = world.serve();
    found(&Device::enrolled(&files).look(&files, NOW, MANIFEST).unwrap());
    tamper(&mut files, "1.root.json", |v| v["signed"]["x-note"] = "changed".into());
    assert!(matches!(refused(&mut Device::enrolled(&files), &files, NOW), TrustError::Signatures { .. }));
}

#[test]
fn only_what_the_owner_signed_raises_the_time_floor() {
    let mut world = World::new();
    world.roles.get_mut("meter").unwrap().issued = Some(NOW + 1_000 * DAY);
    let files = world.serve();
    let mut device = Device::enrolled(&files);
    let mut client = device.refresh(&files, NOW).unwrap();
    client.find(MANIFEST).unwrap();
    device.pump(&mut client, &files).unwrap();
    assert_eq!(client.max_issued(), Some(NOW - 9 * DAY));
}

#[test]
fn the_client_refuses_calls_out_of_turn() {
    let files = World::new().serve();
    let mut device = Device::enrolled(&files);
    let mut client = Client::new(device.stored.clone(), NOW).unwrap();
    assert!(matches!(client.find(MANIFEST), Err(TrustError::OutOfTurn(_))));
    device.pump(&mut client, &files).unwrap();
    assert!(matches!(client.supply(Response::Bytes(b"{}")), Err(TrustError::OutOfTurn(_))));
    assert_eq!(Client::new(Files::new(), NOW).err(), Some(TrustError::NoRoot));
}
