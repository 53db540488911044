//! What the driver hears from the link, the serving child and the person at the device, as events of the core.

use plimsoll_agent_core::{Event, ModelEvent};
use plimsoll_protocol::wire::v1::{FleetConfig, ModelHealth, Severity};

use super::Driver;
use super::child::ChildEvent;
use crate::control::Answer as Reply;
use crate::mqtt::{self, Inbound, LinkEvent};
use crate::serve::control::{Answer, Order};

impl Driver {
    pub(super) fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { conn, link } => {
                tracing::info!(mqtt.conn = conn, "connected to the server");
                self.link = Some(link);
                self.conn = conn;
                self.connection = "connected".into();
                self.publish_birth();
                self.publish_health();
                if self.watch.is_stale() {
                    self.watch.soon(self.clock.mono_ms());
                }
                self.look_at_outbox();
                self.feed(Event::ServerHeard);
            }
            LinkEvent::Down { conn, reason, trouble, retry_ms } => {
                tracing::warn!(
                    mqtt.conn = conn,
                    mqtt.reason = reason,
                    mqtt.retry_ms = retry_ms,
                    "not connected"
                );
                self.link = None;
                self.outflow.connection_lost();
                self.on_trouble(trouble);
                self.connection =
                    format!("not connected: {reason}; next try in {} s", retry_ms.div_ceil(1000));
            }
            LinkEvent::SubscriptionRefused(why) => {
                let text = format!("the server refused the subscription to this device's own orders: {why}");
                self.connection = format!("connected, but {text}");
                self.report_event(Severity::Alarm, "mqtt.subscription_refused", text, None, None);
            }
            LinkEvent::Message { topic, payload } => self.on_message(&topic, &payload),
        }
    }

    fn on_message(&mut self, topic: &str, payload: &[u8]) {
        let Some(identity) = &self.identity else { return };
        match mqtt::parse(&identity.who, topic, payload) {
            Ok(Inbound::Desired(desired)) => {
                tracing::info!(
                    order.generation = desired.generation,
                    order.models = desired.models.len(),
                    "order"
                );
                self.watch.soon(self.clock.mono_ms());
                self.feed(Event::Desired(desired));
            }
            Ok(Inbound::Ack(ack)) => {
                // Forgotten first: should that fail, the reports are sent again, and the server counts them once.
                if let Err(error) = self.outbox.forget(&ack) {
                    tracing::error!(error = crate::causes(&error), "acknowledged reports stay in the outbox");
                }
                self.outflow.acknowledged(&ack);
                self.look_at_outbox();
                self.feed(Event::ServerHeard);
            }
            Ok(Inbound::Command(command)) => {
                self.on_command(command);
                self.feed(Event::ServerHeard);
            }
            Ok(Inbound::Config(config)) => self.on_config(&config),
            Err(refused) => {
                self.messages_refused += 1;
                self.report_event(Severity::Warning, refused.code, refused.to_string(), None, None);
            }
        }
    }

    fn on_config(&mut self, config: &FleetConfig) {
        let now = self.clock.mono_ms();
        // Bounds of the settings file hold here too: a fleet-wide zero must not make every device spin.
        let seconds = |own: u32, fleet: Option<u32>| u64::from(fleet.unwrap_or(own).clamp(1, 7 * 24 * 3600));
        self.health.change(seconds(self.settings.health_interval_s, config.health_interval_s) * 1000, now);
        self.window.change(seconds(self.settings.window_s, config.window_s) * 1000, now);
        self.feed(Event::ServerHeard);
        if config.paused != self.core.record().paused {
            tracing::info!(fleet.paused = config.paused, "the fleet's pause changed");
            self.feed(Event::Paused(config.paused));
        }
    }

    pub(super) fn on_child(&mut self, event: ChildEvent) {
        match event {
            ChildEvent::Up { orders, addr } => {
                tracing::info!(serve.address = %addr, "inference endpoint is open");
                self.child = Some(orders);
                let models = self.core.running().into_iter().map(|running| running.model).collect();
                let _ = self.order(Order::Expect { models }); // its queue is empty
                self.inference = Some(addr);
                self.feed(Event::ServeStarted);
            }
            ChildEvent::Down { death, restart } => {
                let was_up = self.child.take().is_some();
                self.inference = None;
                self.stats.clear();
                self.child_rss = 0;
                self.serve_restarts += 1;
                let text = format!(
                    "the serving process is gone: {}; it starts again in {} ms",
                    death.reason,
                    restart.as_millis()
                );
                let (model, digest) = death.blamed.clone().unzip();
                self.report_event(Severity::Alarm, "serve.died", text, model.as_ref(), digest);
                if was_up {
                    self.feed(Event::ServeDied(death));
                }
            }
            ChildEvent::Said(answer) => self.on_answer(answer),
        }
    }

    fn on_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Loaded { model, digest, rss_bytes, load_ms } => {
                tracing::info!(
                    model.name = %model, model.digest = %digest.short(), serve.rss_bytes = rss_bytes,
                    serve.load_ms = load_ms, "model is loaded"
                );
                self.child_rss = rss_bytes;
                self.feed(Event::Of { model, digest, what: ModelEvent::Loaded });
            }
            Answer::LoadFailed { model, digest, reason } => {
                self.feed(Event::Of { model, digest, what: ModelEvent::LoadFailed { reason } });
            }
            Answer::Serving { model, digest } => {
                tracing::info!(model.name = %model, model.digest = %digest.short(), "model serves");
                self.feed(Event::Of { model, digest, what: ModelEvent::Serving });
            }
            Answer::Shadow { model, digest, totals } => {
                self.feed(Event::Of { model, digest, what: ModelEvent::ShadowSample { totals } });
            }
            Answer::ShadowRefused { model, digest, reason } => {
                self.feed(Event::Of { model, digest, what: ModelEvent::ShadowRefused { reason } });
            }
            Answer::Window(report) => self.report_window(*report),
            Answer::WindowsClosed { .. } | Answer::Unloaded { .. } => {
                let kept = self.core.record().slots();
                if let Err(error) = self.windows.save(|digest| kept.contains(digest)) {
                    tracing::warn!(error = crate::causes(&error), "the windows' counters are not durable");
                }
                let running = self.core.running();
                if let Err(error) = self.drifts.save(|model| running.iter().any(|r| r.model == *model)) {
                    tracing::warn!(error = crate::causes(&error), "what is known about drift is not durable");
                }
            }
            Answer::Stats { models, rss_bytes } => {
                self.child_rss = rss_bytes;
                self.judge_trials(&models);
                self.stats = models;
            }
            Answer::Fault { model: Some(model), digest: Some(digest), reason } => {
                self.feed(Event::Of { model, digest, what: ModelEvent::Fault { reason } });
            }
            Answer::Fault { reason, .. } => {
                self.report_event(Severity::Warning, "serve.fault", reason, None, None);
            }
            Answer::HoldAsked { id, for_s } => {
                let (done, text) = match self.not_now(for_s) {
                    Reply::Done { text } => (true, text),
                    Reply::Refused { text } => (false, text),
                    _ => (false, "the agent answered something else".to_owned()),
                };
                tracing::info!(hold.for_s = for_s, hold.done = done, "an application asks to hold updates");
                self.order(Order::HoldAnswered { id, done, text });
            }
            // The supervisor reads the first three; the fourth follows an order to stop.
            Answer::Listening { .. }
            | Answer::ListenFailed { .. }
            | Answer::Hangs { .. }
            | Answer::Drained => {}
        }
    }

    /// Counters decide about versions on trial only; those of proven ones are the fleet's business.
    fn judge_trials(&mut self, stats: &[ModelHealth]) {
        let on_trial: Vec<_> = self.core.running().into_iter().filter(|m| !m.trial_passed).collect();
        for running in on_trial {
            let Some(seen) = stats.iter().find(|s| s.model == running.model && s.digest == running.digest)
            else {
                continue;
            };
            let what = ModelEvent::TrialSample { requests: seen.requests, failed: seen.failed };
            self.feed(Event::Of { model: running.model, digest: running.digest, what });
        }
    }
}
