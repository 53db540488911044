//! Bring your own engine: a process of the device's owner runs what the agent delivers, and is believed about what it
//! answered. Real agent, real server, a small engine in Python.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Agent, MODEL, Order, STEP, Site, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// What the owner's command does on this device: the plan must say that its samples hold.
const SELF_TEST: &str = "test -f golden/test_data_set_0/input_0.pb || { echo no golden sample; exit 1; }
grep -q samples_hold \"$PLIMSOLL_ENTRY\" || { echo sample 0 is answered 7 instead of 3; exit 1; }";

/// Packs a plan for the engine `played`.
async fn pack(site: &Site, version: &str, plan: Value) -> Result<PathBuf> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let file = site.fleet.dir.join(format!("{version}.plan"));
    std::fs::write(&file, plan.to_string())?;
    let out = site.fleet.dir.join(format!("bundle-{version}"));
    let text = |p: PathBuf| p.to_string_lossy().into_owned();
    let onnx = text(demo.join("models/1.1.0/model.onnx"));
    let (golden, reference) = (text(demo.join("models/1.1.0/golden")), text(demo.join("data/reference.csv")));
    let (external, to) = (format!("played={}", file.display()), text(out.clone()));
    let mut args = vec!["bundle", "pack", &onnx, "--model", MODEL, "--version", version, "--out", &to];
    args.extend(["--golden", &golden, "--reference", &reference, "--labels", "0,1,2,3,4,5,6,7,8,9"]);
    args.extend(["--external", &external]);
    site.fleet.plimsoll(&args).await?;
    Ok(out)
}

fn start_engine(agent: &Agent) -> Result<Child> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/engine.py");
    let python = std::env::var_os("PLIMSOLL_PYTHON").unwrap_or_else(|| "python3".into());
    let engine = Command::new(python)
        .arg(script)
        .arg(agent.listen.to_string())
        .arg(MODEL)
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn();
    engine.context("the engine cannot be started: is there a python3?")
}

/// Rolls a version out that must answer so many requests within its trial.
async fn try_out(site: &Site, version: &str) -> Result<()> {
    let mut args = vec!["rollout", "start", "--model", MODEL, "--version", version];
    args.extend(["--selector", "site = lyon", "--stages", "100%", "--trial", "20s", "--soak", "0s"]);
    args.extend(["--jitter", "0s", "--trial-requests", "5", "--min-sample", "1", "--silent-after", "60s"]);
    args.extend(["--on-breach", "pause", "--supersede"]);
    site.fleet.plimsoll(&args).await.map(|_| ())
}

/// Waits until the device says that this version runs and, when asked, that its trial has passed.
async fn runs(site: &Site, version: &str, proven: bool) -> Result<Value> {
    until(&format!("the device to run {version}"), STEP, || async {
        let status = site.fleet.status(&site.fleet.agents[0]).await?;
        let model = &status["models"][0];
        ensure!(
            model["version"] == version && (!proven || model["trial_passed"] == true),
            "{}",
            status["models"]
        );
        Ok(status)
    })
    .await
}

async fn job(site: &Site, version: &str) -> Result<Value> {
    Ok(serde_json::to_value(site.job_end(&site.fleet.agents[0].name, version).await?)?)
}

