//! Reports of devices: counted once, acknowledged when committed, set aside when unreadable.

use plimsoll_protocol::wire::v1::Up;
use serde_json::{Value, json};

use crate::cam::{Cam, envelope};
use crate::rig::{Publisher, Rig, until};

async fn rig_with_cam() -> (Rig, Cam) {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let device = rig.enrol(&rig.join_token(1, 5).await, "cam-1").await;
    let cam = Cam::connect(&rig, &device, &[]);
    (rig, cam)
}

fn event(seq: u64, text: &str) -> Vec<u8> {
    envelope(seq, json!({ "severity": "warning", "code": "lens.dirty", "text": text }))
}

async fn events(rig: &Rig, code: &str) -> Vec<Value> {
    let all = rig.get("/events?limit=1000").await;
    all.as_array().unwrap().iter().filter(|e| e["code"] == code).cloned().collect()
}

#[tokio::test]
async fn a_report_sent_twice_is_acknowledged_twice_and_counted_once() {
    let (rig, mut cam) = rig_with_cam().await;
    for seq in [1, 2, 2, 1, 3] {
        cam.publish(Up::Event, event(seq, &format!("number {seq}"))).await;
    }
    cam.until("all three acknowledged", |m| {
        let all: Vec<u64> = m.acks.iter().flat_map(|a| &a.ranges).flat_map(|r| r.1..=r.2).collect();
        [1, 2, 3].iter().all(|n| all.contains(n)).then_some(())
    })
    .await;
    cam.publish(Up::Event, event(9, "the last")).await;
    cam.until("the last acknowledged", |m| {
        m.acks.iter().any(|a| a.ranges.contains(&(1, 9, 9))).then_some(())
    })
    .await;
    assert_eq!(events(&rig, "lens.dirty").await.len(), 4);
}

#[tokio::test]
async fn a_backfill_is_acknowledged_by_ranges_and_each_of_its_reports_is_counted_once() {
    let (rig, mut cam) = rig_with_cam().await;
    let batch = |seqs: &[u64]| {
        let entry = |seq: &u64| {
            let report: Value = serde_json::from_slice(&event(*seq, "of an outage")).unwrap();
            json!({ "kind": "event", "report": report })
        };
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        let entries: Vec<Value> = seqs.iter().map(entry).collect();
        std::io::Write::write_all(&mut out, Value::from(entries).to_string().as_bytes()).unwrap();
        out.finish().unwrap()
    };
    cam.publish(Up::Event, event(3, "came alone before the outage")).await;
    cam.publish(Up::Batch, batch(&[1, 2, 3, 4, 9])).await;
    cam.until("the batch acknowledged", |m| {
        let mut ranges = m.acks.iter().flat_map(|a| &a.ranges);
        (ranges.clone().any(|r| *r == (1, 1, 4)) && ranges.any(|r| *r == (1, 9, 9))).then_some(())
    })
    .await;
    // Its acknowledgement was lost, say.
    cam.publish(Up::Batch, batch(&[4, 9, 10])).await;
    cam.until("the new one acknowledged", |m| {
        m.acks.iter().any(|a| a.ranges.contains(&(1, 9, 10))).then_some(())
    })
    .await;
    assert_eq!(events(&rig, "lens.dirty").await.len(), 6, "1, 2, 3, 4, 9 and 10");
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_set_aside_and_does_not_block_what_follows() {
    let (rig, mut cam) = rig_with_cam().await;
    cam.publish(Up::Event, "{not json").await;
    cam.publish(Up::Event, envelope(1, json!({ "severity": "purple" }))).await;
    cam.publish(Up::Batch, vec![0xff; 1000]).await;
    cam.publish(Up::Event, event(2, "after the poison")).await;
    cam.until("poison with readable numbers is acknowledged too", |m| {
        let all: Vec<u64> = m.acks.iter().flat_map(|a| &a.ranges).flat_map(|r| r.1..=r.2).collect();
        (all.contains(&1) && all.contains(&2)).then_some(())
    })
    .await;
    let aside =
        until(&rig, "the event", async || events(&rig, "report.malformed").await.into_iter().next()).await;
    assert_eq!(aside["device"], "cam-1");
    assert!(aside["text"].as_str().unwrap().contains("event"), "{aside}");
    assert_eq!(events(&rig, "lens.dirty").await.len(), 1);
}

#[tokio::test]
async fn a_revoked_device_loses_its_connection() {
    let (rig, _cam) = rig_with_cam().await;
    let online = async |expect: bool| {
        until(&rig, "presence", async || (rig.get("/devices/cam-1").await["online"] == expect).then_some(()))
            .await;
    };
    online(true).await;
    assert_eq!(rig.post("/devices/cam-1/revoke", json!({})).await.status(), 200);
    online(false).await;
    assert_eq!(rig.get("/devices/cam-1").await["revoked"], true);
}

#[tokio::test]
async fn mqtt_is_spoken_on_the_https_port_too() {
    let rig = Rig::start().await;
    Publisher::new().init(&rig).await;
    let device = rig.enrol(&rig.join_token(1, 5).await, "cam-1").await;
    let mut cam = Cam::connect_by_alpn(&rig, &device);
    cam.publish(Up::Event, event(1, "through the wall")).await;
    cam.until("the acknowledgement", |m| m.acks.first().cloned()).await;
    assert_eq!(events(&rig, "lens.dirty").await[0]["device"], "cam-1");
}

#[tokio::test]
async fn the_live_stream_tells_what_happens() {
    let (rig, mut cam) = rig_with_cam().await;
    let mut stream = rig.call(reqwest::Method::GET, "/events/stream").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    cam.publish(Up::Event, event(1, "seen live")).await;
    cam.until("the acknowledgement", |m| m.acks.first().cloned()).await;
    let heard = async {
        let mut text = String::new();
        while !(text.contains("seen live") && text.contains("event: change")) {
            text.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, heard).await.expect("the stream did not tell");
    // A stream that stands does not keep the server from stopping.
    let mut rig = rig;
    let stopped = rig.server.take().unwrap().stop();
    tokio::time::timeout(crate::rig::PATIENCE, stopped).await.expect("the server did not stop");
}
