use plimsoll_protocol::api::RolloutSpec;
use plimsoll_protocol::drift::{Baseline, Bins, Cell, Column, Order, Source, Window};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::DriftReport;

use super::*;
use crate::gate::Verdict;
use crate::rollout::{Answer, Bundle, RolloutState};
use crate::view::Running;

/// Order of the rollout; windows before it are of the version before.
const ORDERED_MS: UnixMillis = 1_000_000;

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A confidence between 0 and 1 with this mean: mostly sure, sometimes lost, as classifiers are.
    fn confidence(&mut self, mean: f64) -> f64 {
        if self.unit() < mean { 1.0 - 0.05 * self.unit() } else { 0.05 * self.unit() }
    }
}

fn bundle(version: &str) -> Bundle {
    Bundle { version: version.parse().unwrap(), digest: Digest::of(version.as_bytes()) }
}

struct Fleet {
    rollout: Rollout,
    seen: BTreeMap<DeviceId, DeviceView>,
    outputs: BTreeMap<DeviceId, Outputs>,
    random: Random,
    now_ms: UnixMillis,
}

impl Fleet {
    /// cam-1 to cam-6, of which the first two have 1.1.0 and passed its trial.
    fn new(seed: u64) -> Self {
        let spec: RolloutSpec = serde_json::from_value(serde_json::json!({
            "model": "meter", "version": "1.1.0", "stages": [{ "size": "2" }, { "size": "100%" }],
        }))
        .unwrap();
        let answer = Answer { phase: JobPhase::Active, at_ms: ORDERED_MS, reason: None };
        let member = Member {
            stage: 0,
            ordered_ms: ORDERED_MS,
            previous: Some(bundle("1.0.0")),
            reached_ms: None,
            answer: Some(answer),
            recalled: None,
        };
        let state = RolloutState {
            id: RolloutId::new("r1").unwrap(),
            number: 1,
            epoch: 1,
            seed: 1,
            target: bundle("1.1.0"),
            spec,
            started_ms: ORDERED_MS,
            ended_ms: None,
            status: RolloutStatus::Running,
            reason: String::new(),
            stages: Vec::new(),
            approved: 0,
            accepted_ms: None,
            stopped_for: None,
            evidence: None,
        };
        let name = |i: u32| DeviceId::new(&format!("cam-{i}")).unwrap();
        let members = (1..=2).map(|i| (name(i), member.clone())).collect();
        let view = |i: u32| {
            let bundle = bundle(if i <= 2 { "1.1.0" } else { "1.0.0" });
            let running = Some(Running { bundle, trial_passed: true });
            (name(i), DeviceView { matches: true, running, ..DeviceView::default() })
        };
        Self {
            rollout: Rollout { state, members },
            seen: (1..=6).map(view).collect(),
            outputs: (1..=6).map(|i| (name(i), Outputs::default())).collect(),
            random: Random(seed),
            now_ms: ORDERED_MS,
        }
    }

    /// Every device closes a window of `n` readings: before the order, or since it.
    fn window(&mut self, since: bool, n: u32, canaries: f64, controls: f64) {
        self.now_ms += 1;
        let at_ms = if since { self.now_ms } else { self.now_ms - ORDERED_MS };
        let bins = Bins::unit();
        for (device, outputs) in &mut self.outputs {
            let is_canary = self.rollout.members.contains_key(device);
            let digest = bundle(if since && is_canary { "1.1.0" } else { "1.0.0" }).digest;
            let mut cells = vec![0; bins.value_cells()];
            let mut sum = 0.0;
            for _ in 0..n {
                let x = self.random.confidence(if is_canary { canaries } else { controls });
                cells[bins.find((x as f32).into())] += 1;
                sum += x;
            }
            let index = outputs.of(&digest).last().map_or(0, |w| w.index + 1);
            outputs.add(digest, OutputWindow { index, at_ms, cells: cells.into(), sum, worth: 1.0 });
        }
    }

