use std::fs;

use super::*;

mod power;

const INC: Incarnation = Incarnation::from_bytes([1; 16]);
const BIG: u64 = 1024 * 1024;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("outbox.redb")
    }

    fn open(&self, boot: u64) -> Outbox {
        Outbox::open(&self.path(), BIG, INC, boot).unwrap()
    }
}

fn push(outbox: &mut Outbox, kind: Up, text: &str) -> Pushed {
    let seq = outbox.next_seq();
    outbox.push(&[NewReport { kind, seq, json: text.as_bytes().to_vec() }]).unwrap()
}

fn texts(outbox: &mut Outbox) -> Vec<String> {
    let pending = outbox.pending(usize::MAX, u64::MAX).unwrap();
    pending.into_iter().map(|w| String::from_utf8(w.json).unwrap()).collect()
}

fn ack(ranges: &[(u64, u64, u64)]) -> Ack {
    Ack { inc: INC, ranges: ranges.to_vec(), server_ms: 0 }
}

#[test]
fn reports_survive_a_restart_and_leave_most_important_first_oldest_first() {
    let bench = Bench::new();
    let mut outbox = bench.open(1);
    for (kind, text) in [(Up::Drift, "d0"), (Up::Job, "j1"), (Up::Event, "e2"), (Up::Job, "j3")] {
        assert_eq!(push(&mut outbox, kind, text), Pushed { stored: 1, dropped: 0 });
    }
    drop(outbox);
    let mut outbox = bench.open(2);
    assert_eq!(outbox.len(), 4);
    push(&mut outbox, Up::Event, "e0 of boot 2");
    assert_eq!(texts(&mut outbox), ["e2", "e0 of boot 2", "j1", "j3", "d0"]);
    let head = outbox.pending(1, u64::MAX).unwrap();
    assert_eq!(head, [Waiting { kind: Up::Event, inc: INC, boot: 1, seq: 2, json: b"e2".to_vec() }]);
    assert_eq!(outbox.highest_boot().unwrap(), 2);
}

#[test]
fn only_the_acknowledged_ranges_are_forgotten_over_all_kinds() {
    let bench = Bench::new();
    let mut outbox = bench.open(1);
    for n in 0..6u64 {
        push(&mut outbox, [Up::Event, Up::Job, Up::Drift][(n % 3) as usize], &n.to_string());
    }
    assert_eq!(outbox.forget(&ack(&[(1, 1, 3), (1, 9, 9), (2, 0, 99), (1, 5, 4)])).unwrap(), 3);
    assert_eq!(texts(&mut outbox), ["0", "4", "5"]); // an event, a job, a window
    assert_eq!(outbox.len(), 3);
}

#[test]
fn an_acknowledgement_for_another_incarnation_forgets_nothing_of_this_one() {
    let bench = Bench::new();
    push(&mut bench.open(1), Up::Event, "past");
    let other = Incarnation::from_bytes([2; 16]);
    let mut outbox = Outbox::open(&bench.path(), BIG, other, 1).unwrap();
    push(&mut outbox, Up::Event, "present"); // the same boot and the same number
    assert_eq!(outbox.len(), 2);
    assert_eq!(outbox.forget(&ack(&[(1, 0, 9)])).unwrap(), 1);
    assert_eq!(texts(&mut outbox), ["present"]);
}

#[test]
fn what_is_taken_at_once_is_bounded_in_bytes_too() {
    let bench = Bench::new();
    let mut outbox = bench.open(1);
    for n in 0..10 {
        push(&mut outbox, Up::Drift, &format!("{n:>1000}"));
    }
    assert_eq!(outbox.pending(usize::MAX, 3_500).unwrap().len(), 3);
    assert_eq!(outbox.pending(2, 3_500).unwrap().len(), 2);
}

