//! Signed metadata: taken whole or not at all, judged by the devices' own code.

use plimsoll_protocol::trust::{Client, KeyPair, Response, Step};
use serde_json::Value;

use crate::rig::{Bundle, Publisher, Rig, now, problem, put_blob};

/// What a device would find, by name.
async fn fetch(rig: &Rig, name: &str) -> Option<Vec<u8>> {
    let answer = rig.device_client(None).get(format!("{}/tuf/{name}", rig.https)).send().await.unwrap();
    if answer.status() == 404 { None } else { Some(answer.bytes().await.unwrap().to_vec()) }
}

#[tokio::test]
async fn what_is_published_is_what_a_device_can_verify_and_finds() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    let bundle = publisher.publish(&rig, "1.0.0").await;
    let root = fetch(&rig, "1.root.json").await.unwrap();
    let mut device = Client::new([("root.json".to_owned(), root)].into(), now()).unwrap();
    while let Step::Fetch(wanted) = device.next() {
        let bytes = fetch(&rig, &wanted.path).await;
        device.supply(bytes.as_deref().map_or(Response::NotFound, Response::Bytes)).unwrap();
    }
    device.find("bundles/meter/1.0.0/bundle.json").unwrap();
    let found = loop {
        match device.next() {
            Step::Fetch(wanted) => {
                let bytes = fetch(&rig, &wanted.path).await;
                device.supply(bytes.as_deref().map_or(Response::NotFound, Response::Bytes)).unwrap();
            }
            other => break format!("{other:?}"),
        }
    };
    assert!(found.contains("meter"), "{found}");
    let models = rig.get("/models").await;
    assert_eq!(models[0]["digest"], bundle.digest().to_string());
    assert_eq!(models[0]["signed_by"], "meter");
}

/// The documents as served and the list of models: what a refused upload must not touch.
async fn snapshot(rig: &Rig) -> (Value, Value, Option<Vec<u8>>) {
    (rig.get("/trust").await, rig.get("/models").await, fetch(rig, "timestamp.json").await)
}

#[tokio::test]
async fn metadata_that_is_wrong_is_refused_with_words_and_nothing_of_it_is_kept() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    let early = publisher.role(&rig, &[], &publisher.release).await;
    assert_eq!(problem(publisher.upload(&rig, &early).await, 409).await.kind, "no-trust");
    publisher.init(&rig).await;
    let old = publisher.role(&rig, &[], &publisher.release).await;
    publisher.publish(&rig, "1.0.0").await;
    let before = snapshot(&rig).await;

    let next = Bundle::new("1.1.0");
    for bytes in next.blobs() {
        put_blob(&rig, &bytes).await;
    }
    let stranger = KeyPair::from_seed(&[9; 32]);
    let forged = publisher.role(&rig, &[next], &stranger).await;
    let refused = problem(publisher.upload(&rig, &forged).await, 422).await;
    assert!(refused.detail.contains("meter") && refused.detail.contains("signatures"), "{refused:?}");

    let rollback = problem(publisher.upload(&rig, &old).await, 422).await;
    assert!(rollback.detail.contains("not newer"), "{rollback:?}");

    let missing = publisher.role(&rig, &[Bundle::new("2.0.0")], &publisher.release).await;
    let missing = problem(publisher.upload(&rig, &missing).await, 422).await;
    assert!(missing.kind == "bundle-incomplete" && missing.detail.contains("2.0.0"), "{missing:?}");

    let half = Bundle::new("3.0.0");
    put_blob(&rig, &half.manifest).await;
    let half = publisher.role(&rig, &[half], &publisher.release).await;
    let half = problem(publisher.upload(&rig, &half).await, 422).await;
    assert!(half.detail.contains("model.onnx"), "{half:?}");

    assert_eq!(snapshot(&rig).await, before);
    let events = rig.get("/events").await;
    let refusals = events.as_array().unwrap().iter().filter(|e| e["code"] == "trust.upload-refused").count();
    assert_eq!(refusals, 5, "every refusal is told");
}

#[tokio::test]
async fn a_manifest_for_another_version_is_refused() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    let bundle = Bundle::new("1.0.0");
    for bytes in bundle.blobs() {
        put_blob(&rig, &bytes).await;
    }
    let disguised = Bundle { version: "9.9.9".parse().unwrap(), ..bundle };
    let upload = publisher.role(&rig, &[disguised], &publisher.release).await;
    let refused = problem(publisher.upload(&rig, &upload).await, 422).await;
    assert!(refused.detail.contains("9.9.9"), "{refused:?}");
}

#[tokio::test]
async fn a_restarted_server_serves_what_it_published() {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    publisher.publish(&rig, "1.0.0").await;
    let before = (rig.get("/trust").await, rig.get("/models").await);
    let rig = rig.restart().await;
    let after = (rig.get("/trust").await, rig.get("/models").await);
    assert_eq!(before, after);
    publisher.publish(&rig, "1.1.0").await;
    assert_eq!(rig.get("/models").await[0]["version"], "1.1.0");
}
