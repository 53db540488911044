//! The agent of ARM devices, run by QEMU's user mode: it starts, it computes what scikit-learn computed, and it goes
//! through a whole update against the native server.
//!
//! `tests/run` builds the programs with `cross/build --profile dev` and names their folder in `PLIMSOLL_ARM_DIR`.
//! Without it nothing is tested here, in words; with `PLIMSOLL_REQUIRE_ARM=1` that is a failure.

#![allow(clippy::unwrap_used)] // a test's unwrap is an assertion, in its helpers too

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::api::{DeviceInfo, RolloutInfo, RolloutStatus};
use plimsoll_tests::{Binaries, Feeder, Fleet, Replay, Settings, until};
use serde_json::Value;

/// A kind of device.
struct Arm {
    /// The word of the wire for it.
    arch: &'static str,
    target: &'static str,
    emulator: &'static str,
    /// Debian's libraries of the architecture.
    libraries: &'static str,
}

const AARCH64: Arm = Arm {
    arch: "aarch64",
    target: "aarch64-unknown-linux-gnu",
    emulator: "qemu-aarch64-static",
    libraries: "/usr/aarch64-linux-gnu",
};
const ARMV7: Arm = Arm {
    arch: "armv7",
    target: "armv7-unknown-linux-gnueabihf",
    emulator: "qemu-arm-static",
    libraries: "/usr/arm-linux-gnueabihf",
};

const MODEL: &str = "meter-reader";
const VERSION: &str = "1.1.0";
/// An emulated debug build is some thirty times slower than a device; the whole cycle takes well under a minute on an
/// idle machine of two cores.
const STEP_LIMIT: Duration = Duration::from_secs(180);
/// Digits that are read before the accuracy is judged: at the model's 97 % a share below 90 % is a broken runtime.
const READS: u64 = 40;

impl Arm {
    /// The program, or `None` with words where there is none and none is required.
    fn program(&self) -> Option<PathBuf> {
        let missing = match std::env::var_os("PLIMSOLL_ARM_DIR") {
            None => "PLIMSOLL_ARM_DIR is not set".to_owned(),
            Some(dir) => {
                let program = Path::new(&dir).join(self.target).join("debug/plimsoll-agent");
                if program.is_file() {
                    return Some(program);
                }
                format!("{} is not there", program.display())
            }
        };
        let words = format!(
            "{} is not tested: {missing}; build it with `cross/build --profile dev {}`",
            self.arch, self.target
        );
        assert!(std::env::var_os("PLIMSOLL_REQUIRE_ARM").is_none_or(|v| v != "1"), "{words}");
        eprintln!("{words}");
        None
    }

    fn run(&self, program: &Path, args: &[&str]) -> Output {
        Command::new(self.emulator)
            .args(["-L", self.libraries])
            .arg(program)
            .args(args)
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}; install qemu-user-static", self.emulator))
    }

    /// A program that starts the emulated agent, and as which the agent starts its children.
    fn wrapper(&self, program: &Path, path: &Path) -> Result<()> {
        let text = format!(
            "#!/bin/sh\nexport PLIMSOLL_AGENT_PROGRAM={path}\nexec {emulator} -L {libraries} {program} \"$@\"\n",
            path = quoted(path),
            emulator = self.emulator,
            libraries = self.libraries,
            program = quoted(program),
        );
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, mode).with_context(|| format!("cannot chmod {}", path.display()))
    }
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo")
}

/// The arguments that pack the demo's model.
fn pack(out: &str) -> Vec<String> {
    let path = |tail: &str| demo().join(tail).display().to_string();
    let models = format!("models/{VERSION}");
    [
        "bundle",
        "pack",
        &path(&format!("{models}/model.onnx")),
        "--model",
        MODEL,
        "--version",
        VERSION,
        "--out",
        out,
        "--golden",
        &path(&format!("{models}/golden")),
        "--reference",
        &path("data/reference.csv"),
        "--labels",
        "0,1,2,3,4,5,6,7,8,9",
    ]
    .map(str::to_owned)
    .into()
}

