//! What owners do through the server: leave a change for others to sign, give it new online keys, withdraw a version.

use std::collections::BTreeMap;

use plimsoll_protocol::ModelName;
use plimsoll_protocol::api::{NewOnlineKeys, Proposal, TrustState, TrustUpload};
use plimsoll_protocol::trust::repository::{
    Current, DAY_S, Edit, change_id, countersign, document_mut, standing,
};
use plimsoll_protocol::trust::{Key, KeyPair};
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Publisher, Rig, now, problem};

fn owner() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

async fn current(rig: &Rig) -> Current {
    let state: TrustState = serde_json::from_value(rig.get("/trust").await).unwrap();
    Current::read(&state, None).unwrap().unwrap()
}

/// Signs everything that these keys may.
fn sign(current: &Current, mut upload: TrustUpload, keys: &[KeyPair]) -> TrustUpload {
    for one in standing(Some(current), &upload).unwrap() {
        for key in keys {
            if let Some((id, _)) =
                one.needs.iter().flat_map(|n| &n.open).find(|(_, k)| k.is(&key.public_key()))
            {
                countersign(document_mut(&mut upload, &one.role).unwrap(), id, key).unwrap();
            }
        }
    }
    upload
}

trait PublicKey {
    fn public_key(&self) -> Key;
}

impl PublicKey for KeyPair {
    fn public_key(&self) -> Key {
        Key::ed25519(&self.public())
    }
}

fn proposal(upload: TrustUpload) -> Proposal {
    Proposal {
        plimsoll_proposal: 1,
        id: change_id(&upload),
        why: "a test".into(),
        created: now(),
        expires: now() + DAY_S,
        upload,
        base: None,
    }
}

async fn offer(rig: &Rig, proposal: &Proposal) -> reqwest::Response {
    let path = format!("/trust/proposals/{}", proposal.id);
    rig.call(Method::PUT, &path).json(proposal).send().await.unwrap()
}

#[tokio::test]
async fn a_change_collects_signatures_until_what_it_was_made_on_has_changed() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    // The root goes to two of three.
    let second = KeyPair::from_seed(&[21; 32]);
    let holders = [owner().public_key(), second.public_key(), KeyPair::from_seed(&[22; 32]).public_key()];
    let before = current(&rig).await;
    let mut edit = Edit::new(&before, now());
    edit.set_keys("root", &holders, 2).unwrap();
    let upload = sign(&before, edit.finish().unwrap(), &[owner(), KeyPair::from_seed(&[21; 32])]);
    assert_eq!(publisher.upload(&rig, &upload).await.status(), 200);

    let before = current(&rig).await;
    let change = |at| {
        let mut edit = Edit::new(&before, at);
        edit.renew("root", 100 * DAY_S);
        edit.finish().unwrap()
    };
    let unsigned = proposal(change(now()));
    assert!(problem(offer(&rig, &unsigned).await, 422).await.detail.contains("nobody who may has signed"));
    let upload = change(now());
    let first = proposal(sign(&before, upload.clone(), &[owner()]));
    let mut renamed = first.clone();
    renamed.id = "000000000000".into();
    assert!(problem(offer(&rig, &renamed).await, 422).await.detail.contains("another change than its name"));
    let mut late = first.clone();
    late.expires = now();
    assert!(problem(offer(&rig, &late).await, 422).await.detail.contains("has expired"));
    assert_eq!(offer(&rig, &first).await.status(), 200);
    // A copy with another signature, and with one of somebody who may not sign: the good ones are kept.
    let copy = proposal(sign(&before, upload, &[KeyPair::from_seed(&[22; 32])]));
    let mut copy = serde_json::to_value(copy).unwrap();
    copy["upload"]["root"]["signatures"].as_array_mut().unwrap().push(json!({ "keyid": "ab", "sig": "cd" }));
    let copy: Proposal = serde_json::from_value(copy).unwrap();
    let kept: Proposal = offer(&rig, &copy).await.json().await.unwrap();
    let signatures = |p: &Proposal| p.upload.root.as_ref().unwrap()["signatures"].as_array().unwrap().len();
    assert_eq!((signatures(&kept), kept.id == first.id), (2, true));
    // What waits survives a restart, and is gone once it is published.
    let rig = rig.restart().await;
    let waiting: Vec<Proposal> = serde_json::from_value(rig.get("/trust/proposals").await).unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(publisher.upload(&rig, &waiting[0].upload).await.status(), 200);
    assert_eq!(rig.get("/trust/proposals").await, json!([]));
    assert!(problem(offer(&rig, &first).await, 422).await.detail.contains("does not follow"));
    let gone = rig.call(Method::DELETE, "/trust/proposals/x").send().await.unwrap();
    assert!(problem(gone, 404).await.detail.contains("no change x"));
}

