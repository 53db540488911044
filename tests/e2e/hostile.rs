//! Versions that pass their samples and then, on one input, exhaust memory or compute without end: only the serving
//! process dies. In its trial such a version is rolled back by the device itself; later its process is replaced, and the
//! other models of the device go on. Graphs of legal operators whose intermediate results grow with the square of what a
//! caller sends.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::bundle::DataType::Fp32;
use plimsoll_protocol::bundle::Manifest;
use plimsoll_runtime::testing::hostile::{TOO_DEEP, nested_sizes};
use plimsoll_runtime::testing::{add_file, graph, node, squares};
use plimsoll_tests::{Agent, MODEL, Order, STEP, Site, until};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

/// Memory for models, as on a device of 750 MB.
const MEMORY: u64 = 600_000_000;
/// Elements of a request whose product with itself fits twice into no such memory: 324 MB, and the answer as much.
const TOO_LARGE: usize = 9_000;
/// And one whose product does not even fit once: 1.6 GB.
const FAR_TOO_LARGE: usize = 20_000;
/// Elements of a request whose squares take a second each.
const TOO_LONG: usize = 2_500;
/// Squares of squares: minutes, where the limit of a request is [`SHORT_MS`].
const SQUARES: usize = 400;
/// Limit of a request to an endless model.
const SHORT_MS: u32 = 500;
/// Of one to a greedy model: touching the memory that there is takes a second on a loaded machine.
const LONG_MS: u32 = 20_000;

/// The product of a column and a row.
fn greedy() -> Vec<u8> {
    graph(
        &[("x", Fp32, &[1, -1])],
        &[("y", Fp32, &[-1, -1])],
        vec![],
        vec![node("Transpose", "column", &["x"], &["c"]), node("MatMul", "product", &["c", "x"], &["y"])],
    )
}

/// Packs and publishes a model whose samples are recorded: of one element, which it masters.
async fn publish(site: &Site, onnx: &[u8], timeout_ms: u32, model: &str, version: &str) -> Result<()> {
    let file = site.fleet.dir.join(format!("{model}-{version}.onnx"));
    std::fs::write(&file, onnx)?;
    let text = |p: &PathBuf| p.to_string_lossy().into_owned();
    let out = site.fleet.dir.join(format!("hostile-{model}-{version}"));
    let args = ["bundle", "pack", &text(&file), "--model", model, "--version", version, "--out", &text(&out)];
    site.fleet.plimsoll(&args).await?;
    let path = out.join("bundle.json");
    let mut manifest: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    manifest["limits"]["timeout_ms"] = json!(timeout_ms);
    std::fs::write(&path, manifest.to_string())?;
    site.publish(&out).await
}

/// Publishes a model as 1.1.0 that `plimsoll bundle pack` refuses: in the place of one that it took.
async fn publish_unseen(site: &Site, onnx: &[u8]) -> Result<()> {
    let bundle = site.pack("1.1.0", "1.1.0").await?;
    let path = bundle.join("bundle.json");
    let mut manifest = Manifest::parse(&std::fs::read(&path)?)?;
    let entry = manifest.variants[0].entry.clone();
    manifest.files.retain(|file| file.path != entry);
    add_file(&bundle, &mut manifest, entry.as_str(), onnx);
    std::fs::write(&path, manifest.to_bytes())?;
    site.publish(&bundle).await
}

/// Asks a model with so many ones; its status.
async fn ask(agent: &Agent, model: &str, elements: usize) -> Result<u16> {
    let url = format!("http://{}/v2/models/{model}/infer", agent.listen);
    let data = vec![1; elements];
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, elements], "data": data}]});
    let client = reqwest::Client::builder().timeout(STEP).no_proxy().build()?;
    Ok(client.post(url).json(&body).send().await?.status().as_u16())
}

/// Gives the device's models the memory of a small device; whatever its agent starts from now on inherits it.
fn shrink(agent: &Agent) -> Result<()> {
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    for pid in [agent.process.pid().context("the agent is not running")?, agent.serving_pid()?] {
        prlimit(Pid::from_raw(i32::try_from(pid)?), Resource::Data, limit)
            .context("cannot limit the agent")?;
    }
    Ok(())
}

/// Waits until the serving process was replaced for the `n`th time and answers.
async fn restarted(site: &Site, agent: &Agent, n: u64) -> Result<()> {
    until(&format!("serving process number {n}"), STEP, || async {
        let status = site.fleet.status(agent).await?;
        ensure!(status["serve_restarts"].as_u64() >= Some(n) && !status["inference"].is_null(), "{status}");
        site.ask(agent).await.map(drop)
    })
    .await
}

/// Orders 1.1.0 and waits until it is on its trial and answers.
async fn on_trial(site: &Site, agent: &Agent) -> Result<()> {
    site.roll_out("1.1.0", Order { trial_s: 300, ..Order::default() }).await?;
    until("1.1.0 to be on trial", STEP, || async {
        let status = site.fleet.status(agent).await?;
        let jobs = status["jobs"].as_array().context("no jobs")?;
        ensure!(jobs.iter().any(|j| j["version"] == "1.1.0" && j["phase"] == "probation"), "{jobs:?}");
        let code = ask(agent, MODEL, 1).await?;
        ensure!(code == 200, "it answers {code}");
        Ok(())
    })
    .await
}

