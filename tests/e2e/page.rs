//! The page in a real browser: rendered on the server, kept current by its script, whole without it.

#[path = "page/browser.rs"]
mod browser;

use anyhow::ensure;
use browser::Browser;
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Order, STEP, Site, until};

#[tokio::test(flavor = "current_thread")]
async fn the_page_shows_fleet_and_rollouts_and_follows_them_by_itself() {
    Site::play(2, async |site| {
        // Without a script: the page as the server renders it.
        let html = site.fleet.api.page("/").await?;
        for words in ["camera-1", "camera-2", "meter-reader", "1.0.0", "Completed", "As loaded", "refresh"] {
            ensure!(html.contains(words), "the page does not say {words}:\n{html}");
        }
        ensure!(!html.contains("<script>") && !html.contains("onclick"), "a script inside the page");

        let browser = Browser::open(&site.fleet.dir, &format!("{}/", site.fleet.api.base())).await?;
        until("the page to be live", STEP, || async {
            let link = browser.text("#link").await?;
            ensure!(link.contains("Live"), "it says {link:?}");
            Ok(())
        })
        .await?;
        let title = browser.evaluate("document.title").await?;
        ensure!(title.contains("Plimsoll"), "the title is {title:?}");
        // The mark stays only if nobody loads the page again: what changes from here on, the script changes.
        browser.evaluate("String(window.mark = 'still the same page')").await?;

        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let id = site.roll_out("1.1.0", Order { stages: "1,100%", ..Order::default() }).await?;
        until("the page to show the rollout", STEP, || async {
            let rollouts = browser.text("#rollouts").await?;
            ensure!(rollouts.contains("1.1.0"), "it shows {rollouts:?}");
            Ok(())
        })
        .await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        until("the page to show its end on every device", STEP, || async {
            let (rollouts, fleet) = (browser.text("#rollouts").await?, browser.text("#fleet").await?);
            ensure!(rollouts.contains("Completed"), "it shows {rollouts:?}");
            ensure!(fleet.matches("1.1.0").count() == 2, "it shows {fleet:?}");
            Ok(())
        })
        .await?;
        let mark = browser.evaluate("String(window.mark)").await?;
        ensure!(mark == "still the same page", "the page was loaded again");

        // The pages behind it, without a script too.
        let device = site.fleet.api.page("/devices/camera-1").await?;
        ensure!(device.contains("camera-1") && device.contains("1.1.0"), "{device}");
        let rollout = site.fleet.api.page(&format!("/rollouts/{id}")).await?;
        ensure!(rollout.contains("1.1.0") && rollout.contains("Completed"), "{rollout}");
        Ok(())
    })
    .await;
}
