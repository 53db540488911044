//! Which sequence numbers of one boot of one device were committed: sorted, disjoint, inclusive ranges.

use serde::{Deserialize, Serialize};

/// Most ranges remembered for one boot. A hole appears where a QoS 0 report was lost; 300 durable reports a day
/// with one hole each fill this in about a day of the worst network, after which the oldest holes are taken as
/// seen. Only a report that is older than 256 holes could be refused by mistake.
pub const MAX_RANGES: usize = 256;

/// The committed numbers of one boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Whether `seq` is in.
    pub fn contains(&self, seq: u64) -> bool {
        let after = self.0.partition_point(|&(lo, _)| lo <= seq);
        after > 0 && self.0.get(after - 1).is_some_and(|&(_, hi)| seq <= hi)
    }

    /// Adds `seq`; answers whether it was new.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        let at = self.0.partition_point(|&(lo, _)| lo <= seq);
        self.0.insert(at, (seq, seq));
        self.join(at + 1);
        self.join(at);
        if self.0.len() > MAX_RANGES {
            self.0[1].0 = self.0[0].0;
            self.0.remove(0);
        }
        true
    }

    /// Joins the range at `at` with the one before it when they touch.
    fn join(&mut self, at: usize) {
        if at == 0 || at >= self.0.len() {
            return;
        }
        let (before, here) = (self.0[at - 1], self.0[at]);
        if before.1.checked_add(1) == Some(here.0) {
            self.0[at - 1].1 = here.1;
            self.0.remove(at);
        }
    }

    /// The ranges, ascending.
    #[cfg(test)]
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_answer_as_a_set_does(seqs in proptest::collection::vec(0u64..200, 0..200)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for seq in seqs {
                prop_assert_eq!(ranges.insert(seq), set.insert(seq));
                prop_assert!(ranges.as_slice().windows(2).all(|w| w[0].1 + 1 < w[1].0), "{:?}", ranges);
            }
            for seq in 0..200 {
                prop_assert_eq!(ranges.contains(seq), set.contains(&seq));
            }
        }
    }

    #[test]
    fn a_boot_with_too_many_holes_forgets_the_oldest_ones_only() {
        let mut ranges = Ranges::default();
        for seq in (0..2 * MAX_RANGES as u64 + 2).step_by(2) {
            ranges.insert(seq);
        }
        assert_eq!(ranges.as_slice().len(), MAX_RANGES);
        assert!(ranges.contains(1), "the oldest hole is closed");
        assert!(!ranges.contains(2 * MAX_RANGES as u64 - 1), "a new hole stays open");
    }

    #[test]
    fn the_last_number_of_all_does_not_overflow() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX));
        assert!(ranges.insert(u64::MAX - 1));
        assert_eq!(ranges.as_slice(), &[(u64::MAX - 1, u64::MAX)]);
    }
}
