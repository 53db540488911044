use std::fs;
use std::os::unix::fs::symlink;

use super::*;

mod power;

const MODEL: &[u8] = b"weights, many of them";
const GOLDEN: &[u8] = b"golden";

/// A bundle of one model and one golden sample.
fn manifest(version: &str) -> (Manifest, Vec<u8>, Digest) {
    let file = |path: &str, bytes: &[u8]| {
        format!(r#"{{"path":"{path}","size":{},"sha256":"{}"}}"#, bytes.len(), Digest::of(bytes))
    };
    let text = format!(
        r#"{{"format":1,"model":"meter","version":"{version}","created":"2026-01-01T00:00:00Z",
            "files":[{},{},{}],
            "variants":[{{"name":"default","entry":"model.onnx","runtime":{{"kind":"onnx","opsets":{{"":17}}}}}}],
            "inputs":[{{"name":"x","datatype":"FP32","shape":[-1,2]}}],
            "outputs":[{{"name":"y","datatype":"FP32","shape":[-1,1]}}],
            "golden":{{"origin":"supplied","tolerance":{{"absolute":0.1,"relative":0.1}},
                "samples":[{{"inputs":["golden/0/input_0.pb"],"outputs":["golden/0/output_0.pb"]}}]}}}}"#,
        file("model.onnx", MODEL),
        file("golden/0/input_0.pb", GOLDEN),
        file("golden/0/output_0.pb", GOLDEN),
    );
    let bytes = text.into_bytes();
    (Manifest::parse(&bytes).unwrap(), bytes.clone(), Digest::of(&bytes))
}

struct Bench {
    slots: Slots,
    state: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { slots: Slots::open(state.path()).unwrap(), state }
    }

    fn staging(&self, version: &str) -> (Staging, Digest) {
        let (manifest, bytes, digest) = manifest(version);
        (self.slots.stage_signed(digest, &manifest, &bytes).unwrap(), digest)
    }

    fn stage(&self, version: &str) -> Digest {
        let (staging, digest) = self.staging(version);
        for entry in staging.missing() {
            let mut file = staging.file(&entry).unwrap();
            let content = if entry.path.as_str() == "model.onnx" { MODEL } else { GOLDEN };
            file.write(&content[usize::try_from(file.offset()).unwrap()..]).unwrap();
            file.finish().unwrap();
        }
        digest
    }

    fn slot(&self, version: &str) -> Digest {
        let digest = self.stage(version);
        self.slots.commit(digest).unwrap();
        digest
    }

    fn whole(&self) -> Vec<Digest> {
        // As after a restart.
        let slots = Slots::open(self.state.path()).unwrap();
        slots.observe(Check::Contents).unwrap().slots.into_keys().collect()
    }
}

fn model_entry(staging: &Staging) -> plimsoll_protocol::bundle::FileEntry {
    staging.manifest().files[0].clone()
}

#[test]
fn a_staged_bundle_becomes_a_slot_that_describes_itself() {
    let bench = Bench::new();
    let digest = bench.stage("1.0.0");
    assert_eq!(bench.whole(), [], "a slot before its commit");
    let slot = bench.slots.commit(digest).unwrap();
    assert_eq!(fs::read(slot.dir.join("model.onnx")).unwrap(), MODEL);
    assert_eq!(slot.manifest.version, semver::Version::new(1, 0, 0));
    assert_eq!(bench.whole(), [digest]);
    assert_eq!(bench.slots.staged_bytes(digest), 0);
    // Asked again, as after a crash between the rename and the anchor.
    assert_eq!(bench.slots.commit(digest).unwrap(), slot);
}

#[test]
fn a_fetch_that_was_cut_goes_on_where_it_stopped() {
    let bench = Bench::new();
    let (staging, digest) = bench.staging("1.0.0");
    let entry = model_entry(&staging);
    staging.file(&entry).unwrap().write(&MODEL[..7]).unwrap();
    // The agent is started again.
    let (staging, _) = bench.staging("1.0.0");
    let mut file = staging.file(&entry).unwrap();
    assert_eq!(file.offset(), 7);
    assert!(!file.is_full());
    file.write(&MODEL[7..]).unwrap();
    assert!(file.is_full());
    file.finish().unwrap();
    assert_eq!(staging.missing().len(), 2, "a whole file is not fetched again");
    bench.stage("1.0.0");
    bench.slots.commit(digest).unwrap();
}

