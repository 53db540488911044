//! Looking at the signed metadata although nothing is ordered: a removal is to be noticed, the time floor to rise,
//! and expiry to be told before somebody needs an update.
//!
//! A look never touches what runs. It refreshes the metadata, asks of every version in a slot whether it is still
//! signed for, and ends in one value; the driver tells what changed.

use std::collections::BTreeSet;

use plimsoll_agent_core::{Core, Event};
use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{Digest, ModelName, UnixSeconds};
use tokio::sync::mpsc;

use super::Driver;
use crate::clock::random_u64;
use crate::control::TrustStatus;
use crate::fetch::{FetchError, HttpSource, Trust};

/// Between two looks. The timestamp lives a day, so a removal is known within a quarter of that; a look without news
/// is two requests of 1 kB, and 10,000 devices make one request a second.
const PERIOD_MS: u64 = 6 * 3600 * 1000;
/// Between two looks while the last one failed: the server signs freshness hours before it ends, so what is expired
/// is usually mended soon, and four requests an hour are nothing.
const RETRY_MS: u64 = 15 * 60 * 1000;
/// An order, or a connection after a failure, makes a look due so soon, spread over twice that: a stage of a rollout
/// is spread by its own jitter.
const SOON_MS: u64 = 500;

/// What is known about the metadata, and when it is looked at again.
#[derive(Debug)]
pub(super) struct Watch {
    send: mpsc::Sender<Look>,
    ended: mpsc::Receiver<Look>,
    next_ms: u64,
    under_way: bool,
    /// Something happened while a look was under way, which may have begun too early to see it.
    again: bool,
    /// When the last look that succeeded ended.
    fresh_ms: Option<u64>,
    root_version: Option<u64>,
    /// Why nothing can be installed, while that is so: told once, when it begins.
    alarm: Option<FetchError>,
}

/// The end of a look.
#[derive(Debug)]
pub(super) struct Look {
    issued: Option<UnixSeconds>,
    root_version: Option<u64>,
    /// Bundles in slots that nobody signs for any more.
    revoked: Result<BTreeSet<Digest>, FetchError>,
}

impl Watch {
    /// First due within the spread of the device's first contact.
    pub fn starting(spread_ms: u64, now_ms: u64) -> Self {
        let next_ms = now_ms + random_u64() % spread_ms.max(1);
        let (send, ended) = mpsc::channel(1);
        Self {
            send,
            ended,
            next_ms,
            under_way: false,
            again: false,
            fresh_ms: None,
            root_version: None,
            alarm: None,
        }
    }

    /// The end of the look under way; waits for ever while there is none.
    pub async fn end(&mut self) -> Option<Look> {
        self.ended.recv().await
    }

    /// When a look is due; never while one is under way.
    pub fn next_ms(&self) -> Option<u64> {
        (!self.under_way).then_some(self.next_ms)
    }

    /// Something happened that may be news.
    pub fn soon(&mut self, now_ms: u64) {
        self.again |= self.under_way;
        self.next_ms = self.next_ms.min(now_ms + around(SOON_MS));
    }

    /// Whether metadata that the device needs has expired.
    pub fn expired(&self) -> bool {
        self.alarm.as_ref().is_some_and(|a| a.code == "trust.expired")
    }

    /// Whether the last look failed, or none ended yet.
    pub fn is_stale(&self) -> bool {
        self.alarm.is_some() || self.fresh_ms.is_none()
    }

    /// Takes the end of a look; gives back what is news: the failure, or that an alarm is over.
    fn take(&mut self, now_ms: u64, failure: Option<&FetchError>) -> Option<News> {
        self.under_way = false;
        self.next_ms = now_ms + around(if failure.is_some() { RETRY_MS } else { PERIOD_MS });
        if std::mem::take(&mut self.again) {
            self.soon(now_ms);
        }
        match failure {
            None => {
                self.fresh_ms = Some(now_ms);
                self.alarm.take().map(|_| News::Over)
            }
            // The network's failures say nothing about the metadata.
            Some(failure) if failure.code.starts_with("fetch.") && failure.transient => None,
            Some(failure) => {
                let before = self.alarm.replace(failure.clone());
                (before.is_none_or(|b| b.code != failure.code)).then_some(News::Alarm)
            }
        }
    }
}

/// What a look changed.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Alarm,
    Over,
}

/// Half of it to one and a half.
fn around(ms: u64) -> u64 {
    ms / 2 + random_u64() % ms.max(1)
}

impl Driver {
    /// Starts a look, when one is due and there is somebody to ask.
    pub(super) fn look_at_trust(&mut self) {
        let now = self.clock.mono_ms();
        if self.watch.next_ms().is_none_or(|at| at > now) {
            return;
        }
        let Some(source) = self.source.clone() else {
            self.watch.next_ms = now + PERIOD_MS; // without an enrolment there is nobody
            return;
        };
        self.watch.under_way = true;
        let (trust, held, time) = (self.trust.clone(), held(&self.core), self.clock.trust_s());
        let ended = self.watch.send.clone();
        tokio::spawn(async move {
            let _ = ended.send(look(trust, source, held, time).await).await; // an error means that the agent stops
        });
    }

