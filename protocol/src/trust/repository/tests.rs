//! Changes of keys and of what is listed, signed by one after the other, and what the owner is told of them.

use std::collections::BTreeMap;

use super::super::{FLEET_CA, KeyPair, Signer, TrustError};
use super::*;
use crate::api::{TrustState, TrustUpload};

pub(super) const NOW: i64 = 1_800_000_000;

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

fn model() -> ModelName {
    ModelName::new("meter").unwrap()
}

pub(super) fn online() -> Online {
    Online { snapshot: key(4), timestamp: key(5) }
}

fn by(keys: &[KeyPair]) -> Vec<&dyn Signer> {
    keys.iter().map(|k| k as &dyn Signer).collect()
}

/// Root: two of keys 1, 2, 7; targets: key 3; meter: key 6, with version 1.0.0.
pub(super) fn published() -> Repository {
    let holders = [(1, "ann"), (2, "bob"), (7, "eve")].map(|(seed, name)| key(seed).key().named(name));
    let root = Root::of(&RootKeys {
        root: (holders.to_vec(), 2),
        targets: (vec![key(3).key()], 1),
        snapshot: key(4).key(),
        timestamp: key(5).key(),
    });
    let mut targets = Targets::default();
    targets.delegate("meter", &[key(6).key()], 1, model_paths(&model()));
    let mut role = Targets::default();
    role.add_bundle(&model(), &"1.0.0".parse().unwrap(), b"one");
    let upload = TrustUpload {
        root: Some(sign_next(None, root, NOW, OFFLINE_LIFETIME_S, &by(&[key(1), key(2)])).unwrap()),
        targets: Some(sign_next(None, targets, NOW, OFFLINE_LIFETIME_S, &by(&[key(3)])).unwrap()),
        roles: BTreeMap::from([(
            "meter".to_owned(),
            sign_next(None, role, NOW, 30 * DAY_S, &by(&[key(6)])).unwrap(),
        )]),
    };
    Repository::default().propose(&upload, &online(), NOW).unwrap().repository
}

fn current(repository: &Repository) -> Current {
    Current::read(&repository.state(&online()), None).unwrap().unwrap()
}

fn signed(current: &Current, change: &mut TrustUpload, seeds: &[u8]) {
    for standing in standing(Some(current), change).unwrap() {
        for pair in seeds.iter().map(|seed| key(*seed)) {
            let own = standing.needs.iter().flat_map(|n| &n.open).find(|(_, k)| k.is(&pair.key()));
            if let Some((id, _)) = own {
                countersign(document_mut(change, &standing.role).unwrap(), id, &pair).unwrap();
            }
        }
    }
}

fn roles_of(change: &TrustUpload) -> Vec<&str> {
    documents(change).map(|(role, _)| role).collect()
}

#[track_caller]
fn complete(current: &Current, change: &TrustUpload) -> bool {
    standing(Some(current), change).unwrap().iter().all(Standing::is_complete)
}

#[test]
fn a_change_of_root_keys_is_complete_when_old_and_new_holders_have_signed() {
    let repository = published();
    let current = current(&repository);
    let mut edit = Edit::new(&current, NOW + 60);
    let (mut holders, threshold) = edit.keys("root").unwrap();
    holders[2] = key(8).key().named("dan");
    edit.set_keys("root", &holders, threshold).unwrap();
    let mut change = edit.finish().unwrap();
    assert_eq!(roles_of(&change), ["root"], "nothing else falls with a root key");
    follows(Some(&current), &change).unwrap();

    let stand = standing(Some(&current), &change).unwrap();
    let names: Vec<_> = stand[0].needs.iter().map(|n| (n.delegator.as_str(), n.missing())).collect();
    assert_eq!(names, [("root 1", 2), ("root 2", 2)]);
    // The one who leaves and the one who comes: enough for neither side alone.
    signed(&current, &mut change, &[7, 8]);
    assert!(!complete(&current, &change));
    let error = repository.propose(&change, &online(), NOW + 60).unwrap_err();
    assert!(matches!(error, TrustError::Signatures { valid: 1, threshold: 2, .. }), "{error}");
    signed(&current, &mut change, &[1]);
    assert!(complete(&current, &change));
    repository.propose(&change, &online(), NOW + 60).unwrap();
}

