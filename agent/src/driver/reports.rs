//! What the server is told: reports through the outbox, state and health directly.

use std::collections::BTreeMap;

use plimsoll_agent_core::Report;
use plimsoll_protocol::wire::v1::{
    Birth, DriftReport, Event, Health, MAX_REPORT_BYTES, RunningModel, Severity, State, Topic, Up,
};
use plimsoll_protocol::{DeviceIdentity, Digest, ModelName};
use serde::Serialize;

use super::Driver;
use crate::fetch::FetchError;
use crate::mqtt::batch::{self, BATCH_BYTES, BATCH_FROM, BATCH_REPORTS};
use crate::mqtt::{Outgoing, RESEND_MS, WINDOW};
use crate::outbox::{NewReport, Waiting};

/// Longest text of an event, bytes: with the rest of an event and its envelope it stays far under 3 KiB.
const MAX_TEXT: usize = 600;
/// The same event again within this time is counted, not reported: a broken broker or a full disk would otherwise
/// fill the outbox with one sentence.
const REPEAT_MS: u64 = 60_000;
/// Kinds of events remembered for that.
const MAX_REMEMBERED: usize = 64;

/// What was reported lately.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// When an event of this code about this bundle was last reported, and how often it came since.
    lately: BTreeMap<(String, Option<Digest>), (u64, u64)>,
    /// The outbox has something that may be publishable.
    waiting: bool,
    /// Reported in this turn of the loop.
    unwritten: Vec<NewReport>,
    /// How often a new outbox was told of.
    recreated_told: u64,
}

impl Driver {
    /// One report of the core.
    pub(super) fn report(&mut self, report: Report) {
        match report {
            Report::Job(job) => {
                tracing::info!(
                    job.model = %job.model, job.version = %job.version, job.phase = ?job.phase,
                    job.reason = job.reason.as_deref().unwrap_or_default(), "update"
                );
                self.push(Up::Job, job);
            }
            Report::Event(event) => {
                log(&event);
                self.push(Up::Event, event);
            }
            Report::Shadow(shadow) => {
                tracing::info!(
                    shadow.model = %shadow.model, shadow.version = %shadow.version, shadow.end = ?shadow.end,
                    shadow.rows = shadow.totals.rows, shadow.differ = shadow.totals.differ,
                    shadow.reason = shadow.reason.as_deref().unwrap_or_default(), "shadow"
                );
                self.push(Up::Shadow, shadow);
            }
        }
    }

    /// An event of the shell, at most once a minute for the same code and bundle.
    pub(super) fn report_event(
        &mut self,
        severity: Severity,
        code: &str,
        mut text: String,
        model: Option<&ModelName>,
        digest: Option<Digest>,
    ) {
        let now = self.clock.mono_ms();
        let lately = &mut self.reports.lately;
        lately.retain(|_, (at, _)| now.saturating_sub(*at) < REPEAT_MS * 10);
        let key = (code.to_owned(), digest);
        if let Some((at, again)) = lately.get_mut(&key) {
            if now.saturating_sub(*at) < REPEAT_MS {
                *again += 1;
                return;
            }
            if *again > 0 {
                text.push_str(&format!(" ({again} more of this kind since the last report)"));
            }
        } else if lately.len() >= MAX_REMEMBERED {
            lately.pop_first();
        }
        lately.insert(key, (now, 0));
        let event = Event { severity, code: code.to_owned(), text: cut(text), model: model.cloned(), digest };
        self.report(Report::Event(event));
    }

    /// A fetch that was refused, or that failed in a way that is worth telling: an outage of the network is not, the
    /// job's own report says so.
    pub(super) fn report_refusal(&mut self, refusal: &FetchError, model: &ModelName, digest: Digest) {
        let severity = match refusal.code {
            "fetch.network" | "fetch.unavailable" | "trust.incomplete" => {
                tracing::warn!(fetch.code = refusal.code, fetch.error = refusal.text, "fetch failed");
                return;
            }
            "fetch.disk" | "fetch.range" => Severity::Warning,
            _ => Severity::Alarm,
        };
        self.report_event(severity, refusal.code, refusal.text.clone(), Some(model), Some(digest));
    }

