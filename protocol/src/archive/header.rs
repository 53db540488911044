//! One block of 512 bytes: the name and size of an ordinary file, in the "ustar" form of POSIX and in no other.
//!
//! A general tar reader knows links, devices, sparse files and three ways to write a long name, and every one of
//! them has been an attack. None has a meaning here, so all that is left to read is this.

/// Bytes of a header, and what contents are padded to.
pub const BLOCK: usize = 512;
/// Longest name: `metadata/` and a document's name. Names that need the second name field are refused.
const MAX_NAME: usize = 100;

const NAME: std::ops::Range<usize> = 0..100;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const PREFIX: std::ops::Range<usize> = 345..500;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its path in the archive.
    pub name: String,
    /// Bytes of its contents.
    pub size: u64,
}

/// Reads a header; `None` is the block of zeros that ends an archive.
pub fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, String> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sum = octal(&block[CHECKSUM])
        .ok_or("its checksum is not a number: this is no tar file, or it is damaged")?;
    if sum != checksum(block) {
        return Err("its checksum does not fit: this is no tar file, or it is damaged".into());
    }
    let name = text(&block[NAME])?;
    let named = |why: &str| Err(format!("{name:?} {why}"));
    if &block[MAGIC] != b"ustar\x0000" {
        return named("is not in the ustar form");
    }
    if block[PREFIX].iter().any(|byte| *byte != 0) {
        return named("has a name in two parts, which no file of an export has");
    }
    if block[KIND] != b'0' {
        return named(&format!("is {}; only ordinary files are taken", kind(block[KIND])));
    }
    if block[LINK].iter().any(|byte| *byte != 0) {
        return named("is an ordinary file and names the target of a link");
    }
    let Some(size) = octal(&block[SIZE]) else {
        return named("has a size that is not eleven octal digits");
    };
    Ok(Some(Header { name, size }))
}

/// Writes a header: an ordinary file, readable by all, of nobody in particular and of no time, so that the same
/// export is the same bytes.
pub fn encode(header: &Header) -> Result<[u8; BLOCK], String> {
    let Header { name, size } = header;
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{name:?} cannot be the name of a file in an archive"));
    }
    let digits = format!("{size:011o}\0");
    if digits.len() != SIZE.len() {
        return Err(format!("{name:?} has {size} bytes, more than an archive can say"));
    }
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[SIZE].copy_from_slice(digits.as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[KIND] = b'0';
    block[MAGIC].copy_from_slice(b"ustar\x0000");
    let sum = format!("{:06o}\0 ", checksum(&block));
    block[CHECKSUM].copy_from_slice(sum.as_bytes());
    Ok(block)
}

/// The sum of all bytes, with spaces where it is written itself.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let bytes = block.iter().enumerate();
    bytes.map(|(at, byte)| u64::from(if CHECKSUM.contains(&at) { b' ' } else { *byte })).sum()
}

/// Octal digits, ended by a zero byte or a space. The binary form of huge sizes is not one of them.
fn octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|byte| matches!(byte, 0 | b' '))?;
    let (digits, rest) = field.split_at(end);
    let padded = rest.iter().all(|byte| matches!(byte, 0 | b' '));
    if digits.is_empty() || !padded {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = matches!(byte, b'0'..=b'7').then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(8)?.checked_add(digit)
    })
}

/// A name: printable ASCII, then zeros.
fn text(field: &[u8]) -> Result<String, String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let (name, rest) = field.split_at(end);
    if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) || rest.iter().any(|byte| *byte != 0) {
        return Err(format!("{:?} is not a name of a file in an export", String::from_utf8_lossy(name)));
    }
    Ok(name.iter().map(|byte| char::from(*byte)).collect())
}

fn kind(flag: u8) -> String {
    match flag {
        b'1' => "a hard link".into(),
        b'2' => "a symbolic link".into(),
        b'3' | b'4' => "a device".into(),
        b'5' => "a folder".into(),
        b'6' => "a pipe".into(),
        b'S' => "a sparse file".into(),
        b'x' | b'g' | b'L' | b'K' => "an extension of another form of tar".into(),
        other => format!("of kind {:?}", char::from(other)),
    }
}
