//! Certificates of a fleet at work: renewed in time, renewed when it is too late, taken back, and under an authority
//! that changes. Nobody visits a device, no device enrols again, and the model answers all the while.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::{DeviceInfo, RolloutStatus};
use plimsoll_protocol::wire::v1::RENEW_PATH;
use plimsoll_tests::{Agent, Order, STEP, Site, until};
use serde_json::Value;

/// The shortest life there is: renewed after 7 s, and short enough to wait for its end.
const SHORT: [&str; 2] = ["--device-certificate", "10s"];
/// Waiting for the end of a certificate, and then for what follows from it.
const LIFE_AND_STEP: Duration = Duration::from_secs(10 + STEP.as_secs());

async fn device(site: &Site, name: &str) -> Result<DeviceInfo> {
    site.fleet.api.get(&format!("devices/{name}")).await
}

/// Waits until a device is connected, by its own word and the server's.
async fn back(site: &Site, agent: &Agent) -> Result<()> {
    until(&format!("{} to be connected", agent.name), LIFE_AND_STEP, || async {
        let status = site.fleet.status(agent).await?;
        ensure!(
            status["connected"] == true,
            "it says {} and {}",
            status["connection"],
            status["certificate"]
        );
        ensure!(device(site, &agent.name).await?.online, "the server does not know");
        Ok(())
    })
    .await
}

