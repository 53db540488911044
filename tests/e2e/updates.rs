//! Twenty-five updates of one device leave it as large as it was; a thousand by `tests/soak updates`.

use plimsoll_tests::{Site, soak};

#[tokio::test(flavor = "current_thread")]
async fn a_device_does_not_grow_with_its_updates() {
    Site::play(1, async |site| {
        eprintln!("{}", soak::updates(site, 25, |line| eprintln!("{line}")).await?);
        Ok(())
    })
    .await;
}
