//! Power cuts, simulated, at every operation of the store: sectors that were not flushed are there or not, in any
//! order. The outbox opens, nothing that was stored is lost but what was acknowledged, and it goes on working.

use super::*;
use crate::files::simulator::{Disk, done, watch};

/// Fates of each cut: nothing unflushed is left, all of it, and parts.
const SEEDS: u64 = 6;

/// After so many operations these reports are stored.
type Confirmed = Vec<(usize, Vec<u64>)>;

fn live(path: &Path, boot: u64, confirmed: &mut Confirmed) {
    let mut outbox = Outbox::open(path, BIG, INC, boot).unwrap();
    let mut stored = Vec::new();
    for round in 0..4 {
        let reports: Vec<_> = (0..3)
            .map(|_| {
                let seq = outbox.next_seq();
                stored.push(seq);
                NewReport { kind: Up::Event, seq, json: vec![b'x'; 700] }
            })
            .collect();
        outbox.push(&reports).unwrap();
        confirmed.push((done(), stored.clone()));
        if round == 2 {
            // Begun, an acknowledgement may be half done: only what it does not name is sure to be there.
            stored.retain(|seq| *seq > 4);
            confirmed.push((done(), stored.clone()));
            outbox.forget(&ack(&[(boot, 0, 4)])).unwrap();
        }
    }
}

#[test]
fn no_stored_report_is_lost_by_a_power_cut_at_any_operation() {
    let bench = Bench::new();
    let mut confirmed = Confirmed::new();
    let ops = watch(|| {
        live(&bench.path(), 1, &mut confirmed);
        crate::files::disk::sync_dir(bench.folder.path()).unwrap();
    });
    assert!(ops.len() > 40, "{} operations: was anything recorded?", ops.len());
    for count in 1..=ops.len() {
        let mut disk = Disk::new(bench.folder.path());
        disk.play(&ops[0]); // the file itself was made durable when the state folder was
        disk.play(&crate::files::simulator::Op::SyncDir(bench.folder.path().to_owned()));
        ops[1..count].iter().for_each(|op| disk.play(op));
        let expected = confirmed.iter().rev().find(|(at, _)| *at <= count).map_or(&[][..], |(_, seqs)| seqs);
        for seed in 0..SEEDS {
            let after = Bench::new();
            disk.cut(seed, after.folder.path());
            let what = format!("cut after {count} of {} operations, seed {seed}", ops.len());
            let mut outbox =
                Outbox::open(&after.path(), BIG, INC, 2).unwrap_or_else(|e| panic!("{what}: {e}"));
            let there: Vec<u64> =
                outbox.pending(usize::MAX, u64::MAX).unwrap().iter().map(|w| w.seq).collect();
            let lost: Vec<_> = expected.iter().filter(|seq| !there.contains(seq)).collect();
            assert!(lost.is_empty(), "{what}: {lost:?} are lost; recreated {} times", outbox.recreated());
            drop(outbox);
            live(&after.path(), 3, &mut Confirmed::new());
        }
    }
}
