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
    assert_eq!(
        listed[0]["labels"]["site"], "lyon",
        "a device said that it belongs elsewhere than its token does"
    );
    assert_eq!(listed[0]["labels"]["floor"], "2");
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

#[tokio::test]
async fn of_many_who_come_at_once_and_after_a_restart_a_token_lets_in_exactly_as_many_as_it_says() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let token = rig.join_token(3, 5).await;
    let come = async |rig: &Rig, names: std::ops::Range<u32>| {
        let all = names.map(|n| {
            let (name, key) = (format!("cam-{n}"), DeviceKey::generate().unwrap());
            let token = &token;
            async move { rig.try_enrol(token, &name, csr(&key, &name)).await.status().as_u16() }
        });
        let answers = futures_util::future::join_all(all).await;
        let let_in = answers.iter().filter(|status| **status == 200).count();
        assert!(answers.iter().all(|status| [200, 403].contains(status)), "{answers:?}");
        let_in
    };
    assert_eq!(come(&rig, 0..2).await, 2);
    let rig = rig.restart().await;
    assert_eq!(come(&rig, 2..10).await, 1, "two of three uses were spent before the restart");
    assert_eq!(come(&rig, 10..14).await, 0);
    assert_eq!(rig.get("/devices").await.as_array().unwrap().len(), 3);
    let listed = rig.get("/join-tokens").await;
    assert_eq!((&listed[0]["uses"], &listed[0]["uses_left"]), (&3.into(), &0.into()));
    assert!(!listed.to_string().contains(&token.secret), "the secret is shown again");
    let stored = std::fs::read(rig.dir.path().join("export.jsonl")).unwrap();
    let secret = token.secret.as_bytes();
    assert!(!stored.windows(secret.len()).any(|part| part == secret), "the secret is stored");
}

#[tokio::test]
async fn a_join_token_is_for_its_names_and_ends_when_it_is_revoked() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let bad = rig.post("/join-tokens", serde_json::json!({"uses": 5, "minutes": 5, "names": "a/*"})).await;
    assert!(problem(bad, 400).await.detail.contains("a/*"));
    let made = rig.post("/join-tokens", serde_json::json!({"uses": 5, "minutes": 5, "names": "cam-*"})).await;
    let made: plimsoll_protocol::api::TokenCreated = made.json().await.unwrap();
    let token = made.token.parse().unwrap();
    rig.enrol(&token, "cam-1").await;
    let key = DeviceKey::generate().unwrap();
    let other = problem(rig.try_enrol(&token, "meter-1", csr(&key, "meter-1")).await, 403).await;
    assert!(other.detail.contains("other names"), "{other:?}");
    assert_eq!(
        rig.post(&format!("/join-tokens/{}/revoke", made.id), serde_json::json!({})).await.status(),
        200
    );
    let late = problem(rig.try_enrol(&token, "cam-2", csr(&key, "cam-2")).await, 403).await;
    assert!(late.detail.contains("was revoked"), "{late:?}");
    assert_eq!(rig.get("/devices").await.as_array().unwrap().len(), 1, "who enrolled stays");
    assert_eq!(rig.post("/join-tokens/none/revoke", serde_json::json!({})).await.status(), 404);
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_own_key_and_not_twice_in_a_breath() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let device = rig.enrol(&rig.join_token(1, 5).await, "cam-1").await;
    let url = format!("{}{}", rig.https, plimsoll_protocol::wire::v1::RENEW_PATH);
    let nobody = rig.device_client(None).post(&url).send().await.unwrap();
    assert_eq!(problem(nobody, 401).await.kind, "no-certificate");
    let soon = rig.device_client(Some(&device)).post(&url).send().await.unwrap();
    let wait: u64 = soon.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(problem(soon, 429).await.kind, "too-soon");
}
