//! What must hold not once but many times: scenes that the test command plays a few times and `tests/soak` often.

mod kills;

pub use kills::{Kills, kills};
