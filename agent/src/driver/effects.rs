//! Starting what the core ordered. Everything here returns at once; what becomes of it comes back as an event.

use plimsoll_agent_core::{Effect, Event, Failure, ModelEvent};
use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{Digest, ModelName};

use super::work::{Done, FetchJob};
use super::{Driver, selftest, work};
use crate::engine;
use crate::serve::control::Order;
use crate::tls::{self, Trouble};

impl Driver {
    /// Starts one effect. The record that orders it is durable already.
    pub(super) fn start(&mut self, effect: Effect) {
        match effect {
            Effect::Fetch { model, version, digest } => self.fetch(model, version, digest),
            Effect::Cancel { model, digest } => {
                if let Some(task) = self.tasks.remove(&(model, digest)) {
                    task.abort();
                }
            }
            Effect::Discard { digest } => {
                if let Err(error) = self.slots.discard(digest) {
                    tracing::warn!(slot.digest = %digest, error = crate::causes(&error), "staging folder stays");
                }
            }
            Effect::Stage { model, digest } => {
                let slots = self.slots.clone();
                self.spawn(model, digest, async move { Done::plain(work::stage(slots, digest).await) });
            }
            Effect::SelfTest { model, digest } => {
                let (program, dir) = (self.program.clone(), self.slots.dir(digest));
                let engines = self.settings.engines.clone();
                self.spawn(model, digest, async move {
                    let what = match engine::external(&dir) {
                        Some(external) => engine::self_test(&engines, &external, &dir).await,
                        None => selftest::run(&program, &dir, selftest::LIMIT).await,
                    };
                    Done::plain(what)
                });
            }
            Effect::Load { model, version, digest } => {
                let dir = self.slots.dir(digest);
                let next_window = self.windows.next(digest);
                let order = Order::Load { model: model.clone(), version, digest, dir, next_window };
                if !self.order(order) && self.child.is_some() {
                    self.answer(
                        model,
                        digest,
                        ModelEvent::LoadFailed {
                            reason: "the serving process does not take orders (its queue is full)".into(),
                        },
                    );
                }
            }
            Effect::Serve { model, digest } => {
                self.order(Order::Serve { model, digest, now_ms: self.clock.now_ms() });
            }
            Effect::Shadow { model, digest, with, sample_percent, seed } => {
                self.order(Order::Shadow { model, digest, with, sample_percent, seed });
            }
            Effect::EndShadow { model, digest } => {
                self.order(Order::EndShadow { model, digest });
            }
            Effect::Unload { model, digest } => {
                self.order(Order::Unload { model, digest, now_ms: self.clock.now_ms() });
            }
            Effect::MarkProven { digest, generation } => {
                if let Err(error) = self.slots.mark_proven(digest, generation) {
                    // Only a lost anchor would miss it.
                    tracing::warn!(slot.digest = %digest, error = crate::causes(&error), "slot could not be marked");
                }
            }
            Effect::DeleteSlot { digest } => {
                if let Err(error) = self.slots.delete(digest) {
                    tracing::warn!(slot.digest = %digest, error = crate::causes(&error), "slot could not be deleted");
                }
            }
        }
    }

    /// Hands the serving child an order; `false` when there is no child or its queue is full.
    pub(super) fn order(&self, order: Order) -> bool {
        self.child.as_ref().is_some_and(|orders| match orders.try_send(order) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the serving process does not take orders");
                false
            }
        })
    }

    fn fetch(&mut self, model: ModelName, version: semver::Version, digest: Digest) {
        let Some(source) = self.source.clone() else {
            self.answer(
                model,
                digest,
                ModelEvent::FetchFailed {
                    failure: Failure::Transient,
                    reason: "this device has no usable enrolment: run `plimsoll-agent enroll`".into(),
                    retry_after_ms: None,
                },
            );
            return;
        };
        let job = FetchJob {
            source,
            trust: self.trust.clone(),
            slots: self.slots.clone(),
            model: model.clone(),
            version,
            digest,
            now: self.clock.trust_s(),
            ram_bytes: self.sampler.machine().ram_bytes,
            engines: self.settings.engines.keys().cloned().collect(),
        };
        self.spawn(model, digest, work::fetch(job));
    }

    /// Runs work beside the driver; its end is an event about this bundle. A second effect on a bundle replaces the
    /// first, which is how the core means it.
    fn spawn(&mut self, model: ModelName, digest: Digest, job: impl Future<Output = Done> + Send + 'static) {
        let (send, about) = (self.done.clone(), (model.clone(), digest));
        let task = tokio::spawn(async move {
            let done = Done { about: Some(about), ..job.await };
            let _ = send.send(done).await; // an error means that the agent stops
        });
        if let Some(old) = self.tasks.insert((model, digest), task.abort_handle()) {
            old.abort();
        }
    }

    /// An effect that ended before it began.
    fn answer(&mut self, model: ModelName, digest: Digest, what: ModelEvent) {
        let done = Done { about: Some((model, digest)), ..Done::plain(what) };
        let send = self.done.clone();
        tokio::spawn(async move {
            let _ = send.send(done).await; // an error means that the agent stops
        });
    }

    /// The end of work.
    pub(super) fn on_done(&mut self, done: Done) {
        let Some((model, digest)) = done.about else { return };
        self.tasks.remove(&(model.clone(), digest));
        if let Some(issued) = done.issued {
            self.raise_floor(issued);
        }
        if let Some(refusal) = &done.refusal {
            self.on_trouble((refusal.code == tls::SERVER_UNKNOWN).then_some(Trouble::ServerUnknown));
            self.report_refusal(refusal, &model, digest);
        }
        if let Some((came, downloads)) = done.came {
            self.downloads.add(downloads);
            self.report_event(Severity::Info, "bundle.fetched", came, Some(&model), Some(digest));
        }
        self.feed(Event::Of { model, digest, what: done.what });
    }

    /// Offline-signed metadata proves that a time has passed: from now on the clock is not believed below it.
    pub(super) fn raise_floor(&mut self, to_s: i64) {
        if self.clock.raise_floor(to_s) {
            let Self { core, keeper, .. } = self;
            if let Err(error) = keeper.write(core.record()) {
                tracing::warn!(error = crate::causes(&error), "the time floor is not durable yet");
            }
        }
    }
}
