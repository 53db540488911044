//! Waiting for something to become true, with words for when it does not.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// How often a condition is looked at: often enough that nobody notices, seldom enough that six agents and a server
/// keep the two cores.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until `probe` gives a value, at most `limit` long; the error says what was waited for and what was last
/// seen. A probe answers `Err(what it saw)` while the condition does not hold.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    let mut last = anyhow!("nothing was seen yet");
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen,
            Err(_) => return Err(last.context(format!("waited {limit:?} for: {what}"))),
        }
        if Instant::now() >= deadline {
            return Err(last.context(format!("waited {limit:?} for: {what}")));
        }
        sleep(LOOK_EVERY).await;
    }
}
