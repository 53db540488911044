//! Six cameras of one version; two lenses blur.

use plimsoll_protocol::Digest;
use plimsoll_protocol::api::{DeviceInfo, DriftInfo, ModelVersion};
use plimsoll_protocol::drift::baseline::ImageStatistic;
use plimsoll_protocol::drift::{Baseline, Cell, Column, Order, Source, Truth, Window};
use plimsoll_protocol::wire::v1::{DriftReport, JobPhase, JobReport, Up};
use serde_json::Value;

use crate::cam::{Cam, envelope};
use crate::rig::{Bundle, Publisher, Rig, put_blob, until};

fn baseline() -> Baseline {
    let values = (0..500).map(|i| Cell::from((i * 37 % 500) as f32 / 500.0)).collect();
    let source = Source::Image { tensor: "x".into(), statistic: ImageStatistic::Sharpness };
    let sharpness = Column { name: "sharpness".into(), source, range: None, categorical: false, values };
    Baseline::fit(&[sharpness], Order::Unordered).unwrap()
}

fn bundle() -> Bundle {
    let plain = Bundle::new("1.0.0");
    let file = baseline().to_bytes();
    let mut manifest: Value = serde_json::from_slice(&plain.manifest).unwrap();
    manifest["files"].as_array_mut().unwrap().push(serde_json::json!({
        "path": "baseline.json", "size": file.len(), "sha256": Digest::of(&file),
    }));
    manifest["baseline"] = "baseline.json".into();
    let files = plain.files.iter().cloned().chain([file]).collect();
    Bundle { version: plain.version.clone(), manifest: manifest.to_string().into_bytes(), files }
}

struct Camera {
    cam: Cam,
    digest: Digest,
    seq: u64,
    windows: u64,
}

impl Camera {
    async fn publish(&mut self, kind: Up, body: impl serde::Serialize) {
        self.seq += 1;
        let seq = self.seq;
        self.cam.publish(kind, envelope(seq, body)).await;
        self.cam
            .until("the acknowledgement", |m| {
                let acked = m.acks.iter().flat_map(|a| &a.ranges).any(|r| (r.1..=r.2).contains(&seq));
                acked.then_some(())
            })
            .await;
    }

    async fn runs(&mut self) {
        let report = JobReport {
            generation: 1,
            rollout: None,
            model: "meter".parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
            digest: self.digest,
            phase: JobPhase::Active,
            reason: None,
            running: Some(self.digest),
        };
        self.publish(Up::Job, report).await;
    }

    async fn window(&mut self, blurred: bool) {
        self.window_with(blurred, |_| ()).await;
    }

    async fn window_with(&mut self, blurred: bool, change: impl FnOnce(&mut Window)) {
        let base = baseline();
        let mut window = Window::open(&base, 0);
        for i in 0..100u32 {
            let sharp = ((self.windows as u32 * 100 + i) * 37 % 500) as f32 / 500.0;
            window.observe(&base, &[Cell::from(if blurred { 0.001 } else { sharp })]).unwrap();
        }
        change(&mut window);
        let report = DriftReport {
            model: "meter".parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
            digest: self.digest,
            index: self.windows,
            part: (0, 1),
            window,
        };
        self.windows += 1;
        self.publish(Up::Drift, report).await;
    }
}

async fn attributed(rig: &Rig) -> Vec<String> {
    let all = rig.get("/events?limit=1000").await;
    let of_drift = all.as_array().unwrap().iter().filter(|e| e["code"] == "drift.attributed");
    of_drift.map(|e| e["text"].as_str().unwrap().to_owned()).collect()
}

async fn drifting(rig: &Rig) -> Vec<String> {
    let devices: Vec<DeviceInfo> = serde_json::from_value(rig.get("/devices").await).unwrap();
    devices.iter().filter(|d| !d.drift.is_empty()).map(|d| d.device.to_string()).collect()
}

/// A server with a published bundle and so many cameras that run it, each after so many sharp windows.
async fn site(cameras: u32, windows: u32) -> (Rig, Vec<Camera>) {
    let rig = Rig::start().await;
    let publisher = Publisher::new();
    publisher.init(&rig).await;
    let bundle = bundle();
    for bytes in bundle.blobs() {
        assert!(put_blob(&rig, &bytes).await.status().is_success());
    }
    let upload = publisher.role(&rig, std::slice::from_ref(&bundle), &publisher.release).await;
    assert_eq!(publisher.upload(&rig, &upload).await.status(), 200);
    let token = rig.join_token(cameras, 5).await;
    let mut all = Vec::new();
    for n in 0..cameras {
        let device = rig.enrol(&token, &format!("cam-{n}")).await;
        let cam = Cam::connect(&rig, &device, &[]);
        let mut camera = Camera { cam, digest: bundle.digest(), seq: 0, windows: 0 };
        camera.runs().await;
        for _ in 0..windows {
            camera.window(false).await;
        }
        all.push(camera);
    }
    (rig, all)
}

