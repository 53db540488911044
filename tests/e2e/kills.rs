//! SIGKILL of any process at random instants of updates: twenty here, with one seed; hundreds by `tests/soak kill`,
//! with another seed each time.

use anyhow::ensure;
use plimsoll_tests::{Site, soak};

#[tokio::test(flavor = "current_thread")]
async fn twenty_kills_leave_no_device_without_a_working_model() {
    Site::play(2, async |site| {
        let seen = soak::kills(site, 20, 1, |line| eprintln!("{line}")).await?;
        eprintln!("{seen}");
        ensure!(seen.struck.len() == 3, "not every kind of process was killed: {seen}");
        Ok(())
    })
    .await;
}
