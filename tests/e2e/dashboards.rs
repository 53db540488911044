//! Dashboards: with an operator's token Debian's `mosquitto_sub` sees what the page sees; nobody else sees anything,
//! and nobody speaks. `/metrics` is Prometheus text without a label per device.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plimsoll_protocol::wire::v1::{DriftReport, Envelope, Health, State, Topic, Up};
use plimsoll_tests::{Feeder, MODEL, Site};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Everything that devices of the fleet say.
const ALL: &str = "plimsoll/1/fleet/+/up/#";
/// Health comes every second and windows close every two here; this is only the end of hope.
const HEARD_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "current_thread")]
async fn a_token_sees_the_fleet_and_nobody_else_does() {
    Site::play(2, async |site| {
        let token = site.fleet.plimsoll(&["token", "new", "--name", "grafana", "--role", "operator"]).await?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        let pause = Duration::from_millis(20);
        let feed = |agent: &plimsoll_tests::Agent| {
            Feeder::start(agent.listen, MODEL, site.replay.clone(), 0, pause, |image| image.pixels.clone())
        };
        let feeders = site.fleet.agents.iter().map(feed).collect::<Result<Vec<_>>>()?;

        let heard = listen_until_all_spoke(site, &token).await?;
        ensure!(!heard.is_empty());
        drop(feeders);

        wrong_credentials_are_refused(site, &token).await?;
        nothing_but_reports_can_be_heard_and_nothing_said(site, &token).await?;
        site.still_run("1.0.0").await
    })
    .await;
}

/// Listens until each device has told birth, health and drift, each of which must be what the protocol says.
async fn listen_until_all_spoke(site: &Site, token: &str) -> Result<BTreeSet<(String, &'static str)>> {
    let port = site.fleet.dashboard.port().to_string();
    let mut child = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &port, "-u", "grafana", "-P", token, "-t", ALL, "-F", "%t %p"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("mosquitto_sub of Debian's mosquitto-clients")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let devices = site.fleet.agents.iter();
    let mut missing: BTreeSet<(String, &str)> =
        devices.flat_map(|a| ["state", "health", "drift"].map(|kind| (a.name.clone(), kind))).collect();
    let all = missing.clone();
    let listening = async {
        while !missing.is_empty() {
            let line = lines.next_line().await?.context("mosquitto_sub ended")?;
            let (topic, payload) = line.split_once(' ').context("a line without a message")?;
            if let Some(heard) = read(topic, payload).with_context(|| line.clone())? {
                missing.remove(&heard);
            }
        }
        anyhow::Ok(())
    };
    let end = timeout(HEARD_LIMIT, listening).await;
    match end {
        Ok(end) => end.map(|()| all),
        Err(_) => bail!("within {HEARD_LIMIT:?} nothing was heard of {missing:?}"),
    }
}

/// Reads a message as a dashboard would; gives back whose and which kind, when it is of those that are waited for.
fn read(topic: &str, payload: &str) -> Result<Option<(String, &'static str)>> {
    let Topic::Up(who, kind) = Topic::parse(topic)? else { bail!("not what a device says") };
    match kind {
        Up::State => {
            let state: Envelope<State> = serde_json::from_str(payload)?;
            let State::Online(birth) = state.body else { return Ok(None) };
            ensure!(birth.boot > 0 && birth.conn > 0, "a birth without numbers");
            ensure!(birth.labels.get("site").is_some_and(|site| site == "lyon"), "a birth without labels");
        }
        Up::Health => {
            let health: Envelope<Health> = serde_json::from_str(payload)?;
            let model = health.body.models.first();
            if model.is_none_or(|m| m.requests == 0) {
                return Ok(None); // a first look, before the model was asked anything
            }
        }
        Up::Drift => {
            let drift: Envelope<DriftReport> = serde_json::from_str(payload)?;
            ensure!(drift.seq > 0, "a report without a number");
            ensure!(drift.body.version.to_string() == "1.0.0", "a window of {}", drift.body.version);
            ensure!(!drift.body.window.features.is_empty(), "a window without counts");
        }
        _ => return Ok(None),
    }
    Ok(Some((who.device.to_string(), kind.as_str())))
}

