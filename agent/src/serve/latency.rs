//! The latest latencies of a model.

/// How many are kept: the 99th percentile of 1,024 rests on ten, and they take 4 KiB a model.
const KEPT: usize = 1024;

/// A ring of the latest latencies, in microseconds.
#[derive(Debug, Default)]
pub struct Latencies {
    recent: Vec<u32>,
    next: usize,
}

impl Latencies {
    /// Notes one; a latency beyond 71 minutes is noted as that.
    pub fn note(&mut self, micros: u128) {
        let micros = u32::try_from(micros).unwrap_or(u32::MAX);
        match self.recent.get_mut(self.next) {
            Some(slot) => *slot = micros,
            None => self.recent.push(micros),
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// Median and 99th percentile of those kept; zeros when there is none.
    pub fn p50_p99(&self) -> (u64, u64) {
        let mut sorted = self.recent.clone();
        sorted.sort_unstable();
        // The smallest value that so many percent do not exceed.
        let rank = |percent: usize| (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |percent| sorted.get(rank(percent)).map_or(0, |v| u64::from(*v));
        (at(50), at(99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest_only() {
        let mut ring = Latencies::default();
        assert_eq!(ring.p50_p99(), (0, 0));
        (1..=100).for_each(|v| ring.note(v));
        assert_eq!(ring.p50_p99(), (50, 99));
        (0..KEPT).for_each(|_| ring.note(7));
        assert_eq!(ring.p50_p99(), (7, 7));
        ring.note(u128::MAX);
        assert_eq!(ring.recent.len(), KEPT);
    }
}
