//! An export as a stick brings it. A checksum over each header would stop nearly all that a fuzzer makes, and a thief
//! computes it; so the bytes are read as they are, and again with every checksum made to fit.

use plimsoll_protocol::archive::Reader;

/// Size of a tar block.
const BLOCK: usize = 512;
/// Where the checksum stands in a header.
const SUM: std::ops::Range<usize> = 148..156;

/// Any bytes are an archive that ends, or are refused.
pub fn archive(data: &[u8]) {
    read(data);
    let mut mended = data.to_vec();
    mended.chunks_exact_mut(BLOCK).filter(|block| block.iter().any(|b| *b != 0)).for_each(mend);
    read(&mended);
}

fn mend(block: &mut [u8]) {
    block[SUM].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn read(data: &[u8]) {
    let Ok((_, documents, mut reader)) = Reader::open(data) else { return };
    let metadata: usize = documents.values().map(Vec::len).sum();
    assert!(metadata <= data.len(), "more metadata than there are bytes");
    let (mut blobs, mut part) = (0_u64, [0; 100]);
    while let Ok(Some((_, size))) = reader.next_blob() {
        let mut got = 0;
        loop {
            match reader.read(&mut part) {
                Ok(0) => break,
                Ok(n) => got += n as u64,
                Err(_) => return,
            }
        }
        assert_eq!(got, size, "a blob of another length than its header says");
        blobs += got;
    }
    assert!(blobs <= data.len() as u64, "more blobs than there are bytes");
}
