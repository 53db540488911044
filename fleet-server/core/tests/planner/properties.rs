//! Random histories of a fleet, with what must hold after every step.

use std::collections::BTreeMap;

use plimsoll_fleet_core::act::Action;
use plimsoll_fleet_core::{Member, Plan, Rollout, fleet, plan, planner};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::RolloutStatus;
use plimsoll_protocol::wire::v1::JobPhase;
use proptest::prelude::*;

use super::world::{World, bundle, model, spec};

#[derive(Debug, Clone)]
enum Step {
    Tick { seconds: i64 },
    Report { device: usize, phase: JobPhase },
    ReportAll { phase: JobPhase },
    Connect { device: usize, online: bool },
    Grow { by: usize },
    Act { action: Action },
    Clock { seconds: i64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let phase = prop::sample::select(vec![
        JobPhase::Waiting,
        JobPhase::Fetching,
        JobPhase::Probation,
        JobPhase::Active,
        JobPhase::Active,
        JobPhase::Active,
        JobPhase::Failed,
        JobPhase::RolledBack,
        JobPhase::NotApplicable,
    ]);
    let action = prop::sample::select(vec![
        Action::Pause,
        Action::Resume,
        Action::Resume,
        Action::Approve,
        Action::Approve,
        Action::Abort,
    ]);
    prop_oneof![
        6 => (0..90_i64).prop_map(|seconds| Step::Tick { seconds }),
        6 => (0..40_usize, phase).prop_map(|(device, phase)| Step::Report { device, phase }),
        3 => prop::sample::select(vec![JobPhase::Fetching, JobPhase::Active, JobPhase::Active])
            .prop_map(|phase| Step::ReportAll { phase }),
        3 => (0..40_usize, any::<bool>()).prop_map(|(device, online)| Step::Connect { device, online }),
        1 => (1..10_usize).prop_map(|by| Step::Grow { by }),
        1 => action.prop_map(|action| Step::Act { action }),
        1 => (-4_000..4_000_i64).prop_map(|seconds| Step::Clock { seconds }),
        1 => Just(Step::Restart),
    ]
}

/// What a device has said about its orders; an end is said once, as agents do.
type Ended = BTreeMap<(DeviceId, u64), JobPhase>;

fn report(world: &mut World, ended: &mut Ended, device: &DeviceId, phase: JobPhase) {
    if world.wanted(device).is_none() {
        return;
    }
    let key = (device.clone(), world.stored[device].generation);
    if ended.contains_key(&key) {
        return;
    }
    if phase.is_end() {
        ended.insert(key, phase);
    }
    world.report(device, phase, None);
}

fn apply(world: &mut World, ended: &mut Ended, step: &Step) -> Vec<Plan> {
    let names: Vec<DeviceId> = world.devices.keys().cloned().collect();
    match step {
        Step::Tick { seconds } => {
            world.now_ms += seconds * 1_000;
            return checked_tick(world);
        }
        Step::Clock { seconds } => world.now_ms += seconds * 1_000,
        Step::Report { device, phase } => report(world, ended, &names[device % names.len()], *phase),
        Step::ReportAll { phase } => names.iter().for_each(|name| report(world, ended, name, *phase)),
        Step::Connect { device, online } => {
            world.devices.get_mut(&names[device % names.len()]).unwrap().online = *online;
        }
        Step::Grow { by } => world.grow(names.len() + by),
        Step::Act { action } => drop(world.act("r", *action, "")),
        Step::Restart => world.restart(),
    }
    Vec::new()
}

/// A tick after which the same tick has nothing more to order, and a restarted server plans the same.
fn checked_tick(world: &mut World) -> Vec<Plan> {
    let reborn: Rollout = {
        let text = serde_json::to_string(world.rollout("r")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let view = fleet::view(&world.devices, &world.rollouts, &world.revoked, world.rollout("r")).unwrap();
    assert_eq!(plan(&view, &reborn, world.now()), plan(&view, world.rollout("r"), world.now()));
    let plans = world.tick();
    let again = fleet::tick(&world.devices, &world.rollouts, &world.revoked, world.now()).unwrap();
    assert!(again.iter().all(|p| p.orders.iter().all(|o| !plans.iter().any(|q| q.orders.contains(o)))));
    plans
}

fn invariants(world: &World, before: &BTreeMap<DeviceId, Member>, plans: &[Plan]) {
    let rollout = world.rollout("r");
    for (device, old) in before {
        let new = rollout.members.get(device).expect("a member stays a member");
        assert_eq!(new.stage, old.stage, "{device} moved to another stage");
        assert_eq!(new.previous, old.previous, "{device} would go back elsewhere");
        assert!(
            old.recalled.is_none() || new.recalled.is_some(),
            "{device} was recalled and is not any more"
        );
    }
    let view = fleet::view(&world.devices, &world.rollouts, &world.revoked, rollout).unwrap();
    let census = planner::census(&view, rollout, world.now());
    for (i, (state, counts)) in rollout.state.stages.iter().zip(&census.stages).enumerate() {
        if !rollout.state.is_last(i) {
            assert!(
                counts.tally.filling() <= state.places,
                "stage {i}: {counts:?} exceed {} places",
                state.places
            );
        }
        if i + 1 < rollout.state.stages.len() {
            assert!(state.done_ms.is_some(), "stage {} started before stage {i} was done", i + 1);
        }
    }
    let target = bundle("1.1.0");
    for order in plans.iter().flat_map(|p| &p.orders) {
        let back = order.bundle.as_ref() != Some(&target);
        assert_eq!(back, order.rollback, "{order:?}");
        if order.rollback {
            assert!(matches!(rollout.state.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack));
        }
    }
    for (device, facts) in &world.devices {
        let runs_it = facts.running.get(&model()).is_some_and(|r| r.bundle == target);
        assert!(!runs_it || rollout.members.contains_key(device), "{device} has it without an order");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_plan_keeps_its_promises(
        fleet_size in 1..25_usize,
        seed in any::<u64>(),
        stages in prop::sample::select(vec![
            "100%", "1 soak=30, 100%", "2, 50% soak=20, 100%", "10%, 30% approval, 100%", "1, 3, 6 soak=5, 100%",
        ]),
        pause in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(fleet_size);
        let mut spec = spec("1.1.0", stages);
        if pause {
            spec.on_breach = plimsoll_protocol::api::OnBreach::Pause;
        }
        world.start("r", spec, seed).unwrap();
        let mut ended = Ended::new();
        for step in &steps {
            let before = world.rollout("r").members.clone();
            let plans = apply(&mut world, &mut ended, step);
            invariants(&world, &before, &plans);
        }
    }

    #[test]
    fn a_healthy_connected_fleet_is_always_completed(
        fleet_size in 1..60_usize,
        seed in any::<u64>(),
        stages in prop::sample::select(vec!["100%", "1 soak=30, 100%", "2, 50% soak=20, 100%", "1%, 10%, 30%, 100%"]),
    ) {
        let mut world = World::new(fleet_size);
        world.start("r", spec("1.1.0", stages), seed).unwrap();
        for _ in 0..30 {
            world.now_ms += 10_000;
            world.tick();
            let names: Vec<DeviceId> = world.devices.keys().cloned().collect();
            names.iter().filter(|n| world.wanted(n).is_some()).cloned().collect::<Vec<_>>().iter()
                .for_each(|n| world.report(n, JobPhase::Active, None));
        }
        prop_assert_eq!(world.rollout("r").state.status, RolloutStatus::Completed);
        prop_assert!(world.devices.values().all(|f| f.running[&model()].bundle == bundle("1.1.0")));
    }
}
