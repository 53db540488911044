//! The serving child: the one process of the agent that holds models.
//!
//! The driver never links a model into its own address space. It starts `plimsoll-agent serve`, tells it over a pipe
//! what to load and serve ([`control`]), and restarts it when it dies. In here one task obeys orders ([`child`]), one
//! accepts requests ([`http`], which speaks [`oip`]), and each bundle in memory has a thread that runs it
//! ([`hosted`]); [`registry`] is the one pointer from a model's name to the bundle that answers for it.
//!
//! The same parts serve folders without a fleet ([`run`]), and run golden samples ([`bundle`]).

pub mod account;
pub mod bridge;
pub mod bundle;
pub mod child;
pub mod control;
mod drift;
pub mod hosted;
pub mod http;
mod latency;
pub mod listen;
pub mod oip;
mod pace;
pub mod registry;
pub mod rows;
pub mod run;
mod runner;
pub mod shadow;
mod stdio;
pub mod truth;

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use plimsoll_runtime::{Bounds, confine, with_room};
use tokio::signal::unix::{SignalKind, signal};

/// The kernel's choice when memory runs out: the child before the driver (0), after nothing that matters.
const OOM_SCORE: &str = "500";
/// Processor time of a self-test: as long as its driver waits for it (5 minutes), for tract computes on one core. It
/// ends a self-test that a person started, too, and one whose driver died.
const SELF_TEST_CPU_S: u64 = 5 * 60;

/// `plimsoll-agent serve`: obeys the driver on standard input until told to drain or the driver is gone. Returns the
/// exit status.
pub fn child_main() -> anyhow::Result<u8> {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::debug!(%error, "the memory score of the serving child was not set");
    }
    bound(&Bounds::serving());
    let runtime = runtime()?;
    let (answers, writer) = stdio::answers().context("no thread for the control channel")?;
    let orders = stdio::orders().context("no thread for the control channel")?;
    let nonce = nonce()?;
    runtime.block_on(async {
        // A signal for the whole service reaches the child too, but it is the driver that drains it.
        let ignored = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        child::run(orders, answers, nonce).await;
        drop(ignored);
    });
    runtime.shutdown_background();
    let _ = writer.join(); // it only writes what was said
    Ok(0)
}

/// `plimsoll-agent selftest --dir DIR`: prints one JSON line ([`control::SelfTestLine`]) and returns the exit status:
/// 0 passed, 3 answered wrongly, 4 does not load or run.
pub fn selftest_main(dir: &Path) -> anyhow::Result<u8> {
    bound(&Bounds::trying(SELF_TEST_CPU_S));
    let (line, status) = with_room(|| bundle::self_test_line(dir)).context("no thread for the model")?;
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, &line)?;
    output.write_all(b"\n")?;
    output.flush()?;
    Ok(status)
}

/// Bounds this process before it opens a model. One that cannot be bounded is told and runs without: a device whose
/// kernel refuses limits still has a model to serve.
fn bound(bounds: &Bounds) {
    if let Err(error) = confine(bounds) {
        tracing::warn!(%error, "a process that runs models has not all of its limits");
    }
}

/// One thread: the endpoint waits, models compute on threads of their own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("the asynchronous runtime could not start")
}

fn nonce() -> anyhow::Result<u32> {
    getrandom::u32().map_err(|e| anyhow::anyhow!("the system gives no random number: {e}"))
}

#[cfg(test)]
mod tests;
