use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use plimsoll_agent_core::record::{
    Blocked, Installed, MAX_BLOCKED, MAX_MODELS, MAX_ORDER_BLOCKED, MAX_REASON, MAX_TRIES, MAX_VERSION,
    ModelRecord, Order, State, Tries,
};
use plimsoll_protocol::hours::{MAX_SPANS, MaintenanceHours};
use plimsoll_protocol::wire::v1::{DesiredModel, ShadowPolicy, UpdatePolicy};
use plimsoll_protocol::{Digest, ModelName};

use super::frame::{FILE_BYTES, encode};
use super::*;

fn state(boot: u64) -> AnchorState {
    let core = Persistent { generation: boot, ..Persistent::default() };
    AnchorState { incarnation: Incarnation::from_bytes([7; 16]), boot, time_floor: 0, core }
}

/// What an agent that starts now would find.
fn found(folder: &Path) -> Found {
    Anchor::open(folder).unwrap().1
}

fn boot_found(folder: &Path) -> u64 {
    match found(folder) {
        Found::Record(state) => state.boot,
        other => panic!("no record: {other:?}"),
    }
}

/// A folder with `commits` commits; says which file the last one went to.
fn committed(commits: u64) -> (tempfile::TempDir, usize) {
    let folder = tempfile::tempdir().unwrap();
    let (mut anchor, _) = Anchor::open(folder.path()).unwrap();
    for boot in 1..=commits {
        anchor.commit(&state(boot)).unwrap();
    }
    (folder, 1 - anchor.next)
}

#[test]
fn a_new_folder_holds_nothing_and_the_newest_commit_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(found(folder.path()), Found::Nothing);
    for boot in 1..6 {
        // Opened anew for each commit, as after a crash.
        Anchor::open(folder.path()).unwrap().0.commit(&state(boot)).unwrap();
        assert_eq!(found(folder.path()), Found::Record(Box::new(state(boot))));
    }
}

#[test]
fn commits_alternate_and_never_change_a_file_s_size() {
    let (folder, last) = committed(3);
    let bytes = |i: usize| fs::read(folder.path().join(NAMES[i])).unwrap();
    let before = [bytes(0), bytes(1)];
    Anchor::open(folder.path()).unwrap().0.commit(&state(4)).unwrap();
    assert_eq!(bytes(last), before[last], "the newest record was overwritten");
    assert_ne!(bytes(1 - last), before[1 - last]);
    assert!(before.iter().all(|b| b.len() == FILE_BYTES));
}

#[test]
fn a_cut_at_any_byte_of_a_commit_leaves_the_old_record_or_the_new_one() {
    let (folder, last) = committed(3);
    let path = folder.path().join(NAMES[1 - last]);
    let before = fs::read(&path).unwrap();
    let new = encode(4, &state(4)).unwrap();
    for cut in 0..=new.len() {
        fs::write(&path, &before).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&new[..cut], 0).unwrap();
        let boot = boot_found(folder.path());
        let whole = fs::read(&path).unwrap()[..new.len()] == new[..];
        assert_eq!(boot, if whole { 4 } else { 3 }, "cut after {cut} of {} bytes", new.len());
    }
}

#[test]
fn one_damaged_file_costs_at_most_the_last_commit_whatever_the_damage() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("zeroed", |p| fs::write(p, vec![0; FILE_BYTES]).unwrap()),
        ("garbage", |p| fs::write(p, vec![0xa5; FILE_BYTES]).unwrap()),
        ("cut short", |p| fs::write(p, &fs::read(p).unwrap()[..100]).unwrap()),
        ("emptied", |p| fs::write(p, b"").unwrap()),
        ("removed", |p| fs::remove_file(p).unwrap()),
    ];
    for (name, damage) in damages {
        for (which, expected) in [(0, 3), (1, 4)] {
            let (folder, last) = committed(4);
            let newest_first = [last, 1 - last];
            damage(&folder.path().join(NAMES[newest_first[which]]));
            assert_eq!(boot_found(folder.path()), expected, "{name}");
            // And the next commit does not go to the one whole file.
            Anchor::open(folder.path()).unwrap().0.commit(&state(9)).unwrap();
            assert_eq!(boot_found(folder.path()), 9, "{name}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_newest_record_is_noticed() {
    let (folder, last) = committed(2);
    let path = folder.path().join(NAMES[last]);
    let good = fs::read(&path).unwrap();
    let used = encode(2, &state(2)).unwrap().len();
    for byte in 0..used {
        let mut bad = good.clone();
        bad[byte] ^= 1 << (byte % 8);
        fs::write(&path, &bad).unwrap();
        assert_eq!(boot_found(folder.path()), 1, "byte {byte}");
    }
}

#[test]
fn two_damaged_files_are_a_lost_anchor_that_can_be_written_again() {
    let (folder, _) = committed(2);
    for name in NAMES {
        fs::write(folder.path().join(name), vec![0xa5; FILE_BYTES]).unwrap();
    }
    assert_eq!(found(folder.path()), Found::Lost);
    Anchor::open(folder.path()).unwrap().0.commit(&state(7)).unwrap();
    assert_eq!(boot_found(folder.path()), 7);
}

#[test]
fn a_second_agent_on_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_first, _) = Anchor::open(folder.path()).unwrap();
    let error = Anchor::open(folder.path()).unwrap_err();
    assert!(matches!(error, AnchorError::Busy(_)), "{error}");
    assert!(error.to_string().contains("--state-dir"), "{error}");
}