    fn weigh(&self) -> Option<Weighed> {
        weigh(&self.rollout, &self.seen, |device| self.outputs.get(device))
    }

    fn verdict(&self) -> Verdict {
        self.weigh().unwrap().reading.verdict
    }
}

/// A fleet that measured at `before`, then at `after`, with controls that stayed at `before` or also went to `world`.
fn compare(n: u32, before: f64, after: f64, world: f64) -> Weighed {
    let mut fleet = Fleet::new(7);
    fleet.window(false, n, before, before);
    fleet.window(true, n, after, world);
    fleet.weigh().unwrap()
}

#[test]
fn an_unsure_version_is_stopped_and_the_words_carry_the_numbers() {
    let weighed = compare(212, 0.97, 0.23, 0.97);
    let text = &weighed.reading.text;
    assert_eq!(weighed.reading.verdict, Verdict::Breach, "{text}");
    for part in [
        "confidence on cam-1 and cam-2 fell from 0.9",
        "mean of 212 readings each before, 212 since",
        "at 99.9 % confidence by at least 0.5",
        "where 0.1 is allowed",
        "the 4 others did not change",
        "chance of this if nothing changed: below 1 in 1,000,000",
        "these devices only",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let evidence = weighed.evidence;
    assert_eq!((evidence.compared, evidence.controls_compared, evidence.canaries.len()), (2, 4, 2));
    assert!(evidence.bars.iter().map(|b| b.1).sum::<f64>() > 0.99 && evidence.bars.len() == 20);
}

#[test]
fn a_rise_and_a_fall_within_the_limit_are_told_and_never_stop() {
    let rose = compare(2_000, 0.85, 0.99, 0.85);
    assert_eq!(rose.reading.verdict, Verdict::Pass);
    assert!(rose.reading.text.contains("rose from 0.8"), "{}", rose.reading.text);
    let fell = compare(20_000, 0.95, 0.88, 0.95);
    assert_eq!(fell.reading.verdict, Verdict::Pass);
    assert!(fell.reading.text.contains("fell from 0.9"), "{}", fell.reading.text);
    assert_eq!(fell.wanting, None);
}

#[test]
fn a_fall_that_the_whole_fleet_shares_is_left_to_a_person() {
    let dark = compare(400, 0.95, 0.4, 0.4);
    assert_eq!(dark.reading.verdict, Verdict::Doubt, "{}", dark.reading.text);
    assert!(dark.evidence.vetoed && dark.wanting.is_none());
    // A bad version in a dusk that costs the others little is still stopped.
    assert_eq!(compare(400, 0.95, 0.3, 0.85).reading.verdict, Verdict::Breach);
}

#[test]
fn one_odd_device_of_two_is_not_taken_for_the_version() {
    let mut fleet = Fleet::new(5);
    fleet.window(false, 200, 0.95, 0.95);
    let before = fleet.outputs.clone();
    fleet.window(true, 200, 0.2, 0.95);
    let quiet = DeviceId::new("cam-2").unwrap();
    let answered = fleet.outputs.insert(quiet.clone(), before[&quiet].clone()).unwrap();
    let weighed = fleet.weigh().unwrap();
    assert_eq!(weighed.reading.verdict, Verdict::Doubt, "{}", weighed.reading.text);
    assert!(weighed.reading.text.contains("1 of 2 devices that have it"), "{}", weighed.reading.text);
    assert!(weighed.wanting.is_some_and(|w| w.contains("cam-2 has 0 of 100 readings")));
    fleet.outputs.insert(quiet, answered);
    assert_eq!(fleet.verdict(), Verdict::Breach);
}

#[test]
fn the_world_is_ruled_out_before_a_version_is_blamed() {
    let mut fleet = Fleet::new(5);
    fleet.window(false, 200, 0.95, 0.95);
    let silent = fleet.outputs.clone();
    fleet.window(true, 200, 0.2, 0.95);
    assert_eq!(fleet.verdict(), Verdict::Breach);
    for (device, windows) in silent {
        if !fleet.rollout.members.contains_key(&device) {
            fleet.outputs.insert(device, windows);
        }
    }
    let weighed = fleet.weigh().unwrap();
    assert_eq!(weighed.reading.verdict, Verdict::Doubt, "{}", weighed.reading.text);
    assert!(weighed.wanting.is_some_and(|w| w.contains("0 of 4 others have enough readings since")));
    // Where there are no others, nobody is waited for.
    fleet.seen.retain(|device, _| fleet.rollout.members.contains_key(device));
    assert_eq!(fleet.verdict(), Verdict::Breach);
}

#[test]
fn a_stage_waits_for_readings_and_for_proof() {
    let mut fleet = Fleet::new(3);
    fleet.window(false, 200, 0.9, 0.9);
    let waits = fleet.weigh().unwrap().wanting.unwrap();
    assert_eq!(waits, "cam-1 has 0 of 100 readings, cam-2 has 0 of 100 readings");
    fleet.window(true, 60, 0.2, 0.9);
    assert_eq!(fleet.verdict(), Verdict::Pass, "sixty readings are too few to compare");
    fleet.window(true, 60, 0.2, 0.9);
    assert_eq!(fleet.verdict(), Verdict::Breach);

    let unproven = compare(100, 0.95, 0.75, 0.95);
    assert_eq!(unproven.reading.verdict, Verdict::Doubt, "{}", unproven.reading.text);
    assert!(unproven.wanting.is_some_and(|w| w.contains("not proven")));
}

#[test]
fn a_fleet_that_serves_nothing_waits_for_nothing() {
    let mut fleet = Fleet::new(3);
    assert_eq!(fleet.weigh(), None, "no window, nothing to say");
    fleet.window(false, 0, 0.0, 0.0);
    fleet.window(true, 0, 0.0, 0.0);
    let weighed = fleet.weigh().unwrap();
    assert_eq!((weighed.reading.verdict, weighed.wanting), (Verdict::Pass, None));
    assert!(weighed.reading.text.starts_with("confidence is not compared"), "{}", weighed.reading.text);
}

#[test]
fn a_gate_that_is_off_or_accepted_or_over_says_nothing() {
    let mut fleet = Fleet::new(3);
    fleet.window(false, 300, 0.95, 0.95);
    fleet.window(true, 300, 0.2, 0.95);
    assert_eq!(fleet.verdict(), Verdict::Breach);
    let mut off = fleet.rollout.clone();
    off.state.spec.gate.outputs.max_confidence_drop = 1.0;
    let mut over = fleet.rollout.clone();
    over.state.status = RolloutStatus::RollingBack;
    let mut accepted = fleet.rollout.clone();
    accepted.state.accepted_ms = Some(ORDERED_MS);
    accepted.state.evidence = Some(OutputEvidence { stopped: true, ..OutputEvidence::default() });
    for rollout in [off, over, accepted] {
        assert_eq!(weigh(&rollout, &fleet.seen, |d| fleet.outputs.get(d)), None);
    }
    // Resumed for another reason: the answers still count.
    fleet.rollout.state.accepted_ms = Some(ORDERED_MS);
    assert_eq!(fleet.verdict(), Verdict::Breach);
}

/// Whether a rollout of one look a window is stopped at any of `looks`, with a true fall of `fall`.
fn is_ever_stopped(seed: u64, looks: u32, fall: f64) -> bool {
    let mut fleet = Fleet::new(seed);
    fleet.window(false, 150, 0.95, 0.95);
    fleet.window(false, 150, 0.95, 0.95);
    (0..looks).any(|_| {
        fleet.window(true, 100, 0.95 - fall, 0.95);
        fleet.verdict() == Verdict::Breach
    })
}

#[test]
fn healthy_versions_are_never_stopped_however_often_is_looked() {
    // 200 rollouts of 12 looks each: none, where 99.9 % promises at most one in a thousand.
    let stopped = (0..200).filter(|seed| is_ever_stopped(*seed, 12, 0.0)).count();
    assert_eq!(stopped, 0, "healthy rollouts of 200 were stopped");
    // A version that is exactly as much worse as is allowed: still within the promise.
    let stopped = (0..200).filter(|seed| is_ever_stopped(*seed, 12, 0.1)).count();
    assert_eq!(stopped, 0, "rollouts of 200 at the limit were stopped");
}

#[test]
fn bad_versions_are_stopped_in_time() {
    // Half of the confidence gone: at the first window of 100 readings, in each of 100 rollouts.
    assert!((0..100).all(|seed| is_ever_stopped(seed, 1, 0.5)));
    // A fall by 0.35: within six windows.
    assert!((0..100).all(|seed| is_ever_stopped(seed, 6, 0.35)));
}

#[test]
fn windows_are_bounded_ordered_and_taken_once() {
    let mut outputs = Outputs::default();
    let window =
        |index: u64| OutputWindow { index, at_ms: index as i64, cells: vec![1].into(), sum: 0.5, worth: 1.0 };
    let digest = Digest::of(b"a");
    for index in [3, 1, 2, 2, 0] {
        outputs.add(digest, window(index));
    }
    assert_eq!(outputs.of(&digest).iter().map(|w| w.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    (4..100).for_each(|index| outputs.add(digest, window(index)));
    assert_eq!(outputs.of(&digest).len(), WINDOWS_KEPT);
    assert_eq!(outputs.of(&digest).last().map(|w| w.index), Some(99));
    for n in 0..5_u8 {
        outputs.add(Digest::of(&[n]), window(200 + u64::from(n)));
    }
    assert_eq!((0..5_u8).filter(|n| !outputs.of(&Digest::of(&[*n])).is_empty()).count(), BUNDLES_KEPT);
    assert!(outputs.of(&digest).is_empty(), "the stalest bundle goes first");
}

#[test]
fn a_report_is_reduced_and_one_that_lies_is_not_believed() {
    let columns = [Column {
        name: "confidence".into(),
        source: Source::Confidence { tensor: "y".into() },
        range: None,
        categorical: false,
        values: (0..200).map(|i| Cell::from(0.5 + i as f32 / 500.0)).collect(),
    }];
    let baseline = Baseline::fit(&columns, Order::Unordered).unwrap();
    let mut window = Window::open(&baseline, 0);
    for x in [0.9_f32, 0.7, 0.8] {
        window.observe(&baseline, &[Cell::from(x)]).unwrap();
    }
    window.observe(&baseline, &[Cell::Missing]).unwrap();
    let report = DriftReport {
        model: "meter".parse().unwrap(),
        version: semver::Version::new(1, 0, 0),
        digest: Digest::of(b"a"),
        index: 4,
        part: (0, 1),
        window,
    };
    let reduced = OutputWindow::of(&report, &baseline, 9).unwrap();
    assert!((reduced.sum - 2.4).abs() < 1e-3 && reduced.cells.iter().sum::<u32>() == 3, "{reduced:?}");
    assert_eq!((reduced.index, reduced.at_ms, reduced.worth), (4, 9, 1.0));

    let mut more = report.clone();
    more.window.samples += 1;
    assert_eq!(OutputWindow::of(&more, &baseline, 9), None);
    let mut other = report.clone();
    let foreign = [Column { name: "another".into(), ..columns[0].clone() }];
    other.window.schema = Baseline::fit(&foreign, Order::Unordered).unwrap().schema();
    assert_eq!(OutputWindow::of(&other, &baseline, 9), None);
    let mut short = report;
    short.window.features[0].counts = vec![4].into();
    assert_eq!(OutputWindow::of(&short, &baseline, 9), None);
}
