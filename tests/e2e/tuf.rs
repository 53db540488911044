//! Other clients and other owners of TUF repositories: python-tuf reads ours, `plimsoll tuf` reads python-tuf's, and
//! the command keeps what the public conformance suite asks of a client.

#[path = "tuf/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use plimsoll_protocol::trust::repository::{Online, Repository, RootKeys, model_paths, sign_next};
use plimsoll_protocol::trust::{KeyPair, Root, Signer, TargetMeta, Targets};
use plimsoll_protocol::{Digest, api::TrustUpload};
use plimsoll_tests::{Binaries, MODEL, Site};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use web::{Files, Web};

/// Runs a script of `tests/python`; gives back what it printed.
async fn python(script: &str, args: &[&str]) -> Result<String> {
    let python = match std::env::var("PLIMSOLL_PYTHON") {
        Ok(python) => python,
        Err(_) => {
            bail!("PLIMSOLL_PYTHON is not set: `tests/run` sets it, or PLIMSOLL_PYTHON=$(tests/python/venv)")
        }
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
    let output = Command::new(python).arg(&script).args(args).kill_on_drop(true).output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}: {}", script.display(), text(&output.stderr));
    Ok(text(&output.stdout))
}

#[tokio::test]
async fn python_tuf_verifies_and_downloads_what_we_published() {
    Site::play(1, async |site| {
        let agent = &site.fleet.agents[0];
        let path = format!("bundles/{MODEL}/1.0.0/bundle.json");
        let (url, out) = (site.fleet.device_url(), site.fleet.dir.join("python"));
        let root = site.fleet.dir.join("keys/root.json");
        let text = |p: &Path| p.to_string_lossy().into_owned();
        let (metadata, targets) = (format!("{url}/tuf/"), format!("{url}/targets/"));
        let (state, root, out) = (text(&agent.state), text(&root), text(&out));
        let seen = python("tuf_reads.py", &[&metadata, &targets, &root, &path, &out, &state]).await?;
        let seen: Value = serde_json::from_str(&seen)?;
        let manifest = std::fs::read(site.fleet.dir.join("bundle-1.0.0/bundle.json"))?;
        let got = std::fs::read(seen["path"].as_str().context("no path")?)?;
        ensure!(got == manifest, "python-tuf downloaded other bytes: {seen}");
        ensure!(seen["hashes"]["sha256"] == Digest::of(&manifest).to_string(), "{seen}");
        ensure!(seen["custom"]["version"] == "1.0.0", "{seen}");

        // What it was told is public, and by certificate: without one there is metadata and nothing else.
        let mut client = Client::new(&url, &format!("{url}/targets"))?;
        client.more = vec!["--ca".into(), text(&agent.state.join("ca.pem"))];
        client.metadata_url = format!("{url}/tuf");
        client.ok(&["init", &root]).await?;
        client.ok(&["refresh"]).await?;
        let words = client.fails(&["--target-name", &path, "download"]).await?;
        ensure!(words.contains("401"), "{words}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn python_tuf_verifies_what_our_repository_side_wrote() {
    let result: Result<()> = async {
        let ours = repository(&[("fleet/one.txt", b"one")])?.next(&[("fleet/one.txt", b"ONE")])?;
        let web = Web::serve(ours.serve()).await?;
        let dir = TempDir::with_prefix("plimsoll-test-")?;
        let (root, out) = (dir.path().join("root.json"), dir.path().join("python"));
        std::fs::write(&root, ours.published.document("1.root.json").context("no root")?)?;
        let (metadata, targets) = (web.url("metadata/"), web.url("targets/"));
        let read = async |path: &str, out: &Path| {
            let (root, out) = (root.to_string_lossy().into_owned(), out.to_string_lossy().into_owned());
            python("tuf_reads.py", &[&metadata, &targets, &root, path, &out]).await
        };
        for (path, bytes) in [("fleet/one.txt", &b"ONE"[..]), (BUNDLE, b"manifest")] {
            let seen: Value = serde_json::from_str(&read(path, &out.join(path.replace('/', "-"))).await?)?;
            let got = std::fs::read(seen["path"].as_str().context("no path")?)?;
            ensure!(got == bytes, "{path}: python-tuf downloaded {got:?}");
        }
        // A role does not speak for what it was not delegated, whoever looks.
        let words = read("bundles/other/1.0.0/bundle.json", &out.join("none")).await.unwrap_err().to_string();
        ensure!(words.contains("finds no bundles/other"), "{words}");
        Ok(())
    }
    .await;
    result.unwrap_or_else(|error| panic!("{error:#}"));
}

#[tokio::test]
async fn what_python_tuf_wrote_we_verify_and_download() {
    for scheme in ["ed25519", "ecdsa", "rsa-pss", "rsa-pkcs1"] {
        let result: Result<()> = async {
            let dir = TempDir::with_prefix("plimsoll-test-")?;
            let out = dir.path().join("repository");
            python("tuf_writes.py", &[&out.to_string_lossy(), scheme]).await?;
            let web = Web::serve_folder(&out).await?;
            let client = Client::of(&web)?;
            client.ok(&["init", &out.join("root.json").to_string_lossy()]).await?;
            let files = [
                ("models/a/model.onnx", "team"),
                ("models/b/model.onnx", "nested"),
                ("loose file.txt", "bin-0"),
            ];
            let mut args: Vec<&str> = files.iter().flat_map(|(name, _)| ["--target-name", name]).collect();
            args.push("download");
            let done = client.ok(&args).await?;
            for (at, (name, role)) in files.iter().enumerate() {
                ensure!(done["targets"][at]["signed_by"] == *role, "{name}: {done}");
            }
            ensure!(client.target("models/b/model.onnx")? == b"model b");
            ensure!(client.target("loose file.txt")? == b"in a bin");
            let root: Value = serde_json::from_slice(&client.metadata("root.json").context("no root.json")?)?;
            ensure!(root["signed"]["version"] == 2, "the second root was not taken");
            // `team` covers the path and ends the search, whatever else there may be.
            let words = client.fails(&["--target-name", "models/a/other", "download"]).await?;
            ensure!(words.contains("models/a/other"), "{words}");
            Ok(())
        }
        .await;
        result.unwrap_or_else(|error| panic!("{scheme}: {error:#}"));
    }
}

#[tokio::test]
async fn the_command_keeps_only_what_it_verified_and_fetches_a_target_once() {
    let result: Result<()> = async {
        let (first, second) =
            (repository(&[("fleet/one.txt", b"one")])?, [("fleet/one.txt", b"ONE"), ("two.txt", b"two")]);
        let web = Web::serve(first.serve()).await?;
        let client = Client::of(&web)?;
        let root = client.dir.path().join("first-root.json");
        std::fs::write(&root, first.published.document("1.root.json").context("no root")?)?;
        let root = root.to_string_lossy().into_owned();

        // Nothing is trusted yet, so nothing is asked for.
        let words = client.fails(&["refresh"]).await?;
        ensure!(words.contains("init"), "{words}");
        ensure!(web.asked().is_empty());
        client.ok(&["init", &root]).await?;
        client.fails(&["init", &root]).await?;

        client.ok(&["refresh"]).await?;
        ensure!(
            web.asked()
                == [
                    "metadata/2.root.json",
                    "metadata/timestamp.json",
                    "metadata/1.snapshot.json",
                    "metadata/1.targets.json"
                ]
        );
        for name in ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json"] {
            let stored = client.metadata(name.trim_start_matches("1."));
            ensure!(
                stored.as_deref() == first.published.document(name),
                "{name} is not stored as it was served"
            );
        }

        let get = ["--target-name", "fleet/one.txt", "download"];
        ensure!(client.ok(&get).await?["targets"][0]["fetched"] == true);
        ensure!(web.asked().iter().filter(|p| p.starts_with("targets/")).count() == 1);
        ensure!(client.ok(&get).await?["targets"][0]["fetched"] == false);
        ensure!(!web.asked().iter().any(|p| p.starts_with("targets/")), "it was fetched again");

        // A target that is not what was signed for leaves the good one alone.
        let next = first.next(&second)?;
        let mut files = next.serve();
        let changed = files.keys().find(|p| p.ends_with("one.txt")).context("no target")?.clone();
        files.insert(changed, b"eNO".to_vec());
        web.set(files);
        let words = client.fails(&get).await?;
        ensure!(words.contains("fleet/one.txt") && words.contains("digest"), "{words}");
        ensure!(client.target("fleet/one.txt")? == b"one");
        web.set(next.serve());
        client.ok(&get).await?;
        ensure!(client.target("fleet/one.txt")? == b"ONE");

        // What was published before is a rollback now, and changes nothing.
        let before = client.store()?;
        web.set(first.serve());
        let words = client.fails(&["refresh"]).await?;
        ensure!(words.contains("rollback"), "{words}");
        ensure!(client.store()? == before);
        // One of several that is missing fails the whole.
        web.set(next.serve());
        let two = ["--target-name", "two.txt", "--target-name", "three.txt", "download"];
        let words = client.fails(&two).await?;
        ensure!(words.contains("three.txt"), "{words}");
        ensure!(client.target("two.txt")? == b"two");
        Ok(())
    }
    .await;
    result.unwrap_or_else(|error| panic!("{error:#}"));
}

/// `plimsoll tuf` with folders of its own.
struct Client {
    dir: TempDir,
    program: PathBuf,
    metadata_url: String,
    target_url: String,
    more: Vec<String>,
}

impl Client {
    fn of(web: &Web) -> Result<Self> {
        Self::new(&web.url("metadata"), &web.url("targets"))
    }

    fn new(metadata_url: &str, target_url: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("plimsoll-test-")?;
        let program = Binaries::locate()?.ctl();
        let (metadata_url, target_url) = (metadata_url.to_owned(), target_url.to_owned());
        Ok(Self { dir, program, metadata_url, target_url, more: Vec::new() })
    }

    /// Exit code, standard output, standard error.
    async fn run(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let output = Command::new(&self.program)
            .args(["--output", "json"])
            .args(&self.more)
            .args(["tuf", "--metadata-url", &self.metadata_url, "--target-base-url", &self.target_url])
            .arg("--metadata-dir")
            .arg(self.dir.path().join("metadata"))
            .arg("--target-dir")
            .arg(self.dir.path().join("targets"))
            .args(args)
            .kill_on_drop(true)
            .output()
            .await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    async fn ok(&self, args: &[&str]) -> Result<Value> {
        let (code, out, err) = self.run(args).await?;
        ensure!(code == 0, "plimsoll tuf {}: exit {code}: {err}", args.join(" "));
        serde_json::from_str(&out).with_context(|| out)
    }

    /// Every failure is exit code 1; gives back the words.
    async fn fails(&self, args: &[&str]) -> Result<String> {
        let (code, out, err) = self.run(args).await?;
        ensure!(code == 1, "plimsoll tuf {}: exit {code}: {out}{err}", args.join(" "));
        Ok(err)
    }

    fn metadata(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join("metadata").join(name)).ok()
    }

    fn target(&self, path: &str) -> Result<Vec<u8>> {
        let name = path.replace('/', "%2F").replace(' ', "%20");
        std::fs::read(self.dir.path().join("targets").join(&name)).context(name)
    }

    /// Everything that is trusted.
    fn store(&self) -> Result<Files> {
        let list = std::fs::read_dir(self.dir.path().join("metadata"))?;
        list.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?))
        })
        .collect()
    }
}

