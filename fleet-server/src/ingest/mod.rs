//! From MQTT to the store: the gateway's [`Handler`].
//!
//! A batch is read, committed, and only then taken over into memory and acknowledged: the gateway sends the PUBACKs
//! when [`Handler::commit`] answers, and the ranges that were committed go out on `dn/ack`, which is what lets a
//! device forget a report. A message that cannot be read is counted, becomes an event and is acknowledged all the
//! same: sent again it would be as unreadable, and a device must not be stuck behind it for ever.

pub mod parse;
mod ranges;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use plimsoll_fleet_core::evidence::OutputWindow;
use plimsoll_protocol::wire::v1::{Ack, Down, DriftReport, FleetConfig, Severity, Topic};
use plimsoll_protocol::{DeviceId, DeviceIdentity, Digest, TenantId, UnixMillis};
use tokio::sync::mpsc;

use crate::app::App;
use crate::auth::device::admit;
use crate::gateway::{CommitError, DeviceCertificate, Handler, Inbound, Notice};
use crate::metrics::one;
use crate::store::{Change, Outcome, ReportBody, ReportWrite};
use crate::{clock, outputs};

use self::parse::{Parsed, Poison};
use self::ranges::Committed;

/// Least time between two events about unreadable messages of one device: a broken agent that sends ten a second
/// would otherwise push everything else out of the journal within hours.
const POISON_EVENT_EVERY_MS: UnixMillis = 60_000;

/// The server behind the gateway.
pub struct Ingest {
    app: Arc<App>,
    config: FleetConfig,
    notices: mpsc::UnboundedSender<Notice>,
    poison_seen: Mutex<BTreeMap<DeviceId, UnixMillis>>,
}

impl Ingest {
    /// Over the shared state. `config` is offered to every device that subscribes.
    pub fn new(app: Arc<App>, config: FleetConfig) -> Arc<Self> {
        // Unbounded, because the gateway must not wait here and a notice must not be lost; a connection makes two
        // notices, and the gateway bounds connections and their rate.
        let (notices, queue) = mpsc::unbounded_channel();
        tokio::spawn(presence(Arc::clone(&app), queue));
        Arc::new(Self { app, config, notices, poison_seen: Mutex::default() })
    }

