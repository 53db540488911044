use std::fs;

use plimsoll_protocol::delta::{Next, Op, Plan, Reader};
use proptest::prelude::*;

use super::*;

/// One protobuf field with a length.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut left = payload.len();
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes.extend_from_slice(payload);
    bytes
}

/// An ONNX file: a graph with these float32 initialisers, and something before and after them.
fn onnx(producer: &str, tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let tensor = |(name, values): &(&str, &[f32])| {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let parts =
            [vec![0x08, values.len() as u8 & 0x7f, 0x10, 1], field(8, name.as_bytes()), field(9, &raw)];
        field(5, &parts.concat())
    };
    let nodes = field(1, &field(4, b"Gemm"));
    let initialisers: Vec<u8> = tensors.iter().flat_map(tensor).collect();
    let graph = [nodes, initialisers, field(11, b"input")].concat();
    [vec![0x08, 8], field(2, producer.as_bytes()), field(7, &graph), field(8, &[0x10, 17])].concat()
}

/// Weights like those of a trained layer; `step` moves each of them by about a thousandth.
fn weights(count: u32, seed: u32, step: u32) -> Vec<f32> {
    let noise =
        |n: u32| f64::from(n.wrapping_mul(2_654_435_761).rotate_left(13) >> 8) / f64::from(1 << 24) - 0.5;
    (0..count)
        .map(|n| {
            (noise(n.wrapping_add(seed * 7919)) * (1.0 + 1e-3 * f64::from(step) * noise(n * 31 + 5))) as f32
        })
        .collect()
}

struct Bench {
    blobs: Blobs,
    deltas: Deltas,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("blobs")).unwrap();
        Self { deltas: Deltas::open(&dir.path().join("deltas"), blobs.clone()).unwrap(), blobs, dir }
    }

    /// Asks until it is built.
    async fn known(&self, old: Digest, new: Digest) -> Known {
        for _ in 0..1200 {
            match self.deltas.ask(old, new).await {
                Answer::Known(known) => return known,
                Answer::Building => tokio::time::sleep(std::time::Duration::from_millis(25)).await,
                Answer::Unknown(why) => panic!("{why}"),
            }
        }
        panic!("not built in half a minute");
    }

    /// Publishes both, and applies their delta as a device does; gives it with its plan.
    async fn delta(&self, old: &[u8], new: &[u8]) -> (Vec<u8>, Plan) {
        let (from, to) = (self.blobs.put_bytes(old).await.unwrap(), self.blobs.put_bytes(new).await.unwrap());
        let Known::Delta { digest, size } = self.known(from, to).await else { panic!("no delta") };
        let delta = self.blobs.read(&digest, size).await.unwrap();
        assert_eq!(delta.len() as u64, size);
        let want = Header { old: from, new: to, old_size: old.len() as u64, new_size: new.len() as u64 };
        let (made, plan) = apply(want, old, &delta);
        assert!(made == new, "another file resulted");
        (delta, plan)
    }
}

fn apply(want: Header, old: &[u8], delta: &[u8]) -> (Vec<u8>, Plan) {
    let (mut reader, mut new, mut rest) = (Reader::new(want, 0), Vec::new(), delta);
    loop {
        match reader.next().unwrap() {
            Next::Done => return (new, reader.plan().unwrap().clone()),
            Next::Bytes => rest = &rest[reader.push(rest)..],
            Next::Block(piece) => {
                let range =
                    piece.block.source().map_or(0..0, |(at, n)| at as usize..at as usize + n as usize);
                new.extend_from_slice(&piece.block.decode(&old[range], &piece.stored).unwrap());
            }
        }
    }
}

#[tokio::test]
async fn a_retrained_model_is_told_by_its_tensors_whatever_moved_around_them() {
    let bench = Bench::new();
    let (body, head) = (weights(300_000, 1, 0), weights(2_000, 2, 0));
    let (body_2, head_2) = (weights(300_000, 1, 1), weights(2_000, 3, 0));
    let old = onnx("trainer 1.0", &[("body", &body), ("head", &head)]);
    // Another producer, another order, another head.
    let new = onnx("trainer 1.10", &[("head", &head_2), ("body", &body_2)]);
    let (delta, plan) = bench.delta(&old, &new).await;
    assert!(delta.len() < new.len() * 3 / 4, "{} of {} bytes", delta.len(), new.len());
    let diffs = plan.blocks().iter().filter(|b| matches!(b.op, Op::Diff { width: 4, .. })).count();
    assert!(diffs >= 2, "1.2 MB of weights are two blocks at least: {:?}", plan.blocks());
    // The way a compressor sees it, there is nothing to gain.
    assert!(zstd::bulk::compress(&new, 9).unwrap().len() > new.len() * 9 / 10);
}

#[tokio::test]
async fn what_did_not_change_is_copied_and_takes_no_bytes() {
    let bench = Bench::new();
    let (body, head) = (weights(300_000, 1, 0), weights(500, 2, 0));
    let old = onnx("trainer", &[("body", &body), ("head", &head)]);
    let new = onnx("trainer", &[("body", &body), ("head", &weights(500, 9, 0))]);
    let (delta, plan) = bench.delta(&old, &new).await;
    assert!(delta.len() < 3_000, "only the head travels: {}", delta.len());
    assert!(plan.blocks().len() <= 5, "equal neighbours are one block: {:?}", plan.blocks());
}