/// The device returned to 1.0.0 by itself, with the reason, and its agent never stopped.
async fn rolled_back(site: &Site, agent: &Agent, pid: Option<u32>, words: &str) -> Result<()> {
    let job = serde_json::to_value(site.job_end(&agent.name, "1.1.0").await?)?;
    ensure!(job["phase"] == "rolled_back", "{job}");
    ensure!(job["reason"].to_string().contains(words), "{job} does not say {words:?}");
    site.all_run("1.0.0").await?;
    ensure!(agent.process.pid() == pid && agent.process.starts() == 1, "the agent itself died");
    Ok(())
}

#[tokio::test(flavor = "current_thread")]
async fn a_version_that_exhausts_memory_in_its_trial_is_rolled_back_and_only_its_process_died() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let pid = agent.process.pid();
        shrink(agent)?;
        publish(site, &greedy(), LONG_MS, MODEL, "1.1.0").await?;
        on_trial(site, agent).await?;
        let answer = ask(agent, MODEL, TOO_LARGE).await;
        ensure!(answer.is_err(), "it answered {answer:?}");
        rolled_back(site, agent, pid, "aborted").await?;
        site.event("serve.died", &["aborted"]).await?;
        site.event("rolled_back", &["1.1.0", "1.0.0"]).await.map(drop)
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_version_that_fills_the_stack_dies_in_its_self_test_and_what_serves_is_not_touched() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let (pid, serving) = (agent.process.pid(), agent.serving_pid()?);
        publish_unseen(site, &nested_sizes(TOO_DEEP)).await?;
        site.roll_out("1.1.0", Order::default()).await?;
        let job = serde_json::to_value(site.job_end(&agent.name, "1.1.0").await?)?;
        ensure!(job["phase"] == "failed", "{job}");
        ensure!(job["reason"].to_string().contains("an overflowing stack"), "{job}");
        site.still_run("1.0.0").await?;
        ensure!(agent.process.pid() == pid && agent.serving_pid()? == serving, "a process that served died");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_version_that_computes_without_end_in_its_trial_is_rolled_back_and_its_process_replaced() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let pid = agent.process.pid();
        publish(site, &squares(SQUARES), SHORT_MS, MODEL, "1.1.0").await?;
        on_trial(site, agent).await?;
        let code = ask(agent, MODEL, TOO_LONG).await?;
        ensure!(code == 504, "it answered {code}");
        rolled_back(site, agent, pid, "").await?;
        // The thread that computes would do so for minutes, whoever answers now.
        site.event("serve.died", &["1.1.0", "does not end"]).await?;
        restarted(site, agent, 1).await?;
        site.still_run("1.0.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_model_that_turns_hostile_after_its_trial_is_restarted_and_its_neighbours_go_on() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let pid = agent.process.pid();
        shrink(agent)?;
        for (onnx, limit, model) in [(squares(SQUARES), SHORT_MS, "grinder"), (greedy(), LONG_MS, "glutton")]
        {
            publish(site, &onnx, limit, model, "1.0.0").await?;
            let mut args =
                vec!["rollout", "start", "--model", model, "--version", "1.0.0", "--selector", "site = lyon"];
            args.extend(["--stages", "100%", "--trial", "1s", "--soak", "0s", "--jitter", "0s"]);
            args.extend(["--trial-requests", "0", "--min-sample", "1"]);
            let started = site.fleet.plimsoll(&args).await?;
            let id = started["id"].as_str().context("no id")?.parse()?;
            site.ended(&id, RolloutStatus::Completed).await?;
        }
        let all_answer = async |when: &str| {
            until(&format!("all three to answer {when}"), STEP, || async {
                for model in ["grinder", "glutton"] {
                    let code = ask(agent, model, 1).await?;
                    ensure!(code == 200, "{model} answers {code}");
                }
                site.still_run("1.0.0").await
            })
            .await
        };
        all_answer("at first").await?;

        // More than the memory in one piece is one failed request.
        let code = ask(agent, "glutton", FAR_TOO_LARGE).await?;
        ensure!(code == 500, "it answered {code}");
        all_answer("after a request that asked for too much").await?;
        let status = site.fleet.status(agent).await?;
        ensure!(status["serve_restarts"] == 0, "its process died of it: {status}");

        // A run without end holds its own model up, and the others only while the process is replaced.
        let code = ask(agent, "grinder", TOO_LONG).await?;
        ensure!(code == 504, "it answered {code}");
        site.still_run("1.0.0").await.context("while another model computes")?;
        site.event("serve.died", &["grinder 1.0.0", "does not end"]).await?;
        restarted(site, agent, 1).await?;
        all_answer("after a process that computed without end").await?;

        // The last of the memory ends the process.
        ensure!(ask(agent, "glutton", TOO_LARGE).await.is_err(), "it answered");
        restarted(site, agent, 2).await?;
        all_answer("after a process without memory").await?;
        ensure!(agent.process.pid() == pid && agent.process.starts() == 1, "the agent itself died");
        let events = site.fleet.api.events().await?;
        ensure!(!events.iter().any(|e| e.code == "rolled_back"), "something was rolled back: {events:#?}");
        Ok(())
    })
    .await;
}