    /// The end of a look.
    pub(super) fn on_look(&mut self, look: Look) {
        if let Some(issued) = look.issued {
            self.raise_floor(issued);
        }
        self.watch.root_version = look.root_version.or(self.watch.root_version);
        let failure = look.revoked.as_ref().err();
        match self.watch.take(self.clock.mono_ms(), failure) {
            Some(News::Alarm) => {
                let (code, text) = failure.map_or(("", ""), |f| (f.code, f.text.as_str()));
                let text = format!(
                    "{text}; nothing is installed until that is mended, and what runs goes on running"
                );
                self.report_event(Severity::Alarm, code, text, None, None);
            }
            Some(News::Over) => {
                let text = "the signed metadata is fresh and complete again: versions can be installed";
                self.report_event(Severity::Info, "trust.fresh", text.to_owned(), None, None);
            }
            None => {}
        }
        match look.revoked {
            Ok(revoked) => self.feed(Event::Revoked(revoked)),
            Err(error) => {
                tracing::warn!(trust.code = error.code, trust.error = error.text, "metadata not refreshed")
            }
        }
    }

    /// What a person at the device is told.
    pub(super) fn trust_status(&self) -> TrustStatus {
        let revoked = &self.core.record().revoked;
        let revoked = held(&self.core).into_iter().filter(|(_, _, digest)| revoked.contains(digest));
        let now = self.clock.mono_ms();
        TrustStatus {
            root_version: self.watch.root_version,
            fresh_s_ago: self.watch.fresh_ms.map(|at| now.saturating_sub(at) / 1000),
            problem: self.watch.alarm.as_ref().map(|a| a.text.clone()),
            expired: self.watch.expired(),
            revoked: revoked.map(|(model, version, _)| format!("{model} {version}")).collect(),
            clock_believed: self.clock.is_believed(),
            time_s: self.clock.trust_s(),
            floor_s: self.clock.floor_s(),
        }
    }
}

/// Every version in a slot, or on its way from one.
fn held(core: &Core) -> Vec<(ModelName, semver::Version, Digest)> {
    let mut held = Vec::new();
    for (model, record) in &core.record().models {
        let installed = record.active.iter().chain(&record.previous);
        held.extend(installed.map(|i| (model.clone(), i.version.clone(), i.digest)));
        let order = record.order.as_ref().filter(|_| record.state.holds_slot()).map(|o| &o.wanted);
        held.extend(order.map(|w| (model.clone(), w.version.clone(), w.digest)));
    }
    held.sort();
    held.dedup();
    held
}

async fn look(
    trust: Trust,
    source: HttpSource,
    held: Vec<(ModelName, semver::Version, Digest)>,
    time: UnixSeconds,
) -> Look {
    let mut view = match trust.refresh(&source, time).await {
        Ok(view) => view,
        Err(error) => return Look { issued: None, root_version: None, revoked: Err(error) },
    };
    let (issued, root_version) = (view.issued(), Some(view.root_version()));
    let mut revoked = BTreeSet::new();
    for (model, version, digest) in held {
        match view.is_listed(&source, &model, &version, digest).await {
            Ok(true) => {}
            Ok(false) => {
                revoked.insert(digest);
            }
            Err(error) => return Look { issued, root_version, revoked: Err(error) },
        }
    }
    Look { issued, root_version, revoked: Ok(revoked) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_told_when_it_begins_and_when_it_ends_and_a_dead_network_is_none() {
        let mut watch = Watch::starting(0, 1_000);
        assert_eq!(watch.next_ms(), Some(1_000));
        let expired = FetchError::transient("trust.expired", "timestamp.json expired");
        let network = FetchError::transient("fetch.network", "no route");
        assert_eq!(watch.take(2_000, Some(&network)), None);
        assert!(watch.is_stale() && !watch.expired());
        assert_eq!(watch.take(3_000, Some(&expired)), Some(News::Alarm));
        assert_eq!(watch.take(4_000, Some(&expired)), None, "once");
        assert_eq!(watch.take(5_000, Some(&network)), None);
        assert!(watch.expired(), "a network that fails now does not make it fresh");
        let next = watch.next_ms().unwrap() - 5_000;
        assert!((RETRY_MS / 2..RETRY_MS * 3 / 2).contains(&next), "{next}");
        assert_eq!(watch.take(6_000, None), Some(News::Over));
        assert!(!watch.expired() && !watch.is_stale());
        let next = watch.next_ms().unwrap() - 6_000;
        assert!((PERIOD_MS / 2..PERIOD_MS * 3 / 2).contains(&next), "{next}");
        watch.soon(7_000);
        assert!(watch.next_ms().unwrap() <= 7_000 + SOON_MS * 2);
    }

    #[test]
    fn what_happens_during_a_look_is_looked_at_after_it() {
        let mut watch = Watch::starting(0, 0);
        watch.under_way = true;
        watch.soon(1_000);
        assert_eq!(watch.next_ms(), None, "one at a time");
        assert_eq!(watch.take(2_000, None), None);
        assert!(watch.next_ms().unwrap() <= 2_000 + SOON_MS * 2);
        watch.under_way = true;
        watch.take(3_000, None);
        assert!(watch.next_ms().unwrap() >= 3_000 + PERIOD_MS / 2, "once");
    }
}