fn file(agent: &Agent, name: &str) -> Result<String> {
    let path = agent.state.join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// A client with the certificate that a device has on its disk now.
fn as_device(agent: &Agent) -> Result<reqwest::Client> {
    let pem = file(agent, "device.key")? + &file(agent, "device.crt")?;
    let ca = reqwest::Certificate::from_pem(file(agent, "ca.pem")?.as_bytes())?;
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([ca]);
    Ok(builder.identity(reqwest::Identity::from_pem(pem.as_bytes())?).build()?)
}

/// Status and kind of the refusal that a device gets for some blob.
async fn blob(site: &Site, client: &reqwest::Client) -> Result<(u16, String)> {
    let url = format!("{}/blobs/sha256/{}", site.fleet.device_url(), Digest::of(b"no such blob"));
    let answer = client.get(url).send().await?;
    let status = answer.status().as_u16();
    let problem: Value = answer.json().await?;
    Ok((status, problem["type"].as_str().unwrap_or_default().to_owned()))
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

#[tokio::test(flavor = "current_thread")]
async fn a_certificate_is_renewed_in_time_and_after_a_winter_in_a_drawer() {
    Site::play_with(1, &SHORT, async |site| {
        let key = file(&site.fleet.agents[0], "device.key")?;
        let first = device(site, "camera-1").await?.certificate_until_ms;
        let boot = site.fleet.status(&site.fleet.agents[0]).await?["boot"].clone();
        until("two renewals", LIFE_AND_STEP, || async {
            let until_ms = device(site, "camera-1").await?.certificate_until_ms;
            ensure!(until_ms >= first + 11_000, "it ends at {until_ms}, the first one at {first}");
            Ok(())
        })
        .await?;
        back(site, &site.fleet.agents[0]).await?;
        let status = site.fleet.status(&site.fleet.agents[0]).await?;
        ensure!(status["boot"] == boot && status["serve_restarts"] == 0, "something was restarted: {status}");
        ensure!(file(&site.fleet.agents[0], "device.key")? == key, "the key is another one");
        site.still_run("1.0.0").await?;
        let numbers = site.fleet.api.page("/metrics").await?;
        ensure!(
            numbers.contains("plimsoll_certificate_not_after_seconds{of=\"device_soonest\"}"),
            "{numbers}"
        );

        site.fleet.agents[0].process.down().await?;
        let agent = &site.fleet.agents[0];
        let until_ms = device(site, "camera-1").await?.certificate_until_ms;
        until("the certificate to end", LIFE_AND_STEP, || async {
            ensure!(now_ms() > until_ms + 1_000, "not yet");
            Ok(())
        })
        .await?;
        let late = as_device(agent)?;
        ensure!(blob(site, &late).await? == (403, "certificate-expired".into()), "it opened something");
        site.fleet.agents[0].process.up()?;
        back(site, &site.fleet.agents[0]).await?;
        site.event("device.certificate_returned", &["camera-1", "registered key"]).await?;
        ensure!(file(&site.fleet.agents[0], "device.key")? == key, "the key is another one");
        site.all_run("1.0.0").await
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_revoked_device_is_put_out_at_once_keeps_its_model_and_is_readmitted() {
    Site::play(2, async |site| {
        let [agent, other] = &site.fleet.agents[..] else { anyhow::bail!("two devices") };
        let client = as_device(agent)?;
        ensure!(blob(site, &client).await?.0 == 404, "it was let in before");
        site.fleet.plimsoll(&["device", "revoke", "camera-1"]).await?;
        until("the device to be put out", STEP, || async {
            let status = site.fleet.status(agent).await?;
            ensure!(status["connected"] == false, "it is connected");
            let problem = status["certificate"]["problem"].as_str().unwrap_or_default();
            ensure!(problem.contains("revoked") && problem.contains("readmit"), "it says {problem:?}");
            ensure!(!device(site, "camera-1").await?.online, "the server thinks that it is connected");
            Ok(())
        })
        .await?;
        ensure!(blob(site, &client).await? == (403, "revoked".into()), "the connection that stood goes on");
        let renewal = client.post(format!("{}{RENEW_PATH}", site.fleet.device_url())).send().await?;
        ensure!(renewal.status() == 403, "a renewal was answered with {}", renewal.status());
        site.event("access.refused", &["camera-1", "not allowed"]).await?;
        ensure!(site.ask(agent).await? == "1.0.0", "the model does not answer");
        ensure!(device(site, "camera-2").await?.online, "{} was put out too", other.name);

        site.fleet.plimsoll(&["device", "readmit", "camera-1"]).await?;
        back(site, agent).await?;

        // Its disk is replaced: the name may bring a new key once, and the old key stays out.
        let token = site.join_token.clone();
        let again = site.fleet.dir.join("camera-1-again");
        std::fs::create_dir_all(&again)?;
        let refused = site.fleet.enroll("camera-1", &token, &again).await.unwrap_err().to_string();
        ensure!(refused.contains("--new-key"), "{refused}");
        site.fleet.plimsoll(&["device", "readmit", "camera-1", "--new-key"]).await?;
        site.fleet.enroll("camera-1", &token, &again).await?;
        ensure!(blob(site, &client).await?.0 == 403, "the old key is let in");
        let replaced =
            Agent { name: "camera-1".into(), listen: agent.listen, state: again, process: stand_in(site)? };
        ensure!(blob(site, &as_device(&replaced)?).await?.0 == 404, "the new key is not let in");
        Ok(())
    })
    .await;
}

/// A process for a device that is only a folder.
fn stand_in(site: &Site) -> Result<plimsoll_tests::Process> {
    let log = site.fleet.dir.join("stand-in.log");
    plimsoll_tests::Process::start("stand-in", std::path::Path::new("/bin/sleep"), &["600".into()], &log)
}

#[tokio::test(flavor = "current_thread")]
async fn the_fleets_authority_changes_and_every_device_follows_the_one_that_was_off_too() {
    Site::play(2, async |site| {
        let keys: Vec<String> =
            site.fleet.agents.iter().map(|a| file(a, "device.key")).collect::<Result<_>>()?;
        let old = file(&site.fleet.agents[0], "ca.pem")?;
        site.fleet.agents[1].process.down().await?;

        let prepared = site.fleet.plimsoll(&["ca", "prepare", "--out", "ca.pem"]).await?;
        let next = prepared["next"]["fingerprint"].as_str().context("no next authority")?.to_owned();
        let (status, _, words) = site.fleet.plimsoll_raw(&["ca", "switch"]).await?;
        ensure!(status == 3 && words.contains("publish-ca"), "exit {status}: {words}");
        site.fleet.plimsoll(&["trust", "publish-ca", "ca.pem", "--keys", "keys"]).await?;
        let switched = site.fleet.plimsoll(&["ca", "switch"]).await?;
        ensure!(
            switched["issuing"]["fingerprint"] == next.as_str() && switched["next"].is_null(),
            "{switched}"
        );

        // The connection that stands ends with the server; the other device wakes up to a server it does not know.
        site.fleet.server.kill_hard()?;
        site.fleet.agents[1].process.up()?;
        for (agent, key) in site.fleet.agents.iter().zip(&keys) {
            back(site, agent).await?;
            let trusted = file(agent, "ca.pem")?;
            ensure!(trusted != old && trusted.contains(old.trim()), "{} trusts\n{trusted}", agent.name);
            ensure!(file(agent, "device.key")? == *key, "{} enrolled again", agent.name);
        }
        let enrolled =
            site.fleet.api.get::<Value>("audit").await?.to_string().matches("device.enrol").count();
        ensure!(enrolled == 2, "{enrolled} enrolments of two devices");

        // Old certificates, new server: everything goes on, by HTTPS too. New devices enrol with the new authority.
        let token = site.fleet.plimsoll(&["device", "token", "--names", "camera-3"]).await?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        ensure!(token.ends_with(&next), "the token names another authority");
        site.fleet.add_agent("camera-3", &token, &[("site", "lyon")]).await?;
        let bundle = site.pack("1.1.0", "1.1.0").await?;
        site.publish(&bundle).await?;
        let id = site.roll_out("1.1.0", Order::default()).await?;
        site.ended(&id, RolloutStatus::Completed).await?;
        site.all_run("1.1.0").await?;

        // A server with an authority that the owner did not sign for is nobody, whoever it is otherwise.
        site.fleet.server.down().await?;
        let state = site.fleet.dir.join("server");
        for name in ["ca.pem", "ca.key"] {
            std::fs::rename(state.join(name), state.join(format!("{name}.kept")))?;
        }
        site.fleet.server.up()?;
        until("the device to refuse the stranger", STEP, || async {
            let status = site.fleet.status(&site.fleet.agents[0]).await?;
            let problem = status["certificate"]["problem"].as_str().unwrap_or_default();
            ensure!(problem.contains("did not sign for"), "it says {problem:?}");
            ensure!(status["connected"] == false, "it is connected");
            Ok(())
        })
        .await?;
        site.still_run("1.1.0").await
    })
    .await;
}
