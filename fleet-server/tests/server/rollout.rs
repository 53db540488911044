//! Rollouts over real MQTT: orders go out, answers come back, a restarted server goes on.

use serde_json::{Value, json};

use crate::cam::Cam;
use crate::rig::{Bundle, Publisher, Rig, problem, until};

/// A fleet of `n` connected devices that has trust and version 1.0.0; devices answer `bad` digests with a failure.
async fn fleet(n: usize, bad: &[Bundle]) -> (Rig, Publisher, Vec<Cam>) {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    publisher.publish(&rig, "1.0.0").await;
    let token = rig.join_token(n as u32, 5).await;
    let bad: Vec<_> = bad.iter().map(Bundle::digest).collect();
    let mut cams = Vec::new();
    for i in 1..=n {
        let device = rig.enrol(&token, &format!("cam-{i}")).await;
        cams.push(Cam::connect(&rig, &device, &bad));
    }
    until(&rig, "every device", async || {
        let all = rig.get("/devices").await;
        all.as_array().unwrap().iter().all(|d| d["online"] == true && d["birth"].is_object()).then_some(())
    })
    .await;
    (rig, publisher, cams)
}

async fn start(rig: &Rig, version: &str, stages: Value) -> String {
    let spec = json!({ "model": "meter", "version": version, "stages": stages });
    let answer = rig.post("/rollouts", spec).await;
    assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn ends(rig: &Rig, id: &str, status: &str) -> Value {
    until(rig, &format!("status {status}"), async || {
        let rollout = rig.get(&format!("/rollouts/{id}")).await;
        (rollout["status"] == status).then_some(rollout)
    })
    .await
}

#[tokio::test]
async fn a_good_version_reaches_everybody_stage_by_stage_and_newcomers_too() {
    let (rig, _, mut cams) = fleet(3, &[]).await;
    let id = start(&rig, "1.0.0", json!([{ "size": "1" }, { "size": "100%" }])).await;
    let done = ends(&rig, &id, "completed").await;
    assert_eq!(done["stages"][0]["active"], 1);
    assert_eq!(done["stages"][1]["active"], 2);
    assert!(done["history"].as_array().unwrap().len() >= 3, "{}", done["history"]);
    for cam in &mut cams {
        let ack = cam.until("an acknowledgement", |m| m.acks.first().cloned()).await;
        assert_eq!(ack.ranges, [(1, 1, 1)]);
        assert_eq!(cam.orders()[0].generation, 1);
    }
    let devices = rig.get("/devices").await;
    assert!(devices.as_array().unwrap().iter().all(|d| d["running"][0]["version"] == "1.0.0"), "{devices}");
    assert!(devices.as_array().unwrap().iter().all(|d| d["waiting"].is_null()), "{devices}");
    assert_eq!(rig.get("/models").await[0]["devices"], 3);

    let late = rig.enrol(&rig.join_token(1, 5).await, "late").await;
    let mut late = Cam::connect(&rig, &late, &[]);
    late.until("the standing goal", |m| m.desired.first().map(|d| d.models[0].version.clone())).await;
    let metrics = rig.page("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("plimsoll_devices{state=\"online\"} 4"), "{metrics}");
    assert!(!metrics.contains("cam-1"), "a device id in a label");
}

#[tokio::test]
async fn a_bad_version_is_taken_back_and_never_reaches_the_second_stage() {
    let bad = Bundle::new("1.1.0");
    let (rig, publisher, mut cams) = fleet(3, std::slice::from_ref(&bad)).await;
    let first = start(&rig, "1.0.0", json!([{ "size": "100%" }])).await;
    ends(&rig, &first, "completed").await;
    publisher.publish(&rig, "1.1.0").await;
    let id = start(&rig, "1.1.0", json!([{ "size": "1" }, { "size": "100%" }])).await;
    let stopped = ends(&rig, &id, "rolled_back").await;
    assert!(stopped["reason"].as_str().is_some_and(|r| !r.is_empty()));
    let ordered: Vec<usize> = cams
        .iter()
        .enumerate()
        .filter(|(_, c)| c.orders().iter().any(|d| d.models[0].digest == bad.digest()))
        .map(|(i, _)| i)
        .collect();
    let [canary] = ordered[..] else { panic!("{} devices were ordered the bad version", ordered.len()) };
    let back = cams[canary]
        .until("the way back", |m| m.desired.last().filter(|d| d.models[0].rollback).cloned())
        .await;
    assert_eq!(back.models[0].version.to_string(), "1.0.0");
    assert_eq!(back.models[0].blocked, [bad.digest()]);
    let generations: Vec<u64> = cams[canary].orders().iter().map(|d| d.generation).collect();
    assert!(generations.windows(2).all(|w| w[0] <= w[1]), "{generations:?}");
    let devices = rig.get("/devices").await;
    assert!(devices.as_array().unwrap().iter().all(|d| d["running"][0]["version"] == "1.0.0"), "{devices}");
    let events = rig.get("/events").await;
    assert!(
        events
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["severity"] == "alarm" && e["code"] == "rollout.decision")
    );
}

#[tokio::test]
async fn a_restarted_server_goes_on_with_the_rollout_where_it_was() {
    let (rig, _, cams) = fleet(2, &[]).await;
    let id = start(&rig, "1.0.0", json!([{ "size": "1" }, { "size": "100%", "approval": true }])).await;
    ends(&rig, &id, "waiting_for_approval").await;
    let orders = |cams: &[Cam]| cams.iter().map(|c| c.orders().len()).sum::<usize>();
    assert_eq!(orders(&cams), 1);
    let devices = rig.get("/devices").await;
    let waiting = devices.as_array().unwrap().iter().filter_map(|d| d["waiting"].as_str());
    let waiting: Vec<&str> = waiting.collect();
    assert!(matches!(waiting[..], [one] if one.contains("1.0.0 in stage 2")), "{waiting:?}");
    let rig = rig.restart().await;
    let still = rig.get(&format!("/rollouts/{id}")).await;
    assert_eq!(still["status"], "waiting_for_approval");
    assert!(!still["history"].as_array().unwrap().is_empty());
    let approved = rig.post(&format!("/rollouts/{id}/approve"), json!({ "reason": "looks good" })).await;
    assert_eq!(approved.status(), 200);
    let done = ends(&rig, &id, "completed").await;
    assert!(done["history"].to_string().contains("looks good"));
    let devices = rig.get("/devices").await;
    assert!(devices.as_array().unwrap().iter().all(|d| d["running"][0]["version"] == "1.0.0"), "{devices}");
}

#[tokio::test]
async fn two_rollouts_of_one_model_do_not_fight() {
    let (rig, publisher, _cams) = fleet(2, &[]).await;
    publisher.publish(&rig, "1.1.0").await;
    let first = start(&rig, "1.0.0", json!([{ "size": "1" }, { "size": "100%", "approval": true }])).await;
    let stages = json!([{ "size": "100%" }]);
    let second = json!({ "model": "meter", "version": "1.1.0", "stages": stages, "supersede": false });
    let refused = problem(rig.post("/rollouts", second).await, 409).await;
    assert!(refused.kind == "rollout-conflict" && refused.detail.contains(&first), "{refused:?}");
    let second = json!({ "model": "meter", "version": "1.1.0", "stages": stages, "supersede": true });
    let started: Value = rig.post("/rollouts", second).await.json().await.unwrap();
    ends(&rig, &first, "superseded").await;
    ends(&rig, started["id"].as_str().unwrap(), "completed").await;
}
