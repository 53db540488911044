//! Who plays: the model, the cameras, and what must stay alive while they are looked at.

use std::time::Duration;

use plimsoll_tests::Feeder;

use crate::lens::Lens;

/// The model of the story.
pub const MODEL: &str = "meter-reader";
/// The cameras, and the site that each stands at.
pub const DEVICES: [(&str, &str); 6] = [
    ("camera-1", "lyon"),
    ("camera-2", "lyon"),
    ("camera-3", "turin"),
    ("camera-4", "turin"),
    ("camera-5", "genoa"),
    ("camera-6", "genoa"),
];
/// No single step takes longer on a loaded machine of two cores; in a quiet one each takes seconds.
pub const STEP_LIMIT: Duration = Duration::from_secs(120);

/// What must stay alive while the fleet is looked at.
#[derive(Debug)]
pub struct Story {
    /// One application a device, in the fleet's order.
    pub feeders: Vec<Feeder>,
    /// What each looks through.
    pub lenses: Vec<Lens>,
}