/// The bundle that the delegated role lists.
const BUNDLE: &str = "bundles/meter/1.0.0/bundle.json";

/// A repository of top-level targets and of a model's role, with the contents.
struct Published {
    published: Repository,
    contents: BTreeMap<String, Vec<u8>>,
}

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

fn now() -> Result<i64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs().try_into()?)
}

fn repository(contents: &[(&str, &[u8; 3])]) -> Result<Published> {
    let (online, now) = (Online { snapshot: key(3), timestamp: key(4) }, now()?);
    let root = Root::of(&RootKeys {
        root: (vec![key(1).key()], 1),
        targets: (vec![key(2).key()], 1),
        snapshot: online.snapshot.key(),
        timestamp: online.timestamp.key(),
    });
    let mut role = Targets::default();
    role.add_bundle(&"meter".parse()?, &"1.0.0".parse()?, b"manifest");
    let upload = TrustUpload {
        root: Some(sign_next(None, root, now, 3_600, &[&key(1) as &dyn Signer])?),
        targets: Some(targets(None, contents, now)?),
        roles: [("meter".to_owned(), sign_next(None, role, now, 3_600, &[&key(5) as &dyn Signer])?)].into(),
    };
    let published = Repository::default().propose(&upload, &online, now)?.repository;
    Ok(Published { published, contents: owned(contents) })
}

