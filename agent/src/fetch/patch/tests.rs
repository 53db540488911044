//! Deltas from a server that cuts, lies and stalls.

use super::*;
use crate::fetch::testing::{Fault, Server, delta};
use crate::fetch::tests::Memory;

const STEP: usize = 50_000;

struct Bench {
    server: Server,
    old: OldFile,
    old_bytes: Vec<u8>,
    new: Vec<u8>,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// Ten blocks, of which the second and the last three differ from those of the old file.
    async fn new() -> Self {
        let old_bytes: Vec<u8> =
            (0..10 * STEP as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut new = old_bytes.clone();
        new[STEP + 7] ^= 1;
        new[7 * STEP..].iter_mut().for_each(|b| *b = b.wrapping_add(3));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.onnx");
        std::fs::write(&path, &old_bytes).unwrap();
        let old = OldFile { path, digest: Digest::of(&old_bytes), size: old_bytes.len() as u64 };
        let server = Server::start().await;
        server.put_delta(&old_bytes, &new, &delta(&old_bytes, &new, STEP));
        Self { server, old, old_bytes, new, _dir: dir }
    }

    async fn patch(&self, have: usize) -> (Vec<u8>, Result<Patched, FetchError>) {
        let (digest, size) = (Digest::of(&self.new), self.new.len() as u64);
        let sink = Memory(self.new[..have].to_vec());
        let (sink, end) = self.server.source(None).patch(&self.old, digest, size, sink).await;
        (sink.unwrap().0, end)
    }

    async fn useless(&self, words: &str) {
        let (have, end) = self.patch(0).await;
        let Ok(Patched::Useless(why)) = &end else { panic!("{words}: {end:?}") };
        assert!(why.contains(words), "{why:?} without {words:?}");
        assert!(self.new.starts_with(&have), "{words}: what was written is no beginning of the file");
    }
}

#[tokio::test]
async fn a_file_is_made_from_an_old_one_and_only_its_differences_travel() {
    let bench = Bench::new().await;
    let source = bench.server.source(None);
    let (digest, size) = (Digest::of(&bench.new), bench.new.len() as u64);
    let (sink, end) = source.patch(&bench.old, digest, size, Memory::default()).await;
    assert_eq!((end, sink.unwrap().0 == bench.new), (Ok(Patched::Whole), true));
    let received = source.bytes_received();
    assert!((200_000..201_000).contains(&received), "four blocks of ten and an index: {received}");
}

#[tokio::test]
async fn a_cut_delta_goes_on_at_the_block_where_it_stopped() {
    let bench = Bench::new().await;
    bench.server.delta_fault(Fault::CutAfter(130_000));
    let (have, cut) = bench.patch(0).await;
    assert!(cut.clone().unwrap_err().transient, "{cut:?}");
    assert_eq!(have.len(), 8 * STEP, "blocks 2 and 8 came whole, and what lies before and between is copied");
    bench.server.delta_fault(Fault::None);
    bench.server.asked("/");
    let (have, end) = bench.patch(have.len() + 10).await; // in the middle of a block, as after a power cut
    assert_eq!((end, have == bench.new), (Ok(Patched::Whole), true));
    let ranges: Vec<String> =
        bench.server.asked(delta::PATH).into_iter().filter_map(|(_, range)| range).collect();
    let first = 96 + 20 * 10 + 2 * (STEP + 12);
    assert_eq!(
        ranges,
        ["bytes=0-65535".to_owned(), format!("bytes={first}-")],
        "the index, then the ninth block"
    );
}

#[tokio::test]
async fn a_server_without_ranges_is_followed() {
    let bench = Bench::new().await;
    bench.server.delta_fault(Fault::NoRanges);
    let (have, end) = bench.patch(8 * STEP).await;
    assert!(have == bench.new || matches!(end, Ok(Patched::Useless(_))), "{end:?}");
    assert!(bench.new.starts_with(&have));
}

#[tokio::test]
async fn a_delta_that_is_being_built_is_waited_for() {
    let bench = Bench::new().await;
    bench.server.delta_fault(Fault::BuildingOnce);
    let (have, end) = bench.patch(0).await;
    assert_eq!((end, have == bench.new), (Ok(Patched::Whole), true));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_delta_is_named_and_leaves_a_beginning_of_the_file() {
    let bench = Bench::new().await;
    let good = delta(&bench.old_bytes, &bench.new, STEP);
    let offer = |bytes: &[u8]| bench.server.put_delta(&bench.old_bytes, &bench.new, bytes);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= value;
        bytes
    };
    for (bytes, words) in [
        (b"<html>please log in</html>".repeat(20), "not a block delta"),
        (with(9, 1), "not what was asked for"),
        (with(80, 1), "of the new file, which has"),
        (with(96 + 20, 9), "of no known kind"),
        (with(96 + 20 * 10, 1), "block 1 is no zstd frame"),
        (delta(&bench.old_bytes, &vec![9; 700_000], 1000), "not what was asked for"),
    ] {
        offer(&bytes);
        bench.useless(words).await;
    }
    bench.server.delta_fault(Fault::Busy);
    bench.useless("503").await;
    bench.server.delta_fault(Fault::None);
    bench.server.remove(&format!("{}/{}/{}", delta::PATH, bench.old.digest, Digest::of(&bench.new)));
    bench.useless("has none").await;
}

#[tokio::test]
async fn a_delta_larger_than_its_file_is_not_read() {
    let bench = Bench::new().await;
    let other: Vec<u8> = bench.new.iter().map(|b| !b).collect();
    let (digest, size) = (Digest::of(&other), other.len() as u64);
    bench.server.put_delta(&bench.old_bytes, &other, &delta(&bench.old_bytes, &other, 100));
    let source = bench.server.source(None);
    let (_, end) = source.patch(&bench.old, digest, size, Memory::default()).await;
    assert_eq!(end, Ok(Patched::Useless("it is larger than the file".into())));
}

#[tokio::test]
async fn an_old_file_that_is_gone_is_named() {
    let bench = Bench::new().await;
    std::fs::remove_file(&bench.old.path).unwrap();
    bench.useless("model.onnx, which cannot be read").await;
}

#[test]
fn a_delta_is_waited_for_as_long_as_the_whole_file_would_take_and_asked_for_ever_more_seldom() {
    let s = Duration::from_secs;
    for (size, bandwidth, wait) in [
        (15_000, None, 10),
        (60_000_000, None, 60),
        (60_000_000, Some(500_000), 120),
        (60_000_000, Some(20_000_000), 10),
        (u64::MAX, Some(0), 300),
    ] {
        assert_eq!(patience(size, bandwidth), s(wait), "{size} bytes at {bandwidth:?}");
    }
    assert!((0..99).all(|seed| (s(2)..=s(3)).contains(&pause(s(2), s(0), seed))));
    assert!((0..99).any(|seed| pause(s(2), s(0), seed) > Duration::from_millis(2_500)), "it is not spread");
    assert!(
        pause(s(2), s(60), 1) >= s(30) && pause(s(9_999), s(0), 1) <= s(15) && pause(s(0), s(0), 1) >= s(1)
    );
    let (mut waited, mut asked) = (s(0), 0);
    while waited < MOST_PATIENCE {
        waited += pause(s(2), waited, asked);
        asked += 1;
    }
    assert!(asked < 20, "asked {asked} times in five minutes");
}
