//! Power cuts, simulated: three versions of a model arrive, one after the other, as the driver has it (bundle into
//! its slot, then the anchor). After every operation on the disk power may go, with any part of what was not flushed;
//! what the next start finds must open and hold a working model, and nothing that was confirmed may be lost.

use plimsoll_agent_core::{Installed, ModelRecord, Persistent};
use plimsoll_protocol::Incarnation;

use super::*;
use crate::anchor::{Anchor, AnchorState, Found};
use crate::files::simulator::{Disk, done, watch};

/// Fates of each cut: nothing unflushed is left, all of it, and parts.
const SEEDS: u64 = 10;

fn record(versions: &[(&str, Digest)]) -> Persistent {
    let installed = |n: usize| {
        let (version, digest) = versions.get(n)?;
        Some(Installed {
            version: version.parse().unwrap(),
            digest: *digest,
            trial_passed: true,
            ram_bytes: 0,
        })
    };
    let model = ModelRecord { active: installed(0), previous: installed(1), ..ModelRecord::default() };
    let models = [(plimsoll_protocol::ModelName::new("meter").unwrap(), model)].into();
    Persistent { models, ..Persistent::default() }
}

fn state(boot: u64, core: Persistent) -> AnchorState {
    AnchorState { incarnation: Incarnation::from_bytes([7; 16]), boot, time_floor: 0, core }
}

/// What was confirmed after so many operations: the anchor's boot number.
type Confirmed = Vec<(usize, u64)>;

/// The life of the device on a folder.
fn live(bench: &Bench, confirmed: &mut Confirmed) {
    let (mut anchor, _) = Anchor::open(bench.state.path()).unwrap();
    let mut installed = Vec::new();
    for (n, version) in ["1.0.0", "1.1.0", "1.2.0"].into_iter().enumerate() {
        let digest = bench.slot(version);
        installed.insert(0, (version, digest));
        anchor.commit(&state(n as u64 + 1, record(&installed))).unwrap();
        confirmed.push((done(), n as u64 + 1));
        bench.slots.mark_proven(digest, n as u64 + 1).unwrap();
        for (_, old) in installed.split_off(installed.len().min(2)) {
            bench.slots.delete(old).unwrap();
        }
    }
}

/// A fast place for many small folders.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

#[test]
fn after_a_power_cut_at_any_operation_everything_opens_and_a_confirmed_model_is_whole() {
    let state = scratch();
    let mut confirmed = Confirmed::new();
    let mut bench = None;
    let ops = watch(|| {
        let slots = Slots::open(state.path()).unwrap();
        live(bench.insert(Bench { slots, state }), &mut confirmed);
    });
    let root = bench.as_ref().unwrap().state.path();
    assert!(ops.len() > 60, "{} operations: was anything recorded?", ops.len());
    for count in 0..=ops.len() {
        let mut disk = Disk::new(root);
        ops[..count].iter().for_each(|op| disk.play(op));
        let before = confirmed.iter().rev().find(|(at, _)| *at <= count).map_or(0, |(_, boot)| *boot);
        for seed in 0..SEEDS {
            let after = scratch();
            disk.cut(seed, after.path());
            check(after, before, &format!("cut after {count} operations, seed {seed}"));
        }
    }
}

/// The next start: finds what was confirmed, or what was on its way; and can do the same update again.
fn check(after: tempfile::TempDir, confirmed: u64, what: &str) {
    let (anchor, found) = Anchor::open(after.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let slots = Slots::open(after.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let observed = slots.observe(Check::Contents).unwrap_or_else(|e| panic!("{what}: {e}"));
    let core = match found {
        Found::Record(state) => {
            assert!((confirmed..=confirmed + 1).contains(&state.boot), "{what}: boot {}", state.boot);
            state.core
        }
        found => {
            assert_eq!(confirmed, 0, "{what}: the anchor is {found:?}");
            Persistent::default()
        }
    };
    for digest in core.slots() {
        assert!(
            observed.slots.contains_key(&digest),
            "{what}: the slot {digest:?} is not whole: {observed:?}"
        );
    }
    if confirmed > 0 {
        // The anchor lost as well, by whatever: the marks name a model that works, once one was marked.
        let rebuilt = Persistent::rebuild(&observed);
        assert!(rebuilt.slots().iter().all(|d| observed.slots.contains_key(d)), "{what}");
        assert!(confirmed < 2 || !rebuilt.models.is_empty(), "{what}: no slot is marked");
    }
    drop(anchor);
    let mut again = Confirmed::new();
    let bench = Bench { slots, state: after };
    live(&bench, &mut again);
    let observed = bench.slots.observe(Check::Contents).unwrap();
    assert_eq!(
        (observed.slots.len(), observed.damaged.len()),
        (2, 0),
        "{what}: the update was not possible again"
    );
}
