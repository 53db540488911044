//! Random lives of a device: orders, faults, crashes before and after every write, dying children, bad bundles; the
//! invariants of [`crate::fake::Shell`] after each step, and at the end a world without faults in which every device must
//! reach its goal.
//!
//! A life that fails is printed as a script, one line of JSON; kept in `scripts/` it is played again by every run.

use crate::fake::{Fate, NATURES, NEEDS, Nature, Shell, desired, model, policy, with_shadow};
use plimsoll_agent_core::{Event, Installed, Rules};
use plimsoll_protocol::Digest;
use plimsoll_protocol::hours::{LocalTime, MaintenanceHours};
use plimsoll_protocol::wire::v1::ShadowEnd;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

const MODELS: [&str; 2] = ["meter", "valve"];
const VERSIONS: usize = 4;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    /// Versions of both models, how the generation moves, whether it is a return, the attempt, whether it shadows.
    Order {
        versions: [usize; 2],
        step: i64,
        rollback: bool,
        attempt: u64,
        #[serde(default)]
        shadow: bool,
    },
    Work {
        index: usize,
        fault: bool,
    },
    Obey {
        fault: bool,
    },
    Advance {
        ms: u64,
    },
    StartChild,
    KillChild,
    /// A run of one of the bundles that serve does not end.
    HangChild {
        which: usize,
    },
    Sample {
        requests: u64,
    },
    /// What the child compared meanwhile.
    Compare {
        rows: u64,
    },
    Heard,
    Pause(bool),
    RollbackAsked {
        which: usize,
    },
    /// By the person at the device.
    PauseHere(bool),
    /// By the application.
    NotNow {
        for_ms: u64,
    },
    /// The device's own maintenance hours, or none.
    Hours(bool),
    /// The device's clock: an hour of Monday, or unknown.
    Clock(Option<u8>),
    /// Memory that is free, in halves of what a version needs.
    Memory {
        halves: u64,
    },
    Crash,
}

/// Everything that a life depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Script {
    natures: Vec<Nature>,
    life: Vec<(Action, Fate)>,
    goal: usize,
    #[serde(default)]
    goal_shadow: bool,
}

fn action() -> impl Strategy<Value = Action> {
    let order = (
        0..VERSIONS,
        0..VERSIONS,
        prop_oneof![6 => Just(1), 1 => Just(0), 1 => Just(-1)],
        any::<bool>(),
        0u64..3,
        any::<bool>(),
    );
    prop_oneof![
        3 => order.prop_map(|(a, b, step, rollback, attempt, shadow)| {
            Action::Order { versions: [a, b], step, rollback, attempt, shadow }
        }),
        12 => (0usize..4, prop::bool::weighted(0.2)).prop_map(|(index, fault)| Action::Work { index, fault }),
        12 => prop::bool::weighted(0.15).prop_map(|fault| Action::Obey { fault }),
        8 => prop_oneof![Just(1), Just(2_000), Just(11_000), Just(100_000), Just(30_000_000)].prop_map(|ms| Action::Advance { ms }),
        5 => Just(Action::StartChild),
        1 => Just(Action::KillChild),
        1 => (0usize..2).prop_map(|which| Action::HangChild { which }),
        4 => (0u64..12).prop_map(|requests| Action::Sample { requests }),
        3 => (0u64..12).prop_map(|rows| Action::Compare { rows }),
        4 => Just(Action::Heard),
        1 => prop::bool::weighted(0.3).prop_map(Action::Pause),
        1 => (0usize..2).prop_map(|which| Action::RollbackAsked { which }),
        1 => prop::bool::weighted(0.3).prop_map(Action::PauseHere),
        1 => prop_oneof![Just(0), Just(5_000), Just(1_000_000)].prop_map(|for_ms| Action::NotNow { for_ms }),
        1 => prop::bool::weighted(0.3).prop_map(Action::Hours),
        1 => prop::option::weighted(0.8, 0u8..24).prop_map(Action::Clock),
        1 => (0u64..8).prop_map(|halves| Action::Memory { halves }),
        1 => Just(Action::Crash),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        30 => Just(Fate::Whole),
        1 => Just(Fate::PersistFails),
        1 => Just(Fate::DiesBefore),
        2 => (0usize..4).prop_map(Fate::DiesAfter),
    ]
}

/// A device whose first version of each model is good; the rest are what the case says.
fn device(natures: &[Nature]) -> (Shell, Vec<Vec<Digest>>) {
    let mut shell = Shell::new();
    let mut natures = natures.iter().copied();
    let bundles = MODELS.map(|name| {
        let nature =
            |v: usize, n: Option<Nature>| if v == 0 { Nature::Good } else { n.unwrap_or(Nature::Good) };
        (0..VERSIONS).map(|v| shell.publish(name, &format!("1.{v}.0"), nature(v, natures.next()))).collect()
    });
    (shell, bundles.to_vec())
}

