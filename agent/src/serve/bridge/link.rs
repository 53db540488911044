//! One connection to the broker after another, until told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll_protocol::Digest;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish, RetainForwardRule, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::sync::{Semaphore, watch};

use super::{Bridge, Source, matches, message};
use crate::mqtt::Backoff;
use crate::serve::hosted::lock;
use crate::serve::http::{Endpoint, told_to_stop};
use crate::serve::rows::Columns;

/// Readings that wait for the model at once: a quarter of a model's usual queue of 64, so that requests over HTTP
/// always find room beside them.
const IN_WORK: usize = 16;
/// Answers that wait for the broker; one for each reading in work, and room for a burst.
const QUEUE: usize = 64;
/// Publishes without an acknowledgement: the library's default of 65,535 slots takes 13.9 MB.
const IN_FLIGHT: u16 = 20;
/// A dead broker is noticed after one and a half of these.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A broker on this device or beside it answers in milliseconds.
const CONNECT_S: u64 = 5;
/// Largest message: a reading of 1,000 columns is 30 KB.
const MAX_MESSAGE: u32 = 1024 * 1024;
/// Trouble with readings is logged at most so often, with the count since the last time: a sensor that sends nonsense
/// ten times a second must not fill the journal.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Answers readings until told to stop. A broker that is away is asked again, with jitter.
pub async fn run(bridge: Bridge, endpoint: Arc<Endpoint>, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    let mut was_told = false;
    let shared = Arc::new(Shared {
        endpoint,
        room: Arc::new(Semaphore::new(IN_WORK)),
        trouble: std::sync::Mutex::default(),
        columns: std::sync::Mutex::default(),
    });
    loop {
        let began = Instant::now();
        let mut stood = false;
        let reason = tokio::select! {
            () = told_to_stop(&mut stop) => return,
            reason = one_connection(&bridge, &shared, &mut stood) => reason,
        };
        let lasted = if stood { u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX) } else { 0 };
        let retry_ms = backoff.ended(lasted, crate::clock::random_u64());
        // The beginning of an outage is worth a line, each attempt during it is not.
        was_told &= !stood;
        if was_told {
            tracing::debug!(broker = bridge.broker, reason, retry_ms, "the local broker is still away");
        } else {
            tracing::warn!(
                broker = bridge.broker,
                reason,
                retry_ms,
                "the local broker is away; readings are not answered"
            );
            was_told = true;
        }
        tokio::select! {
            () = told_to_stop(&mut stop) => return,
            () = tokio::time::sleep(Duration::from_millis(retry_ms)) => {}
        }
    }
}

/// What connections and answers share.
struct Shared {
    endpoint: Arc<Endpoint>,
    room: Arc<Semaphore>,
    trouble: std::sync::Mutex<Trouble>,
    /// Columns of the bundles that answered last: working them out for each reading would cost more than a small model.
    columns: std::sync::Mutex<Vec<(Digest, Arc<Columns>)>>,
}

#[derive(Default)]
struct Trouble {
    since: u64,
    told: Option<Instant>,
}

/// Polls one connection to its end and says why it ended.
async fn one_connection(bridge: &Bridge, shared: &Arc<Shared>, stood: &mut bool) -> String {
    let (client, mut poll) = match options(bridge) {
        Ok(options) => AsyncClient::new(options, QUEUE),
        Err(why) => return why,
    };
    loop {
        let event = match poll.poll().await {
            Ok(event) => event,
            Err(error) => return crate::causes(&error),
        };
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                *stood = true;
                tracing::info!(
                    broker = bridge.broker,
                    sources = bridge.sources.len(),
                    "connected to the local broker"
                );
                let filter = |source: &Source| Filter {
                    nolocal: true, // nothing of our own comes back
                    // What was retained was answered when it came; after a reconnect it would be answered again.
                    retain_forward_rule: RetainForwardRule::Never,
                    ..Filter::new(source.topic.clone(), QoS::AtLeastOnce)
                };
                if client.try_subscribe_many(bridge.sources.iter().map(filter)).is_err() {
                    return "the queue of a fresh connection is full".into();
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                for (source, code) in bridge.sources.iter().zip(ack.return_codes) {
                    if !matches!(code, SubscribeReasonCode::Success(_)) {
                        tracing::error!(
                            topic = source.topic,
                            ?code,
                            "the local broker refuses the subscription"
                        );
                    }
                }
            }
            Event::Incoming(Packet::Publish(reading)) => {
                let topic = String::from_utf8_lossy(&reading.topic).into_owned();
                for source in bridge.sources.iter().filter(|source| matches(&source.topic, &topic)) {
                    shared.take(source, &topic, &reading, &client);
                }
            }
            _ => {}
        }
    }
}