#[test]
fn a_server_that_starts_over_is_followed() {
    let bench = Bench::new();
    let (staging, _) = bench.staging("1.0.0");
    let mut file = staging.file(&model_entry(&staging)).unwrap();
    file.write(b"something else").unwrap();
    file.restart().unwrap();
    assert_eq!(file.offset(), 0);
    file.write(MODEL).unwrap();
    file.finish().unwrap();
}

#[test]
fn a_wrong_byte_a_byte_too_many_and_a_byte_too_few_are_refused_by_name() {
    let bench = Bench::new();
    let (staging, _) = bench.staging("1.0.0");
    let entry = model_entry(&staging);
    let refused = |content: &[u8], word: &str| {
        let mut file = staging.file(&entry).unwrap();
        file.restart().unwrap();
        let error = file.write(content).and_then(|()| file.finish()).unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains("model.onnx") && error.to_string().contains(word), "{error}");
        assert_eq!(staging.missing().len(), 3);
    };
    let mut wrong = MODEL.to_vec();
    wrong[3] ^= 1;
    refused(&wrong, "has digest");
    refused(&[MODEL, b"!"].concat(), "longer than");
    refused(&MODEL[1..], "ends after");
    // What was refused is not where the next fetch goes on.
    let mut file = staging.file(&entry).unwrap();
    file.restart().unwrap();
    file.write(&wrong).unwrap();
    file.finish().unwrap_err();
    assert_eq!(staging.file(&entry).unwrap().offset(), 0);
}

#[test]
fn manifest_bytes_of_another_digest_cannot_be_staged() {
    let bench = Bench::new();
    let (manifest, mut bytes, digest) = manifest("1.0.0");
    bytes.push(b' ');
    assert!(bench.slots.stage_signed(digest, &manifest, &bytes).is_err());
}

#[test]
fn an_interrupted_staging_leaves_the_old_slot_and_never_a_half_one() {
    let bench = Bench::new();
    let old = bench.slot("1.0.0");
    let (staging, new) = bench.staging("1.1.0");
    assert!(!bench.slots.commit(new).unwrap_err().is_transient(), "committed with all files missing");
    let entry = model_entry(&staging);
    let mut file = staging.file(&entry).unwrap();
    file.write(MODEL).unwrap();
    file.finish().unwrap();
    let error = bench.slots.commit(new).unwrap_err();
    assert!(error.to_string().contains("golden/0/input_0.pb is missing"), "{error}");
    assert_eq!(bench.whole(), [old]);
    bench.slots.discard(new).unwrap();
    assert!(children(&bench.slots.staging).unwrap().is_empty());
}

/// Breaks a whole slot and says what the check answers.
fn broken(damage: impl Fn(&Path)) -> String {
    let bench = Bench::new();
    let digest = bench.slot("1.0.0");
    let dir = bench.slots.dir(digest);
    damage(&dir);
    let observed = bench.slots.observe(Check::Contents).unwrap();
    assert_eq!((observed.slots.len(), observed.damaged.as_slice()), (0, &[digest][..]));
    bench.slots.open_slot(digest, Check::Contents).unwrap_err().to_string()
}

