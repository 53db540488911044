//! What must hold not once but many times: scenes that the test command plays a few times and `tests/soak` and
//! `tests/power-cut` often.

pub mod faults;
mod kills;
pub mod power;
mod updates;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::ids::RolloutId;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{Order, RETURN, Site, until};

pub use kills::{Kills, kills};
pub use updates::{Footprint, Taken, Updates, updates};

/// Versions of one site are told apart by this and the round.
const FIRST_VERSION: u32 = 2;
/// The demo's model that they are made from. One for all: another would be as good, and its confidence would not be
/// the same, which the gates of a rollout are there to notice.
const SOURCE: &str = "1.1.0";

/// Versions in turn: one more than a device keeps, so that each is fetched again.
const VERSIONS: u32 = 3;

fn version(round: u32) -> String {
    format!("{FIRST_VERSION}.{round}.0")
}

/// Publishes the versions that a device goes through in turn, each with so many bytes of its own.
async fn publish_in_turn(site: &Site, ballast_bytes: usize) -> Result<()> {
    for n in 0..VERSIONS {
        let mut ballast = vec![0; ballast_bytes];
        StdRng::seed_from_u64(u64::from(n)).fill_bytes(&mut ballast);
        let (onnx, _) = site.weigh_down(SOURCE, "weighed", &ballast)?;
        let bundle = site.pack_file(&onnx, SOURCE, &version(n)).await?;
        site.publish(&bundle).await?;
    }
    Ok(())
}

/// Publishes the version of a round and starts its rollout; the server may be on its way up.
async fn offer(site: &Site, round: u32) -> Result<RolloutId> {
    let bundle = site.pack(SOURCE, &version(round)).await?;
    order(site, round, &bundle).await
}

async fn order(site: &Site, round: u32, bundle: &Path) -> Result<RolloutId> {
    site.publish(bundle).await?;
    site.roll_out(&version(round), Order { stages: "1,100%", ..Order::default() }).await
}

/// How the rollout ended, be it well or not.
async fn ended_somehow(site: &Site, id: &RolloutId) -> Result<String> {
    until(&format!("rollout {id} to end or to wait for a person"), RETURN, || async {
        let info = site.fleet.api.rollout(id).await?;
        let over = info.status.is_end() || info.status == RolloutStatus::Paused;
        ensure!(over, "it is {:?}: {}", info.status, info.reason);
        Ok(format!("{:?}", info.status).to_lowercase())
    })
    .await
}

/// `a 1, b 2`.
fn listed(counts: &BTreeMap<impl AsRef<str>, u32>) -> String {
    counts.iter().map(|(what, n)| format!("{} {n}", what.as_ref())).collect::<Vec<_>>().join(", ")
}
