//! The real program, killed.

use std::process::Stdio;

use plimsoll_server::app::Addresses;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::rig::PATIENCE;

struct Program {
    child: Child,
    base: String,
    token: String,
}

async fn serve(dir: &std::path::Path) -> Program {
    let any = "127.0.0.1:0";
    let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll-server"))
        .args(["serve", "--public-host", "127.0.0.1", "--tick-ms", "50"])
        .args(["--listen-http", any, "--listen-https", any, "--listen-mqtt", any, "--listen-dashboard", any])
        .arg("--state-dir")
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // It greets when it serves.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let greeting = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("next:") {
                return;
            }
        }
        panic!("the server ended before it served");
    };
    tokio::time::timeout(PATIENCE, greeting).await.expect("the server did not start");
    let addresses: Addresses =
        serde_json::from_slice(&std::fs::read(dir.join("addresses.json")).unwrap()).unwrap();
    let token = std::fs::read_to_string(dir.join("admin.token")).unwrap().trim().to_owned();
    Program { child, base: format!("http://{}/api/v1", addresses.http), token }
}

#[tokio::test]
async fn what_was_answered_survives_kill_minus_nine_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default(); // Err: another test of this process did
    let client = Client::builder().no_proxy().build().unwrap();
    let mut made = 0;
    for _ in 0..3 {
        let mut program = serve(dir.path()).await;
        let audit =
            client.get(format!("{}/audit", program.base)).bearer_auth(&program.token).send().await.unwrap();
        let audit: Value = audit.json().await.unwrap();
        assert_eq!(audit.as_array().unwrap().len(), made, "everything that was answered is there");
        for _ in 0..5 {
            let answer = client
                .post(format!("{}/join-tokens", program.base))
                .bearer_auth(&program.token)
                .json(&json!({ "uses": 1, "minutes": 1 }))
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), 200);
            made += 1;
        }
        program.child.kill().await.unwrap();
    }
}

#[tokio::test]
async fn sigterm_ends_it_in_order_and_a_second_server_is_refused_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = serve(dir.path()).await;
    let second = Command::new(env!("CARGO_BIN_EXE_plimsoll-server"))
        .args(["serve", "--state-dir"])
        .arg(dir.path())
        .output()
        .await
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another plimsoll-server uses"));
    let doctor = || {
        Command::new(env!("CARGO_BIN_EXE_plimsoll-server"))
            .args(["doctor", "--state-dir"])
            .arg(dir.path())
            .output()
    };
    let healthy = doctor().await.unwrap();
    let said = String::from_utf8_lossy(&healthy.stdout).into_owned();
    assert!(healthy.status.success() && said.contains("the server is running"), "{said}");

    let pid = rustix::process::Pid::from_raw(program.child.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(PATIENCE, program.child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    assert!(dir.path().join("store/clean").exists());
    assert!(dir.path().join("export.jsonl").exists());
    assert!(doctor().await.unwrap().status.success());
}