#[test]
fn a_commit_that_fails_leaves_the_newest_record_and_is_repeated_on_the_same_file() {
    let (folder, last) = committed(3);
    let (mut anchor, _) = Anchor::open(folder.path()).unwrap();
    // A file that is open for reading only refuses the write as a dying disk would.
    let path = folder.path().join(NAMES[1 - last]);
    let read_only = DiskFile::open(&path, OFlags::RDONLY, 0).unwrap();
    let working = std::mem::replace(&mut anchor.files[1 - last], read_only);
    anchor.commit(&state(4)).unwrap_err();
    anchor.commit(&state(4)).unwrap_err();
    assert_eq!(anchor.next, 1 - last);
    anchor.files[1 - last] = working;
    anchor.commit(&state(5)).unwrap();
    drop(anchor);
    assert_eq!(boot_found(folder.path()), 5);
}

#[test]
fn the_largest_record_that_the_core_can_make_fits() {
    let long = |c: char| ModelName::new(&c.to_string().repeat(60)).unwrap();
    let version = || semver::Version::parse(&format!("1.0.0-{}", "x".repeat(MAX_VERSION - 6))).unwrap();
    let digest = Digest::from_bytes([0xee; 32]);
    let reason = "\"".repeat(MAX_REASON); // JSON doubles each
    let installed = Some(Installed { version: version(), digest, trial_passed: false, ram_bytes: u64::MAX });
    let wanted = |model| DesiredModel {
        model,
        version: version(),
        digest,
        rollout: Some("r".repeat(60).parse().unwrap()),
        policy: UpdatePolicy {
            jitter_s: u32::MAX,
            trial_s: u32::MAX,
            trial_requests: u32::MAX,
            trial_max_failed_percent: u32::MAX,
            tries: u32::MAX,
            lease_s: u32::MAX,
            hours: MaintenanceHours::parse(&["Mon,Tue,Wed,Thu,Fri,Sun 01:00-02:00"; MAX_SPANS]).unwrap(),
            shadow: Some(ShadowPolicy {
                seconds: u32::MAX,
                sample_percent: u32::MAX,
                min_rows: u32::MAX,
                max_disagree_percent: Some(u32::MAX),
            }),
        },
        rollback: false,
        blocked: vec![digest; MAX_ORDER_BLOCKED],
        attempt: u64::MAX,
    };
    let mut core = Persistent { generation: u64::MAX, ..Persistent::default() };
    for c in ('a'..).take(MAX_MODELS) {
        let record = ModelRecord {
            state: State::NotApplicable { reason: reason.clone() },
            order: Some(Order { generation: u64::MAX, wanted: wanted(long(c)), local: false }),
            active: installed.clone(),
            previous: installed.clone(),
        };
        core.models.insert(long(c), record);
    }
    let model = long('z');
    core.tries = vec![
        Tries {
            model: model.clone(),
            digest,
            self_tests: u32::MAX,
            activations: u32::MAX,
            shadows: u32::MAX,
            shadowed: true,
            attempt: u64::MAX,
            ram_bytes: u64::MAX,
        };
        MAX_TRIES
    ];
    core.blocked = vec![Blocked { model, digest, reason, attempt: u64::MAX }; MAX_BLOCKED];
    let state = AnchorState { core, ..state(u64::MAX) };
    let bytes = encode(u64::MAX, &state).unwrap();
    assert!(bytes.len() < FILE_BYTES * 9 / 10, "{} of {FILE_BYTES} bytes leave no room to grow", bytes.len());
}
