//! In which order devices get a version.
//!
//! A device's rank is a hash of the rollout's seed and its id: uniform over sites and hardware, different in every
//! rollout (the same device is not always the canary), and independent of all other devices, so that a fleet that
//! grows does not reorder those that were there. A stage takes the lowest ranks that have no stage yet.

use plimsoll_protocol::DeviceId;
use sha2::{Digest as _, Sha256};

/// Place of a device in the queue of a rollout. Ties (1 in 2^64 for a pair) are broken by the id.
pub fn rank(seed: u64, device: &DeviceId) -> u64 {
    let hash = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(device.as_str()).finalize();
    hash.iter().take(8).fold(0, |rank, byte| rank << 8 | u64::from(*byte))
}

/// Devices in the order of their ranks.
pub fn queue<'a>(seed: u64, devices: impl IntoIterator<Item = &'a DeviceId>) -> Vec<&'a DeviceId> {
    let mut ranked: Vec<(u64, &DeviceId)> = devices.into_iter().map(|d| (rank(seed, d), d)).collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, device)| device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(n: u32) -> Vec<DeviceId> {
        (0..n).map(|i| DeviceId::new(&format!("cam-{i}")).unwrap()).collect()
    }

    #[test]
    fn growth_never_reorders_the_devices_that_were_there() {
        let (small, large) = (fleet(200), fleet(400));
        let before = queue(7, &small);
        let after: Vec<_> = queue(7, &large).into_iter().filter(|d| small.contains(d)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn another_seed_is_another_order() {
        let devices = fleet(50);
        assert_ne!(queue(1, &devices), queue(2, &devices));
        assert_eq!(queue(1, &devices), queue(1, devices.iter().rev()));
    }

    #[test]
    fn the_first_tenth_is_spread_over_the_ids() {
        let devices = fleet(5_000);
        let first: Vec<_> = queue(42, &devices).into_iter().take(500).collect();
        let from_first_half = first.iter().filter(|d| devices[..2_500].contains(d)).count();
        // Binomial(500, 1/2): four standard deviations are 45.
        assert!((205..=295).contains(&from_first_half), "{from_first_half} of 500");
    }
}