fn act(shell: &mut Shell, bundles: &[Vec<Digest>], action: &Action, fate: Fate) {
    match *action {
        Action::Order { versions, step, rollback, attempt, shadow } => {
            let generation = shell.anchor.generation.saturating_add_signed(step);
            let wanted = |which: usize| {
                let wanted = shell.wanted(bundles[which][versions[which]]);
                let policy = if shadow { with_shadow() } else { policy() };
                plimsoll_protocol::wire::v1::DesiredModel { rollback, attempt, policy, ..wanted }
            };
            let models = (0..MODELS.len()).map(wanted).collect();
            shell.feed(desired(generation, models), fate);
        }
        Action::Work { index, fault } => shell.finish_work(index, fault, fate),
        Action::Obey { fault } => shell.obey(fault, fate),
        Action::Advance { ms } => shell.advance(ms, fate),
        Action::StartChild => shell.start_child(fate),
        Action::KillChild => shell.kill_child(fate),
        Action::HangChild { which } => shell.hang_child(which, fate),
        Action::Sample { requests } => shell.sample(requests, fate),
        Action::Compare { rows } => shell.compare(rows, fate),
        Action::Heard => shell.feed(Event::ServerHeard, fate),
        Action::Pause(paused) => shell.feed(Event::Paused(paused), fate),
        Action::RollbackAsked { which } => {
            shell.feed(Event::RollbackAsked { model: model(MODELS[which]) }, fate)
        }
        Action::PauseHere(paused) => shell.feed(Event::PausedHere(paused), fate),
        Action::NotNow { for_ms } => shell.feed(Event::NotNow { for_ms }, fate),
        Action::Hours(some) => shell.feed(Event::Rules(rules(some)), fate),
        Action::Clock(hour) => shell.local = hour.map(|hour| LocalTime::new(0, hour, 0)),
        Action::Memory { halves } => shell.ram_available = Some(halves * NEEDS / 2),
        Action::Crash => shell.restart(),
    }
}

fn rules(hours: bool) -> Rules {
    let spans: &[&str] = if hours { &["02:00-04:00"] } else { &[] };
    Rules { hours: MaintenanceHours::parse(spans).unwrap(), not_now_max_ms: 20_000 }
}

/// Plays a life to its end; what must hold is asserted on the way.
fn play(script: &Script) {
    let (mut shell, bundles) = device(&script.natures);
    for (action, fate) in &script.life {
        let before = shell.anchor.generation;
        act(&mut shell, &bundles, action, *fate);
        assert!(shell.anchor.generation >= before, "the generation went back");
    }

    // The faults stop; somebody orders once more, and means it.
    shell.ram_available = None;
    shell.feed(Event::Paused(false), Fate::Whole);
    shell.feed(Event::PausedHere(false), Fate::Whole);
    shell.feed(Event::Rules(Rules::default()), Fate::Whole);
    shell.start_child(Fate::Whole);
    let wanted = |which: usize| {
        let wanted = shell.wanted(bundles[which][script.goal]);
        let policy = if script.goal_shadow { with_shadow() } else { policy() };
        plimsoll_protocol::wire::v1::DesiredModel { attempt: 9, policy, ..wanted }
    };
    let before: Vec<_> = MODELS.iter().map(|name| shell.active(name).cloned()).collect();
    let models = (0..MODELS.len()).map(wanted).collect();
    shell.shadows.clear();
    shell.order(shell.anchor.generation + 1, models);
    shell.settle();
    for (which, name) in MODELS.into_iter().enumerate() {
        let digest = bundles[which][script.goal];
        let running = shell.active(name).filter(|a| a.digest == digest && a.trial_passed);
        match shell.natures[&digest] {
            Nature::Good => assert!(running.is_some(), "{name} is {} and not the goal", shell.state(name)),
            // Its trial may have seen no request before the goal was ordered; that is remarked and not failed.
            Nature::FailsRequests if running.is_some() => {}
            // Only a shadow sees it: one that was asked for, by a device that had something to compare it with.
            Nature::Differs | Nature::KillsShadow | Nature::PanicsInShadow
                if running.is_some() && !must_see(script, before[which].as_ref(), digest, &shell) => {}
            nature => {
                assert!(running.is_none(), "{name} runs a bundle that is {nature:?}");
                let end = shell.state(name);
                assert!(["failed", "rolled_back", "not_applicable"].contains(&end), "{name} is {end}");
            }
        }
        // And what runs is served, whichever it is.
        let active = shell.active(name).map(|a| a.digest);
        let served = shell.child.as_ref().and_then(|c| c.serving.get(&model(name)).copied());
        assert_eq!(active, served, "{name} serves something else than it should");
    }
}

/// Whether the goal's shadow was there to stop it.
fn must_see(script: &Script, before: Option<&Installed>, goal: Digest, shell: &Shell) -> bool {
    let skipped = shell.shadows.iter().any(|s| s.candidate == goal && s.end == ShadowEnd::Skipped);
    script.goal_shadow && before.is_some_and(|b| b.digest != goal && b.trial_passed) && !skipped
}

/// How many lives: `PROPTEST_CASES`, or 400.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

proptest! {
    // A life that ends badly is printed as a script to keep, so no file of seeds is. 400 lives of up to 120 steps take
    // about two seconds; a larger number by PROPTEST_CASES.
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_good_model_keeps_running_and_the_goal_is_reached_in_the_end(
        natures in prop::collection::vec(prop::sample::select(NATURES.to_vec()), MODELS.len() * VERSIONS),
        life in prop::collection::vec((action(), fate()), 1..120),
        goal in 0..VERSIONS,
        goal_shadow in any::<bool>(),
    ) {
        let script = Script { natures, life, goal, goal_shadow };
        if let Err(panic) = std::panic::catch_unwind(|| play(&script)) {
            let why = panic.downcast_ref::<String>().map_or("it panicked", String::as_str);
            let text = serde_json::to_string(&script).unwrap();
            return Err(TestCaseError::fail(format!("{why}\nkeep this as scripts/<name>.json to play it again:\n{text}")));
        }
    }
}

#[test]
fn lives_that_are_kept_as_scripts_end_well() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lifecycle/scripts");
    let mut played = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        play(&serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap());
        played += 1;
    }
    assert!(played >= 1, "no script was found");
}