#[test]
fn a_full_outbox_drops_the_oldest_of_the_least_important_and_counts_it() {
    let bench = Bench::new();
    let mut outbox = Outbox::open(&bench.path(), MIN_BYTES, INC, 1).unwrap();
    let kilo = |n: u64| format!("{n:>1000}");
    for n in 0..40 {
        push(&mut outbox, Up::Drift, &kilo(n));
    }
    push(&mut outbox, Up::Event, &kilo(100));
    let full = outbox.len();
    let before = outbox.dropped();
    for n in 41..100 {
        push(&mut outbox, Up::Drift, &kilo(n));
    }
    assert!(outbox.bytes() <= MIN_BYTES);
    assert!(outbox.dropped() > before);
    assert_eq!(outbox.len() + outbox.dropped(), 100, "each report waits or was counted");
    assert!(full > 30);
    let waiting = texts(&mut outbox);
    assert_eq!(waiting.first(), Some(&kilo(100)), "the event gave way to a window");
    assert_eq!(waiting.last(), Some(&kilo(99)), "the newest window was dropped instead of the oldest");
    assert!(!waiting.contains(&kilo(0)));
}

#[test]
fn a_window_does_not_push_out_an_event() {
    let bench = Bench::new();
    let mut outbox = Outbox::open(&bench.path(), MIN_BYTES, INC, 1).unwrap();
    while outbox.dropped() == 0 {
        push(&mut outbox, Up::Event, &"e".repeat(3000));
    }
    let events = texts(&mut outbox);
    assert_eq!(push(&mut outbox, Up::Drift, &"d".repeat(3000)), Pushed { stored: 0, dropped: 1 });
    assert_eq!(texts(&mut outbox), events);
}

#[test]
fn what_does_not_belong_is_refused_and_nothing_of_its_batch_is_stored() {
    let bench = Bench::new();
    let mut outbox = bench.open(1);
    let good = NewReport { kind: Up::Event, seq: 0, json: b"{}".to_vec() };
    let long = NewReport { json: vec![b' '; MAX_REPORT_BYTES + 1], ..good.clone() };
    assert!(matches!(outbox.push(&[good.clone(), long]), Err(OutboxError::TooBig(_))));
    let health = NewReport { kind: Up::Health, ..good.clone() };
    assert!(matches!(outbox.push(&[good, health]), Err(OutboxError::Kind(Up::Health))));
    assert!(outbox.is_empty() && texts(&mut outbox).is_empty());
}

#[test]
fn a_file_that_is_no_database_any_more_is_set_aside_and_the_outbox_goes_on() {
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage); 4] = [
        ("garbage", |b| vec![0xa5; b.len()]),
        ("zeroed", |b| vec![0; b.len()]),
        ("cut short", |b| b[..b.len() / 3].to_vec()),
        ("header only", |b| b[..64].to_vec()),
    ];
    for (name, damage) in damages {
        let bench = Bench::new();
        let mut outbox = bench.open(1);
        for n in 0..50 {
            push(&mut outbox, Up::Event, &n.to_string());
        }
        drop(outbox);
        let bytes = damage(fs::read(bench.path()).unwrap());
        fs::write(bench.path(), &bytes).unwrap();
        let mut outbox = bench.open(2);
        assert_eq!(outbox.recreated(), 1, "{name}");
        assert!(outbox.is_empty(), "{name}");
        assert_eq!(push(&mut outbox, Up::Event, "after").stored, 1, "{name}");
        assert_eq!(fs::read(bench.path().with_extension("broken")).unwrap(), bytes, "{name}");
        drop(outbox);
        assert_eq!(texts(&mut bench.open(3)), ["after"], "{name}");
    }
}

#[test]
fn a_second_agent_is_refused_and_the_first_one_s_reports_are_left_alone() {
    let bench = Bench::new();
    let mut outbox = bench.open(1);
    push(&mut outbox, Up::Event, "mine");
    assert!(matches!(Outbox::open(&bench.path(), BIG, INC, 1), Err(OutboxError::Busy(_))));
    assert_eq!(texts(&mut outbox), ["mine"]);
}

#[test]
fn a_store_that_failed_is_opened_again_with_all_that_was_durable() {
    let bench = Bench::new();
    let mut outbox = bench.open(1);
    push(&mut outbox, Up::Event, "before");
    let failed: Result<(), _> = outbox.write(|_| Err(redb::Error::PreviousIo));
    assert!(failed.is_err());
    assert!(outbox.db.is_none());
    push(&mut outbox, Up::Event, "after");
    assert_eq!(texts(&mut outbox), ["before", "after"]);
    assert_eq!((outbox.len(), outbox.recreated()), (2, 0));
}
