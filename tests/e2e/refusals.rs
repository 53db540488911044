//! Bad input, on the real programs: each is refused with words that name the thing, the server knows of it, and the
//! model that runs goes on running.

#[path = "refusals/forge.rs"]
mod forge;

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use forge::Forge;
use plimsoll_protocol::bundle::MAX_MANIFEST_BYTES;
use plimsoll_protocol::trust::KeyPair;
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_tests::{MODEL, Order, Site};
use serde_json::{Value, json};
use tokio::process::Command;

/// Exit code of a refusal, as `plimsoll` documents it.
const REFUSED: i32 = 3;

#[tokio::test(flavor = "current_thread")]
async fn metadata_that_is_not_signed_as_it_must_be_changes_nothing() {
    Site::play(1, async |site| {
        let forge = Forge::new(site).await?;
        let before: Value = site.fleet.api.get("trust").await?;
        let version = forge.role.version;

        let mut broken = forge.sign(version + 1, &forge.key)?;
        forge::flip_signature(&mut broken)?;
        let words = forge.refused(site, &broken, 422).await?;
        ensure!(words.contains(MODEL) && words.contains("signature"), "a broken signature: {words}");

        let stranger = KeyPair::from_seed(&[7; 32]);
        let words = forge.refused(site, &forge.sign(version + 1, &stranger)?, 422).await?;
        ensure!(words.contains(MODEL), "an unknown key: {words}");

        for old in [version, version - 1] {
            let words = forge.refused(site, &forge.sign(old.max(1), &forge.key)?, 422).await?;
            ensure!(words.contains("not newer") && words.contains(MODEL), "version {old} again: {words}");
        }

        let after: Value = site.fleet.api.get("trust").await?;
        ensure!(before == after, "a refused upload changed {before} to {after}");
        site.event("trust.upload-refused", &["signature"]).await?;
        site.event("trust.upload-refused", &["not newer"]).await?;
        site.still_run("1.0.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_manifest_that_escapes_or_is_too_large_is_not_published_even_when_it_is_signed() {
    Site::play(1, async |site| {
        let forge = Forge::new(site).await?;
        let bundle = site.pack("1.1.0", "2.0.0").await?;

        forge::edit(&bundle, |manifest| manifest["files"][0]["path"] = json!("../../etc/passwd"))?;
        let words = forge.publish_signed(site, &bundle, "2.0.0", 422).await?;
        ensure!(words.contains("2.0.0/bundle.json") && words.contains("../../etc/passwd"), "{words}");
        site.event("trust.upload-refused", &["../../etc/passwd"]).await?;
        let words = refused_by_tool(site, &["bundle", "publish", &text(&bundle), "--keys", "keys"]).await?;
        ensure!(words.contains("../../etc/passwd"), "{words}");

        let filler = "x".repeat(usize::try_from(MAX_MANIFEST_BYTES)?);
        forge::edit(&bundle, |manifest| {
            manifest["files"][0]["path"] = json!("model.onnx");
            manifest["annotations"] = json!({ "filler": filler });
        })?;
        let words = forge.publish_signed(site, &bundle, "2.0.0", 413).await?;
        ensure!(words.contains(&MAX_MANIFEST_BYTES.to_string()), "{words}");
        let words = refused_by_tool(site, &["bundle", "publish", &text(&bundle), "--keys", "keys"]).await?;
        ensure!(words.contains(&MAX_MANIFEST_BYTES.to_string()), "{words}");

        let models = site.fleet.api.get::<Vec<Value>>("models").await?;
        ensure!(models.len() == 1 && models[0]["version"] == "1.0.0", "published is {models:?}");
        site.still_run("1.0.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_model_that_does_not_parse_or_answers_otherwise_is_not_packed() {
    Site::play(0, async |site| {
        let good = site.pack("1.1.0", "2.0.0").await?;
        let golden = good.join("golden");
        let pack = async |onnx: &Path, golden: &Path| {
            let out = text(&site.fleet.dir.join("refused"));
            let (onnx, golden) = (text(onnx), text(golden));
            let args = ["bundle", "pack", &onnx, "--model", MODEL, "--version", "2.0.1", "--out", &out];
            let words = refused_by_tool(site, &[&args[..], &["--golden", &golden]].concat()).await?;
            ensure!(!Path::new(&out).exists(), "a refused pack left {out} behind");
            anyhow::Ok(words)
        };

        let garbage = site.fleet.dir.join("garbage.onnx");
        std::fs::write(&garbage, b"this is no model")?;
        let words = pack(&garbage, &golden).await?;
        ensure!(words.contains("garbage.onnx"), "{words}");

        forge::swap_expected_outputs(&good)?;
        let words = pack(&good.join("model.onnx"), &golden).await?;
        ensure!(
            words.contains("does not answer as expected") && words.contains("golden sample 0"),
            "{words}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_device_refuses_what_reaches_it_and_says_why() {
    Site::play(2, async |site| {
        // A byte of the file changed after it was signed and published: on the server's disk, or on the way.
        let bundle = site.pack("1.1.0", "2.0.0").await?;
        site.publish(&bundle).await?;
        let mend = forge::tamper_blob(site, &bundle, "model.onnx")?;
        let reason = failed_everywhere(site, "2.0.0").await?;
        ensure!(reason.contains("model.onnx"), "a tampered file: {reason}");
        site.event("bundle.tampered", &["model.onnx"]).await?;
        mend()?;

        // Signed, whole, and not what it says it answers: only the device's own self-test can notice.
        let bundle = site.pack("1.1.0", "2.0.1").await?;
        forge::swap_expected_outputs(&bundle)?;
        site.publish(&bundle).await?;
        let reason = failed_everywhere(site, "2.0.1").await?;
        ensure!(reason.contains("golden sample 0"), "other expected outputs: {reason}");

        // Signed, whole, and no model at all.
        let bundle = site.pack("1.1.0", "2.0.2").await?;
        std::fs::write(bundle.join("model.onnx"), b"this is no model")?;
        forge::redigest(&bundle)?;
        site.publish(&bundle).await?;
        let reason = failed_everywhere(site, "2.0.2").await?;
        ensure!(reason.contains("model.onnx"), "no model: {reason}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_shows_metadata_with_a_wrong_signature_is_not_believed() {
    Site::play(1, async |site| {
        let bundle = site.pack("1.1.0", "2.0.0").await?;
        site.publish(&bundle).await?;
        let mend = forge::tamper_timestamp(site)?;
        let id = site.roll_out("2.0.0", Order::default()).await?;
        site.event("trust.refused", &["timestamp"]).await?;
        site.still_run("1.0.0").await?;
        mend()?;
        let info = site.fleet.api.rollout(&id).await?;
        ensure!(info.stages.iter().all(|s| s.active == 0), "{:?}", info.stages);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_malformed_request_and_a_message_in_anothers_name_are_refused() {
    Site::play(1, async |site| {
        let pixels = |count: usize| vec![0.5; count];
        for (words, input) in [
            (
                "pixels",
                json!({"name": "pixels", "datatype": "FP32", "shape": [1, 1, 4, 4], "data": pixels(16)}),
            ),
            ("pixels", json!({"name": "pixels", "datatype": "INT64", "shape": [1, 1, 8, 8], "data": [1]})),
            (
                "pixels",
                json!({"name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels(3)}),
            ),
            (
                "picture",
                json!({"name": "picture", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels(64)}),
            ),
        ] {
            let url = format!("http://{}/v2/models/{MODEL}/infer", site.fleet.agents[0].listen);
            let client = reqwest::Client::builder().no_proxy().build()?;
            let answer = client.post(url).json(&json!({ "inputs": [input] })).send().await?;
            let (status, body) = (answer.status().as_u16(), answer.text().await?);
            ensure!(status == 400, "{status} to {input}: {body}");
            let body: Value = serde_json::from_str(&body).context("an error that is not JSON")?;
            let error = body["error"].as_str().unwrap_or_default();
            ensure!(error.contains(words), "{error:?} does not name {words}");
        }
        site.still_run("1.0.0").await?;

        // A device of the fleet, with a certificate of its own, speaks in the name of another.
        let state = site.fleet.dir.join("intruder");
        site.fleet.enroll("intruder", &site.join_token, &state).await?;
        let topic = "plimsoll/1/fleet/camera-1/up/event";
        let report = json!({"v": 1, "inc": "0", "boot": 1, "seq": 1, "ts": 0, "mono": 0, "body": {}});
        publish_as(site, &state, "fleet.intruder", topic, &report).await?;
        let event = site.event("access.refused", &["fleet.intruder", topic]).await?;
        let device = event.device.map(|d| d.to_string());
        ensure!(device.as_deref() == Some("intruder"), "the event is told of {device:?}");
        // And under another's client id.
        publish_as(site, &state, "fleet.camera-1", topic, &report).await?;
        site.event("access.refused", &["fleet.intruder", "connect as client", "fleet.camera-1"]).await?;
        let refused = site.fleet.api.events().await?;
        ensure!(
            refused.iter().all(|e| e.code != "report.malformed"),
            "a message in another's name got as far as being read"
        );
        site.still_run("1.0.0").await
    })
    .await;
}

/// Rolls a bad version out, and waits until every device has refused it for the same reason, which it gives back.
async fn failed_everywhere(site: &Site, version: &str) -> Result<String> {
    site.roll_out(version, Order::default()).await?;
    let mut reason = String::new();
    for agent in &site.fleet.agents {
        let job = site.job_end(&agent.name, version).await?;
        ensure!(job.phase == Some(JobPhase::Failed), "{} says {:?}: {:?}", agent.name, job.phase, job.reason);
        reason = job.reason.with_context(|| format!("{} gives no reason", agent.name))?;
    }
    site.still_run("1.0.0").await?;
    Ok(reason)
}

/// Runs `plimsoll`, which must refuse; gives back its words.
async fn refused_by_tool(site: &Site, args: &[&str]) -> Result<String> {
    let (status, out, err) = site.fleet.plimsoll_raw(args).await?;
    ensure!(status == REFUSED, "plimsoll {} ended with {status}: {out}{err}", args.join(" "));
    Ok(out + &err)
}

/// Publishes with a device's own key and certificate, as somebody with a shell on the device could.
async fn publish_as(site: &Site, state: &Path, client: &str, topic: &str, report: &Value) -> Result<()> {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-V", "mqttv5", "-q", "1", "-h", "127.0.0.1", "-p", &site.fleet.mqtt.port().to_string()]);
    for (flag, file) in [("--cafile", "ca.pem"), ("--cert", "device.crt"), ("--key", "device.key")] {
        command.arg(flag).arg(state.join(file));
    }
    command.args(["-i", client, "-t", topic, "-m", &report.to_string()]);
    // Its exit code differs between versions; what counts is what the server says.
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    output.await.context("mosquitto_pub of Debian's mosquitto-clients")?;
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
