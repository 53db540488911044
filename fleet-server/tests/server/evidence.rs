//! What devices answer, and what labels say of it later, stops a version, whatever else is well with it: real reports,
//! and a restart in between.

use plimsoll_protocol::Digest;
use plimsoll_protocol::drift::{Baseline, Cell, Column, Order, Source, Truth, Window};
use plimsoll_protocol::wire::v1::{DriftReport, Up};
use serde_json::{Value, json};

use crate::cam::{Cam, envelope};
use crate::rig::{Bundle, Publisher, Rig, until};

/// Readings of a window: enough for the gate's default of 100.
const READINGS: u32 = 120;
/// Reports of windows count from here, so that they do not meet the numbers of job reports.
const FIRST_SEQ: u64 = 1_000;

fn baseline() -> Baseline {
    let column = Column {
        name: "confidence".into(),
        source: Source::Confidence { tensor: "y".into() },
        range: None,
        categorical: false,
        values: (0..300).map(|i| Cell::from(0.9 + i as f32 / 4_000.0)).collect(),
    };
    Baseline::fit(&[column], Order::Unordered).unwrap()
}

/// A window of readings around `mean`, as a device sends it.
async fn answers(cam: &mut Cam, bundle: &Bundle, index: u64, mean: f32) {
    labelled(cam, bundle, index, mean, Truth::default()).await;
}

/// The same, with what labels said of them.
async fn labelled(cam: &mut Cam, bundle: &Bundle, index: u64, mean: f32, truth: Truth) {
    let baseline = baseline();
    let mut window = Window::open(&baseline, 0);
    for i in 0..READINGS {
        window.observe(&baseline, &[Cell::from(mean + 0.01 * ((i % 3) as f32 - 1.0))]).unwrap();
    }
    window.truth = truth;
    let (version, digest) = (bundle.version.clone(), bundle.digest());
    let report =
        DriftReport { model: "meter".parse().unwrap(), version, digest, index, part: (0, 1), window };
    cam.publish(Up::Drift, envelope(FIRST_SEQ + index, report)).await;
}

/// Waits until all devices are connected.
async fn connected(rig: &Rig) {
    until(rig, "every device", async || {
        let all = rig.get("/devices").await;
        all.as_array().unwrap().iter().all(|d| d["online"] == true && d["birth"].is_object()).then_some(())
    })
    .await;
}

/// Waits until the server has committed that a device sent the window.
async fn acknowledged(cam: &mut Cam, index: u64) {
    let seq = FIRST_SEQ + index;
    cam.until("the window's acknowledgement", |m| {
        m.acks.iter().flat_map(|a| &a.ranges).any(|r| r.1 <= seq && seq <= r.2).then_some(())
    })
    .await;
}