#[tokio::test]
async fn two_blurred_lenses_of_six_are_the_devices_and_not_the_model_also_after_a_restart() {
    let (rig, mut cameras) = site(6, 4).await;
    assert_eq!(drifting(&rig).await, Vec::<String>::new());
    let sharp: Vec<DriftInfo> = serde_json::from_value(rig.get("/devices/cam-3/drift").await).unwrap();
    assert_eq!((sharp[0].windows, sharp[0].samples, sharp[0].features[0].alarm), (4, 100, false));

    for n in [1, 4] {
        for _ in 0..3 {
            cameras[n].window(true).await;
        }
    }
    assert_eq!(drifting(&rig).await, ["cam-1", "cam-4"]);
    let words = "meter: the devices themselves (cam-1, cam-4), not the model";
    let told = until(&rig, "the attribution", async || {
        attributed(&rig).await.into_iter().find(|text| text.starts_with(words))
    })
    .await;
    assert!(told.contains("look at their lenses and their light"), "{told}");
    assert!(told.contains("cam-4: sharpness fell from 0.499"), "{told}");
    let blurred: Vec<DriftInfo> = serde_json::from_value(rig.get("/devices/cam-4/drift").await).unwrap();
    assert!(blurred[0].features[0].alarm && blurred[0].features[0].text.starts_with("sharpness fell"));
    assert!(!blurred[0].features[0].bars.is_empty());
    assert!(blurred[0].cause.as_ref().unwrap().contains("not the model"), "{:?}", blurred[0].cause);
    let page = rig.page("/").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("not the model: the others are as before"), "{page}");
    let page = rig.page("/devices/cam-4").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("class=\"chart alarm\"") && page.contains("Where it comes from"), "{page}");

    let before = attributed(&rig).await;
    let rig = rig.restart().await;
    // Their births, when they come back, name no model.
    for camera in &mut cameras {
        camera.cam.until("the new connection", |m| (m.conn == 2).then_some(())).await;
        camera.runs().await;
    }
    until(&rig, "the rebuilt state", async || (drifting(&rig).await.len() == 2).then_some(())).await;
    cameras[1].window(true).await;
    assert_eq!(attributed(&rig).await, before, "what the journal says is not said again");
    for _ in 0..16 {
        cameras[1].window(false).await;
        cameras[4].window(false).await;
    }
    assert_eq!(drifting(&rig).await, Vec::<String>::new());
    let events = rig.get("/events?limit=1000").await;
    let over = events.as_array().unwrap().iter().find(|e| e["code"] == "drift.over");
    let over = over.unwrap_or_else(|| panic!("nobody said that it is over: {events:#}"));
    assert!(over["text"].as_str().unwrap().starts_with("meter: no device drifts any more"), "{over}");
}

async fn accuracy(rig: &Rig) -> (u64, u64) {
    let models: Vec<ModelVersion> = serde_json::from_value(rig.get("/models").await).unwrap();
    models.first().map_or((0, 0), |m| (m.labelled, m.correct))
}

#[tokio::test]
async fn labels_and_data_quality_add_up_over_windows_and_devices_also_after_a_restart() {
    let (rig, mut cameras) = site(2, 1).await;
    let labels =
        |labelled, correct| move |w: &mut Window| w.truth = Truth { labelled, correct, ..Truth::default() };
    cameras[0].window_with(false, labels(10, 9)).await;
    cameras[0].window_with(false, |w| w.quality.refused.missing = 3).await;
    cameras[0].window_with(false, labels(10, 8)).await;
    cameras[1].window_with(false, labels(5, 5)).await;
    // More correct answers than labels is not what a device of ours would say, and counts for nothing.
    cameras[1].window_with(false, labels(5, 50)).await;
    until(&rig, "the labels", async || (accuracy(&rig).await == (25, 22)).then_some(())).await;
    let drift: Vec<DriftInfo> = serde_json::from_value(rig.get("/devices/cam-0/drift").await).unwrap();
    assert_eq!(drift[0].labelled, (20, 17));
    assert_eq!(drift[0].truth, "accuracy 85.0 % of 20 labelled answers");
    assert_eq!(drift[0].quality, "refused requests: 3 missing");
    let page = rig.page("/").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("88.0 %") && page.contains("of 25 labels"), "{page}");

    let rig = rig.restart().await;
    for camera in &mut cameras {
        camera.cam.until("the new connection", |m| (m.conn == 2).then_some(())).await;
        camera.runs().await;
        camera.window(false).await;
    }
    until(&rig, "the rebuilt labels", async || (accuracy(&rig).await == (25, 22)).then_some(())).await;
}
