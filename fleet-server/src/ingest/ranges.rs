//! Which reports of a batch were committed, as the ranges that an acknowledgement carries.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::{DeviceId, Incarnation};

/// Numbers committed, by device and incarnation.
#[derive(Debug, Default)]
pub struct Committed(BTreeMap<(DeviceId, Incarnation), BTreeSet<(u64, u64)>>);

impl Committed {
    /// Adds a report. Number 0 belongs to kinds that are never acknowledged.
    pub fn add(&mut self, device: &DeviceId, inc: Incarnation, boot: u64, seq: u64) {
        if seq != 0 {
            self.0.entry((device.clone(), inc)).or_default().insert((boot, seq));
        }
    }

    /// `(boot, first, last)`, inclusive, ascending, one list a device and incarnation.
    pub fn into_ranges(self) -> impl Iterator<Item = (DeviceId, Incarnation, Vec<(u64, u64, u64)>)> {
        self.0.into_iter().map(|((device, inc), numbers)| {
            let mut ranges: Vec<(u64, u64, u64)> = Vec::new();
            for (boot, seq) in numbers {
                match ranges.last_mut() {
                    Some((last, _, hi)) if *last == boot && hi.checked_add(1) == Some(seq) => *hi = seq,
                    _ => ranges.push((boot, seq, seq)),
                }
            }
            (device, inc, ranges)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_ranges_and_boots_are_kept_apart() {
        let (a, inc) = (DeviceId::new("a").unwrap(), Incarnation::from_bytes([1; 16]));
        let mut committed = Committed::default();
        for (boot, seq) in [(2, 1), (1, 5), (1, 3), (1, 4), (1, 9), (1, 0), (1, 5), (2, u64::MAX)] {
            committed.add(&a, inc, boot, seq);
        }
        let all: Vec<_> = committed.into_ranges().collect();
        assert_eq!(all, [(a, inc, vec![(1, 3, 5), (1, 9, 9), (2, 1, 1), (2, u64::MAX, u64::MAX)])]);
    }
}