    /// A part of a closed measurement window.
    pub(super) fn report_window(&mut self, report: DriftReport) {
        self.windows.closed(report.digest, report.index);
        // The last window of a version that was just replaced is the server's to count; nobody acts on it here.
        if self.core.running().iter().any(|r| r.model == report.model && r.digest == report.digest) {
            for event in self.drifts.take(&report, &self.slots.dir(report.digest)) {
                self.report(Report::Event(event));
            }
        }
        self.push(Up::Drift, report);
    }

    fn push<T: Serialize>(&mut self, kind: Up, body: T) {
        let seq = self.outbox.next_seq();
        self.reports.unwritten.push(NewReport { kind, seq, json: self.stamp.json(seq, body) });
    }

    /// Makes what one turn of the loop reported durable, in one commit.
    fn store_reports(&mut self) {
        let unwritten = std::mem::take(&mut self.reports.unwritten);
        if unwritten.is_empty() {
            return;
        }
        // One that does not fit the protocol must not take the others with it.
        let (fit, oversized): (Vec<_>, Vec<_>) =
            unwritten.into_iter().partition(|r| r.json.len() <= MAX_REPORT_BYTES);
        for report in oversized {
            tracing::error!(
                report.kind = report.kind.as_str(),
                report.bytes = report.json.len(),
                "a report is too big"
            );
        }
        if let Err(error) = self.outbox.push(&fit) {
            // Told to the log only: a report about a report that could not be stored would not be stored either.
            tracing::error!(error = crate::causes(&error), report.count = fit.len(), "reports are lost");
        }
        self.reports.waiting = true;
        if self.outbox.recreated() > self.reports.recreated_told {
            self.reports.recreated_told = self.outbox.recreated();
            let text = "the outbox could not be read, was set aside as outbox.broken and made anew; reports that \
                        waited in it are not sent";
            self.report_event(Severity::Warning, "outbox.recreated", text.to_owned(), None, None);
        }
    }

    /// Something may be publishable: a connection, an acknowledgement, a lost message.
    pub(super) fn look_at_outbox(&mut self) {
        self.reports.waiting = true;
    }

    /// When the outbox is worth another look although nothing happened.
    pub(super) fn next_publish_ms(&self) -> Option<u64> {
        self.link.as_ref()?;
        self.outflow.next_resend_ms()
    }

    /// Ends a turn of the loop: what was reported becomes durable, then goes to the link as far as it may be in flight.
    pub(super) fn publish_waiting(&mut self) {
        self.store_reports();
        let now = self.clock.mono_ms();
        let resend = self.outflow.next_resend_ms().is_some_and(|at| at <= now);
        let (Some(link), Some(identity)) = (&self.link, &self.identity) else { return };
        if !std::mem::take(&mut self.reports.waiting) && !resend {
            return;
        }
        let head = match self.outbox.pending(BATCH_REPORTS, BATCH_BYTES) {
            Ok(head) => head,
            Err(error) => {
                tracing::error!(error = crate::causes(&error), "the outbox cannot be read");
                return;
            }
        };
        let due = |report: &Waiting| self.outflow.is_due(report.id(), now);
        let gathered: Vec<Waiting> = head.iter().filter(|r| due(r)).cloned().collect();
        let who = &identity.who;
        if gathered.len() >= BATCH_FROM && self.outflow.may_batch(now) {
            let sent =
                batch::encode(&gathered).is_ok_and(|zlib| link.publish(upward(who, Up::Batch, zlib)).is_ok());
            if sent {
                let again = |report: &Waiting| usize::from(self.outflow.sent_in_batch(report.id(), now));
                log_again(gathered.iter().map(again).sum());
            } else {
                self.reports.waiting = true;
            }
            return;
        }
        let alone: Vec<Waiting> = head.into_iter().take(WINDOW).filter(due).collect();
        let mut again = 0;
        for report in alone {
            let id = report.id();
            if link.publish(upward(who, report.kind, report.json)).is_err() {
                self.reports.waiting = true;
                break;
            }
            again += usize::from(self.outflow.sent(id, now));
        }
        log_again(again);
    }

