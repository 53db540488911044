//! The only place where the server reads the time. Decisions get it as a value.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use plimsoll_protocol::UnixMillis;

/// Milliseconds since 1970. A clock before 1970 counts as 1970: everything that expires then seems young, and the
/// log of a server in that state shows it at first sight.
pub fn now_ms() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
}

/// How long this server has been up, by a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
pub struct Uptime(Instant);

impl Uptime {
    /// From now on.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// When it started, in terms of the wall clock that says `now`: a jump of that clock moves both.
    pub fn since(&self, now: UnixMillis) -> UnixMillis {
        now.saturating_sub(UnixMillis::try_from(self.0.elapsed().as_millis()).unwrap_or(UnixMillis::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_moves_with_a_clock_that_jumps() {
        let uptime = Uptime::start();
        let (before, hour) = (now_ms(), 3_600_000);
        assert!(uptime.since(before) <= before && uptime.since(before) > before - hour);
        assert!(uptime.since(before + hour) > before, "an hour's jump is not an hour of listening");
    }
}
