//! Broken repositories, one folder for each way to be broken: `protocol/tests/broken-repositories/<way>/`.
//!
//! `stored/` is what a device trusts, `served/` what it is offered, `expect` the refusal to the letter. The folders
//! are what counts: any client can be tried on them. [`ways`] made them, from fixed seeds and a fixed time, so
//! `UPDATE=1 cargo test -p plimsoll-protocol` writes the same bytes again; a new way is added there.

mod ways;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A device and what it is offered.
pub struct Offer {
    pub stored: Files,
    pub served: Files,
}

/// The one folder whose repository is sound, so that the others are refused for what is broken in them.
const SOUND: &str = "sound";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken-repositories")
}

/// What a device makes of an offer when it looks for [`MANIFEST`] at [`NOW`].
fn judge(offer: &Offer) -> Result<VerifiedTarget, TrustError> {
    let mut device = Device { stored: offer.stored.clone(), fetched: vec![] };
    match device.look(&offer.served, NOW, MANIFEST)? {
        Step::Found(target) => target.by_sha256(),
        other => panic!("the search ended with {other:?}"),
    }
}

fn expect(offer: &Offer) -> String {
    match judge(offer) {
        Ok(_) => "accepted\n".into(),
        Err(error) => format!("{error}\n"),
    }
}

fn read(dir: &Path) -> Files {
    let list = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    list.map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    })
    .collect()
}

fn write(dir: &Path, files: &Files) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn every_broken_repository_is_refused_to_the_letter() {
    if std::env::var_os("UPDATE").is_some() {
        let _ = fs::remove_dir_all(folder());
        for (name, offer) in ways::all() {
            let dir = folder().join(name);
            write(&dir.join("stored"), &offer.stored);
            write(&dir.join("served"), &offer.served);
            fs::write(dir.join("expect"), expect(&offer)).unwrap();
        }
    }
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let offer = Offer { stored: read(&dir.join("stored")), served: read(&dir.join("served")) };
        let expected = fs::read_to_string(dir.join("expect")).unwrap();
        assert_eq!(expect(&offer), expected, "{name}");
        assert_eq!(expected == "accepted\n", name == SOUND, "{name}");
        seen.insert(name, offer);
    }
    // No folder is left of a way that is gone, and none is missing or stale.
    let made: BTreeMap<String, Offer> = ways::all().map(|(name, offer)| (name.to_owned(), offer)).collect();
    assert!(made.len() > 40, "{} ways", made.len());
    assert!(seen.keys().eq(made.keys()), "UPDATE=1 writes the folders");
    for (name, offer) in made {
        let same = seen[&name].stored == offer.stored && seen[&name].served == offer.served;
        assert!(same, "{name} is not what the way makes: UPDATE=1 writes the folders");
    }
}