    /// The first message of a connection, and said again when what runs has changed: the retained state is what a
    /// dashboard that joins later sees. Without a link it waits for the next one.
    pub(super) fn publish_birth(&mut self) {
        let models = self.core.running();
        let machine = self.sampler.machine();
        let birth = Birth {
            boot: self.stamp.boot,
            conn: self.conn,
            agent_version: crate::version(),
            arch: crate::arch().to_owned(),
            os: machine.os,
            ram_bytes: machine.ram_bytes,
            generation: self.core.generation(),
            models: models.clone(),
            labels: self.settings.labels.clone(),
        };
        if self.publish_state(State::Online(Box::new(birth))) {
            self.told = models;
        }
    }

    /// The last message; `false` when there is nobody to say it to.
    pub(super) fn say_goodbye(&self) -> bool {
        let Some(link) = &self.link else { return false };
        self.publish_state(State::Offline { boot: self.stamp.boot, conn: self.conn })
            && link.disconnect().is_ok()
    }

    fn publish_state(&self, state: State) -> bool {
        self.publish(Up::State, self.stamp.json(0, state), true, None)
    }

    /// Health now; latest wins, so it is not kept when nobody listens.
    pub(super) fn publish_health(&mut self) {
        let sample = self.sampler.sample(&self.settings.state_dir);
        let running = self.core.running();
        let is_active = |digest| running.iter().any(|r: &RunningModel| r.digest == digest);
        let health = Health {
            uptime_s: self.clock.mono_ms() / 1000,
            cpu: sample.cpu,
            ram_used_bytes: sample.ram_used_bytes,
            agent_rss_bytes: sample.own_rss_bytes + self.child_rss,
            disk_free_bytes: sample.disk_free_bytes,
            temperature_c: sample.temperature_c,
            outbox_entries: self.outbox.len(),
            outbox_dropped: self.outbox.dropped(),
            serve_restarts: self.serve_restarts,
            trust_expired: self.watch.expired(),
            models: self.stats.iter().filter(|m| is_active(m.digest)).cloned().collect(),
        };
        self.publish(
            Up::Health,
            self.stamp.json(0, health),
            false,
            Some(2 * self.settings.health_interval_s),
        );
    }

    pub(super) fn publish(&self, kind: Up, payload: Vec<u8>, retain: bool, expiry_s: Option<u32>) -> bool {
        let (Some(link), Some(identity)) = (&self.link, &self.identity) else { return false };
        let topic = Topic::Up(identity.who.clone(), kind);
        let assured = kind != Up::Health;
        let sent = link.publish(Outgoing { topic, payload, assured, retain, expiry_s });
        sent.inspect_err(|_| tracing::warn!(mqtt.kind = kind.as_str(), "the link is full; not published"))
            .is_ok()
    }
}

/// A message that is acknowledged and not retained.
fn upward(who: &DeviceIdentity, kind: Up, payload: Vec<u8>) -> Outgoing {
    let topic = Topic::Up(who.clone(), kind);
    Outgoing { topic, payload, assured: true, retain: false, expiry_s: None }
}

/// Says that reports had been sent before.
fn log_again(reports: usize) {
    if reports > 0 {
        tracing::warn!(report.count = reports, after_s = RESEND_MS / 1_000, "not acknowledged; sent again");
    }
}

fn log(event: &Event) {
    let (code, text) = (event.code.as_str(), event.text.as_str());
    match event.severity {
        Severity::Info => tracing::info!(event.code = code, "{text}"),
        Severity::Warning => tracing::warn!(event.code = code, "{text}"),
        Severity::Alarm => tracing::error!(event.code = code, "{text}"),
    }
}

/// At most [`MAX_TEXT`] bytes, cut at a character's edge.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(super::cut("short".into()), "short");
        assert_eq!(super::cut("é".repeat(400)).len(), 600);
        assert_eq!(super::cut(format!("x{}", "é".repeat(400))).len(), 599);
    }
}