fn options(bridge: &Bridge) -> Result<MqttOptions, String> {
    let (host, port) = bridge.address()?;
    let host_name = || format!("plimsoll-{}", rustix::system::uname().nodename().to_string_lossy());
    let id = bridge.client_id.clone().unwrap_or_else(host_name);
    let mut options = MqttOptions::new(id, host, port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_start(true)
        .set_connection_timeout(CONNECT_S)
        .set_max_packet_size(Some(MAX_MESSAGE))
        .set_receive_maximum(Some(IN_FLIGHT))
        .set_outgoing_inflight_upper_limit(IN_FLIGHT);
    if let Some(username) = &bridge.username {
        let password = match &bridge.password_file {
            None => String::new(),
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|e| format!("cannot read password_file {}: {e}", file.display()))?;
                text.lines().next().unwrap_or_default().to_owned()
            }
        };
        options.set_credentials(username, password);
    }
    Ok(options)
}

impl Shared {
    /// Answers one reading beside the connection, if there is room.
    fn take(self: &Arc<Self>, source: &Source, topic: &str, reading: &Publish, client: &AsyncClient) {
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            return self.trouble(topic, "too many readings wait for their answer");
        };
        let (shared, source, client) = (self.clone(), source.clone(), client.clone());
        let (topic, payload) = (topic.to_owned(), reading.payload.clone());
        tokio::spawn(async move {
            if let Err(why) = shared.answer(&source, &topic, &payload, &client).await {
                shared.trouble(&topic, &why);
            }
            drop(room);
        });
    }

    async fn answer(
        &self,
        source: &Source,
        topic: &str,
        payload: &[u8],
        client: &AsyncClient,
    ) -> Result<(), String> {
        let hosted = self.endpoint.registry().active(source.model.as_str());
        let hosted = hosted.ok_or_else(|| format!("model {} is not served", source.model))?;
        let columns = self.columns(hosted.digest(), || Columns::of(hosted.manifest()))?;
        let inputs =
            message::cells(payload, &columns, &source.fields).and_then(|cells| columns.tensors(&[cells]));
        let inputs = inputs.inspect_err(|_| hosted.refused())?;
        let outputs = hosted.infer(inputs).await.map_err(|e| e.to_string())?;
        let id = self.endpoint.prediction_id(&hosted, &outputs);
        let answer = message::prediction(&hosted, &id, topic, &outputs)?;
        client
            .try_publish(source.answer_topic(topic), QoS::AtLeastOnce, false, answer)
            .map_err(|_| "the broker takes no more answers".into())
    }

    fn columns(
        &self,
        digest: Digest,
        make: impl FnOnce() -> Result<Columns, String>,
    ) -> Result<Arc<Columns>, String> {
        let mut known = lock(&self.columns);
        if let Some((_, columns)) = known.iter().find(|(of, _)| *of == digest) {
            return Ok(columns.clone());
        }
        let columns = Arc::new(make()?);
        // One for each source's model, and as many again during swaps.
        known.truncate(IN_WORK);
        known.insert(0, (digest, columns.clone()));
        Ok(columns)
    }

    fn trouble(&self, topic: &str, why: &str) {
        let mut trouble = lock(&self.trouble);
        trouble.since += 1;
        if trouble.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            tracing::warn!(topic, why, readings = trouble.since, "readings got no answer");
            *trouble = Trouble { since: 0, told: Some(Instant::now()) };
        }
    }
}