#[test]
fn what_no_longer_stands_under_its_new_keys_is_signed_again() {
    let repository = published();
    let current = current(&repository);
    let mut edit = Edit::new(&current, NOW + 60);
    edit.set_keys("targets", &[key(9).key()], 1).unwrap();
    let mut change = edit.finish().unwrap();
    assert_eq!(roles_of(&change), ["root", "targets"]);
    signed(&current, &mut change, &[1, 2, 9]);
    let after = repository.propose(&change, &online(), NOW + 60).unwrap();
    assert!(after.removed.is_empty(), "{:?}", after.removed);

    let next = Current::read(&after.repository.state(&online()), None).unwrap().unwrap();
    let mut edit = Edit::new(&next, NOW + 120);
    edit.set_keys("meter", &[key(10).key()], 1).unwrap();
    let mut change = edit.finish().unwrap();
    assert_eq!(roles_of(&change), ["targets", "meter"]);
    signed(&next, &mut change, &[9, 6]);
    assert!(!complete(&next, &change), "the old key of the model signs for it no longer");
    signed(&next, &mut change, &[10]);
    let after = after.repository.propose(&change, &online(), NOW + 120).unwrap();
    assert_eq!(after.listed.len(), 1, "the version is still listed");
}

#[test]
fn a_key_that_joins_leaves_the_signed_documents_as_they_are() {
    let repository = published();
    let current = current(&repository);
    let mut edit = Edit::new(&current, NOW);
    edit.set_keys("meter", &[key(6).key(), key(11).key()], 1).unwrap();
    assert_eq!(roles_of(&edit.finish().unwrap()), ["targets"]);
    let mut edit = Edit::new(&current, NOW);
    edit.set_keys("meter", &[key(6).key(), key(11).key()], 2).unwrap();
    assert_eq!(roles_of(&edit.finish().unwrap()), ["targets", "meter"], "one signature is too few now");
}

#[test]
fn a_lifetime_that_was_chosen_stays_until_another_is() {
    let repository = published();
    let current = current(&repository);
    let expires = |change: &TrustUpload| {
        Doc::<Targets>::read_unverified(&change.roles["meter"]).map(|doc| doc.expires - NOW).unwrap()
    };
    let mut edit = Edit::new(&current, NOW);
    edit.role("meter").remove_bundle(&model(), &"1.0.0".parse().unwrap());
    assert_eq!(expires(&edit.finish().unwrap()), 30 * DAY_S);
    let mut edit = Edit::new(&current, NOW);
    edit.renew("meter", 7 * DAY_S);
    assert_eq!(expires(&edit.finish().unwrap()), 7 * DAY_S);
}

#[test]
fn copies_of_one_change_are_one_change() {
    let repository = published();
    let current = current(&repository);
    let make = || {
        let mut edit = Edit::new(&current, NOW);
        edit.renew("root", OFFLINE_LIFETIME_S);
        edit.finish().unwrap()
    };
    let (mut anns, mut bobs) = (make(), make());
    signed(&current, &mut anns, &[1]);
    signed(&current, &mut bobs, &[2]);
    assert_eq!(change_id(&anns), change_id(&bobs));
    assert!(!complete(&current, &anns));
    merge_change(&mut anns, &bobs);
    assert!(complete(&current, &anns));
    // Signatures of something else are not taken over.
    let mut other = make();
    let mut edit = Edit::new(&current, NOW + 1);
    edit.renew("root", OFFLINE_LIFETIME_S);
    let mut later = edit.finish().unwrap();
    signed(&current, &mut later, &[1, 2]);
    merge_change(&mut other, &later);
    assert_ne!(change_id(&other), change_id(&later));
    assert!(!complete(&current, &other));
}

#[test]
fn a_change_on_top_of_an_older_state_is_refused() {
    let repository = published();
    let before = current(&repository);
    let mut edit = Edit::new(&before, NOW);
    edit.renew("root", OFFLINE_LIFETIME_S);
    let mut mine = edit.finish().unwrap();
    signed(&before, &mut mine, &[1, 2]);
    let after = repository.propose(&mine, &online(), NOW).unwrap().repository;
    let error = follows(Some(&current(&after)), &mine).unwrap_err().to_string();
    assert!(error.contains("does not follow the published version 2") && error.contains("again"), "{error}");
}

