//! Round trips, and every way to be hostile that has a name.

use super::*;
use header::encode;

fn model() -> ModelName {
    ModelName::new("meter").unwrap()
}

fn version() -> semver::Version {
    semver::Version::new(1, 2, 0)
}

fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = encode(&Header { name: name.into(), size: bytes.len() as u64 }).unwrap().to_vec();
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn index() -> Vec<u8> {
    member(INDEX, br#"{"plimsoll_export":1,"model":"meter","version":"1.2.0"}"#)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut out = members.concat();
    out.extend([0; 2 * BLOCK]);
    out
}

/// Reads all of it; gives back the blobs' bytes.
fn read(bytes: &[u8]) -> Result<(Index, Documents, Vec<Vec<u8>>), ArchiveError> {
    let (index, documents, mut reader) = Reader::open(bytes)?;
    let mut blobs = Vec::new();
    while let Some((_, size)) = reader.next_blob()? {
        let (mut blob, mut part) = (Vec::new(), [0; 7]);
        loop {
            match reader.read(&mut part)? {
                0 => break,
                got => blob.extend(&part[..got]),
            }
        }
        assert_eq!(blob.len() as u64, size);
        blobs.push(blob);
    }
    Ok((index, documents, blobs))
}

/// One field of a header changed, and the checksum made to fit again.
fn forged(name: &str, change: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = encode(&Header { name: name.into(), size: 0 }).unwrap();
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

#[test]
fn what_was_written_is_read_and_the_same_export_is_the_same_bytes() {
    let documents =
        Documents::from([("1.root.json".into(), vec![1; 513]), ("2.a%2Fb.json".into(), Vec::new())]);
    let blobs = [vec![7; 512], Vec::new(), vec![9; 1]];
    let write = || {
        let mut writer = Writer::start(Vec::new(), &model(), &version(), &documents).unwrap();
        for blob in &blobs {
            writer.blob(&Digest::of(blob), blob.len() as u64).unwrap();
            blob.chunks(100).for_each(|part| writer.write(part).unwrap());
        }
        writer.finish().unwrap()
    };
    let bytes = write();
    assert_eq!(bytes, write());
    assert_eq!(bytes.len() % BLOCK, 0);
    let (index, read_documents, read_blobs) = read(&bytes).unwrap();
    assert_eq!((index.model, index.version), (model(), version()));
    assert_eq!((read_documents, read_blobs.as_slice()), (documents, blobs.as_slice()));
}

#[test]
fn a_file_of_another_length_than_declared_is_not_written() {
    let start = || Writer::start(Vec::new(), &model(), &version(), &Documents::new()).unwrap();
    let mut writer = start();
    writer.blob(&Digest::of(b""), 3).unwrap();
    writer.write(b"12").unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("shorter"));
    let mut writer = start();
    writer.blob(&Digest::of(b""), 3).unwrap();
    assert!(writer.write(b"1234").unwrap_err().to_string().contains("longer"));
}

#[test]
fn a_blob_that_is_not_read_is_skipped() {
    let (a, b) = (vec![1; 700], vec![2; 3]);
    let bytes =
        archive(&[index(), member(&blob_name(&Digest::of(&a)), &a), member(&blob_name(&Digest::of(&b)), &b)]);
    let (_, _, mut reader) = Reader::open(bytes.as_slice()).unwrap();
    assert_eq!(reader.next_blob().unwrap(), Some((Digest::of(&a), 700)));
    reader.read(&mut [0; 10]).unwrap();
    assert_eq!(reader.next_blob().unwrap(), Some((Digest::of(&b), 3)));
    assert_eq!(reader.next_blob().unwrap(), None);
}

#[test]
fn every_hostile_archive_is_refused_by_name() {
    let blob = blob_name(&Digest::of(b"x"));
    let kind = |flag: u8| forged(&blob, |block| block[156] = flag);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("it is empty", vec![]),
        ("begins with \"metadata/timestamp.json\"", vec![member("metadata/timestamp.json", b"{}")]),
        (
            "plimsoll-export.json: format 2",
            vec![member(INDEX, br#"{"plimsoll_export":2,"model":"m","version":"1.0.0"}"#)],
        ),
        (
            "plimsoll-export.json: ",
            vec![member(INDEX, br#"{"plimsoll_export":1,"model":"../x","version":"1.0.0"}"#)],
        ),
        ("5000 bytes; at most 4096", vec![member(INDEX, &[b' '; 5000])]),
        ("\"../../etc/passwd\" has no place", vec![index(), member("../../etc/passwd", b"x")]),
        ("\"/etc/passwd\" has no place", vec![index(), member("/etc/passwd", b"x")]),
        ("\"blobs/sha256/../x\" has no place", vec![index(), member("blobs/sha256/../x", b"x")]),
        ("has no place", vec![index(), member(&blob.to_uppercase(), b"x")]),
        (
            "\"metadata/../root.json\" is not the name of a document",
            vec![index(), member("metadata/../root.json", b"{}")],
        ),
        ("\"metadata/a/b.json\" is not", vec![index(), member("metadata/a/b.json", b"{}")]),
        ("\"metadata/root.txt\" is not", vec![index(), member("metadata/root.txt", b"{}")]),
        (
            "\"metadata/1.root.json\" is there twice",
            vec![index(), member("metadata/1.root.json", b"1"), member("metadata/1.root.json", b"2")],
        ),
        ("\" is there twice", vec![index(), member(&blob, b"x"), member(&blob, b"y")]),
        ("has no place", vec![index(), member(&blob, b"x"), member("metadata/timestamp.json", b"{}")]),
        ("\"readme.txt\" has no place", vec![index(), member("readme.txt", b"x")]),
        ("is a hard link", vec![index(), kind(b'1')]),
        ("is a symbolic link", vec![index(), kind(b'2')]),
        ("is a device", vec![index(), kind(b'3')]),
        ("is a folder", vec![index(), kind(b'5')]),
        ("is a pipe", vec![index(), kind(b'6')]),
        ("is a sparse file", vec![index(), kind(b'S')]),
        ("is an extension", vec![index(), kind(b'x')]),
        ("is an extension", vec![index(), kind(b'L')]),
        ("is of kind '\\0'", vec![index(), kind(0)]),
        ("names the target of a link", vec![index(), forged(&blob, |b| b[157] = b'x')]),
        ("a name in two parts", vec![index(), forged(&blob, |b| b[345] = b'x')]),
        (
            "is not in the ustar form",
            vec![index(), forged(&blob, |b| b[257..265].copy_from_slice(b"ustar  \0"))],
        ),
        ("is not a name", vec![index(), forged("x", |b| b[1] = b'\n')]),
        ("is not a name", vec![index(), forged("x", |b| b[5] = b'y')]),
        ("eleven octal digits", vec![index(), forged(&blob, |b| b[124] = 0x80)]),
        (
            "eleven octal digits",
            vec![index(), forged(&blob, |b| b[124..136].copy_from_slice(b"000000000009"))],
        ),
        (
            "bytes; a file has at most",
            vec![index(), forged(&blob, |b| b[124..136].copy_from_slice(b"77777777777\0"))],
        ),
        (
            "bytes; at most 10485760",
            vec![index(), forged("metadata/1.m.json", |b| b[124..136].copy_from_slice(b"00060000000\0"))],
        ),
        (
            "its checksum does not fit",
            vec![index(), {
                let mut m = member(&blob, b"x");
                m[0] ^= 1;
                m
            }],
        ),
        ("its checksum is not a number", vec![vec![b'P'; BLOCK]]),
    ];
    for (words, members) in cases {
        let error = read(&archive(&members)).unwrap_err();
        assert!(matches!(error, ArchiveError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
    }
}

#[test]
fn more_documents_than_a_look_up_can_need_are_refused() {
    let mut members = vec![index()];
    members.extend((0..=MAX_DOCUMENTS).map(|n| member(&format!("metadata/{n}.root.json"), b"")));
    let error = read(&archive(&members)).unwrap_err();
    assert!(error.to_string().contains("more metadata than"), "{error}");
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused() {
    let blob = vec![7; 600];
    let whole = archive(&[
        index(),
        member("metadata/1.root.json", b"{}"),
        member(&blob_name(&Digest::of(&blob)), &blob),
    ]);
    read(&whole).unwrap();
    // Of the two blocks that end it one is enough, as with every reader of tar.
    for length in 0..whole.len() - BLOCK {
        let error = read(&whole[..length]).unwrap_err();
        assert!(matches!(error, ArchiveError::Io(_)), "{length}: {error:?}");
    }
}
