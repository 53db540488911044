//! What the fuzzer found worth keeping, and what once broke a parser, replayed.

use std::path::Path;

use plimsoll_fuzz::TARGETS;

#[test]
fn every_kept_input_is_read_or_refused() {
    for (name, target) in TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut inputs = 0;
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display()); // so that a panic names its input
            target(&std::fs::read(&path).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn every_target_has_a_program_of_the_fuzzer() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/fuzz_targets");
    for (name, _) in TARGETS {
        let path = dir.join(format!("{name}.rs"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.contains(&format!("\"{name}\"")), "{} runs another target", path.display());
    }
}