#[tokio::test]
async fn files_of_one_size_without_names_are_told_element_by_element() {
    let bench = Bench::new();
    let bytes = |step| weights(100_000, 1, step).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (delta, _) = bench.delta(&bytes(0), &bytes(1)).await;
    assert!(delta.len() < 300_000, "{} bytes", delta.len());
}

#[tokio::test]
async fn a_delta_that_saves_nothing_is_not_kept_and_not_built_again() {
    let bench = Bench::new();
    let old = onnx("a", &[("x", &weights(50_000, 1, 0))]);
    let new: Vec<u8> = (0..6_000_u32).flat_map(|n| *Digest::of(&n.to_le_bytes()).as_bytes()).collect();
    let (from, to) = (bench.blobs.put_bytes(&old).await.unwrap(), bench.blobs.put_bytes(&new).await.unwrap());
    let Known::None(why) = bench.known(from, to).await else { panic!("kept") };
    assert!(why.contains("0.9 of the file"), "{why}");
    let small = (bench.blobs.put_bytes(b"old").await.unwrap(), bench.blobs.put_bytes(b"new").await.unwrap());
    assert!(matches!(bench.known(small.0, small.1).await, Known::None(why) if why.contains("whole")));
    // After a restart the answer is there at once: nothing was queued.
    let again = Deltas::open(&bench.dir.path().join("deltas"), bench.blobs.clone()).unwrap();
    assert!(matches!(again.ask(from, to).await, Answer::Known(Known::None(_))));
    assert_eq!(
        fs::read_dir(bench.dir.path().join("blobs/incoming")).unwrap().count(),
        0,
        "scratch files stay"
    );
}

#[tokio::test]
async fn deltas_beyond_their_room_go_and_the_one_asked_for_longest_ago_first() {
    let mut bench = Bench::new();
    let bytes = |step| weights(20_000, 1, step).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut files = Vec::new();
    for step in 0..4 {
        files.push(bench.blobs.put_bytes(&bytes(step)).await.unwrap());
    }
    let Known::Delta { digest, size } = bench.known(files[0], files[1]).await else { panic!("no delta") };
    let dir = bench.dir.path().join("deltas");
    bench.deltas = Deltas::bounded(&dir, bench.blobs.clone(), size * 5 / 2).unwrap();
    // The second is older by its file's time, whatever the clock's grain; then the first one is asked for.
    let Known::Delta { digest: second, .. } = bench.known(files[1], files[2]).await else {
        panic!("no delta")
    };
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for (from, to) in [(files[0], files[1]), (files[1], files[2])] {
        File::open(Index(dir.clone()).path((from, to))).unwrap().set_modified(old).unwrap();
    }
    assert!(matches!(bench.deltas.ask(files[0], files[1]).await, Answer::Known(_)));
    let Known::Delta { digest: third, .. } = bench.known(files[2], files[3]).await else {
        panic!("no delta")
    };
    // The room is made after the answer is there.
    for _ in 0..400 {
        if bench.blobs.length(&second).await.is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert_eq!(bench.blobs.length(&second).await, None, "the one asked for longest ago stays");
    assert!(bench.blobs.length(&digest).await.is_some() && bench.blobs.length(&third).await.is_some());
    // It is built again when it is asked for again.
    let again = bench.known(files[1], files[2]).await;
    assert!(matches!(again, Known::Delta { digest, .. } if digest == second), "{again:?}");
}

#[tokio::test]
async fn a_file_that_is_not_here_starts_no_build() {
    let bench = Bench::new();
    let here = bench.blobs.put_bytes(&[0; 9999]).await.unwrap();
    assert!(matches!(bench.deltas.ask(here, Digest::of(b"elsewhere")).await, Answer::Unknown(_)));
    assert!(matches!(bench.deltas.ask(Digest::of(b"elsewhere"), here).await, Answer::Unknown(_)));
}

fn tensors_of(bytes: &[u8]) -> std::collections::BTreeMap<String, onnx::Tensor> {
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, bytes).unwrap();
    onnx::tensors(&file).unwrap()
}

#[test]
fn tensors_are_found_where_they_lie() {
    let weights = weights(300, 1, 0);
    let file = onnx("x", &[("a", &weights), ("b", &weights[..7]), ("empty", &[])]);
    let found = tensors_of(&file);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b"]);
    for (name, count) in [("a", 300), ("b", 7)] {
        let tensor = &found[name];
        let bytes = &file[tensor.start as usize..(tensor.start + tensor.length) as usize];
        let expected: Vec<u8> = weights[..count].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!((bytes, tensor.width), (expected.as_slice(), 4));
    }
    assert!(tensors_of(&file[..file.len() / 2]).is_empty(), "a file that ends early");
    assert!(tensors_of(b"").is_empty() && tensors_of(&[0xff; 300]).is_empty());
}

#[test]
fn the_models_of_the_demo_have_tensors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo/models/1.1.0/model.onnx");
    let bytes = fs::read(path).unwrap();
    let found = tensors_of(&bytes);
    let weights: u64 = found.values().map(|t| t.length).sum();
    assert!(weights * 10 > bytes.len() as u64 * 8, "{weights} of {} bytes: {found:?}", bytes.len());
}

proptest! {
    #[test]
    fn any_bytes_walk_or_do_not(mut bytes in prop::collection::vec(any::<u8>(), 0..200), model: bool) {
        if model {
            bytes = field(7, &field(5, &bytes));
        }
        for tensor in tensors_of(&bytes).values() {
            prop_assert!(tensor.start + tensor.length <= bytes.len() as u64);
        }
    }
}
