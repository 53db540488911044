//! What devices publish. The first byte chooses the topic, the rest is the payload.

use bytes::Bytes;
use plimsoll_protocol::wire::v1::Up;
use plimsoll_protocol::{DeviceId, DeviceIdentity, TenantId};
use plimsoll_server::gateway::Inbound;
use plimsoll_server::ingest::parse;

/// Topics by the first byte.
const KINDS: [Up; 7] = [Up::State, Up::Health, Up::Drift, Up::Event, Up::Job, Up::Batch, Up::Shadow];
/// A day in 2027: what an impossible device clock is held against.
const NOW: i64 = 1_800_000_000_000;

/// Any bytes are reports, or are set aside with a reason; never both lost.
pub fn reports(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else { return };
    let (Ok(tenant), Ok(device)) = (TenantId::new("main"), DeviceId::new("camera-1")) else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let message = Inbound {
        from: DeviceIdentity { tenant, device },
        kind,
        payload: Bytes::copy_from_slice(payload),
        acknowledged: true,
        retain: false,
        is_will: false,
    };
    let parsed = parse::batch(&[message], NOW);
    let heard = parsed.reports.len() + parsed.health.len() + parsed.poison.len();
    // A backfill may hold no reports; everything else is a message.
    assert!(heard > 0 || kind == Up::Batch, "a message vanished without a word");
}
