//! The bandwidth cap, as arithmetic: how long to wait before more bytes are read.

/// Bytes read against a budget that fills at a fixed rate.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    bytes_per_s: u64,
    started_ms: u64,
    read: u64,
}

impl Pace {
    /// Starts a transfer.
    pub const fn new(bytes_per_s: u64, now_ms: u64) -> Self {
        Self { bytes_per_s, started_ms: now_ms, read: 0 }
    }

    /// Counts bytes that were read; how many milliseconds to wait so that the whole transfer stays under the rate.
    /// A transfer that was slower than the cap for a while does not get that time back as a burst above one second.
    pub fn read(&mut self, bytes: u64, now_ms: u64) -> u64 {
        self.read = self.read.saturating_add(bytes);
        let due_ms = self.started_ms.saturating_add(self.read.saturating_mul(1000) / self.bytes_per_s.max(1));
        if now_ms > due_ms.saturating_add(1000) {
            *self = Self::new(self.bytes_per_s, now_ms);
            return 0;
        }
        due_ms.saturating_sub(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_link_is_held_to_the_rate_and_a_slow_one_is_not_delayed() {
        let mut pace = Pace::new(1000, 0);
        let mut now = 0;
        for _ in 0..10 {
            now += pace.read(500, now);
        }
        assert_eq!(now, 5000, "5,000 bytes at 1,000 a second take 5 s");
        let mut slow = Pace::new(1000, 0);
        assert_eq!(slow.read(500, 5_000), 0);
        assert_eq!(slow.read(2_000, 5_000), 2_000, "the slow start is not paid back as a burst");
    }
}
