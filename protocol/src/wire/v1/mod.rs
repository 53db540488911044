//! Version 1: MQTT messages as JSON, and the device's HTTPS calls.

mod down;
mod enroll;
mod shadow;
mod topic;
mod up;

pub use down::*;
pub use enroll::*;
pub use shadow::*;
pub use topic::*;
pub use up::*;

/// Largest report in bytes. MQTT allows more, but a report is one value of the server's store, whose pages stay
/// durable only up to 4 KiB; 1 KiB is left for the envelope the store adds. A wide drift window is split.
pub const MAX_REPORT_BYTES: usize = 3 * 1024;
/// Largest MQTT packet either side accepts: a zlib batch of 64 KiB and its header, with room.
pub const MAX_PACKET_BYTES: u32 = 128 * 1024;
