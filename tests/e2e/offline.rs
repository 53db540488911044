//! Devices that no network reaches: a version travels as a file, and arrives with the guarantees that it has over the
//! network, or does not arrive.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use plimsoll_tests::{MODEL, STEP, Site, until};

/// Exit code of a refusal, of both programs.
const REFUSED: i32 = 3;

#[tokio::test(flavor = "current_thread")]
async fn a_version_travels_as_a_file_and_is_taken_like_one_from_the_network() {
    Site::play(1, async |site| {
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let version = format!("{MODEL}@1.1.0");
        let exported =
            site.fleet.plimsoll(&["bundle", "export", &version, "--valid", "30d", "-o", "one.tar"]).await?;
        ensure!(exported["signed_by"] == MODEL, "{exported}");

        // The same file, unpacked where another server is fed.
        site.fleet.plimsoll(&["bundle", "import", "one.tar", "--keys", "keys", "--out", "unpacked"]).await?;
        let same = site.fleet.plimsoll(&["bundle", "diff", "unpacked", "one.tar"]).await?;
        ensure!(same["same"] == true, "{same}");
        let before = format!("{MODEL}@1.0.0");
        let diff = site.fleet.plimsoll(&["bundle", "diff", &before, "one.tar"]).await?;
        ensure!(diff["files"].to_string().contains("model.onnx"), "{diff}");

        // No server from here on; the agent starts anew, so it has heard none.
        let file = site.fleet.dir.join("one.tar");
        let mut wrong = Vec::new();
        for (name, words, change) in damages() {
            let path = site.fleet.dir.join(name);
            let mut bytes = std::fs::read(&file)?;
            change(&mut bytes);
            std::fs::write(&path, bytes)?;
            wrong.push((path, words));
        }
        alone(site).await?;
        for (path, words) in wrong {
            let (code, text) = import(site, &path).await?;
            ensure!(code == REFUSED && text.contains(words), "{}: {code}: {text}", path.display());
            site.still_run("1.0.0").await?;
        }
        let (code, text) = import(site, &file).await?;
        ensure!(code == 0 && text.contains("1.1.0"), "{code}: {text}");
        until("the version that was brought to run", STEP, || site.still_run("1.1.0")).await?;
        let (code, text) = import(site, &file).await?;
        ensure!(code == REFUSED && text.contains("runs already"), "{code}: {text}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_file_is_no_way_around_a_removal_an_end_or_another_owner() {
    Site::play(1, async |site| {
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let version = format!("{MODEL}@1.1.0");
        site.fleet.plimsoll(&["bundle", "export", &version, "--valid", "1s", "-o", "short.tar"]).await?;
        site.fleet.plimsoll(&["bundle", "export", &version, "--valid", "30d", "-o", "long.tar"]).await?;
        let (code, _, words) = site
            .fleet
            .plimsoll_raw(&["bundle", "export", &version, "--valid", "91d", "-o", "longer.tar"])
            .await?;
        ensure!(code == REFUSED && words.contains("90 days"), "{code}: {words}");

        // A signature that lasts is not for everybody who may publish.
        let token = site.fleet.plimsoll(&["token", "new", "--name", "ci", "--role", "publisher"]).await?;
        let token = token["token"].as_str().context("no token")?;
        let args = ["bundle", "export", &version, "--token", token, "-o", "other.tar"];
        let (code, _, words) = site.fleet.plimsoll_raw(&args).await?;
        ensure!(code == 1 && words.contains("admin"), "{code}: {words}");

        // The network is newer than every file that was made before.
        restart(site).await?;
        let agent = &site.fleet.agents[0];
        until("a look at the metadata after a restart", STEP, || async {
            let status = site.fleet.status(agent).await?;
            ensure!(!status["trust"]["fresh_s_ago"].is_null(), "{}", status["trust"]);
            Ok(())
        })
        .await?;
        let (code, text) = import(site, &site.fleet.dir.join("long.tar")).await?;
        ensure!(code == REFUSED && text.contains("timestamp"), "older than what was seen: {code}: {text}");

        site.fleet.plimsoll(&["trust", "revoke", &version, "--keys", "keys"]).await?;
        let (code, _, words) =
            site.fleet.plimsoll_raw(&["bundle", "export", &version, "-o", "revoked.tar"]).await?;
        ensure!(code == REFUSED && words.contains("revoked"), "{code}: {words}");

        // Another owner's root, which the file leads to and this device does not know.
        let (code, _, words) = site
            .fleet
            .plimsoll_raw(&[
                "bundle",
                "import",
                "long.tar",
                "--root",
                "bundle-1.1.0/bundle.json",
                "--out",
                "x",
            ])
            .await?;
        ensure!(code == REFUSED && words.contains("root"), "{code}: {words}");
        ensure!(
            !site.fleet.dir.join("x").exists() && !site.fleet.dir.join("x.part").exists(),
            "it left something"
        );
        site.still_run("1.0.0").await
    })
    .await;
}

/// Name, what the refusal says, and the damage.
type Damage = (&'static str, &'static str, fn(&mut Vec<u8>));

fn damages() -> Vec<Damage> {
    /// Where the last kilobytes of the last file are.
    fn near_the_end(bytes: &mut [u8]) {
        let at = bytes.len() - 4096;
        bytes[at] ^= 1;
    }
    fn first_name(bytes: &mut [u8], from: &[u8], to: &[u8]) {
        let at = bytes.windows(from.len()).position(|w| w == from).expect("the name is there");
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    vec![
        ("cut.tar", "cut off", |bytes| bytes.truncate(bytes.len() / 2)),
        ("bit.tar", "digest", |bytes| near_the_end(bytes)),
        ("escape.tar", "checksum", |bytes| first_name(bytes, b"blobs/sha256/", b"../../../etc/")),
        ("empty.tar", "cut off", Vec::clear),
        ("noise.tar", "checksum", |bytes| bytes.fill(b'x')),
    ]
}

/// Takes the server away and starts the agent anew.
async fn alone(site: &mut Site) -> Result<()> {
    site.fleet.server.down().await?;
    restart(site).await
}

/// Kills the agent and waits until the next one serves. Without this wait the process that dies may still answer for
/// its successor.
async fn restart(site: &Site) -> Result<()> {
    let agent = &site.fleet.agents[0];
    let starts = agent.process.starts();
    agent.process.kill_hard()?;
    until("the agent to serve again", STEP, || async {
        ensure!(agent.process.starts() > starts, "it has not started");
        site.still_run("1.0.0").await
    })
    .await
}

/// `plimsoll-agent import` on the device: exit code, and what it says.
async fn import(site: &Site, file: &Path) -> Result<(i32, String)> {
    let file = file.to_string_lossy();
    let (code, out, err) = site.fleet.agent_raw(&site.fleet.agents[0].state, &["import", &file]).await?;
    Ok((code, out + &err))
}
