//! Who gets in.

use rcgen::KeyPair as DeviceKey;

use crate::rig::{Publisher, Rig, csr, problem};

#[tokio::test]
async fn a_device_with_a_token_gets_a_certificate_that_opens_blobs_and_nobody_else_does() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let bundle = Publisher::new().publish(&rig, "1.0.0").await;
    let token = rig.join_token(1, 5).await;
    let device = rig.enrol(&token, "cam-1").await;
    assert_eq!(device.response.identity.to_string(), "fleet.cam-1");
    assert_eq!(device.response.tuf_root["signed"]["version"], 1);
    let url = format!("{}/blobs/sha256/{}", rig.https, bundle.digest());
    let with = rig.device_client(Some(&device)).get(&url).send().await.unwrap();
    assert_eq!(with.bytes().await.unwrap().to_vec(), bundle.manifest);
    let without = rig.device_client(None).get(&url).send().await.unwrap();
    assert_eq!(problem(without, 401).await.kind, "no-certificate");
    let listed = rig.get("/devices").await;
    assert_eq!(listed[0]["device"], "cam-1");
    assert_eq!(listed[0]["labels"]["site"], "lyon");
}

#[tokio::test]
async fn a_token_that_is_wrong_or_used_up_lets_nobody_in() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let token = rig.join_token(1, 5).await;
    let mut forged = token.clone();
    forged.secret = "0".repeat(32);
    let key = DeviceKey::generate().unwrap();
    let wrong = problem(rig.try_enrol(&forged, "cam-1", csr(&key, "cam-1")).await, 403).await;
    assert!(wrong.detail.contains(&token.id) && wrong.detail.contains("unknown"), "{wrong:?}");
    rig.enrol(&token, "cam-1").await;
    let used = problem(rig.try_enrol(&token, "cam-2", csr(&key, "cam-2")).await, 403).await;
    assert!(used.detail.contains("used as often"), "{used:?}");
    assert_eq!(rig.get("/devices").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_again_with_the_same_key_and_only_with_it() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let token = rig.join_token(5, 5).await;
    let key = DeviceKey::generate().unwrap();
    for _ in 0..2 {
        assert_eq!(rig.try_enrol(&token, "cam-1", csr(&key, "cam-1")).await.status(), 200);
    }
    let thief = DeviceKey::generate().unwrap();
    let taken = problem(rig.try_enrol(&token, "cam-1", csr(&thief, "cam-1")).await, 409).await;
    assert_eq!(taken.kind, "device-taken");
}

#[tokio::test]
async fn a_request_that_is_not_what_it_says_is_refused_before_a_use_is_spent() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let token = rig.join_token(1, 5).await;
    let key = DeviceKey::generate().unwrap();
    let good = csr(&key, "cam-1");
    // One digit of the signature's base64 changed: still PEM, still DER, no longer signed.
    let at = good.rfind("\n-----END").unwrap() - 8;
    let swapped = if &good[at..=at] == "A" { "B" } else { "A" };
    let mut forged = good.clone();
    forged.replace_range(at..=at, swapped);
    for (csr, words) in [(forged, "cam-1"), ("no PEM".into(), "cam-1"), (csr(&key, "cam-9"), "cam-9")] {
        let refused = problem(rig.try_enrol(&token, "cam-1", csr).await, 400).await;
        assert!(refused.detail.contains(words), "{refused:?}");
    }
    let all = problem(rig.try_enrol(&token, "all", csr(&key, "all")).await, 400).await;
    assert!(all.detail.contains("all"), "{all:?}");
    assert_eq!(rig.try_enrol(&token, "cam-1", good).await.status(), 200, "the one use is still there");
}

#[tokio::test]
async fn before_the_fleet_has_trust_nobody_enrols() {
    let rig = Rig::start().await;
    let token = rig.join_token(1, 5).await;
    let key = DeviceKey::generate().unwrap();
    let early = problem(rig.try_enrol(&token, "cam-1", csr(&key, "cam-1")).await, 409).await;
    assert!(early.detail.contains("trust init"), "{early:?}");
}

#[tokio::test]
async fn a_revoked_device_is_shut_out_at_once() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let bundle = Publisher::new().publish(&rig, "1.0.0").await;
    let device = rig.enrol(&rig.join_token(1, 5).await, "cam-1").await;
    let client = rig.device_client(Some(&device));
    let url = format!("{}/blobs/sha256/{}", rig.https, bundle.digest());
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    assert_eq!(rig.post("/devices/cam-1/revoke", serde_json::json!({})).await.status(), 200);
    let refused = problem(client.get(&url).send().await.unwrap(), 403).await;
    assert!(refused.detail.contains("cam-1"), "{refused:?}");
}
