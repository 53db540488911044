use proptest::prelude::*;

use super::*;

/// The files and how each part of the new one is to be told.
#[derive(Debug, Clone)]
struct Case {
    old: Vec<u8>,
    new: Vec<u8>,
    cuts: Vec<(usize, u8, prop::sample::Index)>,
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(bytes, 3).unwrap()
}

/// A delta by these cuts: each a length, a kind (COPY where the bytes allow it), a place in the old file.
fn build(case: &Case) -> (Header, Vec<u8>) {
    let Case { old, new, cuts } = case;
    let (mut blocks, mut body, mut at) = (Vec::new(), Vec::new(), 0);
    let mut cut = cuts.iter().cycle();
    while at < new.len() {
        let (length, kind, place) = cut.next().unwrap();
        let width = [1_u8, 2, 4, 8][usize::from(*kind) % 4];
        let mut length = (*length).clamp(1, MAX_BLOCK).min(new.len() - at);
        let mut op = Op::Data;
        if *kind >= 4 && length >= usize::from(width) && old.len() >= length {
            length -= length % usize::from(width);
            let from = place.index(old.len() - length + 1);
            op = Op::Diff { old: from as u64, width };
        }
        let part = &new[at..at + length];
        let stored = match op {
            Op::Diff { old: from, width } => {
                let from = from as usize;
                if &old[from..from + length] == part {
                    op = Op::Copy { old: from as u64 };
                    Vec::new()
                } else {
                    zstd(&diff(part, &old[from..from + length], width))
                }
            }
            _ => zstd(part),
        };
        blocks.push(Block { op, output: length as u32, stored: stored.len() as u32 });
        body.extend_from_slice(&stored);
        at += length;
    }
    let header = header(old, new);
    let mut delta = Plan::new(header, blocks).unwrap().encode();
    delta.extend_from_slice(&body);
    (header, delta)
}

fn header(old: &[u8], new: &[u8]) -> Header {
    Header {
        old: Digest::of(old),
        new: Digest::of(new),
        old_size: old.len() as u64,
        new_size: new.len() as u64,
    }
}

