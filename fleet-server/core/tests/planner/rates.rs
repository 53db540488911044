//! How often the gates are wrong: 2,000 rollouts over 5,000 devices with fixed seeds.
//!
//! The runs drive the gates with the tallies that the planner would count, at every failure and at the end of every
//! stage; failures come first, the worst order there is for a gate that looks at each tick. A few runs go through
//! the whole planner to show that it counts so.

use plimsoll_fleet_core::gate::{self, Tally, Verdict};
use plimsoll_protocol::api::{GateSpec, RolloutStatus};
use plimsoll_protocol::wire::v1::JobPhase;

use super::world::{World, spec};

const FLEET: u64 = 5_000;
/// 1 %, 10 %, 25 % and all of them, in devices of the stage alone.
const STAGES: [u64; 4] = [50, 450, 750, 3_750];
const RUNS: u64 = 2_000;

/// splitmix64: a few lines, the same on every machine.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
    fn failures(&mut self, n: u64, share: f64) -> u64 {
        (0..n).filter(|_| self.unit() < share).count() as u64
    }
}

/// Devices exposed when the rollout was stopped or a person was asked; `None` when it went through.
fn exposure_at_stop(dice: &mut Dice, share: f64) -> Option<u64> {
    let gate = GateSpec::default();
    let verdict = |all: &Tally, open: &Tally| {
        gate::worst(&gate::judge(&gate, all, open)).map_or(Verdict::Pass, |r| r.verdict)
    };
    let mut before = Tally::default();
    let mut exposed = 0;
    for devices in STAGES {
        exposed += devices;
        let mut open = Tally { under_way: devices, ..Tally::default() };
        let all = |open: Tally| {
            let mut all = before;
            all += open;
            all
        };
        for _ in 0..dice.failures(devices, share) {
            open.failed += 1;
            open.under_way -= 1;
            if verdict(&all(open), &open) == Verdict::Breach {
                return Some(exposed);
            }
        }
        open.active = std::mem::take(&mut open.under_way);
        if verdict(&all(open), &open) >= Verdict::Doubt {
            return Some(exposed);
        }
        before = all(open);
    }
    None
}

#[test]
fn a_healthy_version_is_falsely_stopped_in_at_most_one_rollout_of_a_hundred() {
    let stopped = (0..RUNS).filter(|seed| exposure_at_stop(&mut Dice(*seed), 0.01).is_some()).count();
    println!("{stopped} of {RUNS} healthy rollouts were stopped or held");
    assert!(stopped as u64 * 100 <= RUNS, "{stopped} of {RUNS}");
}

#[test]
fn a_regression_of_five_points_is_stopped_before_a_quarter_of_the_fleet_has_it() {
    let early = (0..RUNS)
        .filter(|seed| exposure_at_stop(&mut Dice(*seed), 0.06).is_some_and(|exposed| exposed < FLEET / 4))
        .count() as u64;
    println!("{early} of {RUNS} bad rollouts were stopped before {} devices had them", FLEET / 4);
    assert!(early * 100 >= RUNS * 95, "{early} of {RUNS}");
}

#[test]
fn on_twelve_devices_the_same_regression_cannot_be_seen_and_a_total_failure_is() {
    let gate = GateSpec::default();
    let judged = |active, failed| {
        let tally = Tally { active, failed, ..Tally::default() };
        gate::worst(&gate::judge(&gate, &tally, &tally)).map(|r| r.verdict)
    };
    // 6 % of 12 is at most one device: it passes or, among two, asks a person; that is all that can honestly be said.
    assert_eq!(judged(11, 1), Some(Verdict::Pass));
    assert_eq!(judged(1, 1), Some(Verdict::Doubt));
    assert_eq!(judged(0, 2), Some(Verdict::Breach));
}

/// The whole planner with 5,000 devices: exposed devices, and how it ended.
fn planned(seed: u64, share: f64) -> (usize, RolloutStatus) {
    let mut dice = Dice(seed);
    let mut world = World::new(FLEET as usize);
    world.start("r", spec("1.1.0", "1%, 10%, 25%, 100%"), seed).unwrap();
    for _ in 0..12 {
        world.now_ms += 1_000;
        let orders: Vec<_> = world.tick().into_iter().flat_map(|p| p.orders).collect();
        for order in orders {
            let fails = !order.rollback && dice.unit() < share;
            world.report(&order.device, if fails { JobPhase::Failed } else { JobPhase::Active }, None);
        }
    }
    let rollout = world.rollout("r");
    (rollout.members.len(), rollout.state.status)
}

#[test]
fn the_planner_completes_healthy_rollouts_of_5000_devices_and_stops_bad_ones_at_a_tenth() {
    for seed in 0..4 {
        assert_eq!(planned(seed, 0.01), (5_000, RolloutStatus::Completed), "seed {seed}");
        let (exposed, status) = planned(seed, 0.06);
        assert!(exposed <= 500, "seed {seed}: {exposed} devices");
        assert!(
            matches!(status, RolloutStatus::RolledBack | RolloutStatus::WaitingForApproval),
            "seed {seed}"
        );
    }
}