async fn rollout(rig: &Rig, version: &str, stages: Value, gate: Value) -> String {
    let spec = json!({ "model": "meter", "version": version, "stages": stages, "gate": gate });
    let answer = rig.post("/rollouts", spec).await;
    assert_eq!(answer.status(), 201);
    answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn shows(rig: &Rig, id: &str, what: &str, look: impl Fn(&Value) -> bool) -> Value {
    until(rig, what, async || {
        let rollout = rig.get(&format!("/rollouts/{id}")).await;
        look(&rollout).then_some(rollout)
    })
    .await
}

fn had(cam: &Cam, digest: Digest) -> bool {
    cam.orders().iter().any(|d| d.models.iter().any(|m| m.digest == digest))
}

/// Three cameras on 1.0.0 that answered surely, and one of them with 1.1.0, whose readings the stage waits for, or for its
/// time, if it has one.
async fn waiting(soak_s: u32, gate: Value) -> (Rig, Vec<Cam>, Bundle, Bundle, String) {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    let old = publisher.publish_bundle(&rig, Bundle::measured("1.0.0", &baseline())).await;
    let new = publisher.publish_bundle(&rig, Bundle::measured("1.1.0", &baseline())).await;
    let token = rig.join_token(3, 5).await;
    let mut cams = Vec::new();
    for i in 1..=3 {
        cams.push(Cam::connect(&rig, &rig.enrol(&token, &format!("cam-{i}")).await, &[]));
    }
    connected(&rig).await;
    let first = rollout(&rig, "1.0.0", json!([{ "size": "100%" }]), json!({})).await;
    shows(&rig, &first, "1.0.0 everywhere", |r| r["status"] == "completed").await;
    for cam in &mut cams {
        answers(cam, &old, 0, 0.97).await;
        acknowledged(cam, 0).await;
    }
    let id =
        rollout(&rig, "1.1.0", json!([{ "size": "1", "soak_s": soak_s }, { "size": "100%" }]), gate).await;
    let waits = shows(&rig, &id, "a stage that waits", |r| {
        let words = if soak_s == 0 { "has 0 of 100 readings" } else { "stage wait ends" };
        r["stages"][0]["waiting_for"].as_str().is_some_and(|w| w.contains(words))
    })
    .await;
    assert_eq!((&waits["stages"][0]["active"], &waits["status"]), (&json!(1), &json!("running")));
    (rig, cams, old, new, id)
}

#[tokio::test]
async fn a_version_that_is_unsure_in_the_field_stops_itself_and_says_why() {
    let (rig, mut cams, old, new, id) = waiting(0, json!({})).await;
    // What was measured before is remembered.
    let rig = rig.restart().await;
    connected(&rig).await;
    for cam in &mut cams {
        let mean = if had(cam, new.digest()) { 0.25 } else { 0.97 };
        let (bundle, index) = if mean < 0.5 { (&new, 1) } else { (&old, 1) };
        answers(cam, bundle, index, mean).await;
    }
    let stopped = shows(&rig, &id, "the end", |r| r["status"] == "rolled_back").await;
    let reason = stopped["reason"].as_str().unwrap();
    assert!(reason.contains("confidence on cam-") && reason.contains("fell from 0.97 to 0.25"), "{reason}");
    assert!(reason.contains("these devices only"), "{reason}");
    let evidence = &stopped["evidence"];
    assert_eq!((&evidence["stopped"], &evidence["compared"]), (&json!(true), &json!(1)), "{evidence}");
    assert_eq!(evidence["canaries"][0]["after_readings"], READINGS);
    assert_eq!(cams.iter().filter(|c| had(c, new.digest())).count(), 1, "nobody else got it");
    let page = rig.page(&format!("/rollouts/{id}")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Version before") && page.contains("fell from 0.97 to 0.25"), "{page}");
    // And after the windows have gone from memory, the reason stands.
    let rig = rig.restart().await;
    let still = rig.get(&format!("/rollouts/{id}")).await;
    assert_eq!((&still["evidence"], &still["reason"]), (evidence, &stopped["reason"]));
}

#[tokio::test]
async fn a_version_that_is_as_sure_as_before_goes_on_with_its_evidence() {
    let (rig, mut cams, old, new, id) = waiting(0, json!({})).await;
    for cam in &mut cams {
        let bundle = if had(cam, new.digest()) { &new } else { &old };
        answers(cam, bundle, 1, 0.95).await;
    }
    shows(&rig, &id, "the second stage", |r| r["stages"][1]["active"] == 2).await;
    for cam in &mut cams {
        answers(cam, &new, 2, 0.95).await;
    }
    let done = shows(&rig, &id, "the end", |r| r["status"] == "completed").await;
    let history = done["history"].to_string();
    assert!(
        history.contains("fell from 0.97 to 0.95") && history.contains("0.1 less is allowed"),
        "{history}"
    );
    assert_eq!(done["evidence"]["compared"], 3, "{}", done["evidence"]);
}

#[tokio::test]
async fn labels_from_before_a_restart_count_with_those_that_come_after_it() {
    let gate = json!({ "min_accuracy_percent": 95.0 });
    let (rig, mut cams, _, new, id) = waiting(3_600, gate).await;
    let truth = |labelled, correct| Truth { labelled, correct, ..Truth::default() };
    let canary = cams.iter_mut().find(|cam| had(cam, new.digest())).unwrap();
    labelled(canary, &new, 1, 0.97, truth(40, 36)).await;
    // More than one in twenty, which so few do not prove.
    shows(&rig, &id, "the first labels", |r| r["accuracy"].to_string().contains("90.0 % of 40")).await;
    let rig = rig.restart().await;
    connected(&rig).await;
    shows(&rig, &id, "the same labels", |r| r["accuracy"].to_string().contains("90.0 % of 40")).await;
    labelled(canary, &new, 2, 0.97, truth(60, 40)).await;
    let stopped = shows(&rig, &id, "the end", |r| r["status"] == "rolled_back").await;
    let reason = stopped["reason"].as_str().unwrap();
    assert!(reason.contains("24 of 100 labelled answers"), "{reason}");
}
