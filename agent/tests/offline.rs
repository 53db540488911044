//! The real program, with a model in its slot and nobody to talk to: no server, no enrolment, no network. What ran
//! must run again, whatever ended the program.

#![allow(clippy::unwrap_used)] // a test's unwrap is an assertion, in its helpers too

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use plimsoll_agent::control::{self, Answer, Ask, Status};
use plimsoll_protocol::Digest;
use plimsoll_runtime::testing;
use tokio::process::{Child, Command};

/// A whole start with its child on a machine that runs other tests too takes seconds; this is only the end of hope.
const PATIENCE: Duration = Duration::from_secs(60);

fn agent(state: &Path) -> Child {
    agent_at(state, "127.0.0.1:0")
}

fn agent_at(state: &Path, listen: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"))
        .args(["run", "--listen", listen, "--health-interval-s", "1", "--window-s", "1", "--state-dir"])
        .arg(state)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Puts a bundle into a slot, as an agent that lost its anchor would find it. `proven` is the mark of a passed trial.
fn put_slot(state: &Path, major: u64, proven: u64) -> Digest {
    let dir = tempfile::tempdir_in(state).unwrap();
    let mut manifest = testing::classifier_manifest(4, 3);
    manifest.version = semver::Version::new(major, 0, 0);
    let (_, digest) = testing::write_bundle(dir.path(), &testing::classifier(4, 3, major as f32), manifest);
    std::fs::create_dir_all(state.join("slots")).unwrap();
    let slot = state.join("slots").join(digest.to_string());
    std::fs::rename(dir.keep(), &slot).unwrap();
    std::fs::write(slot.join(".proven"), format!("{proven}\n")).unwrap();
    digest
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

async fn status(state: &Path) -> Option<Status> {
    match control::ask(state, &Ask::Status).await {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    }
}

/// The version that answers an inference request, once one does.
async fn answered_by(state: &Path) -> String {
    answered(async || status(state).await?.inference).await
}

async fn answered(address: impl AsyncFn() -> Option<String>) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    until("an answer to an inference request", async || {
        let url = format!("{}/v2/models/meter/infer", address().await?);
        let row = serde_json::json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]});
        let sent = client.post(url).json(&serde_json::json!({ "inputs": [row] })).send().await;
        let answer: serde_json::Value = sent.ok().filter(|r| r.status().is_success())?.json().await.ok()?;
        Some(answer["model_version"].as_str()?.to_owned())
    })
    .await
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn what_ran_is_served_again_without_a_server_and_after_every_kind_of_end() {
    plimsoll_agent::tls::install_ring();
    let state = tempfile::tempdir().unwrap();
    put_slot(state.path(), 1, 4);
    let newest = put_slot(state.path(), 2, 5);

    // No anchor, no enrolment: the newest slot that proved itself here is served.
    let mut first = agent(state.path());
    assert_eq!(answered_by(state.path()).await, "2.0.0");
    let seen = status(state.path()).await.unwrap();
    assert_eq!((seen.boot, seen.models[0].digest, seen.connected), (1, newest, false));
    assert!(seen.connection.contains("not enrolled"), "{}", seen.connection);

    // A second agent on the same folder is refused and does no harm.
    let second = agent(state.path()).wait().await.unwrap();
    assert_eq!(second.code(), Some(1));

    // The serving child is killed: the driver starts another.
    kill_child_of(&first);
    until("a restart of the serving process", async || {
        status(state.path()).await.filter(|s| s.serve_restarts > 0 && s.inference.is_some())
    })
    .await;
    assert_eq!(answered_by(state.path()).await, "2.0.0");

    // The driver is killed: the next one finds the anchor.
    signal(&first, rustix::process::Signal::KILL);
    first.wait().await.unwrap();
    let mut third = agent(state.path());
    assert_eq!(answered_by(state.path()).await, "2.0.0");
    assert_eq!(status(state.path()).await.unwrap().boot, 2);

    // A person asks for the version before.
    let model = "meter".parse().unwrap();
    let answer = control::ask(state.path(), &Ask::Rollback { model }).await.unwrap();
    assert!(matches!(&answer, Answer::Done { text } if text.contains("1.0.0")), "{answer:?}");
    until("the version before", async || (answered_by(state.path()).await == "1.0.0").then_some(())).await;

    // It is told to stop, and stops well; the choice holds.
    signal(&third, rustix::process::Signal::TERM);
    assert_eq!(third.wait().await.unwrap().code(), Some(0));
    let _fourth = agent(state.path());
    assert_eq!(answered_by(state.path()).await, "1.0.0");
}

