//! The server's side: an upload is verified as a device would, and taken whole or not at all.

use super::super::repository::{
    Change, OFFLINE_LIFETIME_S, Online as OnlineKeys, Repository, SNAPSHOT_LIFETIME_S, TIMESTAMP_LIFETIME_S,
    model_paths, sign_next,
};
use super::*;
use crate::api::TrustUpload;

fn online() -> OnlineKeys {
    OnlineKeys { snapshot: key(4), timestamp: key(5) }
}

fn version(text: &str) -> semver::Version {
    text.parse().unwrap()
}

fn root(next: u64, signers: &[u8]) -> Value {
    let keys: Vec<KeyPair> = signers.iter().map(|s| key(*s)).collect();
    let signers: Vec<&dyn Signer> = keys.iter().map(|k| k as &dyn Signer).collect();
    let body = Root::of(&root_keys(&[1, 2], 2, 3, 4, 5));
    sign_next(Some(next - 1), body, NOW, OFFLINE_LIFETIME_S, &signers).unwrap()
}

fn targets(next: u64, models: &[(&str, u8)]) -> Value {
    let mut body = Targets::default();
    for (name, seed) in models {
        body.delegate(name, &[key(*seed).key()], 1, model_paths(&model(name)));
    }
    sign_next(Some(next - 1), body, NOW, OFFLINE_LIFETIME_S, &[&key(3)]).unwrap()
}

fn role(next: u64, name: &str, seed: u8, bundles: &[(&str, &[u8])]) -> (String, Value) {
    let mut body = Targets::default();
    for (v, bytes) in bundles {
        body.add_bundle(&model(name), &version(v), bytes);
    }
    (name.to_owned(), sign_next(Some(next - 1), body, NOW, 90 * DAY, &[&key(seed)]).unwrap())
}

fn initialised() -> Repository {
    let first = TrustUpload {
        root: Some(root(1, &[1, 2])),
        targets: Some(targets(1, &[("meter", 6)])),
        roles: BTreeMap::from([role(1, "meter", 6, &[("1.0.0", b"one")])]),
    };
    Repository::default().propose(&first, &online(), NOW).unwrap().repository
}

fn only_role(doc: (String, Value)) -> TrustUpload {
    TrustUpload { roles: BTreeMap::from([doc]), ..TrustUpload::default() }
}

fn served(repository: &Repository, change: &Change) -> Files {
    let mut files: Files = change.documents.iter().cloned().collect();
    files.insert("1.root.json".into(), repository.document("1.root.json").unwrap().to_vec());
    files
}

#[test]
fn what_the_server_publishes_a_device_accepts_and_the_next_publication_too() {
    let repository = initialised();
    let first = repository.refresh(&online(), NOW).unwrap();
    let second = only_role(role(2, "meter", 6, &[("1.0.0", b"one"), ("1.1.0", b"two")]));
    let second = first.repository.propose(&second, &online(), NOW + 60).unwrap();
    let names: Vec<&str> = second.documents.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["2.meter.json", "2.snapshot.json", "timestamp.json"]);
    let mut files = served(&repository, &second);
    files.insert("1.targets.json".into(), repository.document("1.targets.json").unwrap().to_vec());
    let mut device = Device::enrolled(&files);
    for (path, bytes) in [(MANIFEST, &b"one"[..]), ("bundles/meter/1.1.0/bundle.json", b"two")] {
        let Step::Found(target) = device.look(&files, NOW + 60, path).unwrap() else { panic!("{path}") };
        assert_eq!(target.by_sha256().unwrap().sha256(), crate::Digest::of(bytes));
    }
    let listed: Vec<&str> = second.listed.iter().map(VerifiedTarget::path).collect();
    assert_eq!(listed, [MANIFEST, "bundles/meter/1.1.0/bundle.json"]);
    assert_eq!(second.listed[1].custom().unwrap()["sequence"], 2);
}

#[test]
fn a_repository_survives_its_own_storage() {
    let change = Repository::default();
    assert!(!change.is_initialised());
    let repository = initialised();
    let documents = ["1.root.json", "1.targets.json", "1.meter.json", "1.snapshot.json", "timestamp.json"];
    let documents: Files =
        documents.iter().map(|n| ((*n).to_owned(), repository.document(n).unwrap().to_vec())).collect();
    assert_eq!(Repository::load(&documents).unwrap(), repository);
    assert_eq!(repository.document("2.targets.json"), None);
}

#[test]
fn the_same_values_and_keys_give_the_same_bytes() {
    assert_eq!(initialised(), initialised());
}

