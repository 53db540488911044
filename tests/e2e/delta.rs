//! A retrained model travels as its differences to the one that the devices run, and what is on a device already does
//! not travel at all.

use std::ops::RangeBounds;

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::{Order, Site};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Large against everything else that an update transfers (metadata, manifest, handshakes: some ten kilobytes).
const BALLAST: usize = 400_000;

#[tokio::test(flavor = "current_thread")]
async fn a_retrained_model_comes_as_a_delta_and_is_what_was_signed() {
    Site::play(2, async |site| {
        let mut ballast = vec![0; BALLAST];
        StdRng::seed_from_u64(1).fill_bytes(&mut ballast);
        let (first, _) = site.weigh_down("1.1.0", "first", &ballast)?;
        update(site, &first, "1.1.0", "1.1.0").await?;
        said(site, "1.1.0", "files whole", BALLAST..).await?;

        let (second, bytes) = site.weigh_down("1.2.0", "second", &ballast)?;
        update(site, &second, "1.2.0", "1.2.0").await?;
        said(site, "1.2.0", "model.onnx as a delta from 1.1.0", ..BALLAST / 4).await?;
        let metrics = site.fleet.api.page("/metrics").await?;
        let sent = metrics.lines().find_map(|l| l.strip_prefix("plimsoll_delta_requests_total "));
        ensure!(sent.context("no such number")?.parse::<u64>()? >= 2, "{sent:?} deltas were sent");
        let saved = metrics.lines().find_map(|l| l.strip_prefix("plimsoll_delta_saved_bytes_total "));
        let saved = saved.context("no such number")?.parse::<usize>()?;
        ensure!(saved > BALLAST * 3 / 2, "{saved} bytes were saved on two devices");
        let downloads = site.fleet.status(&site.fleet.agents[0]).await?["downloads"].clone();
        let number = |name: &str| downloads[name].as_u64().with_context(|| downloads.to_string());
        let saved = number("bytes")? - number("received")?;
        ensure!(saved > BALLAST as u64 * 3 / 4, "the device knows of {saved} bytes that were saved");
        for agent in &site.fleet.agents {
            let slots = std::fs::read_dir(agent.state.join("slots"))?;
            let files = slots.filter_map(|slot| std::fs::read(slot.ok()?.path().join("model.onnx")).ok());
            let digests: Vec<Digest> = files.map(|file| Digest::of(&file)).collect();
            ensure!(
                digests.contains(&Digest::of(&bytes)),
                "{} does not have the file that was signed",
                agent.name
            );
        }

        // The same file under another version: nothing of it travels.
        update(site, &second, "1.2.0", "1.2.1").await?;
        let text = said(site, "1.2.1", "on this device already", ..BALLAST / 20).await?;
        ensure!(!text.contains("model.onnx as a delta"), "{text}");
        Ok(())
    })
    .await;
}

async fn update(site: &Site, onnx: &std::path::Path, source: &str, version: &str) -> Result<()> {
    let bundle = site.pack_file(onnx, source, version).await?;
    site.publish(&bundle).await?;
    let id = site.roll_out(version, Order::default()).await?;
    site.ended(&id, RolloutStatus::Completed).await?;
    site.all_run(version).await
}

/// A device said how this version came, and how many bytes of it.
async fn said(site: &Site, version: &str, words: &str, bytes: impl RangeBounds<usize>) -> Result<String> {
    let text = site.event("bundle.fetched", &[&format!(" {version}: "), words]).await?.text;
    let received = text.split(": ").nth(1).and_then(|t| t.split(' ').next());
    let received: usize = received.context("no number of bytes")?.parse().with_context(|| text.clone())?;
    ensure!(bytes.contains(&received), "{received} bytes: {text}");
    Ok(text)
}
