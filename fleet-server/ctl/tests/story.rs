//! The real program against a server of two tables: blobs, and the trust repository that checks uploads with the
//! code of the devices. What a newcomer does: init, pack, publish, verify; and what must be refused on the way.

#![allow(clippy::unwrap_used, reason = "a test's unwrap is an assertion, in its helpers too")]

mod server;

use std::path::Path;
use std::process::{Command, Output};

use plimsoll_protocol::trust::repository::sign_next;
use plimsoll_protocol::trust::{KeyPair, Targets};
use plimsoll_runtime::testing;
use serde_json::Value;
use server::Server;

struct Desk {
    home: tempfile::TempDir,
    server: Server,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("model.onnx"), testing::classifier(3, 2, 1.0)).unwrap();
        Self { home, server: Server::start() }
    }

    fn run(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(["--output", "json"])
            .args(line.split_whitespace())
            .current_dir(self.home.path())
            .env_clear()
            .env("PLIMSOLL_SERVER", self.server.address())
            .env("PLIMSOLL_TOKEN", server::TOKEN)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ok(&self, line: &str) -> Value {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, line: &str, code: i32, expect: &str) {
        let output = self.run(line);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {error}");
        assert!(error.contains(expect), "{line}: {error:?} does not say {expect:?}");
        assert!(output.stdout.is_empty(), "{line}: a failure printed a result");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    fn initialised() -> Self {
        let desk = Self::new();
        desk.ok("trust init --keys keys --insecure-unencrypted-keys");
        desk.ok("bundle pack model.onnx --model meter --version 1.0.0 --out b1");
        desk
    }
}

#[test]
fn from_keys_to_a_published_bundle() {
    let desk = Desk::new();
    let made = desk.ok("trust init --keys keys --insecure-unencrypted-keys");
    assert_eq!(made["made"], serde_json::json!(["root", "targets", "release"]));
    assert_eq!(made["encrypted"], false);

    let packed = desk.ok("bundle pack model.onnx --model meter --version 1.0.0 --out b1 --labels ok,bad");
    assert_eq!(packed["self_test"]["ok"], true);
    assert!(packed["golden"]["proves"].as_str().unwrap().contains("not agreement"));

    let published = desk.ok("bundle publish b1 --keys keys");
    assert_eq!(published["path"], "bundles/meter/1.0.0/bundle.json");
    assert_eq!(published["signed_with"], serde_json::json!(["release.key"]));
    assert_eq!(published["delegated_with"], "targets.key", "the first version delegates the model");
    assert_eq!(published["digest"], packed["digest"]);
    assert!(desk.server.has_blob(published["digest"].as_str().unwrap()));

    let verified = desk.ok("bundle verify b1 --keys keys --self-test");
    assert_eq!((&verified["signed_by"], &verified["self_test"]["ok"]), (&"meter".into(), &true.into()));
    assert_eq!(desk.ok("bundle publish b1 --keys keys")["already_published"], true);

    desk.ok("bundle pack model.onnx --model meter --version 1.1.0 --out b2");
    let second = desk.ok("bundle publish b2 --keys keys");
    assert_eq!(second["delegated_with"], Value::Null, "the second needs the release key only");

    let status = desk.ok("trust status --keys keys");
    let roles: Vec<_> = status["roles"].as_array().unwrap().iter().collect();
    let meter = roles.iter().find(|r| r["role"] == "meter").unwrap();
    assert_eq!((&meter["bundles"], &meter["keys_here"]), (&2.into(), &serde_json::json!(["release"])));
}

#[test]
fn a_second_team_signs_with_its_own_key_and_only_its_own_model() {
    let desk = Desk::initialised();
    // The owner delegates to a key that lives elsewhere.
    let team = KeyPair::from_seed(&[42; 32]);
    desk.ok(&format!("trust delegate meter --keys keys --key {}", team.public_hex()));
    desk.fails("bundle publish b1 --keys keys", 3, &team.id().0[..12]);
    // Given back to release.key, it can be published here.
    desk.ok("trust delegate meter --keys keys");
    desk.ok("bundle publish b1 --keys keys");
}

#[test]
fn without_the_targets_key_a_new_model_is_refused_with_the_remedy() {
    let desk = Desk::initialised();
    std::fs::rename(desk.path("keys/targets.key"), desk.path("targets.key")).unwrap();
    desk.fails("bundle publish b1 --keys keys", 3, "run this where targets.key is kept");
}

#[test]
fn a_tampered_bundle_is_not_published() {
    let desk = Desk::initialised();
    std::fs::write(desk.path("b1/model.onnx"), b"evil").unwrap();
    desk.fails("bundle verify b1", 3, "model.onnx: it has 4 bytes");
    desk.fails("bundle publish b1 --keys keys", 3, "model.onnx");
    assert_eq!(desk.server.blobs(), 0);
}

#[test]
fn a_published_version_never_changes() {
    let desk = Desk::initialised();
    desk.ok("bundle publish b1 --keys keys");
    desk.ok("bundle pack model.onnx --model meter --version 1.0.0 --out other --annotation note=other");
    desk.fails("bundle publish other --keys keys", 3, "published with other contents");
    desk.fails("bundle verify other --keys keys", 3, "bundle.json is refused");
}

#[test]
fn nothing_is_signed_on_top_of_what_a_stolen_server_made_up() {
    let desk = Desk::initialised();
    desk.ok("bundle publish b1 --keys keys");
    let thief = KeyPair::from_seed(&[66; 32]);
    let forged = sign_next(Some(5), Targets::default(), 1_900_000_000, 1_000_000, &[&thief]).unwrap();
    desk.server.forge_role("meter", forged);
    desk.ok("bundle pack model.onnx --model meter --version 1.1.0 --out b2");
    desk.fails("bundle publish b2 --keys keys", 3, "0 valid signatures");
}

#[test]
fn trust_is_initialised_once() {
    let desk = Desk::initialised();
    desk.fails("trust init --keys keys2 --insecure-unencrypted-keys", 3, "has a trust repository already");
    assert!(!Path::new(&desk.path("keys2")).exists());
}

#[test]
fn what_went_wrong_is_told_by_the_exit_code() {
    let desk = Desk::new();
    desk.fails("bundle publish nothing --keys keys", 2, "is not a bundle");
    desk.fails("no such command", 2, "unrecognized subcommand");
    desk.fails("device list --token wrong", 1, "401");
    desk.fails("device list --server http://127.0.0.1:1", 1, "cannot reach the server");
    desk.fails("bundle pack model.onnx --model meter --version 1.0.0 --out b1 --labels a,b,c", 2, "--labels");
    desk.fails("trust status --keys keys --server ftp://x", 2, "is not a URL");
    assert_eq!(desk.ok("trust status --keys keys")["initialised"], false);
}

#[test]
fn an_encrypted_key_folder_works_with_a_passphrase_from_the_environment() {
    let desk = Desk::new();
    std::fs::write(desk.path("pass"), "correct horse\n").unwrap();
    desk.ok("trust init --keys keys --passphrase-file pass");
    desk.ok("bundle pack model.onnx --model meter --version 1.0.0 --out b1");
    std::fs::write(desk.path("wrong"), "no\n").unwrap();
    desk.fails("bundle publish b1 --keys keys --passphrase-file wrong", 1, "the passphrase is wrong");
    desk.ok("bundle publish b1 --keys keys --passphrase-file pass");
}
