//! Power cuts at random instants of real work, on a real disk: ten of a device and ten of the server here, hundreds
//! by `tests/power-cut`. Root and a loop device are needed; elsewhere the tests say that they were skipped, unless
//! `PLIMSOLL_REQUIRE_POWER_CUTS=1`.

use anyhow::ensure;
use plimsoll_tests::Site;
use plimsoll_tests::disk::Disk;
use plimsoll_tests::soak::power;
use tempfile::TempDir;

/// A disk at a folder of a new site, or word that it was skipped.
async fn disk(at: &str) -> Option<(TempDir, Disk)> {
    let dir = TempDir::with_prefix("plimsoll-test-").expect("a temporary folder");
    match Disk::make(&dir.path().join("disk.img"), &dir.path().join(at)).await {
        Ok(disk) => Some((dir, disk)),
        Err(error) => {
            let required = std::env::var("PLIMSOLL_REQUIRE_POWER_CUTS").is_ok_and(|v| v == "1");
            assert!(!required, "no disk can be cut here: {error:#}");
            eprintln!("SKIPPED: no disk can be cut here: {error:#}");
            None
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_device_whose_power_is_cut_ten_times_answers_at_once_and_has_lost_nothing() {
    let Some((dir, disk)) = disk("camera-1").await else { return };
    Site::play_in(dir.path(), 1, &[], async |site| {
        let seen = power::device(site, &disk, 10, 1, |line| eprintln!("{line}")).await?;
        eprintln!("{seen}");
        ensure!(seen.counted > 0 && seen.reports > 0, "no report waited in any cut: {seen}");
        ensure!(seen.phases.len() > 1, "all cuts fell into the same phase: {seen}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_whose_power_is_cut_ten_times_has_all_that_it_acknowledged() {
    let Some((dir, disk)) = disk("server").await else { return };
    Site::play_in(dir.path(), 2, &[], async |site| {
        let seen = power::server(site, &disk, 10, 1, |line| eprintln!("{line}")).await?;
        eprintln!("{seen}");
        ensure!(seen.answered.values().all(|n| *n > 0), "something was never answered before a cut: {seen}");
        Ok(())
    })
    .await;
}