#[tokio::test(flavor = "current_thread")]
async fn an_engine_of_the_owners_is_updated_tested_judged_by_its_own_reports_and_rolled_back() {
    Site::play(1, async |site| {
        let plan = |answers: bool, note: &str| json!({ "classes": 10, "answers": answers, "note": note });
        // A device that knows no such engine says so before a byte is fetched.
        site.publish(&pack(site, "1.1.0", plan(true, "samples_hold")).await?).await?;
        site.roll_out("1.1.0", Order::default()).await?;
        let refused = job(site, "1.1.0").await?;
        ensure!(refused["phase"] == "not_applicable", "{refused}");
        ensure!(refused["reason"].to_string().contains("[engines.played]"), "{refused}");
        site.still_run("1.0.0").await?;

        let agent = &site.fleet.agents[0];
        let config = site.fleet.dir.join(format!("{}.toml", agent.name));
        let before = std::fs::read_to_string(&config)?;
        let command = serde_json::to_string(&["/bin/sh", "-c", SELF_TEST])?;
        std::fs::write(&config, format!("{before}\n[engines.played]\nselftest = {command}\n"))?;
        let pid = i32::try_from(agent.process.pid().context("the agent is not running")?)?;
        kill_process(Pid::from_raw(pid).context("no process")?, Signal::HUP)?;

        // A plan whose samples do not hold never takes over; one that holds does, and its process is found and heard.
        site.publish(&pack(site, "1.2.0", plan(true, "no")).await?).await?;
        site.roll_out("1.2.0", Order::default()).await?;
        let failed = job(site, "1.2.0").await?;
        ensure!(failed["phase"] == "failed", "{failed}");
        ensure!(failed["reason"].to_string().contains("sample 0 is answered 7 instead of 3"), "{failed}");
        site.still_run("1.0.0").await?;

        let _engine = start_engine(agent)?;
        site.publish(&pack(site, "1.3.0", plan(true, "samples_hold")).await?).await?;
        try_out(site, "1.3.0").await?;
        let status = runs(site, "1.3.0", true).await?;
        let slot = status["slots"][MODEL].as_str().context("no slot is told")?;
        ensure!(Path::new(slot).join("1.3.0.plan").is_file(), "{slot} is not the bundle's");
        let base = format!("http://{}/v2", agent.listen);
        let client = reqwest::Client::builder().no_proxy().build()?;
        let infer = client.post(format!("{base}/models/{MODEL}/infer")).body("{}").send().await?;
        ensure!(infer.status() == 501, "{}", infer.status());
        until("its windows to reach the server", STEP, || async {
            let drift = site.fleet.plimsoll(&["device", "drift", &agent.name]).await?;
            let window = drift[0].clone();
            ensure!(window["version"] == "1.3.0" && window["samples"].as_u64() > Some(0), "{drift}");
            Ok(())
        })
        .await?;

        // One that fails in service goes back by what its engine reports.
        site.publish(&pack(site, "1.4.0", plan(false, "samples_hold")).await?).await?;
        try_out(site, "1.4.0").await?;
        let rolled_back = job(site, "1.4.0").await?;
        ensure!(rolled_back["phase"] == "rolled_back", "{rolled_back}");
        ensure!(rolled_back["reason"].to_string().contains("requests of its trial failed"), "{rolled_back}");
        runs(site, "1.3.0", false).await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_application_holds_updates_over_the_inference_endpoint_within_the_operators_bound() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let url = format!("http://{}/v2/hold", agent.listen);
        let client = reqwest::Client::builder().no_proxy().build()?;
        let held = client.post(&url).json(&json!({ "for_s": 100_000 })).send().await?;
        ensure!(held.status() == 200, "{}", held.status());
        let held: Value = held.json().await?;
        ensure!(held["text"].to_string().contains("for 3600 s"), "the setting bounds it: {held}");
        site.publish(&site.pack("1.1.0", "1.1.0").await?).await?;
        let id = site.roll_out("1.1.0", Order::default()).await?;
        until("the update to wait for the application", STEP, || async {
            let status = site.fleet.status(agent).await?;
            let jobs = status["jobs"].as_array().context("no jobs")?;
            let job = jobs.iter().find(|j| j["version"] == "1.1.0").context("not ordered yet")?;
            let reason = job["reason"].as_str().unwrap_or_default();
            ensure!(reason.contains("not now"), "{job}");
            Ok(())
        })
        .await?;
        site.still_run("1.0.0").await?;
        let bad = client.post(&url).json(&json!({ "for": 5 })).send().await?;
        ensure!(bad.status() == 400, "{}", bad.status());
        let over = client.delete(&url).send().await?;
        ensure!(over.status() == 200, "{}", over.status());
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await
    })
    .await;
}