#[test]
fn a_removed_version_is_reported_as_removed() {
    let change = initialised().propose(&only_role(role(2, "meter", 6, &[])), &online(), NOW).unwrap();
    assert_eq!(change.removed, [MANIFEST]);
    assert!(change.listed.is_empty());
}

#[test]
fn each_bad_upload_is_refused_by_name() {
    #[track_caller]
    fn check(upload: TrustUpload, expect: &str) {
        let repository = initialised();
        let error = repository.propose(&upload, &online(), NOW).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }
    let with_root = |root| TrustUpload { root: Some(root), ..TrustUpload::default() };
    let with_targets = |targets| TrustUpload { targets: Some(targets), ..TrustUpload::default() };
    check(TrustUpload::default(), "no document");
    check(with_root(root(3, &[1, 2])), "version 3 where 2 was expected");
    check(with_root(root(2, &[1])), "1 valid signatures");
    check(with_targets(targets(1, &[("meter", 6)])), "not newer");
    check(
        with_targets(targets(2, &[("meter", 7)])),
        "0 valid signatures of distinct keys that targets names",
    );
    check(only_role(role(1, "meter", 6, &[])), "not newer");
    check(only_role(role(2, "meter", 9, &[])), "0 valid signatures");
    check(only_role(role(2, "ghost", 6, &[])), "not delegated");
    check(only_role(role(2, "meter", 6, &[("1.0.0", b"other")])), "other contents already");
    let mut foreign = role(2, "other", 6, &[("1.0.0", b"x")]);
    foreign.0 = "meter".into();
    check(only_role(foreign), "which it was not delegated");
    let expired = sign_next(Some(1), Targets::default(), NOW - 2 * DAY, DAY, &[&key(6)]).unwrap();
    check(only_role(("meter".into(), expired)), "expired at");
    let other = Root::of(&root_keys(&[1, 2], 2, 3, 40, 5));
    let other = sign_next(Some(1), other, NOW, OFFLINE_LIFETIME_S, &[&key(1), &key(2)]).unwrap();
    check(with_root(other), "does not give role snapshot to this server's key");
}

#[test]
fn a_first_upload_needs_root_and_targets() {
    let upload = TrustUpload { root: Some(root(1, &[1, 2])), ..TrustUpload::default() };
    let error = Repository::default().propose(&upload, &online(), NOW).unwrap_err().to_string();
    assert!(error.contains("no targets.json"), "{error}");
}

#[test]
fn a_fresh_timestamp_is_signed_without_a_new_snapshot_until_half_of_its_life() {
    let repository = initialised();
    let soon = repository.refresh(&online(), NOW + TIMESTAMP_LIFETIME_S / 2).unwrap();
    assert_eq!(soon.documents.len(), 1);
    let late = soon.repository.refresh(&online(), NOW + SNAPSHOT_LIFETIME_S / 2 + 1).unwrap();
    let names: Vec<&str> = late.documents.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["2.snapshot.json", "timestamp.json"]);
}

#[test]
fn a_signer_builds_on_what_it_can_verify_only() {
    use super::super::repository::Current;
    let state = initialised().state(&online());
    let pinned = to_bytes(&root(1, &[1, 2]));
    let current = Current::read(&state, Some(&pinned)).unwrap().unwrap();
    assert_eq!(current.target(MANIFEST).unwrap().unwrap().sha256(), crate::Digest::of(b"one"));
    assert_eq!(current.target("bundles/meter/9.9.9/bundle.json").unwrap(), None);
    // A role that a stolen server made up.
    let mut forged = state.clone();
    forged.roles.insert("meter".into(), role(2, "meter", 77, &[("6.6.6", b"evil")]).1);
    let error = Current::read(&forged, Some(&pinned)).unwrap_err();
    assert!(matches!(&error, TrustError::Signatures { role, valid: 0, .. } if role == "meter"), "{error}");
    // A root that it made up: of the same version, of the next, of a later one.
    for (version, expect) in [(1, "another root.json version 1"), (2, "0 valid signatures"), (3, "version 3")]
    {
        let body = Root::of(&root_keys(&[71], 1, 3, 4, 5));
        let fake = sign_next(Some(version - 1), body, NOW, OFFLINE_LIFETIME_S, &[&key(71)]).unwrap();
        let forged = crate::api::TrustState { root: Some(fake), ..state.clone() };
        let error = Current::read(&forged, Some(&pinned)).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
    // The owner's next root is followed.
    let next = crate::api::TrustState { root: Some(root(2, &[1, 2])), ..state };
    assert_eq!(Current::read(&next, Some(&pinned)).unwrap().unwrap().root.version, 2);
}