async fn wrong_credentials_are_refused(site: &Site, token: &str) -> Result<()> {
    let dashboard = site.fleet.dashboard.port().to_string();
    let mut wrong = token.to_owned();
    wrong.pop();
    wrong.push(if token.ends_with('0') { '1' } else { '0' });
    for (who, credentials) in [
        ("a wrong token", vec!["-u", "grafana", "-P", &wrong]),
        ("nobody", vec![]),
        ("the name of a device", vec!["-i", "fleet.camera-1", "-u", "fleet.camera-1"]),
    ] {
        let output =
            mosquitto("mosquitto_sub", &dashboard, &[&credentials[..], &["-t", ALL]].concat()).await?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{who} heard {output:?}");
        let words = String::from_utf8_lossy(&output.stderr).to_lowercase();
        ensure!(words.contains("refused") || words.contains("not authori"), "{who} was told {words:?}");
    }
    site.event("access.refused", &["without a valid API token"]).await?;

    // A device's certificate does not open the dashboards' door, and a token does not open the devices'.
    let state = &site.fleet.agents[0].state;
    let file = |name: &str| state.join(name).to_string_lossy().into_owned();
    let (ca, certificate, key) = (file("ca.pem"), file("device.crt"), file("device.key"));
    let as_device =
        ["-i", "fleet.camera-1", "--cafile", &ca, "--cert", &certificate, "--key", &key, "-t", ALL];
    let output = mosquitto("mosquitto_sub", &dashboard, &as_device).await?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "a device's certificate heard {output:?}");
    let devices = site.fleet.mqtt.port().to_string();
    let with_token = ["--cafile", &ca, "-u", "grafana", "-P", token, "-t", ALL];
    let output = mosquitto("mosquitto_sub", &devices, &with_token).await?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "a token at the devices' door: {output:?}");

    // And a device that is let in hears nothing but its own orders. Enrolled for this, so that no agent is displaced.
    let state = site.fleet.dir.join("curious");
    site.fleet.enroll("curious", &site.join_token, &state).await?;
    let file = |name: &str| state.join(name).to_string_lossy().into_owned();
    let (ca, certificate, key) = (file("ca.pem"), file("device.crt"), file("device.key"));
    let as_device =
        ["-i", "fleet.curious", "--cafile", &ca, "--cert", &certificate, "--key", &key, "-t", ALL];
    let output = mosquitto("mosquitto_sub", &devices, &as_device).await?;
    ensure!(output.stdout.is_empty(), "a device heard {output:?}");
    site.event("access.refused", &["fleet.curious", "subscribe", ALL]).await.map(|_| ())
}

async fn nothing_but_reports_can_be_heard_and_nothing_said(site: &Site, token: &str) -> Result<()> {
    let port = site.fleet.dashboard.port().to_string();
    let login = ["-u", "grafana", "-P", token];
    for filter in ["#", "plimsoll/1/fleet/+/dn/#", "plimsoll/1/other/+/up/#"] {
        let output = mosquitto("mosquitto_sub", &port, &[&login[..], &["-t", filter]].concat()).await?;
        ensure!(output.stdout.is_empty(), "{filter} gave {output:?}");
        site.event("access.refused", &["dashboard", "subscribe", filter]).await?;
    }
    let topic = "plimsoll/1/fleet/camera-1/dn/desired";
    let say = ["-V", "mqttv5", "-q", "1", "-t", topic, "-m", "{}"];
    mosquitto("mosquitto_pub", &port, &[&login[..], &say].concat()).await?;
    site.event("access.refused", &["dashboard", "publish", topic]).await.map(|_| ())
}

/// Runs one of the mosquitto tools to its end; one that is let in ends by itself after two seconds.
async fn mosquitto(tool: &str, port: &str, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(tool);
    command.args(["-h", "127.0.0.1", "-p", port]).args(args);
    if tool == "mosquitto_sub" {
        command.args(["-W", "2"]);
    }
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(HEARD_LIMIT, output).await.with_context(|| format!("{tool} did not end"))?;
    output.with_context(|| format!("{tool} of Debian's mosquitto-clients"))
}

#[tokio::test(flavor = "current_thread")]
async fn the_numbers_are_prometheus_text_and_name_no_device() {
    Site::play(1, async |site| {
        let text = site.fleet.api.page("/metrics").await?;
        let mut typed = BTreeSet::new();
        let mut series = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(|| line.to_owned())?;
                ensure!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                ensure!(typed.insert(name.to_owned()), "{name} is typed twice");
                ensure!(kind != "counter" || name.ends_with("_total"), "{name} counts without saying _total");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?} has no value"))?;
            value.parse::<f64>().with_context(|| line.to_owned())?;
            let bare = name.split('{').next().unwrap_or_default();
            ensure!(typed.contains(bare), "{bare} has no type above it");
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
            ensure!(bare.starts_with("plimsoll_") && bare.chars().all(legal), "{bare:?} is no name");
            ensure!(series.insert(name.to_owned()), "{name} is there twice");
        }
        let running = format!("plimsoll_devices_running{{model=\"{MODEL}\",version=\"1.0.0\"}} 1");
        ensure!(text.lines().any(|l| l == running), "{running} is missing in:\n{text}");
        ensure!(text.lines().any(|l| l == "plimsoll_devices{state=\"online\"} 1"), "{text}");
        ensure!(!text.contains("camera-1") && !text.contains("device=\""), "a device is named in:\n{text}");
        Ok(())
    })
    .await;
}
