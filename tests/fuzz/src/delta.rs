//! Block deltas: what arrives from a server that may be stolen, for a file that the device has.

use plimsoll_protocol::delta::{HEADER, Header, MAX_BLOCK, Next, Reader};

/// Bytes of the old file: small, so that both sides of its end are reached.
const OLD: u64 = 4096;
/// Most bytes of a new file that are made.
const NEW: u64 = 1024 * 1024;

/// Applies the delta as a device does whose order fits its header. No block may make more than was announced.
pub fn delta(data: &[u8]) {
    let Some((header, _)) = data.first_chunk::<HEADER>().and_then(|head| Header::parse(head).ok()) else {
        return;
    };
    if header.old_size > OLD || header.new_size > NEW {
        return;
    }
    let old: Vec<u8> = (0..header.old_size).map(|n| (n % 251) as u8).collect();
    for have in [0, header.new_size / 2] {
        let _ = apply(header, &old, have, data);
    }
}

fn apply(want: Header, old: &[u8], have: u64, data: &[u8]) -> Option<()> {
    let (mut reader, mut made) = (Reader::new(want, have), have);
    loop {
        match reader.next().ok()? {
            Next::Done => {
                assert_eq!(made, want.new_size, "a delta that ends has made its file");
                return Some(());
            }
            Next::Block(piece) => {
                let range = piece
                    .block
                    .source()
                    .map_or(0..0, |(first, n)| first as usize..first as usize + n as usize);
                let block = piece.block.decode(&old[range], &piece.stored).ok()?;
                assert!(block.len() == piece.block.output as usize && block.len() <= MAX_BLOCK);
                made += block.len() as u64 - u64::from(piece.skip);
            }
            Next::Bytes => {
                let rest = data.get(usize::try_from(reader.position()).ok()?..)?;
                if reader.push(rest) == 0 {
                    return None;
                }
            }
        }
    }
}
