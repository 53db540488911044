//! Who may speak for which path.

use super::*;

/// Adds a role with its own key to the top-level delegations.
fn delegate(
    world: &mut World,
    name: &str,
    seed: u8,
    paths: &[&str],
    terminating: bool,
    lists: &[(&str, &[u8])],
) {
    let paths = paths.iter().map(|p| (*p).to_owned()).collect();
    world.targets.body.delegate(name, &[key(seed).key()], 1, paths);
    let roles = &mut world.targets.body.delegations.as_mut().unwrap().roles;
    roles.iter_mut().find(|r| r.name == name).unwrap().terminating = terminating;
    world.roles.insert(name.into(), Doc::new(1, None, NOW + 90 * DAY, targets_with(lists)));
    world.role_keys.insert(name.into(), seed);
}

fn look(world: &World, path: &str) -> Result<Step, TrustError> {
    let files = world.serve();
    Device::enrolled(&files).look(&files, NOW, path)
}

#[track_caller]
fn signer(world: &World, path: &str) -> Option<String> {
    match look(world, path).unwrap() {
        Step::Found(target) => Some(target.role().to_owned()),
        Step::NotListed { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_role_does_not_speak_for_a_path_that_it_was_not_delegated() {
    let mut world = World::new();
    let other = "bundles/other/1.0.0/bundle.json";
    world.roles.get_mut("meter").unwrap().body = targets_with(&[(other, b"evil"), (MANIFEST, b"good")]);
    assert_eq!(signer(&world, MANIFEST), Some("meter".into()));
    assert_eq!(signer(&world, other), None);
}

#[test]
fn only_the_role_on_the_way_is_fetched() {
    let mut world = World::new();
    for i in 0..20 {
        let name = format!("other{i}");
        delegate(&mut world, &name, 100 + i, &[&format!("bundles/{name}/*/*")], true, &[]);
    }
    let files = world.serve();
    let mut device = Device::enrolled(&files);
    device.look(&files, NOW, MANIFEST).unwrap();
    assert_eq!(device.fetched.iter().filter(|p| p.contains("other")).count(), 0);
}

#[test]
fn a_terminating_delegation_ends_the_search_and_another_does_not() {
    for (terminating, expect) in [(true, None), (false, Some("second".to_owned()))] {
        let mut world = World::new();
        delegate(&mut world, "first", 20, &["files/*"], terminating, &[]);
        delegate(&mut world, "second", 21, &["files/*"], false, &[("files/a", b"a")]);
        assert_eq!(signer(&world, "files/a"), expect, "terminating: {terminating}");
    }
}

#[test]
fn the_first_delegation_wins() {
    let mut world = World::new();
    delegate(&mut world, "first", 20, &["files/*"], false, &[("files/a", b"one")]);
    delegate(&mut world, "second", 21, &["files/*"], false, &[("files/a", b"two")]);
    assert_eq!(signer(&world, "files/a"), Some("first".into()));
}

/// `parent` delegates to `child` in its own document.
fn nest(world: &mut World, parent: &str, child: &str, seed: u8, pattern: &str, lists: &[(&str, &[u8])]) {
    let doc = world.roles.get_mut(parent).unwrap();
    doc.body.delegate(child, &[key(seed).key()], 1, vec![pattern.into()]);
    world.roles.insert(child.into(), Doc::new(1, None, NOW + 90 * DAY, targets_with(lists)));
    world.role_keys.insert(child.into(), seed);
}

#[test]
fn a_delegation_of_a_delegation_is_bounded_by_both() {
    let mut world = World::new();
    delegate(&mut world, "org", 20, &["files/a*"], true, &[]);
    nest(&mut world, "org", "team", 21, "files/*", &[("files/a1", b"x"), ("files/b1", b"x")]);
    assert_eq!(signer(&world, "files/a1"), Some("team".into()));
    assert_eq!(signer(&world, "files/b1"), None);
}

#[test]
fn a_cycle_of_delegations_ends() {
    let mut world = World::new();
    delegate(&mut world, "a", 20, &["files/*"], false, &[]);
    nest(&mut world, "a", "b", 21, "files/*", &[]);
    let doc = world.roles.get_mut("b").unwrap();
    doc.body.delegate("a", &[key(20).key()], 1, vec!["files/*".into()]);
    assert_eq!(signer(&world, "files/x"), None);
}

#[test]
fn deep_and_wide_delegations_end() {
    let mut world = World::new();
    delegate(&mut world, "d0", 100, &["files/*"], false, &[]);
    for i in 1..12 {
        nest(&mut world, &format!("d{}", i - 1), &format!("d{i}"), 100 + i, "files/*", &[]);
    }
    assert!(matches!(look(&world, "files/x"), Err(TrustError::Endless { max: MAX_DELEGATION_DEPTH, .. })));
    let mut world = World::new();
    for i in 0..40 {
        delegate(&mut world, &format!("w{i}"), 100 + i, &["files/*"], false, &[]);
    }
    assert!(matches!(look(&world, "files/x"), Err(TrustError::Endless { max: MAX_LOOKUP_ROLES, .. })));
}

#[test]
fn a_cached_role_is_verified_against_the_delegator_of_the_present_look_up() {
    // `x` and `y` both delegate to `shared`; only `x` names the key that signed it.
    let mut world = World::new();
    delegate(&mut world, "x", 20, &["x/*"], true, &[]);
    delegate(&mut world, "y", 21, &["y/*"], true, &[]);
    nest(&mut world, "x", "shared", 22, "x/*", &[("x/1", b"1"), ("y/1", b"1")]);
    let y = world.roles.get_mut("y").unwrap();
    y.body.delegate("shared", &[key(23).key()], 1, vec!["y/*".into()]);
    let files = world.serve();
    let mut device = Device::enrolled(&files);
    let mut client = device.refresh(&files, NOW).unwrap();
    client.find("x/1").unwrap();
    device.pump(&mut client, &files).unwrap();
    assert!(matches!(client.next(), Step::Found(_)));
    let error = client.find("y/1").and_then(|()| device.pump(&mut client, &files)).unwrap_err();
    assert!(matches!(&error, TrustError::Signatures { delegator, .. } if delegator == "y"), "{error}");
}

#[test]
fn a_delegated_role_without_a_document_is_named() {
    let mut world = World::new();
    world.targets.body.delegate("ghost", &[key(30).key()], 1, vec!["ghost/*".into()]);
    let error = look(&world, "ghost/a").unwrap_err();
    assert!(matches!(&error, TrustError::NotInSnapshot { role } if role == "ghost"), "{error}");
    assert_eq!(signer(&world, MANIFEST), Some("meter".into()), "the others are not concerned");
}

#[test]
fn a_path_can_be_delegated_by_the_digest_of_its_name() {
    let path = "files/hashed";
    let prefix = crate::Digest::of(path.as_bytes()).to_string()[..4].to_owned();
    for (prefix, expect) in [(prefix, Some("bin".to_owned())), ("zzzz".into(), None)] {
        let mut world = World::new();
        delegate(&mut world, "bin", 20, &[], false, &[(path, b"a")]);
        let role = world.targets.body.delegations.as_mut().unwrap().roles.last_mut().unwrap();
        (role.paths, role.path_hash_prefixes) = (None, Some(vec![prefix]));
        assert_eq!(signer(&world, path), expect);
    }
}

#[test]
fn a_delegated_role_cannot_take_a_top_level_name_or_a_name_twice() {
    for name in ["root", "timestamp", "snapshot", "targets", ""] {
        let mut world = World::new();
        world.targets.body.delegate(name, &[key(30).key()], 1, vec!["*".into()]);
        assert!(sign(&world.targets, &[&key(3)]).is_err(), "{name:?}");
    }
    let mut world = World::new();
    let roles = &mut world.targets.body.delegations.as_mut().unwrap().roles;
    roles.push(roles[0].clone());
    assert!(sign(&world.targets, &[&key(3)]).is_err());
}

#[test]
fn a_role_name_that_is_no_file_name_is_encoded_in_files_and_nowhere_else() {
    for (name, file) in [("../team", "..%2Fteam"), ("?", "%3F"), ("a b", "a%20b")] {
        let mut world = World::new();
        delegate(&mut world, name, 20, &["files/*"], true, &[("files/a", b"a")]);
        let files = world.serve();
        let mut device = Device::enrolled(&files);
        assert!(matches!(device.look(&files, NOW, "files/a"), Ok(Step::Found(_))), "{name}");
        assert_eq!(device.fetched.last().unwrap(), &format!("1.{file}.json"));
        assert!(device.stored.contains_key(&format!("{file}.json")));
    }
    // Encoded, it would not fit a file name.
    let mut world = World::new();
    world.targets.body.delegate(&"/".repeat(70), &[key(30).key()], 1, vec!["*".into()]);
    assert!(sign(&world.targets, &[&key(3)]).is_err());
}
