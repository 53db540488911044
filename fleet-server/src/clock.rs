//! The only place where the server reads the time. Decisions get it as a value.

use std::time::{SystemTime, UNIX_EPOCH};

use plimsoll_protocol::UnixMillis;

/// Milliseconds since 1970. A clock before 1970 counts as 1970: everything that expires then seems young, and the
/// log of a server in that state shows it at first sight.
pub fn now_ms() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
}
