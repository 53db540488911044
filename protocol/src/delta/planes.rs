//! Differences of elements, sorted by significance.
//!
//! Elements are taken as unsigned little-endian integers, whatever they mean: the bit patterns of two floating-point
//! numbers that lie close together are close together as integers. A difference of either sign is small after
//! zigzag (0, -1, 1, -2 … become 0, 1, 2, 3 …), and the planes collect first all lowest bytes, then all second
//! bytes, and so on; the upper planes of a retrained model are nearly empty, which is what a compressor can use.

/// The byte planes of the differences between two ranges of equal length, which the width divides.
pub fn diff(new: &[u8], old: &[u8], width: u8) -> Vec<u8> {
    match width {
        1 => forward::<1>(new, old),
        2 => forward::<2>(new, old),
        4 => forward::<4>(new, old),
        _ => forward::<8>(new, old),
    }
}

/// The inverse: what [`diff`] was given as `new`. All three have one length, which the width divides.
pub(super) fn undo(planes: &[u8], old: &[u8], width: u8) -> Vec<u8> {
    match width {
        1 => backward::<1>(planes, old),
        2 => backward::<2>(planes, old),
        4 => backward::<4>(planes, old),
        _ => backward::<8>(planes, old),
    }
}

fn forward<const W: usize>(new: &[u8], old: &[u8]) -> Vec<u8> {
    let count = new.len() / W;
    let mut planes = vec![0; count * W];
    for (i, (new, old)) in new.chunks_exact(W).zip(old.chunks_exact(W)).enumerate() {
        let moved = number::<W>(new).wrapping_sub(number::<W>(old)) & mask::<W>();
        let negative = moved >> (8 * W - 1) == 1;
        let zigzag = (moved << 1) & mask::<W>() ^ if negative { mask::<W>() } else { 0 };
        for (plane, byte) in zigzag.to_le_bytes().into_iter().take(W).enumerate() {
            planes[plane * count + i] = byte;
        }
    }
    planes
}

fn backward<const W: usize>(planes: &[u8], old: &[u8]) -> Vec<u8> {
    let count = old.len() / W;
    let mut new = vec![0; count * W];
    for (i, (new, old)) in new.chunks_exact_mut(W).zip(old.chunks_exact(W)).enumerate() {
        let mut bytes = [0; 8];
        for (plane, byte) in bytes.iter_mut().take(W).enumerate() {
            *byte = planes.get(plane * count + i).copied().unwrap_or(0);
        }
        let zigzag = u64::from_le_bytes(bytes);
        let moved = (zigzag >> 1) ^ if zigzag & 1 == 1 { mask::<W>() } else { 0 };
        let value = number::<W>(old).wrapping_add(moved) & mask::<W>();
        new.copy_from_slice(&value.to_le_bytes()[..W]);
    }
    new
}

const fn mask<const W: usize>() -> u64 {
    u64::MAX >> (64 - 8 * W)
}

fn number<const W: usize>(element: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..W].copy_from_slice(element);
    u64::from_le_bytes(bytes)
}
