//! The serving child: started, fed with orders, listened to, restarted when it dies.
//!
//! One task owns the process. The driver gets a sender of orders for each life of the child and never waits on it:
//! a child that does not read its orders is full, and a child that says nothing for [`SILENCE`] is killed. Either
//! way the driver hears [`ChildEvent::Down`] and the lifecycle decides what it means for a trial.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use plimsoll_agent_core::Death;
use plimsoll_runtime::how_it_ended;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::serve::control::{Answer, MAX_LINE, Order};

/// Orders that may wait for the child: loads and swaps of 8 models, statistics, windows.
const QUEUE: usize = 64;
/// The driver asks for statistics at least every 10 s; a child that answers nothing for so long hangs. Loads run
/// beside the loop that answers, so they do not count as silence.
pub const SILENCE: Duration = Duration::from_secs(60);
/// First pause before a restart; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A child that dies again and again must not keep the processor from the rest of the device.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A child that lived so long starts again from [`FIRST_PAUSE`]. Loading a model takes a second or two of processor time
/// on a small device: a fifth of a life that ends again and again.
const STABLE: Duration = Duration::from_secs(10);
/// A child that was told to drain finishes running requests; their limit is seconds.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How to start it.
#[derive(Debug, Clone)]
pub struct Spawn {
    /// The program: this one.
    pub program: PathBuf,
    /// `serve`.
    pub args: Vec<OsString>,
    /// Its log filter, as `PLIMSOLL_LOG`: it reads no settings file.
    pub log: String,
    /// First order.
    pub configure: Order,
}

/// What the driver hears.
#[derive(Debug)]
pub enum ChildEvent {
    /// A child listens and holds no model.
    Up {
        /// For orders, until [`ChildEvent::Down`].
        orders: mpsc::Sender<Order>,
        /// Where it listens.
        addr: std::net::SocketAddr,
    },
    /// It said something.
    Said(Answer),
    /// It is gone, or never came up.
    Down {
        /// How, and whose doing it was.
        death: Death,
        /// When it is started again.
        restart: Duration,
    },
}

/// Starts the child again and again until the driver drops its end.
pub async fn supervise(spawn: Spawn, events: mpsc::Sender<ChildEvent>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let born = Instant::now();
        let death = match one_life(&spawn, &events).await {
            Ok(death) => death,
            Err(DriverGone) => return,
        };
        pause = if born.elapsed() >= STABLE { FIRST_PAUSE } else { pause };
        if events.send(ChildEvent::Down { death, restart: pause }).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

struct DriverGone;

/// One process from its start to its end; says how it ended.
async fn one_life(spawn: &Spawn, events: &mpsc::Sender<ChildEvent>) -> Result<Death, DriverGone> {
    let mut child = match start(spawn) {
        Ok(child) => child,
        Err(error) => return Ok(nobodys(format!("the serving process could not be started: {error}"))),
    };
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Ok(nobodys("the serving process has no pipes".into()));
    };
    let (orders, queue) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(write_orders(stdin, queue));
    let first = orders.try_send(spawn.configure.clone());
    debug_assert!(first.is_ok(), "a fresh queue has room");
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    let mut blamed = None;
    let reason = loop {
        line.clear();
        let heard = tokio::select! {
            heard = tokio::time::timeout(SILENCE, read_line(&mut lines, &mut line)) => heard,
            () = events.closed() => {
                writer.abort(); // end of file on its input: it drains and ends by itself
                let _ = tokio::time::timeout(DRAIN, child.wait()).await;
                return Err(DriverGone);
            }
        };
        let answer = match heard {
            Err(_) => break format!("it said nothing for {} s and was killed", SILENCE.as_secs()),
            Ok(Err(error)) => break format!("its answers could not be read ({error}) and it was killed"),
            Ok(Ok(None)) => break String::new(),
            Ok(Ok(Some(answer))) => answer,
        };
        let event = match answer {
            Answer::Listening { addr } => ChildEvent::Up { orders: orders.clone(), addr },
            Answer::ListenFailed { addr, reason } => {
                break format!("it cannot listen on {addr}: {reason}");
            }
            Answer::Hangs { model, digest, reason } => {
                blamed = Some((model, digest));
                break format!("{reason}; the process was killed");
            }
            other => ChildEvent::Said(other),
        };
        if events.send(event).await.is_err() {
            continue; // the driver is gone: the select above ends this life
        }
    };
    writer.abort();
    Ok(Death { reason: ended(child, reason).await, blamed })
}

