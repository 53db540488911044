//! Sensors on a real broker: readings become predictions, nonsense does not, and an outage of the broker is survived.

#![allow(clippy::unwrap_used)] // a test's unwrap is an assertion, in its helpers too

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use plimsoll_protocol::bundle::{Feature, FeatureKind};
use plimsoll_runtime::testing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The end of hope on a machine that runs other tests too.
const PATIENCE: Duration = Duration::from_secs(60);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Debian keeps it out of the path of users.
fn mosquitto() -> Option<PathBuf> {
    let paths = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    paths.map(PathBuf::from).into_iter().find(|path| path.exists())
}

fn broker(dir: &Path, port: u16, program: &Path) -> Child {
    let config = dir.join("mosquitto.conf");
    std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(config).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().unwrap()
}

/// The plant: publishes readings and hears predictions.
struct Plant {
    client: AsyncClient,
    poll: EventLoop,
}

impl Plant {
    /// Connects as soon as the broker is there, and listens to answers.
    async fn connect(port: u16) -> Self {
        let connected = async {
            loop {
                let mut options = MqttOptions::new("plant", "127.0.0.1", port);
                options.set_keep_alive(Duration::from_secs(30));
                let (client, mut poll) = AsyncClient::new(options, 16);
                client.try_subscribe("answers/#", QoS::AtLeastOnce).unwrap();
                loop {
                    match poll.poll().await {
                        Ok(Event::Incoming(Packet::SubAck(_))) => return Self { client, poll },
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.expect("a broker")
    }

    /// Publishes a reading again and again until an answer to this topic comes: a reading that nobody heard is gone.
    async fn ask(&mut self, topic: &str, reading: &Value) -> (String, Value) {
        let mut again = tokio::time::interval(Duration::from_millis(200));
        let answered = async {
            loop {
                tokio::select! {
                    _ = again.tick() => {
                        self.client.try_publish(topic, QoS::AtMostOnce, false, reading.to_string()).unwrap();
                    }
                    event = self.poll.poll() => if let Event::Incoming(Packet::Publish(answer)) = event.unwrap() {
                        let from = String::from_utf8(answer.topic.to_vec()).unwrap();
                        assert!(!from.contains("plant/8"), "nonsense was answered: {from}");
                        if from.ends_with(topic) {
                            return (from, serde_json::from_slice(&answer.payload).unwrap());
                        }
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer")
    }
}

#[tokio::test]
async fn readings_on_a_broker_are_answered_before_and_after_it_was_away() {
    let Some(program) = mosquitto() else {
        assert!(std::env::var_os("PLIMSOLL_REQUIRE_TOOLS").is_none(), "mosquitto is not installed");
        eprintln!("left out: mosquitto is not installed");
        return;
    };
    plimsoll_agent::tls::install_ring();
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    std::fs::create_dir_all(&bundle).unwrap();
    let mut manifest = testing::classifier_manifest(2, 3);
    manifest.inputs[0].features =
        ["flow", "temp"].map(|name| Feature::new(name, FeatureKind::Numeric)).into();
    let (_, digest) = testing::write_bundle(&bundle, &testing::classifier(2, 3, 1.0), manifest);
    let port = free_port();
    let settings = dir.path().join("agent.toml");
    let table = format!(
        "[mqtt]\nbroker = \"127.0.0.1:{port}\"\n[[mqtt.source]]\ntopic = \"plant/+/data\"\nmodel = \"meter\"\n\
         publish = \"answers/{{topic}}\"\nfields = {{ flow = \"$.sensors[0].value\" }}\n"
    );
    std::fs::write(&settings, table).unwrap();

    // The agent is there before the broker.
    let mut agent = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"))
        .args(["run", "--listen", "127.0.0.1:0", "--bundle"])
        .arg(&bundle)
        .arg("--config")
        .arg(&settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let url = format!("{}/v2/models/meter/infer", first.strip_prefix("serving on ").unwrap());

    let mut running = broker(dir.path(), port, &program);
    let mut plant = Plant::connect(port).await;
    let reading = json!({ "sensors": [{ "value": 1.5 }], "temp": -1 });
    let (topic, answer) = plant.ask("plant/7/data", &reading).await;
    assert_eq!(topic, "answers/plant/7/data");
    assert_eq!((answer["model"].as_str(), answer["version"].as_str()), (Some("meter"), Some("1.0.0")));
    assert!(answer["prediction_id"].as_str().unwrap().starts_with(&digest.short()), "{answer}");
    // The same as over HTTP.
    let row = json!({ "name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -1] });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let sent = client.post(&url).json(&json!({ "inputs": [row] })).send().await.unwrap();
    let over_http: Value = sent.json().await.unwrap();
    assert_eq!(answer["outputs"]["y"], over_http["outputs"][0]["data"]);

    // Nonsense gets no answer and does no harm.
    for nonsense in
        [json!("on fire"), json!({ "temp": 3 }), json!({ "sensors": [{ "value": {} }], "temp": 1 })]
    {
        plant.client.try_publish("plant/8/data", QoS::AtLeastOnce, false, nonsense.to_string()).unwrap();
    }
    let (topic, _) = plant.ask("plant/9/data", &reading).await;
    assert_eq!(topic, "answers/plant/9/data");

    // The broker dies and comes back.
    running.kill().await.unwrap();
    let _running = broker(dir.path(), port, &program);
    let mut plant = Plant::connect(port).await;
    assert_eq!(plant.ask("plant/7/data", &reading).await.1["outputs"], answer["outputs"]);
}
