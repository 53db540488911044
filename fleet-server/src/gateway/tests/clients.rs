//! The clients people use: rumqttc (which the agent wraps) and mosquitto's.

use std::path::Path;
use std::process::{Output, Stdio};

use plimsoll_protocol::wire::v1::{Down, Topic, Up};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet, PubAckReason};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::harness::{Fixture, PATIENCE, TOKEN, id, up};

const CAM: &str = "acme.cam-1";

fn rumqttc(on: &Fixture, name: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, "localhost", on.gateway.devices_address().port());
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(on.client_tls(Some(name)))));
    options.set_last_will(LastWill::new(up(name, Up::State), "offline", QoS::AtLeastOnce, true, None));
    options.set_outgoing_inflight_upper_limit(20);
    AsyncClient::new(options, 20)
}

async fn until(events: &mut EventLoop, what: impl Fn(&Packet) -> bool) -> Packet {
    let wait = async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(packet) if what(&packet) => return packet,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("the packet never came")
}

#[tokio::test]
async fn rumqttc_reports_hears_its_orders_and_leaves_a_will() {
    let on = Fixture::start().await;
    on.hold(CAM, Down::Desired, "generation 1");
    let (client, mut events) = rumqttc(&on, CAM);
    for filter in Topic::subscriptions(&id(CAM)) {
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
    }
    let order = until(&mut events, |p| matches!(p, Packet::Publish(_))).await;
    assert!(matches!(order, Packet::Publish(p) if p.payload == "generation 1"));
    client.publish(up(CAM, Up::Event), QoS::AtLeastOnce, false, "overheated").await.unwrap();
    let ack = until(&mut events, |p| matches!(p, Packet::PubAck(_))).await;
    assert!(matches!(ack, Packet::PubAck(a) if a.reason == PubAckReason::Success));
    client.publish(up("acme.cam-2", Up::Event), QoS::AtLeastOnce, false, "forged").await.unwrap();
    let ack = until(&mut events, |p| matches!(p, Packet::PubAck(_))).await;
    assert!(matches!(ack, Packet::PubAck(a) if a.reason == PubAckReason::NotAuthorized));
    drop((client, events));
    on.store.until("the will", |s| s.wills() == 1 && s.committed.len() == 2).await;
}

#[tokio::test]
async fn rumqttc_leaves_no_will_after_a_disconnect() {
    let on = Fixture::start().await;
    let (client, mut events) = rumqttc(&on, CAM);
    until(&mut events, |p| matches!(p, Packet::ConnAck(_))).await;
    client.disconnect().await.unwrap();
    while timeout(PATIENCE, events.poll()).await.expect("the end").is_ok() {}
    on.store.until("a graceful leave", |s| s.has_left(CAM, true)).await;
    assert_eq!(on.store.seen.lock().unwrap().wills(), 0);
}

/// Whether mosquitto's clients are here; says so when they are not, and fails when they must be.
fn has_mosquitto() -> bool {
    let found = ["mosquitto_pub", "mosquitto_sub"]
        .iter()
        .all(|tool| std::process::Command::new(tool).arg("--help").output().is_ok());
    if !found {
        assert!(
            std::env::var_os("PLIMSOLL_REQUIRE_TOOLS").is_none_or(|v| v != "1"),
            "mosquitto_pub and mosquitto_sub are required (apt-get install mosquitto-clients)"
        );
        println!(
            "skipped: mosquitto_pub or mosquitto_sub is not installed (apt-get install mosquitto-clients)"
        );
    }
    found
}

async fn mosquitto_pub(on: &Fixture, dir: &Path, as_device: &str, version: &str, rest: &[&str]) -> Output {
    let (certificate, key) = on.device_pem(as_device);
    for (name, text) in [("ca.pem", &on.ca_pem()), ("cert.pem", &certificate), ("key.pem", &key)] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let port = on.gateway.devices_address().port().to_string();
    let run = Command::new("mosquitto_pub")
        .args(["-h", "localhost", "-p", &port, "-V", version, "-i", as_device, "-q", "1", "-d"])
        .args(["--cafile", "ca.pem", "--cert", "cert.pem", "--key", "key.pem"])
        .args(rest)
        .current_dir(dir)
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, run).await.expect("mosquitto_pub ended").unwrap()
}

#[tokio::test]
async fn mosquitto_pub_is_a_device_in_both_versions() {
    if !has_mosquitto() {
        return;
    }
    let on = Fixture::start().await;
    let dir = tempfile::tempdir().unwrap();
    let topic = up(CAM, Up::Event);
    for (n, version) in ["mqttv311", "mqttv5"].into_iter().enumerate() {
        let sent = mosquitto_pub(&on, dir.path(), CAM, version, &["-t", &topic, "-m", "hello"]).await;
        assert!(sent.status.success(), "{sent:?}");
        assert_eq!(
            on.store.seen.lock().unwrap().committed.len(),
            n + 1,
            "committed before it was acknowledged"
        );
        let forged = up("acme.cam-2", Up::Event);
        let sent = mosquitto_pub(&on, dir.path(), CAM, version, &["-t", &forged, "-m", "forged"]).await;
        let said = format!("{sent:?}");
        assert!(
            !sent.status.success() || said.contains("RC:135") || said.contains("Not authorized"),
            "{said}"
        );
        assert_eq!(on.store.seen.lock().unwrap().committed.len(), n + 1);
    }
    assert_eq!(on.store.seen.lock().unwrap().refusals().len(), 2);
}

#[tokio::test]
async fn mosquitto_sub_is_a_dashboard_in_both_versions() {
    if !has_mosquitto() {
        return;
    }
    let on = Fixture::start().await;
    let port = on.gateway.dashboards_address().port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        let watch = |filter: &str, password: &str| {
            let mut sub = Command::new("mosquitto_sub");
            sub.args(["-h", "127.0.0.1", "-p", &port, "-V", version, "-u", "me", "-P", password, "-v"]);
            sub.args(["-t", filter]).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            sub
        };
        let mut cam = super::raw::Raw::connected(&on, CAM, super::raw::V::Five).await;
        cam.publish_retained(&up(CAM, Up::State), "born", 1).await;
        let mut sub = watch("plimsoll/1/acme/+/up/#", TOKEN).spawn().unwrap();
        let mut lines = BufReader::new(sub.stdout.take().unwrap()).lines();
        let mut line = async || timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().unwrap();
        assert_eq!(line().await, format!("{} born", up(CAM, Up::State)));
        cam.publish(&up(CAM, Up::Health), "52", None).await;
        assert_eq!(line().await, format!("{} 52", up(CAM, Up::Health)));
        sub.kill().await.unwrap();

        let wrong =
            timeout(PATIENCE, watch("plimsoll/1/acme/+/up/#", "wrong").output()).await.unwrap().unwrap();
        assert!(!wrong.status.success());
        let said = String::from_utf8_lossy(&wrong.stderr).to_lowercase();
        assert!(said.contains("bad user") || said.contains("not authori"), "{said}");

        let all = timeout(PATIENCE, watch("#", TOKEN).output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&all.stderr).to_lowercase();
        assert!(said.contains("denied") || !all.status.success(), "{said}");
    }
}
