//! One task commits for all connections: small batches under a light load, large ones under a heavy load.
//!
//! While a batch is being committed the next one gathers in the queue, so the store is asked as often as it can
//! answer and no message waits for company: an idle gateway commits a single message at once.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::handler::{CommitError, Inbound};

/// Messages that make a batch full. At 3 KiB each 3 MB, and at the 10 ms of a slow flush 100,000 a second.
pub const BATCH_ROWS: usize = 1_000;

/// Longest time a batch gathers while messages keep coming. With a flush of 10 ms a message waits 20 + 10 ms, and
/// a window of 20 in flight still makes 600 messages a second for one device.
pub const BATCH_TIME: Duration = Duration::from_millis(20);

/// Submissions that wait. Each is what one connection found in one read, at most 16 KiB or one packet of 128 KiB:
/// 32 MiB at worst, and at the usual report of 1 KiB four full batches.
pub(super) const QUEUE: usize = 256;

/// What the task can be asked.
pub(super) enum Ask {
    Commit(Submission),
    /// After everything before it.
    Stop(oneshot::Sender<()>),
}

/// Messages of one connection, in order.
pub(super) struct Submission {
    pub(super) messages: Vec<Inbound>,
    /// Whom to tell, when some wait for an acknowledgement.
    pub(super) receipt: Option<Receipt>,
}

/// The packet ids of a submission and the connection that waits for them.
pub(super) struct Receipt {
    pub(super) ids: Vec<u16>,
    /// Unbounded in type only: a connection stops reading before it has a hundred messages in here.
    pub(super) to: mpsc::UnboundedSender<Outcome>,
}

/// What became of a submission.
#[derive(Debug)]
pub(super) enum Outcome {
    Committed(Vec<u16>),
    Failed,
}

/// Commits until stopped.
pub(super) async fn run(shared: Arc<Shared>, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        let (mut messages, mut receipts) = (Vec::new(), Vec::new());
        let mut stop = gather(ask, &mut messages, &mut receipts);
        let until = Instant::now() + BATCH_TIME;
        let mut yielded = false;
        while stop.is_none() && messages.len() < BATCH_ROWS && Instant::now() < until {
            match asks.try_recv() {
                Ok(ask) => {
                    stop = gather(ask, &mut messages, &mut receipts);
                    yielded = false;
                }
                // Connections that are ready to run may have more: let them, once.
                Err(TryRecvError::Empty) if !yielded => {
                    tokio::task::yield_now().await;
                    yielded = true;
                }
                Err(_) => break,
            }
        }
        commit(&shared, messages, receipts).await;
        if let Some(stopped) = stop {
            let _nobody_waits = stopped.send(());
            return;
        }
    }
}

/// Commits what is queued and ends the task.
pub(super) async fn stop(asks: &mpsc::Sender<Ask>) {
    let (stopped, wait) = oneshot::channel();
    if asks.send(Ask::Stop(stopped)).await.is_ok() {
        let _ended = wait.await;
    }
}

fn gather(ask: Ask, messages: &mut Vec<Inbound>, receipts: &mut Vec<Receipt>) -> Option<oneshot::Sender<()>> {
    match ask {
        Ask::Commit(submission) => {
            messages.extend(submission.messages);
            receipts.extend(submission.receipt);
            None
        }
        Ask::Stop(stopped) => Some(stopped),
    }
}

/// Persist, then acknowledge, then tell the dashboards: they see nothing that was not committed.
async fn commit(shared: &Shared, messages: Vec<Inbound>, receipts: Vec<Receipt>) {
    if messages.is_empty() {
        return;
    }
    let rows = messages.len();
    let messages: Arc<[Inbound]> = messages.into();
    let durable = AssertUnwindSafe(shared.handler.commit(messages.clone())).catch_unwind().await;
    let durable = durable.unwrap_or_else(|_panic| {
        shared.counters.panics.one();
        Err(CommitError("the ingest handler panicked".into()))
    });
    if let Err(error) = &durable {
        shared.counters.commit_failures.one();
        tracing::error!(rows, %error, "reports were not committed; their devices will send them again");
    }
    for Receipt { ids, to } in receipts {
        let outcome = if durable.is_ok() { Outcome::Committed(ids) } else { Outcome::Failed };
        let _connection_ended = to.send(outcome);
    }
    if durable.is_ok() {
        shared.counters.batches.one();
        shared.counters.committed.add(rows);
        shared.registry.publish(&messages, &shared.counters);
    }
}