fn tells_its_version(arm: &Arm) {
    let Some(program) = arm.program() else { return };
    let output = arm.run(&program, &["--version"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.trim(), format!("plimsoll-agent {}", env!("CARGO_PKG_VERSION")));
}

fn computes_what_training_computed(arm: &Arm) {
    let Some(program) = arm.program() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle").display().to_string();
    let binaries = Binaries::locate().unwrap();
    let packed = Command::new(binaries.ctl()).args(pack(&bundle)).output().unwrap();
    assert!(packed.status.success(), "pack: {}", String::from_utf8_lossy(&packed.stderr));

    let output = arm.run(&program, &["selftest", "--dir", &bundle]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    let report: Value = serde_json::from_str(text.lines().next_back().unwrap_or_default()).unwrap();
    let manifest = std::fs::read(Path::new(&bundle).join("bundle.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let tolerance = manifest["golden"]["tolerance"]["absolute"].as_f64().unwrap();
    assert_eq!(report["ok"], true, "{report}");
    assert!(report["samples"].as_u64().unwrap() > 0, "{report}");
    let error = report["max_abs_error"].as_f64().unwrap();
    assert!(error <= tolerance, "{error} from scikit-learn's answers, {tolerance} allowed");

    // A model that answers otherwise is seen on this architecture too: the good report above proves something.
    spoil_a_golden_answer(Path::new(&bundle));
    let output = arm.run(&program, &["selftest", "--dir", &bundle]);
    assert!(!output.status.success(), "a changed bundle passed: {}", String::from_utf8_lossy(&output.stdout));
}

/// Inverts one byte of the first file of expected answers.
fn spoil_a_golden_answer(bundle: &Path) {
    let mut pending = vec![bundle.join("golden")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("output")) {
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 0xff;
            return std::fs::write(&path, bytes).unwrap();
        }
    }
    panic!("no expected answers under {}", bundle.display());
}

#[test]
fn the_agent_of_64_bit_arm_tells_its_version() {
    tells_its_version(&AARCH64);
}

#[test]
fn the_agent_of_32_bit_arm_tells_its_version() {
    tells_its_version(&ARMV7);
}

#[test]
fn a_64_bit_arm_device_computes_what_training_computed() {
    computes_what_training_computed(&AARCH64);
}

#[test]
fn a_32_bit_arm_device_computes_what_training_computed() {
    computes_what_training_computed(&ARMV7);
}

#[test]
fn a_64_bit_arm_device_enrols_updates_infers_and_reports() {
    let Some(program) = AARCH64.program() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let mut fleet = Fleet::start(dir.path(), Settings::default()).await.unwrap();
        if let Err(error) = cycle(&mut fleet, &AARCH64, &program).await {
            panic!("{:#}", fleet.explain(error));
        }
        fleet.stop().await.unwrap();
    });
}

/// From a device without a certificate to the server's knowledge of what it answered.
async fn cycle(fleet: &mut Fleet, arm: &Arm, program: &Path) -> Result<()> {
    let bin = fleet.dir.join("bin");
    std::fs::create_dir(&bin).context("a folder for the programs")?;
    symlink(fleet.binaries.server(), bin.join("plimsoll-server")).context("a link to the server")?;
    symlink(fleet.binaries.ctl(), bin.join("plimsoll")).context("a link to the command")?;
    arm.wrapper(program, &bin.join("plimsoll-agent"))?;
    fleet.binaries = Binaries::at(&bin)?;

    fleet.plimsoll(&["trust", "init", "--keys", "keys", "--insecure-unencrypted-keys"]).await?;
    let token = fleet.plimsoll(&["device", "token"]).await?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    fleet.add_agent("camera-arm", &token, &[("site", "lyon")]).await?;
    until("the device to be connected", STEP_LIMIT, || async {
        let device = only(fleet).await?;
        ensure!(device.online, "it is not");
        let arch = device.birth.map(|b| b.arch).unwrap_or_default();
        ensure!(arch == arm.arch, "it says that it is {arch:?}");
        Ok(())
    })
    .await?;

    let rollout = update(fleet).await?;
    infer(fleet).await?;

    until("the server to know what the device runs and answered", STEP_LIMIT, || async {
        let device = only(fleet).await?;
        let runs = device.running.iter().any(|m| m.digest == rollout.digest && m.trial_passed);
        ensure!(runs, "it runs {:?}", device.running);
        let health = device.health.context("no health report yet")?;
        let requests: u64 = health.models.iter().map(|m| m.requests).sum();
        ensure!(requests >= READS, "{requests} requests are reported of {READS}");
        Ok(())
    })
    .await
}

async fn only(fleet: &Fleet) -> Result<DeviceInfo> {
    fleet.api.devices().await?.pop().context("no device is registered")
}

/// Packs, publishes and rolls out the model, until the device passed its trial.
async fn update(fleet: &Fleet) -> Result<RolloutInfo> {
    let packed = pack("bundle");
    fleet.plimsoll(&packed.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    fleet.plimsoll(&["bundle", "publish", "bundle", "--keys", "keys"]).await?;
    let order = ["rollout", "start", "--model", MODEL, "--version", VERSION, "--stages", "100%"];
    // Ordinary settings, set short.
    let short =
        ["--soak", "1s", "--trial", "2s", "--trial-requests", "0", "--jitter", "0s", "--min-sample", "1"];
    let started = fleet.plimsoll(&[&order[..], &short[..]].concat()).await?;
    let id = started["id"].as_str().context("no id of the rollout")?.parse().context("the rollout's id")?;
    until("the rollout to be complete", STEP_LIMIT, || async {
        let rollout = fleet.api.rollout(&id).await?;
        ensure!(rollout.status == RolloutStatus::Completed, "{:?}: {}", rollout.status, rollout.reason);
        Ok(rollout)
    })
    .await
}

/// Asks the device's model, and judges its answers by the digits on the images.
async fn infer(fleet: &Fleet) -> Result<()> {
    let agent = fleet.agents.first().context("no agent")?;
    let replay = Arc::new(Replay::read(&demo().join("data/replay.csv"))?);
    let pause = Duration::from_millis(20);
    let feeder = Feeder::start(agent.listen, MODEL, replay, 0, pause, |image| image.pixels.clone())?;
    until("the device to read meters", STEP_LIMIT, || async {
        let tally = feeder.tally();
        ensure!(tally.answered >= READS, "{tally:?}");
        Ok(())
    })
    .await?;
    let tally = feeder.tally();
    ensure!(tally.version.as_deref() == Some(VERSION), "another version answers: {tally:?}");
    ensure!(tally.failed == 0, "requests failed: {tally:?}");
    ensure!(tally.accuracy() >= 0.9, "the digits are wrong: {tally:?}");
    Ok(())
}