fn targets(before: Option<u64>, contents: &[(&str, &[u8; 3])], now: i64) -> Result<Value> {
    let mut body = Targets::default();
    body.delegate("meter", &[key(5).key()], 1, model_paths(&"meter".parse()?));
    for (path, bytes) in contents {
        body.targets.insert((*path).to_owned(), TargetMeta::of(*bytes, None));
    }
    Ok(sign_next(before, body, now, 3_600, &[&key(2) as &dyn Signer])?)
}

fn owned(contents: &[(&str, &[u8; 3])]) -> BTreeMap<String, Vec<u8>> {
    let bundle = (BUNDLE.to_owned(), b"manifest".to_vec());
    contents.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).chain([bundle]).collect()
}

impl Published {
    /// The next publication, with other contents.
    fn next(&self, contents: &[(&str, &[u8; 3])]) -> Result<Self> {
        let (online, now) = (Online { snapshot: key(3), timestamp: key(4) }, now()?);
        let upload =
            TrustUpload { targets: Some(targets(Some(1), contents, now)?), ..TrustUpload::default() };
        let next = self.published.clone().propose(&upload, &online, now)?.repository;
        Ok(Self { published: next, contents: owned(contents) })
    }

    fn serve(&self) -> Files {
        let versions = 1..=2;
        let names = versions
            .flat_map(|v| ["root", "snapshot", "targets", "meter"].map(|role| format!("{v}.{role}.json")));
        let names = names.chain(["timestamp.json".to_owned()]);
        let documents = names.filter_map(|name| {
            let bytes = self.published.document(&name)?.to_vec();
            Some((format!("metadata/{name}"), bytes))
        });
        let targets = self.contents.iter().map(|(path, bytes)| {
            let (folder, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(f, n)| (f, n));
            let slash = if folder.is_empty() { "" } else { "/" };
            (format!("targets/{folder}{slash}{}.{name}", Digest::of(bytes)), bytes.clone())
        });
        documents.chain(targets).collect()
    }
}
