//! A disk that fails in the middle of an update: a few of the errors that `tests/faults` puts everywhere. Where this
//! user may not trace its own processes the test says that it was skipped, unless `PLIMSOLL_REQUIRE_TOOLS=1` and root.

use anyhow::ensure;
use plimsoll_tests::Site;
use plimsoll_tests::soak::faults::{self, Fault, Faults};

#[tokio::test(flavor = "current_thread")]
async fn an_update_on_a_failing_disk_leaves_the_model_answering_and_reaches_its_goal_afterwards() {
    if !may_trace() {
        eprintln!("SKIPPED: strace may not trace here");
        return;
    }
    Site::play(1, async |site| {
        faults::prepare(site).await?;
        let mut seen = Faults::default();
        let faults = [
            ("pwrite64", "EIO", 1, false),
            ("pwrite64", "ENOSPC", 1, true),
            ("fsync", "EIO", 2, false),
            ("fdatasync", "EIO", 1, true),
            ("rename,renameat,renameat2", "EIO", 2, false),
        ];
        for (n, (calls, error, nth, on)) in (0..).zip(faults) {
            let fault = Fault { calls, error, nth, on };
            let hits = faults::fault(site, n, fault, &mut seen).await?;
            ensure!(hits > 0, "{fault}: nothing failed");
        }
        eprintln!("{seen}");
        Ok(())
    })
    .await;
}

fn may_trace() -> bool {
    let traced = std::process::Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    let may = traced.as_ref().is_ok_and(|status| status.success());
    let required =
        std::env::var_os("PLIMSOLL_REQUIRE_TOOLS").is_some() && rustix::process::getuid().is_root();
    assert!(may || !required, "strace cannot trace: {traced:?}");
    may
}
