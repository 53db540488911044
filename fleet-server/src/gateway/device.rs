//! A connected device: says what it has to report, hears its own orders.

use std::net::SocketAddr;
use std::sync::Arc;

use plimsoll_protocol::DeviceIdentity;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep, timeout};

use super::access::{self, DeviceFilter};
use super::connection::{Admission, End, MAX_REFUSALS, cut};
use super::handler::{Inbound, Refused};
use super::ingest::{Ask, Outcome, Receipt, Submission};
use super::link::Link;
use super::packets::Refusal;
use super::registry::{Kick, Mail};
use super::session::{Connect, Delivery, INFLIGHT, Publish, Session, Subscribe, Will};
use super::throttle::Throttle;
use super::{DeviceCertificate, Shared};
use plimsoll_protocol::wire::v1::{Down, Topic, Up};

/// Unacknowledged messages after which a device is not read. Version 5 clients keep to [`INFLIGHT`]; those of
/// version 3.1.1 cannot be told and have windows of 20 (mosquitto, paho) to 100 (rumqttc).
const READ_AHEAD: usize = 5 * INFLIGHT as usize;

/// A device's side of its connection.
pub(super) struct Device {
    shared: Arc<Shared>,
    who: DeviceIdentity,
    peer: SocketAddr,
    seat: Seated,
    will: Option<Will>,
    /// What it hears, as it asked and whether acknowledged.
    filters: Vec<(String, DeviceFilter, bool)>,
    mailbox: mpsc::Receiver<Mail>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    tell: mpsc::UnboundedSender<Outcome>,
    /// Of the current read, not yet submitted.
    messages: Vec<Inbound>,
    ids: Vec<u16>,
    unacknowledged: usize,
    refusals: u32,
    throttle: Throttle,
    since: Instant,
}

/// Frees the seat however the connection ends.
struct Seated {
    shared: Arc<Shared>,
    who: DeviceIdentity,
    number: u64,
    graceful: bool,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.shared.counters.devices_now.less_one();
        let handler = self.shared.handler.as_ref();
        self.shared.registry.free_device(&self.who, self.number, self.graceful, handler);
    }
}

impl Device {
    /// Checks CONNECT against the certificate and seats the device.
    pub(super) fn admit(
        shared: &Arc<Shared>,
        certificate: DeviceCertificate,
        connect: &Connect,
        peer: SocketAddr,
    ) -> Admission<Self> {
        let who = certificate.identity().clone();
        let refuse = |refusal, what: String| (refusal, Refused { peer, identity: Some(who.clone()), what });
        if connect.client_id != who.to_string() {
            let what = format!("the device {who} tried to connect as client {:?}", cut(&connect.client_id));
            return Err(refuse(Refusal::ClientId, what));
        }
        if let Some(will) = &connect.will
            && !access::is_own_will(&will.topic, &who)
        {
            let what = format!("the device {who} tried to leave a will on {:?}", cut(&will.topic));
            return Err(refuse(Refusal::NotAuthorized, what));
        }
        let unknown = || {
            refuse(Refusal::NotAuthorized, format!("the device {who} tried to connect but is not allowed to"))
        };
        // Before, so that a revoked certificate cannot push the device's new connection off its seat.
        if !shared.handler.is_allowed(&certificate) {
            return Err(unknown());
        }
        let seat = shared.registry.seat_device(&who, peer, shared.handler.as_ref(), &shared.counters);
        shared.counters.devices_now.one();
        let seated =
            Seated { shared: shared.clone(), who: who.clone(), number: seat.number, graceful: false };
        // And after: who is revoked from here on is kicked.
        if !shared.handler.is_allowed(&certificate) {
            return Err(unknown());
        }
        let (tell, outcomes) = mpsc::unbounded_channel();
        let since = Instant::now();
        let device = Self {
            shared: shared.clone(),
            who,
            peer,
            seat: seated,
            will: connect.will.clone(),
            filters: Vec::new(),
            mailbox: seat.mailbox,
            outcomes,
            tell,
            messages: Vec::new(),
            ids: Vec::new(),
            unacknowledged: 0,
            refusals: 0,
            throttle: Throttle::new(shared.limits.rate, since.elapsed()),
            since,
        };
        Ok((device, seat.kick))
    }

