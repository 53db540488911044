//! Is the version right, where somebody knows better?
//!
//! A label that came later says whether an answer was right. The gate pools the labels of all devices of the rollout
//! that answered with its version, and asks for the same proof as the other gates, with its share of their error budget:
//! more answers are wrong than may be, whatever the number of looks. At least half of the devices with labels must lie
//! above the limit by themselves, so that one odd device is not taken for the version; a person who resumes a rollout
//! accepts the labels that had come until then.
//!
//! No stage waits for labels: they come when somebody had the time to look. Give a stage a soak in which they can.

use plimsoll_protocol::DeviceId;

use crate::evidence::Outputs;
use crate::gate::{self, Reading, Verdict, devices, percent};
use crate::rollout::{Member, Rollout};

/// Name of the gate.
pub const GATE: &str = "accuracy";

/// Labels of one device.
#[derive(Debug, Clone, Copy)]
struct Labels {
    all: u64,
    wrong: u64,
}

/// Weighs the labels of `rollout`'s version. `None` without such a gate, and while no label came.
pub fn weigh<'a>(rollout: &Rollout, outputs: impl Fn(&DeviceId) -> Option<&'a Outputs>) -> Option<Reading> {
    let state = &rollout.state;
    let least_percent = state.spec.gate.min_accuracy_percent?;
    let of_device = |(device, member): (&DeviceId, &Member)| {
        let windows = outputs(device)?.labels_of(&state.target.digest);
        let since = |at_ms| at_ms >= member.ordered_ms && state.accepted_ms.is_none_or(|until| at_ms > until);
        let counted = windows.iter().filter(|w| since(w.at_ms));
        let (all, wrong) =
            counted.fold((0, 0), |(all, wrong), w| (all + u64::from(w.labelled), wrong + u64::from(w.wrong)));
        (all > 0).then_some(Labels { all, wrong })
    };
    let labels: Vec<Labels> = rollout.members.iter().filter_map(of_device).collect();
    if labels.is_empty() {
        return None;
    }
    let limit_percent = 100.0 - least_percent;
    let (all, wrong) = labels.iter().fold((0, 0), |(all, wrong), l| (all + l.all, wrong + l.wrong));
    let counted = format!("{wrong} of {all} labelled answers of {} are wrong", devices(labels.len() as u64));
    let above = labels.iter().filter(|l| l.wrong as f64 > limit_percent / 100.0 * l.all as f64).count();
    let (verdict, text) = if above * 2 < labels.len() {
        (Verdict::Pass, counted)
    } else {
        gate::judge_answers(&state.spec.gate, limit_percent, (wrong, all), counted)
    };
    let text = match verdict {
        Verdict::Pass => text,
        _ => format!("{text} ({} must be right)", percent(least_percent)),
    };
    Some(Reading { gate: GATE.to_owned(), verdict, text })
}

#[cfg(test)]
mod tests {
    use plimsoll_protocol::Digest;

    use super::*;
    use crate::evidence::LabelWindow;
    use crate::testing::device;

    fn target() -> Digest {
        Digest::of(b"1.1.0")
    }

    fn rollout(least: Option<f64>, devices: usize) -> Rollout {
        let mut rollout = crate::testing::rollout(
            serde_json::json!({ "gate": { "min_accuracy_percent": least } }),
            devices,
        );
        rollout.members.values_mut().for_each(|member| member.ordered_ms = 10);
        rollout
    }

    /// So many of so many labels were wrong, in two windows that came at these times.
    fn labelled(digest: Digest, at_ms: [i64; 2], wrong: u32, all: u32) -> Outputs {
        let mut outputs = Outputs::default();
        let halves = [(wrong / 2, all / 2), (wrong - wrong / 2, all - all / 2)];
        for ((index, at_ms), (wrong, labelled)) in (0..).zip(at_ms).zip(halves) {
            outputs.add_labels(digest, LabelWindow { index, at_ms, labelled, wrong });
        }
        outputs
    }

    /// What the gate says at a limit of 95 % right.
    fn judged(counts: &[(u32, u32)]) -> Option<(Verdict, String)> {
        let views: Vec<Outputs> =
            counts.iter().map(|(wrong, all)| labelled(target(), [20, 30], *wrong, *all)).collect();
        let at = |d: &DeviceId| (0..views.len()).find(|n| device(*n) == *d).map(|n| &views[n]);
        weigh(&rollout(Some(95.0), counts.len()), at).map(|r| (r.verdict, r.text))
    }

    #[test]
    fn wrong_answers_are_pooled_over_devices_and_must_be_proven() {
        use Verdict::{Breach, Doubt, Pass};
        for (counts, expect) in [
            (&[(0, 1_000), (0, 1_000)][..], Pass),
            (&[(50, 1_000), (50, 1_000)], Pass),
            (&[(137, 1_000), (138, 1_000)], Breach),
            // Too little on each, enough together.
            (&[(14, 120), (15, 120), (14, 120)], Breach),
            (&[(12, 120)], Doubt),
            (&[(1, 3)], Pass),
            // One odd device is not the version.
            (&[(900, 1_000), (10, 1_000), (12, 1_000)], Pass),
            (&[(900, 1_000), (800, 1_000), (12, 1_000)], Breach),
        ] {
            let (verdict, text) = judged(counts).unwrap();
            assert_eq!(verdict, expect, "{counts:?}: {text}");
        }
        assert_eq!(judged(&[(0, 0)]), None, "nobody labelled");
    }

    #[test]
    fn the_words_carry_the_numbers_and_what_must_be_right() {
        let (_, text) = judged(&[(137, 1_000), (138, 1_000)]).unwrap();
        assert!(
            text.starts_with("275 of 2000 labelled answers of 2 devices are wrong; at 99 % confidence"),
            "{text}"
        );
        assert!(text.ends_with("above the limit of 5 % (95 % must be right)"), "{text}");
    }

    #[test]
    fn only_labels_of_the_version_since_its_order_and_not_accepted_count() {
        let bad = labelled(target(), [20, 30], 900, 1_000);
        let of = |rollout: &Rollout, outputs: &Outputs| weigh(rollout, |_| Some(outputs)).map(|r| r.text);
        let mut gated = rollout(Some(95.0), 1);
        assert!(of(&gated, &bad).unwrap().starts_with("900 of 1000 "));
        assert_eq!(of(&rollout(None, 1), &bad), None, "no gate");
        assert_eq!(
            of(&gated, &labelled(Digest::of(b"1.0.0"), [20, 30], 900, 1_000)),
            None,
            "of another version"
        );
        assert!(of(&gated, &labelled(target(), [9, 30], 900, 1_000)).unwrap().starts_with("450 of 500 "));
        gated.state.accepted_ms = Some(20);
        assert!(of(&gated, &bad).unwrap().starts_with("450 of 500 "), "a person knew of the first half");
        gated.state.accepted_ms = Some(30);
        assert_eq!(of(&gated, &bad), None);
    }
}