/// What a device would write, given a delta in chunks of `step` bytes of which it fetches only what it is asked for.
/// `Err` is a refusal; "ended" means that the delta was too short.
fn apply(want: Header, old: &[u8], have: &[u8], delta: &[u8], step: usize) -> Result<Vec<u8>, String> {
    let (mut reader, mut new) = (Reader::new(want, have.len() as u64), have.to_vec());
    loop {
        match reader.next().map_err(|e| e.to_string())? {
            Next::Done => return Ok(new),
            Next::Block(piece) => {
                let old = piece.block.source().map_or(&[][..], |(first, length)| {
                    &old[first as usize..first as usize + length as usize]
                });
                let made = piece.block.decode(old, &piece.stored)?;
                assert_eq!(made.len(), piece.block.output as usize);
                new.extend_from_slice(&made[piece.skip as usize..]);
                assert!(new.len() as u64 <= want.new_size, "more than the file has");
            }
            Next::Bytes => {
                let rest = delta.get(reader.position() as usize..).unwrap_or_default();
                let taken = reader.push(&rest[..step.min(rest.len())]);
                if taken == 0 {
                    return Err("ended".into());
                }
            }
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40);
    let cuts = prop::collection::vec((1_usize..600, 0_u8..8, any::<prop::sample::Index>()), 1..12);
    (prop::collection::vec(any::<u8>(), 0..3000), edits, 0_usize..400, cuts).prop_map(
        |(old, edits, more, cuts)| {
            let mut new = old.clone();
            for (at, value) in edits {
                if !new.is_empty() {
                    let at = at.index(new.len());
                    new[at] = value;
                }
            }
            new.extend(std::iter::repeat_n(7, more));
            Case { old, new, cuts }
        },
    )
}

proptest! {
    #[test]
    fn any_file_is_told_in_any_blocks_and_taken_up_anywhere(
        case in cases(), step in 1_usize..5000, at: prop::sample::Index,
    ) {
        let (header, delta) = build(&case);
        prop_assert_eq!(&apply(header, &case.old, &[], &delta, step).unwrap(), &case.new);
        let have = &case.new[..at.index(case.new.len() + 1)];
        prop_assert_eq!(&apply(header, &case.old, have, &delta, step).unwrap(), &case.new);
    }

    #[test]
    fn a_damaged_delta_is_refused_or_makes_no_byte_too_many(
        case in cases(), at: prop::sample::Index, flip in 1_u8..=255, cut: prop::sample::Index,
    ) {
        let (header, delta) = build(&case);
        let mut flipped = delta.clone();
        flipped[at.index(delta.len())] ^= flip;
        if let Ok(made) = apply(header, &case.old, &[], &flipped, 4096) {
            prop_assert_eq!(made.len(), case.new.len()); // the digest of the file is judged by the caller
        }
        let short = &delta[..cut.index(delta.len())];
        if let Ok(made) = apply(header, &case.old, &[], short, 4096) {
            prop_assert_eq!(made, case.new); // what was cut off were copies only, if anything
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes: Vec<u8>, index in prop::collection::vec(any::<u8>(), 0..200)) {
        let want = header(b"old", b"new");
        let _ = apply(want, b"old", &[], &bytes, 64);
        let head = Plan::new(want, vec![Block { op: Op::Data, output: 3, stored: 9 }]).unwrap().encode();
        let _ = apply(want, b"old", &[], &[&head[..HEADER], &index].concat(), 64);
        let block = Block { op: Op::Data, output: 3, stored: 0 };
        let _ = block.decode(&[], &bytes);
    }

    #[test]
    fn differences_are_undone_for_elements_of_every_width(
        pairs in prop::collection::vec(any::<(u64, u64)>(), 0..50), width in prop::sample::select(vec![1_u8, 2, 4, 8]),
    ) {
        let bytes = |f: fn(&(u64, u64)) -> u64| pairs.iter().flat_map(|p| f(p).to_le_bytes()).collect::<Vec<u8>>();
        let (old, new) = (bytes(|p| p.0), bytes(|p| p.1));
        let planes = diff(&new, &old, width);
        prop_assert_eq!(planes.len(), new.len());
        prop_assert_eq!(planes::undo(&planes, &old, width), new);
    }
}

#[test]
fn small_steps_of_either_sign_leave_the_upper_planes_empty() {
    let (old, new) = ([1000_i32, 5, -1, 0], [999_i32, 7, 0, -3]);
    let bytes = |v: [i32; 4]| v.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let planes = diff(&bytes(new), &bytes(old), 4);
    assert_eq!(planes[..4], [1, 4, 2, 5], "zigzag of -1, 2, 1, -3");
    assert!(planes[4..].iter().all(|b| *b == 0), "{planes:?}");
}

#[test]
fn each_way_to_be_wrong_is_named() {
    let (old, new) = (vec![1_u8; 100], vec![2_u8; 64]);
    let want = header(&old, &new);
    let block = |op, output, stored| Block { op, output, stored };
    let (copy, data) = (|old| Op::Copy { old }, Op::Data);
    let diff = |old, width| Op::Diff { old, width };
    let big = u32::try_from(MAX_BLOCK).unwrap() + 1;
    for (blocks, words) in [
        (vec![block(data, 0, 5)], "makes no byte"),
        (vec![block(data, big, 5)], "more than a block may"),
        (vec![block(data, 64, 0)], "stores a number of bytes"),
        (vec![block(data, 64, u32::MAX)], "stores a number of bytes"),
        (vec![block(copy(0), 64, 1)], "stores a number of bytes"),
        (vec![block(copy(37), 64, 0)], "reads beyond the old file"),
        (vec![block(copy(u64::MAX), 64, 0)], "reads beyond the old file"),
        (vec![block(diff(37, 4), 64, 9)], "reads beyond the old file"),
        (vec![block(diff(0, 3), 64, 9)], "width"),
        (vec![block(diff(0, 4), 62, 9)], "width"),
        (vec![block(copy(0), 63, 0)], "make 63 bytes of a file of 64"),
        (vec![block(copy(0), 64, 0); 2], "make 128 bytes of a file of 64"),
        (vec![block(copy(0), 1, 0); 32 * 1024 + 1], "has 32769 blocks"),
    ] {
        let error = Plan::new(want, blocks).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} without {words:?}");
    }
}

#[test]
fn heads_of_other_files_formats_and_sizes_are_named() {
    let (old, new) = (vec![1_u8; 100], vec![2_u8; 64]);
    let want = header(&old, &new);
    let plan = Plan::new(want, vec![Block { op: Op::Copy { old: 0 }, output: 64, stored: 0 }]).unwrap();
    let good = plan.encode();
    assert_eq!(good.len() as u64, plan.head_bytes());
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let foreign = Header { new: Digest::of(b"x"), ..want };
    let longer = Header { new_size: 65, ..want };
    for (want, bytes, words) in [
        (want, with(0, b'X'), "not a block delta"),
        (want, with(7, 2), "not a block delta of format 1"),
        (want, with(92, 1), "not a block delta"),
        (want, with(90, 1), "has 65537 blocks"),
        (want, with(HEADER, 3), "no known kind"),
        (want, with(HEADER + 2, 1), "no known kind"),
        (want, with(8, good[8] ^ 1), "not what was asked for"),
        (want, with(72, 101), "101 bytes of the old file, which has 100"),
        (foreign, good.clone(), "not what was asked for"),
        (longer, good.clone(), "64 bytes of the new file, which has 65"),
    ] {
        let error = apply(want, &old, &[], &bytes, 4096).unwrap_err();
        assert!(error.contains(words), "{error:?} without {words:?}");
    }
    assert_eq!(apply(want, &old, &[], &good, 7).unwrap(), vec![1; 64]);
    assert_eq!(apply(want, &old, &[], &good[..HEADER + 3], 7).unwrap_err(), "ended");
}

#[test]
fn a_frame_that_would_need_more_than_its_block_is_refused_before_it_is_read() {
    let block = |stored: &[u8]| Block { op: Op::Data, output: 100, stored: stored.len() as u32 };
    let decode = |stored: &[u8]| block(stored).decode(&[], stored);
    let good = zstd(&[9; 100]);
    assert_eq!(decode(&good).unwrap(), vec![9; 100]);
    let bomb = zstd(&vec![0; MAX_BLOCK * 3]);
    assert!(decode(&bomb).unwrap_err().contains("of the size that the index says"));
    // A window of 2 GiB, and no size.
    let window = [&good[..4], &[0x00, 0xa8], &good[6..]].concat();
    assert!(decode(&window).unwrap_err().contains("of the size that the index says"));
    // The declared size is right and the content is longer.
    let mut liar = zstd(&[9; 200]);
    liar[5] = 100;
    assert!(decode(&liar).is_err());
    assert!(decode(&[good.as_slice(), &[0]].concat()).unwrap_err().contains("after its frame"));
    assert!(decode(&good[..good.len() - 1]).is_err());
    assert!(decode(&[]).is_err());
}

#[test]
fn what_is_there_already_is_not_asked_for_again() {
    let (old, new) = (Vec::new(), (0..6000_u32).map(|n| (n * n) as u8).collect::<Vec<u8>>());
    let parts: Vec<Vec<u8>> = new.chunks(1000).map(zstd).collect();
    let block = |stored: &Vec<u8>| Block { op: Op::Data, output: 1000, stored: stored.len() as u32 };
    let plan = Plan::new(header(&old, &new), parts.iter().map(block).collect()).unwrap();
    let mut reader = Reader::new(*plan.header(), 3500);
    for byte in plan.encode() {
        assert_eq!(reader.next(), Ok(Next::Bytes));
        assert_eq!(reader.push(&[byte]), 1);
    }
    assert_eq!(reader.next(), Ok(Next::Bytes));
    let skipped: usize = parts[..3].iter().map(Vec::len).sum();
    assert_eq!(reader.position(), plan.head_bytes() + skipped as u64, "the fourth block");
    assert_eq!(reader.push(&parts[3]), parts[3].len());
    let Next::Block(piece) = reader.next().unwrap() else { panic!("a block") };
    assert_eq!((piece.number, piece.skip), (3, 500));
}