#[test]
fn the_owner_is_told_every_change_in_words() {
    let repository = published();
    let current = current(&repository);
    let mut edit = Edit::new(&current, NOW);
    let (mut holders, _) = edit.keys("root").unwrap();
    holders.truncate(2);
    edit.set_keys("root", &holders, 1).unwrap();
    edit.root().extra.insert("x-hidden".into(), 7.into());
    edit.targets().add_file(FLEET_CA, b"pem");
    edit.targets().delegate("door", &[key(12).key().named("carol")], 1, vec!["bundles/door/*/*".into()]);
    edit.role("meter").remove_bundle(&model(), &"1.0.0".parse().unwrap());
    let words = describe(Some(&current), &edit.finish().unwrap()).unwrap().join("\n");
    for expect in [
        "root.json version 2 is valid until 2028-01-15 (before: until 2028-01-15)",
        "root: key eve (",
        "no longer counts",
        "root: 1 of 2 keys must sign (before: 2 of 3)",
        "root: field \"x-hidden\" becomes 7",
        "targets: fleet/ca.pem is added",
        "door: a new role that may sign for bundles/door/*/*",
        "door: key carol (",
        "meter: bundles/meter/1.0.0/bundle.json is REMOVED",
    ] {
        assert!(words.contains(expect), "{words}\ndoes not say {expect:?}");
    }
    assert!(!words.contains("ann (") && !words.contains("snapshot"), "what stays is not told: {words}");
}

#[test]
fn a_signer_who_was_away_for_three_rotations_walks_the_roots() {
    let mut repository = published();
    let first = to_bytes(&repository.state(&online()).root.unwrap());
    for n in 1..=3 {
        let current = current(&repository);
        let mut edit = Edit::new(&current, NOW + n);
        edit.renew("root", OFFLINE_LIFETIME_S);
        let mut change = edit.finish().unwrap();
        signed(&current, &mut change, &[1, 2]);
        repository = repository.propose(&change, &online(), NOW + n).unwrap().repository;
    }
    let state = repository.state(&online());
    assert_eq!(Current::read(&state, Some(&first)).unwrap().unwrap().root.version, 4);
    // A link that is missing, or that a stolen server made up, ends the walk.
    let gap = TrustState { roots: vec![state.roots[0].clone(), state.roots[3].clone()], ..state.clone() };
    assert!(Current::read(&gap, Some(&first)).is_err());
    let mut forged = state.clone();
    forged.roots[1]["signed"]["expires"] = "2099-01-01T00:00:00Z".into();
    let error = Current::read(&forged, Some(&first)).unwrap_err();
    assert!(matches!(error, TrustError::Signatures { valid: 0, .. }), "{error}");
}

#[test]
fn files_of_the_fleet_change_and_belong_to_the_top_level_targets() {
    let repository = published();
    let publish = |repository: &Repository, bytes: &[u8]| {
        let current = current(repository);
        let mut edit = Edit::new(&current, NOW);
        edit.targets().add_file(FLEET_CA, bytes);
        let mut change = edit.finish().unwrap();
        signed(&current, &mut change, &[3]);
        repository.propose(&change, &online(), NOW)
    };
    let first = publish(&repository, b"old").unwrap();
    let second = publish(&first.repository, b"old and new").unwrap();
    let ca = second.listed.iter().find(|t| t.path() == FLEET_CA).unwrap();
    assert_eq!((ca.role(), ca.length()), ("targets", 11));
    let error = publish(&repository, &vec![b'x'; 65_537]).unwrap_err().to_string();
    assert!(error.contains("65537 bytes; at most 65536"), "{error}");

    let current = current(&repository);
    let mut edit = Edit::new(&current, NOW);
    edit.targets().delegate("meter", &[key(6).key()], 1, vec!["fleet/*".into()]);
    *edit.role("meter") = Targets::default();
    edit.role("meter").add_file(FLEET_CA, b"of a team");
    let mut change = edit.finish().unwrap();
    signed(&current, &mut change, &[3, 6]);
    let error = repository.propose(&change, &online(), NOW).unwrap_err().to_string();
    assert!(error.contains("which only the top-level targets may sign for"), "{error}");
}