fn nobodys(reason: String) -> Death {
    Death { reason, blamed: None }
}

fn start(spawn: &Spawn) -> std::io::Result<Child> {
    // It bounds itself before it opens a model.
    Command::new(&spawn.program)
        .args(&spawn.args)
        .env("PLIMSOLL_LOG", &spawn.log)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
}

async fn write_orders(mut stdin: ChildStdin, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        let mut line = serde_json::to_vec(&order).unwrap_or_default(); // text keys only: cannot fail
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() {
            return; // it died; the reader notices
        }
    }
}

/// One answer, or `None` at the end of file. Bounded: a child that writes without an end is not believed.
async fn read_line(
    lines: &mut BufReader<tokio::process::ChildStdout>,
    line: &mut Vec<u8>,
) -> Result<Option<Answer>, String> {
    loop {
        let available = lines.fill_buf().await.map_err(|e| e.to_string())?;
        if available.is_empty() {
            return Ok(None);
        }
        let (used, done) = match available.iter().position(|b| *b == b'\n') {
            Some(end) => (end + 1, true),
            None => (available.len(), false),
        };
        line.extend_from_slice(&available[..used]);
        lines.consume(used);
        if line.len() > MAX_LINE {
            return Err(format!("a line is longer than {MAX_LINE} bytes"));
        }
        if done {
            return serde_json::from_slice(line).map(Some).map_err(|e| e.to_string());
        }
    }
}

/// Makes sure that it is gone, and says how it went.
async fn ended(mut child: Child, reason: String) -> String {
    if !reason.is_empty() {
        let _ = child.kill().await; // an error means that it is gone already
        return reason;
    }
    match tokio::time::timeout(DRAIN, child.wait()).await {
        Ok(Ok(status)) => how_it_ended(status),
        Ok(Err(error)) => format!("its end could not be read: {error}"),
        Err(_) => {
            let _ = child.kill().await;
            "it closed its output but did not end, and was killed".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Spawn {
        Spawn {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            log: "info".into(),
            configure: Order::Configure {
                listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
                socket: None,
                bridge: None,
                max_body: 1,
                agent_version: "0".into(),
            },
        }
    }

    #[tokio::test]
    async fn a_child_is_configured_listened_to_and_restarted_when_it_dies() {
        // Plays a child: waits for its first order, listens, is killed.
        let script = r#"read order; case "$order" in *configure*) ;; *) exit 9;; esac
            echo '{"answer":"listening","addr":"127.0.0.1:7"}'; read order; kill -9 $$"#;
        let (send, mut receive) = mpsc::channel(8);
        let task = tokio::spawn(supervise(shell(script), send));
        for life in 0..2 {
            let Some(ChildEvent::Up { orders, addr }) = receive.recv().await else {
                panic!("life {life}: not up")
            };
            assert_eq!(addr.port(), 7);
            orders.send(Order::Stats).await.unwrap();
            let Some(ChildEvent::Down { death: Death { reason, .. }, .. }) = receive.recv().await else {
                panic!("life {life}: not down")
            };
            assert!(reason.contains("signal 9"), "{reason}");
        }
        drop(receive);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_child_that_talks_nonsense_or_cannot_listen_is_replaced_with_words() {
        for (script, words) in [
            ("echo hello; read x", "could not be read"),
            (
                r#"echo '{"answer":"hangs","model":"m","digest":"'$(printf 0%.0s $(seq 64))'","reason":"m 1.0.0 does not end"}'; read x; read x"#,
                "m 1.0.0 does not end",
            ),
            ("exit 3", "exit code 3"),
            (
                r#"echo '{"answer":"listen_failed","addr":"127.0.0.1:7","reason":"in use"}'; read x; read x"#,
                "in use",
            ),
        ] {
            let (send, mut receive) = mpsc::channel(8);
            let task = tokio::spawn(supervise(shell(script), send));
            let Some(ChildEvent::Down { death: Death { reason, .. }, .. }) = receive.recv().await else {
                panic!("{script}")
            };
            assert!(reason.contains(words), "{script}: {reason}");
            drop(receive);
            task.await.unwrap();
        }
    }
}