#[tokio::test]
async fn new_online_keys_sign_from_the_root_on_that_names_them() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    let ask = async |rig: &Rig, roles: &[&str]| {
        let roles = roles.iter().map(|r| (*r).to_owned()).collect();
        rig.call(Method::POST, "/trust/online-keys").json(&NewOnlineKeys { roles }).send().await.unwrap()
    };
    assert!(problem(ask(&rig, &["root"]).await, 422).await.detail.contains("holds no root key"));
    let made: TrustState = ask(&rig, &["snapshot", "timestamp"]).await.json().await.unwrap();
    let (snapshot, timestamp) = (made.next_snapshot_key.unwrap(), made.next_timestamp_key.unwrap());
    assert_ne!(snapshot, made.snapshot_key);
    // Until then the old ones sign, after a restart too.
    let rig = rig.restart().await;
    publisher.publish(&rig, "1.0.0").await;
    let before = current(&rig).await;
    let mut edit = Edit::new(&before, now());
    edit.set_keys("snapshot", &[Key::from_hex(&snapshot).unwrap()], 1).unwrap();
    edit.set_keys("timestamp", &[Key::from_hex(&timestamp).unwrap()], 1).unwrap();
    let upload = sign(&before, edit.finish().unwrap(), &[owner()]);
    let answer = publisher.upload(&rig, &upload).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    let after: TrustState = serde_json::from_value(rig.get("/trust").await).unwrap();
    assert_eq!((&after.snapshot_key, &after.timestamp_key), (&snapshot, &timestamp));
    assert_eq!((after.next_snapshot_key, after.roots.len()), (None, 2));
    let rig = rig.restart().await;
    publisher.publish(&rig, "1.1.0").await;

    // A root that names somebody else's key as the server's is not taken.
    let before = current(&rig).await;
    let mut edit = Edit::new(&before, now());
    edit.set_keys("timestamp", &[KeyPair::from_seed(&[77; 32]).public_key()], 1).unwrap();
    let upload = sign(&before, edit.finish().unwrap(), &[owner()]);
    let refused = problem(publisher.upload(&rig, &upload).await, 422).await;
    assert!(refused.detail.contains("rotate snapshot timestamp"), "{refused:?}");
}

#[tokio::test]
async fn a_version_that_is_signed_for_no_longer_is_revoked_until_it_is_signed_for_again() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    let bundle = publisher.publish(&rig, "1.0.0").await;
    let before = current(&rig).await;
    let mut edit = Edit::new(&before, now());
    edit.role("meter").remove_bundle(&ModelName::new("meter").unwrap(), &bundle.version);
    let removed = sign(&before, edit.finish().unwrap(), &[KeyPair::from_seed(&[3; 32])]);
    assert_eq!(publisher.upload(&rig, &removed).await.status(), 200);
    assert_eq!(rig.get("/models").await, json!([]));
    let events: Value = rig.get("/events").await;
    let told = |e: &&Value| e["code"] == "bundle.revoked";
    let told = events.as_array().unwrap().iter().find(told).map(|e| e["text"].clone());
    assert_eq!(told, Some(json!("meter 1.0.0 is revoked: no device runs it")));
    let rig = rig.restart().await;
    let trust = &rig.server.as_ref().unwrap().app().trust;
    assert_eq!(trust.revoked().iter().map(|r| r.digest).collect::<Vec<_>>(), [bundle.digest()]);
    let known: BTreeMap<_, _> = trust.versions();
    assert_eq!(known[&bundle.digest()], bundle.version, "what may still run somewhere keeps its name");
    let again = publisher.role(&rig, std::slice::from_ref(&bundle), &publisher.release).await;
    assert_eq!(publisher.upload(&rig, &again).await.status(), 200);
    let trust = &rig.server.as_ref().unwrap().app().trust;
    assert!(trust.revoked().is_empty(), "who signs for it again means it");
}
