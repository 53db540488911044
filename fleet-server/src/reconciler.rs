//! The loop that makes the fleet what the rollouts say: look, plan, commit, publish; again at every tick and
//! whenever a report or a person changed something.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_protocol::wire::v1::Severity;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::{App, stopped};
use crate::clock;
use crate::metrics::one;

/// Least time between two plans: a burst of reports is planned once. A tenth of the default tick is not felt by
/// people, and 10,000 devices that answer at once cause 10 plans a second instead of 10,000.
const BREATH: Duration = Duration::from_millis(100);

/// Runs until `stopping` turns true.
pub async fn run(app: Arc<App>, tick: Duration, mut stopping: watch::Receiver<bool>) {
    let mut clockwork = interval(tick);
    clockwork.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = clockwork.tick() => {}
            () = app.wake.notified() => tokio::time::sleep(BREATH.min(tick)).await,
            () = stopped(&mut stopping) => return,
        }
        one(&app.metrics.ticks);
        let planned = app.book.lock().await.tick(&app, clock::now_ms()).await;
        match planned {
            Ok(_) => failing = false,
            Err(error) => {
                one(&app.metrics.tick_failures);
                // Said once, not once a second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "planning failed; tried again at every tick");
                    let text = format!("planning failed: {error}; it is tried again at every tick");
                    app.event(None, Severity::Alarm, "planner.failed", text).await;
                }
            }
        }
    }
}
