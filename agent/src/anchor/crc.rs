//! CRC-32C (Castagnoli), one table, a byte a step. A crate would bring processor-specific code for a few KB a day.

const POLYNOMIAL: u32 = 0x82f6_3b78; // 0x1edc6f41 with its bits reversed

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    #[test]
    fn agrees_with_the_published_check_values() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283); // the catalogue's check value
        assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa); // RFC 3720, appendix B.4
        assert_eq!(super::crc32c(&[0xff; 32]), 0x62a8_ab43); // the same
    }
}
