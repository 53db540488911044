//! A device made of an MQTT client and a table of answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plimsoll_protocol::wire::v1::{
    Ack, Birth, Desired, DesiredModel, Down, Envelope, JobPhase, JobReport, State, Topic, Up,
};
use plimsoll_protocol::{DeviceIdentity, Digest, Incarnation};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::rig::{Enrolled, PATIENCE, Rig};

/// What it knows.
#[derive(Default)]
pub struct Memory {
    /// Every order, in the order in which they came.
    pub desired: Vec<Desired>,
    pub acks: Vec<Ack>,
    /// Digests that do not work here.
    pub bad: Vec<Digest>,
    /// Its subscriptions stand: an acknowledgement before would find nobody.
    subscribed: bool,
    running: Option<DesiredModel>,
    seq: u64,
    /// Connections so far.
    pub conn: u64,
}

pub struct Cam {
    who: DeviceIdentity,
    client: AsyncClient,
    memory: Arc<Mutex<Memory>>,
    changes: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for Cam {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cam {
    pub fn connect(rig: &Rig, device: &Enrolled, bad: &[Digest]) -> Self {
        let who = device.response.identity.clone();
        let port = rig.server.as_ref().unwrap().addresses().unwrap().mqtt.port();
        Self::connect_to(port, tls(device), who, bad)
    }

    /// Through the HTTPS port, asking for MQTT by ALPN: where a firewall passes nothing else.
    pub fn connect_by_alpn(rig: &Rig, device: &Enrolled) -> Self {
        let port = rig.server.as_ref().unwrap().addresses().unwrap().https.port();
        let mut config = Arc::unwrap_or_clone(tls(device));
        config.alpn_protocols = vec![b"mqtt".to_vec()];
        Self::connect_to(port, Arc::new(config), device.response.identity.clone(), &[])
    }

    fn connect_to(port: u16, config: Arc<rustls::ClientConfig>, who: DeviceIdentity, bad: &[Digest]) -> Self {
        let mut options = MqttOptions::new(who.to_string(), "127.0.0.1", port);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        options.set_outgoing_inflight_upper_limit(20);
        let (client, events) = AsyncClient::new(options, 100);
        let memory = Arc::new(Mutex::new(Memory { bad: bad.to_vec(), ..Memory::default() }));
        let (changed, changes) = watch::channel(0);
        let life = Life { who: who.clone(), client: client.clone(), memory: memory.clone(), changed };
        Self { who, client, memory, changes, task: tokio::spawn(life.run(events)) }
    }

    /// Waits until its memory shows something.
    pub async fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Memory) -> Option<T>) -> T {
        let wait = async {
            loop {
                self.changes.borrow_and_update();
                if let Some(found) = look(&self.memory.lock().unwrap()) {
                    return found;
                }
                self.changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not come"))
    }

    pub fn orders(&self) -> Vec<Desired> {
        self.memory.lock().unwrap().desired.clone()
    }

    pub async fn publish(&mut self, kind: Up, payload: impl Into<Vec<u8>>) {
        self.until("the subscription", |m| m.subscribed.then_some(())).await;
        let topic = Topic::Up(self.who.clone(), kind).to_string();
        self.client.publish(topic, QoS::AtLeastOnce, false, payload.into()).await.unwrap();
    }
}

pub fn envelope<T: Serialize>(seq: u64, body: T) -> Vec<u8> {
    let inc = Incarnation::from_bytes([7; 16]);
    serde_json::to_vec(&Envelope { v: 1, inc, boot: 1, seq, ts: 0, mono: 0, body }).unwrap()
}

struct Life {
    who: DeviceIdentity,
    client: AsyncClient,
    memory: Arc<Mutex<Memory>>,
    changed: watch::Sender<u64>,
}

impl Life {
    async fn run(self, mut events: EventLoop) {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => self.connected(),
                Ok(Event::Incoming(Packet::Publish(message))) => {
                    let topic = Topic::parse(std::str::from_utf8(&message.topic).unwrap()).unwrap();
                    match topic {
                        Topic::Down(_, Down::Desired) => {
                            self.ordered(serde_json::from_slice(&message.payload).unwrap());
                        }
                        Topic::Down(_, Down::Ack) => {
                            self.memory
                                .lock()
                                .unwrap()
                                .acks
                                .push(serde_json::from_slice(&message.payload).unwrap());
                        }
                        _ => {}
                    }
                    self.changed.send_modify(|n| *n += 1);
                }
                Ok(Event::Incoming(Packet::SubAck(_))) => {
                    self.memory.lock().unwrap().subscribed = true;
                    self.changed.send_modify(|n| *n += 1);
                }
                Ok(_) => {}
                // The server is gone: try again, as a device does.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn connected(&self) {
        for filter in Topic::subscriptions(&self.who) {
            self.client.try_subscribe(filter, QoS::AtLeastOnce).unwrap();
        }
        let conn = {
            let mut memory = self.memory.lock().unwrap();
            memory.conn += 1;
            memory.conn
        };
        let birth = Birth {
            boot: 1,
            conn,
            agent_version: semver::Version::new(0, 1, 0),
            arch: "x86_64".into(),
            os: "test".into(),
            ram_bytes: 1 << 30,
            generation: 0,
            models: vec![],
            labels: BTreeMap::from([("site".into(), "paris".into())]),
        };
        let state = envelope(0, State::Online(Box::new(birth)));
        let topic = Topic::Up(self.who.clone(), Up::State).to_string();
        self.client.try_publish(topic, QoS::AtLeastOnce, true, state).unwrap();
    }

    /// A good version is active at once, a bad one fails and the one before goes on.
    fn ordered(&self, desired: Desired) {
        for model in desired.models.clone() {
            let mut memory = self.memory.lock().unwrap();
            let failed = memory.bad.contains(&model.digest);
            if !failed {
                memory.running = Some(model.clone());
            }
            memory.seq += 1;
            let report = JobReport {
                generation: desired.generation,
                rollout: model.rollout.clone(),
                model: model.model.clone(),
                version: model.version.clone(),
                digest: model.digest,
                phase: if failed { JobPhase::Failed } else { JobPhase::Active },
                reason: failed.then(|| "golden sample 0 differs".to_owned()),
                running: memory.running.as_ref().map(|r| r.digest),
            };
            let (topic, bytes) = (Topic::Up(self.who.clone(), Up::Job), envelope(memory.seq, report));
            self.client.try_publish(topic.to_string(), QoS::AtLeastOnce, false, bytes).unwrap();
        }
        self.memory.lock().unwrap().desired.push(desired);
    }
}

fn tls(device: &Enrolled) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(device.response.ca_pem.as_bytes()).unwrap()).unwrap();
    let chain = CertificateDer::pem_slice_iter(device.response.certificate_pem.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(device.key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config)
}
