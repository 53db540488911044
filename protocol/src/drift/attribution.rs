//! Where a drift comes from, in words: the world, the version, what feeds it, or single devices.
//!
//! A heuristic over who moved and what moved, shown beside an alarm to tell an operator where to look first. It never
//! decides anything: gates rest on [`super::evidence`].

use std::fmt;

use crate::DeviceId;

/// What moved on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Device.
    pub device: DeviceId,
    /// An input or a pseudo-feature of an image is in verdict.
    pub inputs: bool,
    /// Classes, confidence, entropy or another output is in verdict.
    pub outputs: bool,
    /// Values are missing, stuck or out of range.
    pub fault: bool,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Nothing moved.
    Nothing,
    /// Sensors or callers of these devices are at fault.
    Sensor(Vec<DeviceId>),
    /// Inputs moved everywhere, whatever version runs.
    Environment,
    /// Only the outputs of the new version moved.
    Model,
    /// Inputs moved only where the new version runs.
    Preprocessing,
    /// Only these devices moved: their hardware, their place.
    Devices(Vec<DeviceId>),
    /// Outputs moved everywhere on inputs that did not.
    Unclear,
}

/// A question about one device.
type Which = fn(&Moved) -> bool;

/// Compares the devices of a new version (none when no rollout is under way) with all the others. "Most" is at least
/// half of a cohort, and both of two: one of two canaries is not enough to blame the version.
pub fn attribute(canaries: &[Moved], controls: &[Moved]) -> Cause {
    let all = || canaries.iter().chain(controls);
    let names = |which: Which| all().filter(|m| which(m)).map(|m| m.device.clone()).collect::<Vec<_>>();
    let moved = names(|m| m.inputs || m.outputs);
    if moved.is_empty() {
        let faulty = names(|m| m.fault);
        return if faulty.is_empty() { Cause::Nothing } else { Cause::Sensor(faulty) };
    }
    // A faulty sensor explains its own device; only the sound ones speak for a cohort.
    let most = |cohort: &[Moved], which: Which| {
        let sound = cohort.iter().filter(|m| !m.fault).count();
        let n = cohort.iter().filter(|m| !m.fault && which(m)).count();
        n > usize::from(sound == 2) && n * 2 >= sound
    };
    let (inputs, outputs): (Which, Which) = (|m| m.inputs, |m| m.outputs);
    let in_canaries = (most(canaries, inputs), most(canaries, outputs));
    let in_controls = (most(controls, inputs), most(controls, outputs));
    match (in_canaries, in_controls) {
        ((true, _), (true, _)) => Cause::Environment,
        (_, (true, _)) if canaries.is_empty() => Cause::Environment,
        ((true, _), (false, false)) => Cause::Preprocessing,
        ((false, true), (false, false)) => Cause::Model,
        ((false, false), (false, false)) if all().all(|m| m.fault || !(m.inputs || m.outputs)) => {
            Cause::Sensor(names(|m| m.fault))
        }
        ((false, false), (false, false)) => Cause::Devices(moved),
        _ => Cause::Unclear,
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |devices: &[DeviceId]| devices.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::Nothing => f.write_str("nothing moved"),
            Self::Sensor(devices) => write!(f, "sensor fault on {}: values are missing or stuck", list(devices)),
            Self::Environment => f.write_str("the environment: inputs moved on most devices, whatever version they run"),
            Self::Model => f.write_str("the new version: its outputs moved, its inputs did not, and the others are as before"),
            Self::Preprocessing => f.write_str(
                "what feeds the new version, or an unbalanced choice of canaries: inputs moved only where it runs",
            ),
            Self::Devices(devices) => {
                write!(f, "the devices themselves ({}), not the model: the others are as before", list(devices))
            }
            Self::Unclear => f.write_str("unclear: outputs moved beyond the new version; compare the versions that run"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `i` inputs, `o` outputs, `f` fault, `.` nothing; one word a device.
    fn cohort(name: &str, text: &str) -> Vec<Moved> {
        let devices = text.split_whitespace().enumerate();
        devices
            .map(|(at, what)| Moved {
                device: DeviceId::new(&format!("{name}-{at}")).unwrap(),
                inputs: what.contains('i'),
                outputs: what.contains('o'),
                fault: what.contains('f'),
            })
            .collect()
    }

    #[track_caller]
    fn check(canaries: &str, controls: &str, expect: &str) {
        let cause = attribute(&cohort("canary", canaries), &cohort("cam", controls)).to_string();
        assert!(cause.contains(expect), "canaries [{canaries}], controls [{controls}]: {cause}");
    }

    #[test]
    fn each_pattern_has_its_cause() {
        check("", "", "nothing");
        check(". .", ". . . .", "nothing");
        check("o o", ". . . .", "the new version");
        check("io io", ". . . .", "what feeds the new version");
        check("io io", "io io i .", "environment");
        check("", "i i i io . .", "environment");
        check(". f", ". . . .", "sensor fault on canary-1");
        check("o o", "o o o .", "unclear");
    }

    #[test]
    fn two_blurred_lenses_are_the_devices_and_not_the_model() {
        check("", "io io . . . .", "the devices themselves (cam-0, cam-1), not the model");
        check("io .", "io . . .", "the devices themselves (canary-0, cam-0)");
    }

    #[test]
    fn one_of_two_canaries_does_not_blame_the_version_and_a_faulty_one_does_not_vote() {
        check("o .", ". . . .", "the devices themselves (canary-0)");
        check("o fio o", ". . . .", "the new version");
        check("fio .", ". . . .", "sensor fault on canary-0");
    }
}