#[test]
fn whatever_is_done_to_a_slot_makes_it_damaged_and_is_named() {
    let flip = |dir: &Path| {
        let mut bytes = MODEL.to_vec();
        bytes[0] ^= 0x80;
        fs::write(dir.join("model.onnx"), bytes).unwrap();
    };
    assert!(broken(flip).contains("model.onnx has digest"));
    assert!(broken(|d| fs::write(d.join("model.onnx"), b"").unwrap()).contains("has 0 bytes"));
    assert!(broken(|d| fs::remove_file(d.join("model.onnx")).unwrap()).contains("model.onnx is missing"));
    assert!(broken(|d| fs::write(d.join("golden/x"), b"").unwrap()).contains("golden/x, which its manifest"));
    assert!(broken(|d| fs::remove_file(d.join("bundle.json")).unwrap()).contains("no bundle.json"));
    assert!(broken(|d| fs::write(d.join("bundle.json"), b"{}").unwrap()).contains("bundle.json has digest"));
    let link = |dir: &Path| {
        // To the very same bytes: a link is refused for what it is.
        let outside = dir.join("../outside");
        fs::write(&outside, MODEL).unwrap();
        fs::remove_file(dir.join("model.onnx")).unwrap();
        symlink(&outside, dir.join("model.onnx")).unwrap();
    };
    assert!(broken(link).contains("model.onnx is neither a file nor a directory"));
    let linked_folder = |dir: &Path| {
        fs::rename(dir.join("golden"), dir.join("../golden")).unwrap();
        symlink(dir.join("../golden"), dir.join("golden")).unwrap();
    };
    assert!(broken(linked_folder).contains("golden is neither"));
}

#[test]
fn a_look_at_sizes_finds_what_a_crash_does_and_not_what_an_intruder_does() {
    let bench = Bench::new();
    let digest = bench.slot("1.0.0");
    let path = bench.slots.dir(digest).join("model.onnx");
    fs::write(&path, vec![0; MODEL.len()]).unwrap();
    assert!(bench.slots.open_slot(digest, Check::Sizes).is_ok());
    assert!(bench.slots.open_slot(digest, Check::Contents).is_err());
    fs::write(&path, b"").unwrap();
    assert!(bench.slots.open_slot(digest, Check::Sizes).is_err());
}

#[test]
fn a_part_that_is_a_symbolic_link_is_not_written_through() {
    let bench = Bench::new();
    let (staging, digest) = bench.staging("1.0.0");
    let victim = bench.state.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    symlink(&victim, bench.slots.staging_dir(digest).join(PARTS).join("0")).unwrap();
    assert!(staging.file(&model_entry(&staging)).is_err());
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn a_damaged_slot_is_replaced_by_a_new_fetch_of_the_same_bundle() {
    let bench = Bench::new();
    let digest = bench.slot("1.0.0");
    fs::write(bench.slots.dir(digest).join("model.onnx"), b"").unwrap();
    assert_eq!(bench.slot("1.0.0"), digest);
    assert_eq!(bench.whole(), [digest]);
}

#[test]
fn a_mark_survives_and_a_deletion_that_was_cut_off_is_finished() {
    let bench = Bench::new();
    let (old, new) = (bench.slot("1.0.0"), bench.slot("1.1.0"));
    bench.slots.mark_proven(old, 4).unwrap();
    bench.slots.mark_proven(old, 7).unwrap();
    assert_eq!(bench.slots.open_slot(old, Check::Contents).unwrap().proven, Some(7));
    assert_eq!(bench.slots.open_slot(new, Check::Contents).unwrap().proven, None);
    // The rename of a deletion happened, the removal did not.
    let gone = bench.slots.staging.join(format!("{new}{GONE}"));
    fs::rename(bench.slots.dir(new), &gone).unwrap();
    assert_eq!(bench.whole(), [old]);
    assert!(!gone.exists());
    bench.slots.delete(old).unwrap();
    bench.slots.delete(old).unwrap(); // again, as after a crash
    assert_eq!(bench.whole(), []);
}

#[test]
fn staging_directories_of_orders_that_are_gone_are_dropped() {
    let bench = Bench::new();
    let (_, wanted) = bench.staging("1.0.0");
    let (_, stale) = bench.staging("1.1.0");
    bench.slots.discard_all_but(&BTreeSet::from([wanted])).unwrap();
    assert!(bench.slots.staged_bytes(wanted) > 0);
    assert_eq!(bench.slots.staged_bytes(stale), 0);
}