/// Kills the serving child of an agent: its only child that serves.
fn kill_child_of(agent: &Child) {
    let pid = agent.id().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let child: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    let child = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_device_that_never_enrolled_says_what_to_do_and_a_wrong_setting_names_its_key() {
    let state = tempfile::tempdir().unwrap();
    let run = |args: Vec<String>| async move {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
        let output = command.args(args).stdin(Stdio::null()).output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let dir = state.path().display().to_string();
    let (code, text) = run(vec!["run".into(), "--state-dir".into(), dir.clone()]).await;
    assert!(code == Some(2) && text.contains("plimsoll-agent enroll"), "{code:?} {text}");

    let file = state.path().join("agent.toml");
    std::fs::write(&file, "windw_s = 5\n").unwrap();
    let (code, text) = run(vec!["run".into(), "--config".into(), file.display().to_string()]).await;
    assert!(code == Some(2) && text.contains("windw_s") && text.contains("agent.toml"), "{code:?} {text}");

    let token = "plj1.a1.00.x".to_owned();
    let args = ["enroll", "--server", "https://127.0.0.1:1", "--token", &token, "--state-dir", &dir];
    let (code, text) = run(args.iter().map(|a| (*a).to_owned()).collect()).await;
    assert!(code == Some(2) && text.contains("join token") && !text.contains(&token), "{code:?} {text}");
}

#[tokio::test]
async fn a_tampered_bundle_is_refused_by_name_and_with_status_3() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = testing::classifier_manifest(4, 3);
    let _ = testing::write_bundle(dir.path(), &testing::classifier(4, 3, 1.0), manifest);
    let model = dir.path().join("model.onnx");
    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"))
        .args(["run", "--listen", "127.0.0.1:0", "--bundle"])
        .arg(dir.path())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("model.onnx is not the file that bundle.json lists"), "{words}");
}

/// A file system of its own in memory, so that it can be filled and made read-only; gone with the value.
struct Mount(tempfile::TempDir);

impl Mount {
    /// Nothing where the system does not let this user mount: then the tests that need one say so and pass.
    fn new(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let done = mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"], dir.path());
        if !done {
            eprintln!("skipped: this user may not mount a file system");
        }
        done.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn mount(args: &[&str], at: &Path) -> bool {
    let done = std::process::Command::new("mount").args(args).arg(at).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_disk_that_fills_up_keeps_the_model_serving_and_gives_up_its_ballast_until_there_is_room() {
    plimsoll_agent::tls::install_ring();
    let Some(disk) = Mount::new(16) else { return };
    put_slot(disk.path(), 1, 4);
    let mut first = agent(disk.path());
    assert_eq!(answered_by(disk.path()).await, "1.0.0");
    let ballast = disk.path().join("ballast");
    assert!(ballast.exists());

    // Somebody else fills the disk to the last byte.
    let filler = disk.path().join("somebody-else");
    let fill = || {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
        while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|n| n > 0) {}
    };
    fill();
    until("the ballast to be given up", async || (!ballast.exists()).then_some(())).await;
    assert_eq!(answered_by(disk.path()).await, "1.0.0");
    fill();

    // Power goes, and comes back on a full disk.
    signal(&first, rustix::process::Signal::KILL);
    first.wait().await.unwrap();
    let _second = agent(disk.path());
    assert_eq!(answered_by(disk.path()).await, "1.0.0");

    // There is room again.
    std::fs::remove_file(&filler).unwrap();
    until("the ballast to be back", async || ballast.exists().then_some(())).await;
    assert_eq!(answered_by(disk.path()).await, "1.0.0");
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_served_from() {
    plimsoll_agent::tls::install_ring();
    let Some(disk) = Mount::new(16) else { return };
    put_slot(disk.path(), 1, 4);
    let mut first = agent(disk.path());
    assert_eq!(answered_by(disk.path()).await, "1.0.0");
    signal(&first, rustix::process::Signal::TERM);
    first.wait().await.unwrap();
    assert!(mount(&["-o", "remount,ro"], disk.path()), "cannot make it read-only");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _second = agent_at(disk.path(), &free.to_string());
    // Nobody can ask it for its status: the socket would have to be made on this disk.
    assert_eq!(answered(async || Some(format!("http://{free}"))).await, "1.0.0");
}
