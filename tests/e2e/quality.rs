//! What a request may hold and what its answer was worth, from an application's request to the operator's screen: a
//! value that is refused by name and counted, and labels that come late, also for a version that runs no more.

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{DriftInfo, ModelVersion, RolloutStatus};
use plimsoll_tests::{Image, MODEL, Order, STEP, Site, until};
use serde_json::{Value, json};

struct Application {
    base: String,
    client: reqwest::Client,
}

impl Application {
    async fn post(&self, action: &str, body: &Value) -> Result<(u16, Value)> {
        let sent = self.client.post(format!("{}/{action}", self.base)).json(body).send().await?;
        Ok((sent.status().as_u16(), sent.json().await?))
    }

    fn ask(pixels: Value) -> Value {
        json!({ "inputs": [{ "name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels }] })
    }

    /// The prediction id of an answer, the version that gave it, and the digit.
    async fn predict(&self, image: &Image) -> Result<(String, String, u64)> {
        let (status, answer) = self.post("infer", &Self::ask(json!(image.pixels))).await?;
        ensure!(status == 200, "{status}: {answer}");
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let scores =
            answer["outputs"][0]["data"].as_array().context("no scores")?.iter().filter_map(Value::as_f64);
        let best = scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).context("no scores")?.0;
        Ok((text(&answer["parameters"]["prediction_id"])?, text(&answer["model_version"])?, best as u64))
    }
}

/// Packs the demo's better model with a policy.
async fn pack(site: &Site, version: &str, more: &[&str]) -> Result<std::path::PathBuf> {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let out = site.fleet.dir.join(format!("bundle-{version}"));
    let text = |p: &std::path::Path| p.to_string_lossy().into_owned();
    let (onnx, golden) =
        (text(&demo.join("models/1.1.0/model.onnx")), text(&demo.join("models/1.1.0/golden")));
    let (reference, to) = (text(&demo.join("data/reference.csv")), text(&out));
    let mut args = vec!["bundle", "pack", &onnx, "--model", MODEL, "--version", version, "--out", &to];
    args.extend(["--golden", &golden, "--reference", &reference, "--labels", "0,1,2,3,4,5,6,7,8,9"]);
    args.extend(more);
    site.fleet.plimsoll(&args).await?;
    Ok(out)
}

#[tokio::test(flavor = "current_thread")]
async fn refused_values_and_late_labels_reach_the_operator_by_version() {
    Site::play(1, async |site| {
        site.publish(&pack(site, "1.1.0", &["--refuse", "missing"]).await?).await?;
        let first = site.roll_out("1.1.0", Order::default()).await?;
        site.ended(&first, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await?;
        let agent = &site.fleet.agents[0];
        let base = format!("http://{}/v2/models/{MODEL}", agent.listen);
        let application = Application { base, client: reqwest::Client::builder().no_proxy().build()? };

        let mut pixels = vec![json!(1.0); 64];
        pixels[9] = Value::Null;
        let (status, refused) = application.post("infer", &Application::ask(json!(pixels))).await?;
        ensure!(status == 400, "{status}: {refused}");
        let words = refused["error"].as_str().context("no words")?;
        ensure!(words.contains("feature \"pixels[9]\": NaN is a missing value"), "{words}");

        // Ten answers; the labels of four come while the version still runs.
        let mut answers = Vec::new();
        for image in site.replay.images.iter().take(10) {
            let (id, version, digit) = application.predict(image).await?;
            ensure!(version == "1.1.0", "{version} answers");
            answers.push((id, image.label as u64, digit));
        }
        let label =
            |(id, label, _): &(String, u64, u64)| json!({ "prediction_id": id, "label": label.to_string() });
        let right = |answers: &[(String, u64, u64)]| answers.iter().filter(|(_, l, d)| l == d).count() as u64;
        let (now, later) = answers.split_at(4);
        let (status, taken) =
            application.post("feedback", &json!(now.iter().map(label).collect::<Vec<_>>())).await?;
        ensure!(status == 200 && taken["taken"] == 4 && taken["correct"] == right(now), "{status}: {taken}");
        until("quality and accuracy to reach the server", STEP, || async {
            let drift: Vec<DriftInfo> = site.fleet.api.get(&format!("devices/{}/drift", agent.name)).await?;
            let seen = drift.first().context("no window yet")?;
            ensure!(seen.quality.contains("refused requests: 1 missing"), "{:?}", seen.quality);
            ensure!(seen.labelled == (4, right(now)), "{:?}", seen.labelled);
            Ok(())
        })
        .await?;

        let shown = site.fleet.api.rollout(&first).await?.accuracy;
        ensure!(shown.contains("1.1.0: accuracy") && shown.contains("of 4 labelled"), "{shown:?}");

        // Another version takes over; what the one before answered is still its own.
        site.publish(&pack(site, "1.2.0", &[]).await?).await?;
        let id = site.roll_out("1.2.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.2.0").await?;
        let (status, taken) =
            application.post("feedback", &json!(later.iter().map(label).collect::<Vec<_>>())).await?;
        ensure!(status == 200 && taken["versions"] == json!(["1.1.0"]), "{status}: {taken}");
        until("the labels to be those of the version that answered", STEP, || async {
            let models: Vec<ModelVersion> = site.fleet.api.get("models").await?;
            let of = |version: &str| {
                let found = models.iter().find(|m| m.version.to_string() == version);
                found.map(|m| (m.labelled, m.correct))
            };
            ensure!(of("1.1.0") == Some((10, right(&answers))), "{:?}", of("1.1.0"));
            ensure!(of("1.2.0") == Some((0, 0)), "{:?}", of("1.2.0"));
            Ok(())
        })
        .await?;

        // A restart of the serving process forgets the answers, and no label meets another's.
        let (id, ..) = application.predict(&site.replay.images[0]).await?;
        agent.kill_serving()?;
        until("the serving process to be back", STEP, || async {
            application.predict(&site.replay.images[1]).await.map(|_| ())
        })
        .await?;
        let (status, gone) =
            application.post("feedback", &json!({ "prediction_id": id, "label": "0" })).await?;
        ensure!(
            status == 410 && gone["error"].to_string().contains("none after a restart"),
            "{status}: {gone}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_version_that_answers_in_time_and_wrongly_is_stopped_by_labels() {
    Site::play(1, async |site| {
        site.publish(&pack(site, "1.1.0", &[]).await?).await?;
        let mut args = vec!["rollout", "start", "--model", MODEL, "--version", "1.1.0", "--stages", "100%"];
        args.extend([
            "--selector",
            "site = lyon",
            "--trial",
            "1s",
            "--trial-requests",
            "0",
            "--jitter",
            "0s",
        ]);
        args.extend(["--soak", "10m", "--max-confidence-drop", "1", "--min-accuracy", "90"]);
        let started = site.fleet.plimsoll(&args).await?;
        let id = started["id"].as_str().context("no id")?.parse()?;
        site.all_run("1.1.0").await?;

        // It answers; whoever looked afterwards saw another digit each time.
        let agent = &site.fleet.agents[0];
        let base = format!("http://{}/v2/models/{MODEL}", agent.listen);
        let application = Application { base, client: reqwest::Client::builder().no_proxy().build()? };
        let mut labels = Vec::new();
        for image in site.replay.images.iter().take(40) {
            let (id, version, digit) = application.predict(image).await?;
            ensure!(version == "1.1.0", "{version} answers");
            labels.push(json!({ "prediction_id": id, "label": ((digit + 1) % 10).to_string() }));
        }
        let (status, taken) = application.post("feedback", &json!(labels)).await?;
        ensure!(status == 200 && taken["taken"] == 40 && taken["correct"] == 0, "{status}: {taken}");

        let ended = site.ended(&id, RolloutStatus::RolledBack).await?;
        let words = "40 of 40 labelled answers of 1 device are wrong";
        ensure!(
            ended.reason.contains(words) && ended.reason.contains("90 % must be right"),
            "{}",
            ended.reason
        );
        site.all_run("1.0.0").await
    })
    .await;
}