    /// Takes a message if it is the device's to send.
    pub(super) fn publish(&mut self, session: &mut Session, publish: Publish) -> Result<(), End> {
        let Publish { topic, payload, retain, id } = publish;
        let Some(kind) = access::publish(&topic, &self.who) else {
            self.shared.counters.publishes_refused.one();
            self.refused(format!("the device {} tried to publish on {:?}", self.who, cut(&topic)))?;
            return refuse_publish(session, id);
        };
        let from = self.who.clone();
        self.messages.push(Inbound {
            from,
            kind,
            payload,
            acknowledged: id.is_some(),
            retain,
            is_will: false,
        });
        self.ids.extend(id);
        Ok(())
    }

    /// Hands the messages of a read to the ingest task. Waits while its queue is full: this device is then not
    /// read, and nobody else is held up.
    pub(super) async fn submit(&mut self, link: &mut Link) -> Result<(), End> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let (messages, ids) = (std::mem::take(&mut self.messages), std::mem::take(&mut self.ids));
        let count = messages.len();
        self.shared.counters.publishes.add(count);
        if ids.is_empty() {
            // QoS 0: the latest wins, and the next is never far.
            let submission = Submission { messages, receipt: None };
            if let Err(TrySendError::Full(_)) = self.shared.ingest.try_send(Ask::Commit(submission)) {
                self.shared.counters.unacknowledged_dropped.add(count);
            }
        } else {
            self.unacknowledged += ids.len();
            let receipt = Some(Receipt { ids, to: self.tell.clone() });
            let submission = self.shared.ingest.send(Ask::Commit(Submission { messages, receipt }));
            link.unless_kicked(submission).await?.map_err(|_| End::Kicked(Kick::ShuttingDown))?;
        }
        let wait = self.throttle.take(count, self.since.elapsed());
        if !wait.is_zero() {
            link.unless_kicked(sleep(wait)).await?;
        }
        Ok(())
    }

    /// Grants what is its to hear, and gives it what the store holds for it.
    pub(super) async fn subscribe(&mut self, link: &mut Link, wanted: Subscribe) -> Result<(), End> {
        let (mut granted, mut ask_store) = (Vec::new(), Vec::new());
        for want in wanted.filters {
            let Some(filter) = DeviceFilter::parse(&want.filter, &self.who) else {
                self.shared.counters.filters_refused.one();
                self.refused(format!(
                    "the device {} tried to subscribe to {:?}",
                    self.who,
                    cut(&want.filter)
                ))?;
                granted.push(None);
                continue;
            };
            granted.push(Some(want.acknowledged));
            if want.retained {
                ask_store.push(filter);
            }
            self.filters.retain(|(text, ..)| *text != want.filter);
            self.filters.push((want.filter, filter, want.acknowledged));
        }
        link.session.subscribed(wanted.id, &granted).map_err(End::Broken)?;
        if ask_store.is_empty() {
            return Ok(());
        }
        // What waits in the mailbox and is retained was stored before: the store's answer is as new or newer.
        let mut waiting = Vec::new();
        while let Ok(mail) = self.mailbox.try_recv() {
            waiting.extend(Some(mail).filter(|m| !m.retained));
        }
        let shared = self.shared.clone();
        let retained = link.unless_kicked(shared.handler.retained(&self.who)).await?;
        for (topic, payload) in retained {
            if ask_store.iter().any(|f| f.matches(&topic)) {
                self.deliver(&mut link.session, &Mail { topic, payload, retained: true }, true)?;
            }
        }
        for mail in waiting {
            self.deliver(&mut link.session, &mail, false)?;
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, filters: &[String]) {
        self.filters.retain(|(text, ..)| !filters.contains(text));
    }

    pub(super) fn reads(&self) -> bool {
        self.unacknowledged < READ_AHEAD
    }

    /// Waits for acknowledgements and, when there is room, mail. Cancel-safe: both are channels.
    pub(super) async fn serve_server(&mut self, session: &mut Session, room: bool) -> Result<(), End> {
        tokio::select! {
            Some(outcome) = self.outcomes.recv() => {
                self.acknowledge(session, outcome)?;
                while let Ok(outcome) = self.outcomes.try_recv() {
                    self.acknowledge(session, outcome)?;
                }
                Ok(())
            }
            Some(mail) = self.mailbox.recv(), if room => self.deliver(session, &mail, false),
            else => std::future::pending().await,
        }
    }

    /// Publishes the will if it is due, and frees the seat.
    pub(super) async fn leave(mut self, end: &End) {
        self.seat.graceful = matches!(end, End::Goodbye { with_will: false });
        // After a takeover the device is not offline, and when the server stops it is the server that leaves.
        let spared = self.seat.graceful || matches!(end, End::Kicked(Kick::TakenOver | Kick::ShuttingDown));
        let seated = self.shared.registry.is_seated(&self.who, self.seat.number);
        if let Some(Will { payload, retain, .. }) = self.will.take().filter(|_| !spared && seated) {
            self.shared.counters.wills.one();
            let from = self.who.clone();
            let (kind, acknowledged) = (Up::State, false);
            let will = Inbound { from, kind, payload, acknowledged, retain, is_will: true };
            let ask = Ask::Commit(Submission { messages: vec![will], receipt: None });
            if timeout(self.shared.limits.write_time, self.shared.ingest.send(ask)).await.is_err() {
                self.shared.counters.unacknowledged_dropped.one();
            }
        }
    }

    fn acknowledge(&mut self, session: &mut Session, outcome: Outcome) -> Result<(), End> {
        let Outcome::Committed(ids) = outcome else { return Err(End::CommitFailed) };
        self.unacknowledged = self.unacknowledged.saturating_sub(ids.len());
        ids.into_iter().try_for_each(|id| session.acknowledge(id, true)).map_err(End::Broken)
    }

    /// Writes mail if the device asked for its topic.
    fn deliver(&self, session: &mut Session, mail: &Mail, retain: bool) -> Result<(), End> {
        let mut heard = self.filters.iter().filter(|(_, f, _)| f.matches(&mail.topic)).peekable();
        if heard.peek().is_none() {
            return Ok(());
        }
        let acknowledged = heard.any(|(.., a)| *a) && !matches!(mail.topic, Topic::Down(_, Down::Ack));
        let topic = mail.topic.to_string();
        let message = Delivery {
            topic: &topic,
            payload: &mail.payload,
            acknowledged: acknowledged && session.has_room(),
            retain,
        };
        if session.deliver(&message).map_err(End::Broken)? {
            self.shared.counters.sent_to_devices.one();
        }
        Ok(())
    }

    fn refused(&mut self, what: String) -> Result<(), End> {
        let refused = Refused { peer: self.peer, identity: Some(self.who.clone()), what };
        self.shared.refused(refused);
        self.refusals += 1;
        if self.refusals >= MAX_REFUSALS { Err(End::NotAuthorized) } else { Ok(()) }
    }
}

/// Says no to a publish: by PUBACK in version 5, by the end of the connection in 3.1.1, which has no word for it.
pub(super) fn refuse_publish(session: &mut Session, id: Option<u16>) -> Result<(), End> {
    match id {
        _ if !session.is_v5() => Err(End::NotAuthorized),
        Some(id) => session.acknowledge(id, false).map_err(End::Broken),
        None => Ok(()),
    }
}
