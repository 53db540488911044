//! A fleet at work: trust is made, devices are enrolled, and all of them run `meter-reader` 1.0.0. Where most
//! end-to-end tests begin.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{EventInfo, JobInfo, RolloutInfo, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use tempfile::TempDir;

use crate::{Agent, Fleet, Replay, Settings, feeder, until};

/// The model that the devices run.
pub const MODEL: &str = "meter-reader";
/// What one step of a test may take: a second or two, ten times that on a loaded machine of two cores, and three times
/// what a device waits before it publishes a report again (`RESEND_MS`), because acknowledgements may be lost.
pub const STEP: Duration = Duration::from_secs(90);
/// Longest that anything takes for which a device must come back by itself: one whose connections, or whose serving
/// process, ended again and again waits up to 60 s before the next try (`CAP_MS` and `MAX_PAUSE` of the agent).
pub const RETURN: Duration = Duration::from_secs(120);
/// Longest wait for one answer of a local model: its own timeout is 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// The fleet and what it was made from.
#[derive(Debug)]
pub struct Site {
    /// The fleet.
    pub fleet: Fleet,
    /// Images to show to the devices.
    pub replay: Arc<Replay>,
    /// For one more device.
    pub join_token: String,
    client: reqwest::Client,
}

/// How a rollout is started: ordinary settings, set short.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Sizes of the stages.
    pub stages: &'a str,
    /// Seconds of trial.
    pub trial_s: u32,
    /// Longest that a stage waits until the confidence of two versions can be compared; `None`: the default.
    pub readings_wait_s: Option<u32>,
}

impl Default for Order<'_> {
    fn default() -> Self {
        Self { stages: "100%", trial_s: 1, readings_wait_s: None }
    }
}

impl Site {
    /// Plays a scene on a new site of so many devices, and stops all of it. Panics with the scene's error and the
    /// ends of all logs.
    pub async fn play(devices: usize, scene: impl AsyncFnOnce(&mut Self) -> Result<()>) {
        Self::play_with(devices, &[], scene).await;
    }

    /// The same, with these further flags of the server.
    pub async fn play_with(devices: usize, flags: &[&str], scene: impl AsyncFnOnce(&mut Self) -> Result<()>) {
        let dir = TempDir::with_prefix("plimsoll-test-").expect("a temporary folder");
        Self::play_in(dir.path(), devices, flags, scene).await;
    }

    /// The same, in a folder of the caller's, in which the folders of state may be there already: `server`, and
    /// `camera-1` of the first device.
    pub async fn play_in(
        dir: &Path,
        devices: usize,
        flags: &[&str],
        scene: impl AsyncFnOnce(&mut Self) -> Result<()>,
    ) {
        let mut site = match Self::open(dir, devices, flags).await {
            Ok(site) => site,
            Err(error) => panic!("the site did not open: {error:#}"),
        };
        if let Err(error) = scene(&mut site).await {
            panic!("{}", site.fleet.explain(error));
        }
        if let Err(error) = site.fleet.stop().await {
            panic!("the site did not close: {error:#}");
        }
    }

    async fn open(dir: &Path, devices: usize, flags: &[&str]) -> Result<Self> {
        let settings = Settings { health_interval_s: 1, window_s: 2 };
        let fleet = Fleet::start_with(dir, settings, flags).await?;
        let replay = Arc::new(Replay::read(&demo().join("data/replay.csv"))?);
        fleet.plimsoll(&["trust", "init", "--keys", "keys", "--insecure-unencrypted-keys"]).await?;
        let token = fleet.plimsoll(&["device", "token", "--uses", "9", "--minutes", "60"]).await?;
        let join_token = token["token"].as_str().context("`plimsoll device token` printed no token")?;
        let join_token = join_token.to_owned();
        let client = reqwest::Client::builder().timeout(ANSWER_LIMIT).no_proxy().build()?;
        let mut site = Self { fleet, replay, join_token: join_token.clone(), client };
        for n in 1..=devices {
            site.fleet.add_agent(&format!("camera-{n}"), &join_token, &[("site", "lyon")]).await?;
        }
        if devices == 0 {
            return Ok(site); // for what needs an operator only
        }
        let bundle = site.pack("1.0.0", "1.0.0").await?;
        site.publish(&bundle).await?;
        let id = site.roll_out("1.0.0", Order::default()).await?;
        if let Err(error) = site.ended(&id, RolloutStatus::Completed).await {
            return Err(site.fleet.explain(error));
        }
        site.all_run("1.0.0").await?;
        Ok(site)
    }

    /// Packs the demo's model `source` as `version`, with golden samples and baseline; gives back its folder.
    pub async fn pack(&self, source: &str, version: &str) -> Result<PathBuf> {
        self.pack_file(&demo().join("models").join(source).join("model.onnx"), source, version).await
    }

    /// Packs a file that answers as the demo's model `source` does.
    pub async fn pack_file(&self, onnx: &Path, source: &str, version: &str) -> Result<PathBuf> {
        let out = self.fleet.dir.join(format!("bundle-{version}"));
        let text = |p: PathBuf| p.to_string_lossy().into_owned();
        let (onnx, golden) = (text(onnx.to_owned()), text(demo().join("models").join(source).join("golden")));
        let (reference, to) = (text(demo().join("data/reference.csv")), text(out.clone()));
        let mut args = vec!["bundle", "pack", &onnx, "--model", MODEL, "--version", version];
        args.extend(["--out", &to, "--golden", &golden, "--reference", &reference]);
        args.extend(["--labels", "0,1,2,3,4,5,6,7,8,9"]);
        self.fleet.plimsoll(&args).await?;
        Ok(out)
    }

