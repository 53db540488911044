//! A real agent behind a bad network and behind a server that lies: an update arrives, or is refused by name, and
//! whatever ran goes on running.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_tests::network::{Liar, Lie, Weather, Wire, behind};
use plimsoll_tests::{Order, STEP, Site, until};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Bytes of a model: several times the 256 KiB that the agent hands to its disk at once.
const SIZE: usize = 600_000;
const DEVICE: &str = "camera-1";

/// A model like no other, so that no delta helps.
fn model(site: &Site, version: &str) -> Result<(PathBuf, Digest)> {
    let seed = version.bytes().fold(0, |n, byte| n * 131 + u64::from(byte));
    let mut ballast = vec![0; SIZE];
    StdRng::seed_from_u64(seed).fill_bytes(&mut ballast);
    let (path, bytes) = site.weigh_down("1.1.0", version, &ballast)?;
    Ok((path, Digest::of(&bytes)))
}

async fn publish(site: &Site, onnx: &Path, version: &str) -> Result<()> {
    let bundle = site.pack_file(onnx, "1.1.0", version).await?;
    site.publish(&bundle).await
}

async fn update(site: &Site, version: &str) -> Result<()> {
    let (onnx, _) = model(site, version)?;
    publish(site, &onnx, version).await?;
    let id = site.roll_out(version, Order::default()).await?;
    site.ended(&id, RolloutStatus::Completed).await?;
    site.all_run(version).await
}

#[tokio::test(flavor = "current_thread")]
async fn whatever_the_network_does_an_update_arrives() {
    Site::play(0, async |site| {
        let state = site.fleet.enroll_agent(DEVICE, &site.join_token).await?;
        let https = Wire::start(site.fleet.https()).await?;
        let mqtt = Wire::start(site.fleet.mqtt).await?;
        behind(&state, https.address(), mqtt.address())?;
        site.fleet.start_agent(DEVICE, &[("site", "lyon")])?;
        update(site, "1.0.0").await?;

        let weathers = [
            ("1.1.0", Weather::Cut(400_000)),
            ("1.2.0", Weather::Flip(200_000)),
            ("1.3.0", Weather::Hold(300_000)),
            ("1.4.0", Weather::Down),
            ("1.5.0", Weather::Throttle(400_000)),
        ];
        for (version, weather) in weathers {
            let (onnx, _) = model(site, version)?;
            publish(site, &onnx, version).await?;
            let (struck, bytes) = (https.struck(), https.bytes_down());
            https.set(weather);
            let id = site.roll_out(version, Order::default()).await?;
            until(&format!("{weather:?} to have struck"), STEP, || async {
                // Of two strikes of an outage the first may be the end of an idle connection.
                let enough = if weather == Weather::Down { struck + 2 } else { struck + 1 };
                ensure!(https.struck() >= enough, "it has not");
                Ok(())
            })
            .await?;
            if !matches!(weather, Weather::Throttle(_)) {
                https.set(Weather::Fair);
            }
            site.ended(&id, RolloutStatus::Completed).await.with_context(|| format!("{weather:?}"))?;
            site.all_run(version).await?;
            https.set(Weather::Fair);
            let took = https.bytes_down() - bytes;
            // 400,000 came before the cut: fetching all of it again would make a million.
            let resumed = !matches!(weather, Weather::Cut(_)) || took < SIZE as u64 + 250_000;
            ensure!(resumed, "{weather:?}: {took} bytes went down, so it was not continued");
        }

        // The link of orders and reports goes away and comes back; the model is served meanwhile.
        mqtt.set(Weather::Down);
        until("the device to notice", STEP, || async {
            let status = site.fleet.status(&site.fleet.agents[0]).await?;
            ensure!(status["connected"] == false, "it is connected");
            Ok(())
        })
        .await?;
        site.still_run("1.5.0").await?;
        mqtt.set(Weather::Fair);
        update(site, "1.6.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_lies_is_overcome_or_refused_by_name() {
    Site::play(0, async |site| {
        let state = site.fleet.enroll_agent(DEVICE, &site.join_token).await?;
        let liar = Liar::start(&site.fleet.device_url(), &site.fleet.dir.join("server"), &state).await?;
        behind(&state, liar.address(), site.fleet.mqtt)?;
        site.fleet.start_agent(DEVICE, &[("site", "lyon")])?;
        update(site, "1.0.0").await?;

        let overcome =
            [("1.1.0", Lie::Busy { retry_after: 1, times: 2 }, 2), ("1.2.0", Lie::WrongPart(300_000), 2)];
        for (version, lie, times) in overcome {
            let (onnx, digest) = model(site, version)?;
            publish(site, &onnx, version).await?;
            liar.tell(lie, digest);
            let id = site.roll_out(version, Order::default()).await?;
            site.ended(&id, RolloutStatus::Completed).await.with_context(|| format!("{lie:?}"))?;
            site.all_run(version).await?;
            ensure!(liar.told() >= times, "{lie:?} was told {} times", liar.told());
        }

        // A delta that makes another file: found out at its end, and the file is fetched whole in the same attempt.
        let (onnx, _) = model(site, "1.2.0")?;
        let mut bytes = std::fs::read(&onnx)?;
        bytes.truncate(bytes.len() - 100_000);
        let ballast = &bytes[bytes.len() + 100_000 - SIZE..];
        let (onnx, bytes) = site.weigh_down("1.1.0", "1.3.0", ballast)?;
        publish(site, &onnx, "1.3.0").await?;
        liar.tell(Lie::OtherDelta, Digest::of(&bytes));
        let id = site.roll_out("1.3.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.3.0").await?;
        ensure!(liar.told() > 0, "no delta was offered");
        site.event("bundle.fetched", &["1.3.0", "1 files whole"]).await?;

        let refused = [
            ("1.4.0", Lie::LongerLength, "fetch.refused", "are signed"),
            ("1.5.0", Lie::Endless, "fetch.oversized", "endless data"),
            ("1.6.0", Lie::OtherFile, "bundle.tampered", "model.onnx has digest"),
            ("1.7.0", Lie::Gzip, "fetch.refused", "content-encoding"),
        ];
        for (version, lie, code, words) in refused {
            let (onnx, digest) = model(site, version)?;
            publish(site, &onnx, version).await?;
            liar.tell(lie, digest);
            site.roll_out(version, Order::default()).await?;
            site.event(code, &[words]).await.with_context(|| format!("{lie:?}"))?;
            let job = site.job_end(DEVICE, version).await?;
            ensure!(format!("{:?}", job.phase).contains("Failed"), "{lie:?}: {job:?}");
            ensure!(liar.told() > 0, "{lie:?} was not told");
            site.still_run("1.3.0").await?;
        }
        Ok(())
    })
    .await;
}
