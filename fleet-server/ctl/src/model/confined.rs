//! Models in a process of their own. A file that somebody sent may exhaust memory, abort, overflow the stack or compute
//! without end, so this program starts itself once more, hidden, with limits that the child puts upon itself before it
//! opens the model; whatever becomes of the child, the command lives and says so. One question on its standard input,
//! one answer on its standard output, a line of JSON each.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plimsoll_protocol::bundle::Manifest;
use plimsoll_runtime::{
    Bounds, CheckReport, RuntimeError, SelfTestReport, Trial, architecture, check, confine, how_it_ended,
    self_test, with_room,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::failure::{Refused, Usage};
use crate::output::bytes;

/// Longest trial of a model: what a device allows for its self-test (5 minutes for loading and 64 samples at 5 s).
pub const LIMIT: Duration = Duration::from_secs(5 * 60);
/// Longest question: a manifest of 1 MiB, and the paths of 1,024 samples.
const MAX_ASK: u64 = 4 * 1024 * 1024;
/// Of what a dying child said last, this much is told.
const LAST_WORDS: usize = 300;

/// What a child may take.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Memory for data, bytes; `None` for no limit.
    pub data_bytes: Option<u64>,
    /// From its start to its answer.
    pub limit: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self { data_bytes: Bounds::serving().data_bytes, limit: LIMIT }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    data_bytes: Option<u64>,
    cpu_s: u64,
    work: Work,
}

#[derive(Debug, Serialize, Deserialize)]
enum Work {
    Check { onnx: PathBuf, trial: Trial },
    SelfTest { dir: PathBuf, manifest: Box<Manifest> },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Checked(Box<CheckReport>),
    Tested(SelfTestReport),
    /// The model, or what comes with it, is refused.
    Refused(String),
    /// The command line does not fit the model.
    Usage(String),
    /// A file could not be read.
    Failed(String),
}

/// Tries a model's file in a child.
pub async fn check_model(onnx: &Path, trial: Trial, room: Room) -> Result<CheckReport> {
    let work = Work::Check { onnx: onnx.to_owned(), trial };
    match ask(work, &format!("model {}", onnx.display()), room).await? {
        Answer::Checked(report) => Ok(*report),
        other => bail!("the process that tried the model gave another answer than a report: {other:?}"),
    }
}

/// Runs the golden samples of a bundle in a child; its peak memory is the model's, not this command's.
pub async fn self_test_bundle(dir: &Path, manifest: &Manifest, room: Room) -> Result<SelfTestReport> {
    let work = Work::SelfTest { dir: dir.to_owned(), manifest: Box::new(manifest.clone()) };
    match ask(work, &format!("model {} {}", manifest.model, manifest.version), room).await? {
        Answer::Tested(report) => Ok(report),
        other => bail!("the process that tested the model gave another answer than a report: {other:?}"),
    }
}

async fn ask(work: Work, what: &str, room: Room) -> Result<Answer> {
    let ask = Ask { data_bytes: room.data_bytes, cpu_s: room.limit.as_secs().max(1), work };
    let question = serde_json::to_vec(&ask).context("a question for the child")?;
    let program = std::env::current_exe().context("this program does not know where it lies")?;
    // No environment: it needs none, and ours may hold a token.
    let mut child = Command::new(program)
        .args(["model", "confined"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("the process that tries models could not be started")?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(&question).await; // a child that died already tells how below
    }
    let Ok(output) = tokio::time::timeout(room.limit, child.wait_with_output()).await else {
        bail!(Refused(format!("{what} did not end within {} s and was stopped", room.limit.as_secs())));
    };
    let output = output.context("the process that tries models")?;
    match serde_json::from_slice(&output.stdout) {
        Ok(Answer::Refused(why)) => bail!(Refused(format!("{what}: {why}"))),
        Ok(Answer::Usage(why)) => bail!(Usage(format!("{what}: {why}"))),
        Ok(Answer::Failed(why)) => bail!("{what}: {why}"),
        Ok(answer) => Ok(answer),
        Err(_) => bail!(Refused(died(what, &output, room))),
    }
}

/// A model that took its process with it.
fn died(what: &str, output: &std::process::Output, room: Room) -> String {
    let words = String::from_utf8_lossy(&output.stderr);
    let words: String = words.trim().chars().take(LAST_WORDS).collect();
    let said = if words.is_empty() { String::new() } else { format!("; it said: {words}") };
    let room = room.data_bytes.map_or("no limit".to_owned(), bytes);
    format!(
        "{what} ended the process that tried it: {}{said} (its memory was limited to {room})",
        how_it_ended(output.status)
    )
}

/// `plimsoll model confined`: reads its work, bounds itself, does the work, answers.
pub fn child() -> Result<()> {
    let mut question = Vec::new();
    std::io::stdin().lock().take(MAX_ASK).read_to_end(&mut question)?;
    let ask: Ask = serde_json::from_slice(&question)
        .map_err(|e| Usage(format!("`model confined` is started by other commands: {e}")))?;
    let answer = match confine(&Bounds { data_bytes: ask.data_bytes, cpu_s: Some(ask.cpu_s) }) {
        Ok(()) => with_room(|| work(ask.work))?,
        Err(why) => Answer::Failed(format!("this process cannot be limited, so no model is opened: {why}")),
    };
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, &answer)?;
    output.flush()?;
    Ok(())
}

fn work(work: Work) -> Answer {
    let done = match work {
        Work::Check { onnx, trial } => check(&onnx, &trial).map(|report| Answer::Checked(Box::new(report))),
        Work::SelfTest { dir, manifest } => self_test(&dir, &manifest, architecture()).map(Answer::Tested),
    };
    match done {
        Ok(answer) => answer,
        Err(error @ RuntimeError::Io { .. }) => Answer::Failed(error.to_string()),
        Err(RuntimeError::Input(why)) => Answer::Usage(why.to_string()),
        Err(error) => Answer::Refused(error.to_string()),
    }
}