    /// The demo's model `source` with `ballast` in a field that no reader of ONNX knows: a file as large as a test needs.
    /// Gives back its path and its bytes.
    pub fn weigh_down(&self, source: &str, name: &str, ballast: &[u8]) -> Result<(PathBuf, Vec<u8>)> {
        let mut bytes = std::fs::read(demo().join("models").join(source).join("model.onnx"))?;
        bytes.extend_from_slice(&[0xc2, 0x3e]); // field 1000, with a length
        let mut length = ballast.len();
        while length >= 0x80 {
            bytes.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(ballast);
        let path = self.fleet.dir.join(format!("{name}.onnx"));
        std::fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok((path, bytes))
    }

    /// Signs and publishes a bundle.
    pub async fn publish(&self, bundle: &Path) -> Result<()> {
        let bundle = bundle.to_string_lossy();
        self.fleet.plimsoll(&["bundle", "publish", &bundle, "--keys", "keys"]).await.map(|_| ())
    }

    /// Starts a rollout of `version` to the devices that run.
    pub async fn roll_out(&self, version: &str, order: Order<'_>) -> Result<RolloutId> {
        let trial = format!("{}s", order.trial_s);
        let mut args = vec!["rollout", "start", "--model", MODEL, "--version", version];
        args.extend(["--selector", "site = lyon", "--stages", order.stages, "--trial", &trial]);
        args.extend(["--soak", "0s", "--jitter", "0s", "--trial-requests", "0", "--min-sample", "1"]);
        // Paused, not rolled back: what became of the order stays to be seen, and the next rollout takes over.
        args.extend(["--silent-after", "60s", "--on-breach", "pause", "--supersede"]);
        let readings_wait = order.readings_wait_s.map(|s| format!("{s}s"));
        args.extend(readings_wait.iter().flat_map(|wait| ["--readings-wait", wait]));
        let started = self.fleet.plimsoll(&args).await?;
        let id = started["id"].as_str().with_context(|| format!("no id in {started}"))?;
        id.parse().context("the id of the rollout")
    }

    /// Waits until a rollout has ended, and so.
    pub async fn ended(&self, id: &RolloutId, how: RolloutStatus) -> Result<RolloutInfo> {
        let info = until(&format!("rollout {id} to end"), RETURN, || async {
            let info = self.fleet.api.rollout(id).await?;
            ensure!(info.status.is_end(), "it is {:?}: {}", info.status, info.reason);
            Ok(info)
        })
        .await?;
        ensure!(info.status == how, "rollout {id} is {:?}, not {how:?}: {}", info.status, info.reason);
        Ok(info)
    }

    /// Version that answers on a device.
    pub async fn ask(&self, agent: &Agent) -> Result<String> {
        let url = format!("http://{}/v2/models/{MODEL}/infer", agent.listen);
        let image = self.replay.images.first().context("no image")?;
        let (_, version) = feeder::ask(&self.client, &url, image.pixels.clone()).await?;
        Ok(version)
    }

    /// Waits until every device runs and answers with `version`, by its own word.
    pub async fn all_run(&self, version: &str) -> Result<()> {
        for agent in &self.fleet.agents {
            until(&format!("{} to run {version}", agent.name), STEP, || self.runs(agent, version)).await?;
        }
        Ok(())
    }

    /// Looks once: every device runs and answers with `version`, as if nothing had happened.
    pub async fn still_run(&self, version: &str) -> Result<()> {
        for agent in &self.fleet.agents {
            self.runs(agent, version).await?;
        }
        Ok(())
    }

    async fn runs(&self, agent: &Agent, version: &str) -> Result<()> {
        let answered = self.ask(agent).await.with_context(|| format!("a question to {}", agent.name))?;
        ensure!(answered == version, "{} answers with {answered}, not {version}", agent.name);
        let status = self.fleet.status(agent).await?;
        let running = &status["models"][0]["version"];
        ensure!(running == version, "{} says that it runs {running}, not {version}", agent.name);
        Ok(())
    }

    /// Waits for an event with this code whose text holds all of `words`.
    pub async fn event(&self, code: &str, words: &[&str]) -> Result<EventInfo> {
        until(&format!("event {code} with {words:?}"), STEP, || async {
            let events = self.fleet.api.events().await?;
            let seen: Vec<String> = events.iter().map(|e| format!("{}: {}", e.code, e.text)).collect();
            let fits = |e: &EventInfo| e.code == code && words.iter().all(|w| e.text.contains(w));
            let found = events.into_iter().find(fits);
            found.with_context(|| format!("there are only {seen:#?}"))
        })
        .await
    }

    /// Waits until `device` has said what became of the order of `version`.
    pub async fn job_end(&self, device: &str, version: &str) -> Result<JobInfo> {
        until(&format!("{device} to say what became of {version}"), STEP, || async {
            let info: plimsoll_protocol::api::DeviceInfo =
                self.fleet.api.get(&format!("devices/{device}")).await?;
            let seen = format!("{:?}", info.jobs);
            let mut jobs = info.jobs.into_iter();
            let job = jobs
                .find(|j| j.version.to_string() == version && j.phase.is_some_and(|phase| phase.is_end()));
            job.with_context(|| seen)
        })
        .await
    }
}

/// The demo's models and data.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo")
}
