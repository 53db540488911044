//! Things that recur: health, statistics, measurement windows, the watchdog. Pure; the driver sleeps.

/// Something that is due every so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every {
    period_ms: u64,
    next_ms: u64,
}

impl Every {
    /// First due one period from now.
    pub const fn starting(period_ms: u64, now_ms: u64) -> Self {
        let period_ms = if period_ms == 0 { 1 } else { period_ms };
        Self { period_ms, next_ms: now_ms.saturating_add(period_ms) }
    }

    /// When it is due next.
    pub const fn next_ms(&self) -> u64 {
        self.next_ms
    }

    /// Whether it is due; if so, the next time is set. Times that were missed (the device slept) are not made up for.
    pub fn due(&mut self, now_ms: u64) -> bool {
        if now_ms < self.next_ms {
            return false;
        }
        let missed = (now_ms - self.next_ms) / self.period_ms;
        self.next_ms += (missed + 1) * self.period_ms;
        true
    }

    /// Another period, when it differs: counted from now.
    pub fn change(&mut self, period_ms: u64, now_ms: u64) {
        if period_ms.max(1) != self.period_ms {
            *self = Self::starting(period_ms, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_beat_and_does_not_make_up_for_sleep() {
        let mut every = Every::starting(100, 0);
        assert!(!every.due(99));
        assert!(every.due(105) && every.next_ms() == 200, "late by 5 is not a shift by 5");
        assert!(!every.due(199));
        assert!(every.due(1_050) && every.next_ms() == 1_100, "eight beats were slept through");
        every.change(100, 1_060);
        assert_eq!(every.next_ms(), 1_100, "the same period changes nothing");
        every.change(10, 1_060);
        assert_eq!(every.next_ms(), 1_070);
        assert!(Every::starting(0, 0).due(1), "zero is not a division by zero");
    }
}