    async fn commit_batch(&self, batch: Arc<[Inbound]>) -> Result<(), CommitError> {
        let now = clock::now_ms();
        let Parsed { reports, health, poison } = parse::batch(&batch, now);
        let mut windows = Vec::with_capacity(reports.len());
        for report in &reports {
            windows.push(self.window_of(&report.body, now).await);
        }
        let mut drifts: Vec<_> = reports.iter().enumerate().filter_map(drift_of).collect();
        let numbers: Vec<_> = reports.iter().map(|r| (r.device.clone(), r.inc, r.boot, r.seq)).collect();
        let outcomes = if reports.is_empty() {
            Vec::new()
        } else {
            self.app.store.commit_reports(reports).await.map_err(|e| CommitError(chain(&e)))?
        };
        drifts.retain(|(at, ..)| matches!(outcomes.get(*at), Some(Outcome::Fresh(_))));
        let mut committed = Committed::default();
        let mut news = false;
        for (((device, inc, boot, seq), outcome), window) in numbers.into_iter().zip(outcomes).zip(windows) {
            committed.add(&device, inc, boot, seq);
            if let (Outcome::Fresh(_), Some((digest, window))) = (&outcome, window) {
                outputs::keep(&self.app, &device, digest, window);
                news = true;
            }
            news |= self.take_over(&device, outcome, now);
        }
        for (_, device, report) in drifts {
            news |= outputs::keep_labels(&self.app, &device, &report, now);
            self.app.drift.heard(&self.app, &device, &report).await;
        }
        for (device, report) in health {
            self.app.fleet.update(&device, |d| {
                d.health = Some(report);
                d.last_seen_ms = Some(now);
            });
        }
        for poison in poison {
            self.set_aside(poison, now).await;
        }
        self.acknowledge(committed, now);
        if news {
            self.app.changed();
        } else {
            self.app.changes.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    /// What the gate on outputs keeps of a report.
    async fn window_of(&self, body: &ReportBody, now: UnixMillis) -> Option<(Digest, OutputWindow)> {
        let ReportBody::Drift(report) = body else { return None };
        Some((report.digest, outputs::reduce(&self.app, report, now).await?))
    }

    /// Memory follows the store. Answers whether the planner should look.
    fn take_over(&self, device: &DeviceId, outcome: Outcome, now: UnixMillis) -> bool {
        let metrics = &self.app.metrics;
        let change = match outcome {
            Outcome::Duplicate => {
                one(&metrics.reports_duplicate);
                return false;
            }
            Outcome::Fresh(change) => {
                one(&metrics.reports_fresh);
                change
            }
        };
        self.app.fleet.update(device, |d| d.last_seen_ms = Some(now));
        match change {
            Change::State(state) => self.app.fleet.update(device, |d| d.state = Some(*state)),
            Change::Job(job) => self.app.fleet.update(device, |d| {
                d.jobs.insert((job.report.model.clone(), job.report.digest), *job);
            }),
            Change::Shadow(shadow) => self.app.fleet.update(device, |d| {
                d.shadows.insert((shadow.report.model.clone(), shadow.report.candidate), *shadow);
            }),
            Change::Event(_) | Change::Nothing => return false,
        }
        true
    }

    async fn set_aside(&self, poison: Poison, now: UnixMillis) {
        one(&self.app.metrics.reports_malformed);
        tracing::warn!(device = %poison.from.device, topic = %poison.topic, why = %poison.why, "message set aside");
        let due = {
            let mut seen = self.poison_seen.lock().unwrap_or_else(PoisonError::into_inner);
            let last = seen.insert(poison.from.device.clone(), now);
            let due = last.is_none_or(|last| now - last >= POISON_EVENT_EVERY_MS);
            if let (false, Some(last)) = (due, last) {
                seen.insert(poison.from.device.clone(), last);
            }
            due
        };
        if due {
            let text =
                format!("message on {} set aside: {}; it began {:?}", poison.topic, poison.why, poison.head);
            self.app.event(Some(poison.from.device), Severity::Warning, "report.malformed", text).await;
        }
    }

    fn acknowledge(&self, committed: Committed, now: UnixMillis) {
        let Some(gateway) = self.app.gateway() else { return };
        for (device, inc, ranges) in committed.into_ranges() {
            let ack = Ack { inc, ranges, server_ms: now };
            let Ok(payload) = serde_json::to_vec(&ack) else { continue };
            // Lost acknowledgements are repeated when the device sends the reports again.
            let sent = gateway.send(&self.app.identity(&device), Down::Ack, Bytes::from(payload), false);
            if let Err(error) = sent {
                tracing::debug!(%device, %error, "acknowledgement not sent");
            }
        }
    }
}

impl Handler for Ingest {
    fn commit(&self, batch: Arc<[Inbound]>) -> BoxFuture<'_, Result<(), CommitError>> {
        Box::pin(self.commit_batch(batch))
    }

    fn retained<'a>(&'a self, who: &'a DeviceIdentity) -> BoxFuture<'a, Vec<(Topic, Bytes)>> {
        let mut found = Vec::new();
        if let Ok(config) = serde_json::to_vec(&self.config) {
            found.push((Topic::AllConfig(who.tenant.clone()), Bytes::from(config)));
        }
        if let Some(desired) = self.app.fleet.device(&who.device).and_then(|d| d.desired)
            && let Ok(desired) = serde_json::to_vec(&desired)
        {
            found.push((Topic::Down(who.clone(), Down::Desired), Bytes::from(desired)));
        }
        Box::pin(std::future::ready(found))
    }

    fn retained_states(&self) -> BoxFuture<'_, Vec<(DeviceIdentity, Bytes)>> {
        let states = self.app.fleet.read(|devices| {
            let known = devices.values().filter_map(|d| Some((&d.record.device, d.state.as_ref()?)));
            known.map(|(id, s)| (self.app.identity(id), Bytes::from(s.payload.clone()))).collect()
        });
        Box::pin(std::future::ready(states))
    }

    fn is_allowed(&self, certificate: &DeviceCertificate) -> bool {
        admit(&self.app.fleet, &self.app.tenant, certificate, clock::now_ms()).is_ok()
    }

    fn watcher(&self, token: &str) -> Option<TenantId> {
        // Every role reads.
        self.app.auth.check(token, clock::now_ms()).map(|_| self.app.tenant.clone())
    }

    fn notice(&self, notice: Notice) {
        // Fails only when the server is stopping and nobody looks any more.
        let _ = self.notices.send(notice);
    }
}

/// A window, with its place among the reports of a batch.
fn drift_of((at, report): (usize, &ReportWrite)) -> Option<(usize, DeviceId, DriftReport)> {
    let ReportBody::Drift(drift) = &report.body else { return None };
    Some((at, report.device.clone(), (**drift).clone()))
}

/// Who is connected, and what was refused.
async fn presence(app: Arc<App>, mut queue: mpsc::UnboundedReceiver<Notice>) {
    while let Some(notice) = queue.recv().await {
        match notice {
            Notice::Connected { identity, peer } => {
                tracing::info!(device = %identity.device, peer.address = %peer, "device connected");
                app.fleet.update(&identity.device, |d| {
                    d.connected = true;
                    d.last_seen_ms = Some(clock::now_ms());
                });
                app.changed();
            }
            Notice::Disconnected { identity, graceful } => {
                tracing::info!(device = %identity.device, graceful, "device disconnected");
                app.fleet.update(&identity.device, |d| d.connected = false);
                app.changed();
            }
            Notice::Refused(refused) => {
                let device = refused.identity.map(|i| i.device);
                let text = format!("{} from {}", refused.what, refused.peer);
                app.event(device, Severity::Alarm, "access.refused", text).await;
            }
        }
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
