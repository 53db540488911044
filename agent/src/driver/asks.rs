//! What the running agent is asked: by the person at the device and its application over the socket, and by the
//! server in a command. Each is answered at once, with words.

use plimsoll_agent_core::{Event, Report, Rules};
use plimsoll_protocol::ModelName;
use plimsoll_protocol::wire::v1::{Command, CommandAnswer, CommandKind, Event as WireEvent, Severity, Up};

use super::Driver;
use crate::config::Settings;
use crate::control::{Answer as Reply, Ask, BlockedHere, Request, Status};
use crate::logging;
use crate::serve::control::Order;

/// Longest that the server may change a device's log filter for: a debug log of a week would wear out what the journal
/// is written to.
const MAX_LOG_S: u32 = 3_600;

impl Driver {
    pub(super) fn on_ask(&mut self, request: Request) {
        let reply = match request.ask {
            Ask::Status => Reply::Status(Box::new(self.status())),
            Ask::Rollback { model } => self.roll_back(model),
            Ask::Pause => self.pause_here(true, "a person at the device"),
            Ask::Resume => self.pause_here(false, "a person at the device"),
            Ask::NotNow { for_s } => self.not_now(for_s),
            Ask::Import { file } => return self.import(file, request.reply),
            Ask::Logs => Reply::Logs { lines: logging::recent() },
        };
        let _ = request.reply.send(reply); // an error means that the person left
    }

    /// Tells the core what the settings say about updates.
    pub(super) fn feed_rules(&mut self) {
        let rules = Rules {
            hours: self.settings.maintenance_hours.clone(),
            not_now_max_ms: u64::from(self.settings.not_now_max_s) * 1_000,
        };
        self.feed(Event::Rules(rules));
    }

    fn roll_back(&mut self, model: ModelName) -> Reply {
        let version = |driver: &Self| {
            let running = driver.core.running().into_iter().find(|r| r.model == model);
            running.map(|r| (r.version, r.digest))
        };
        let before = version(self);
        tracing::warn!(model.name = %model, "an operator on the device asks for the previous version");
        let ctx = self.ctx();
        let outcome = self.core.decide(Event::RollbackAsked { model: model.clone() }, &ctx);
        let refused = self.settle(outcome);
        match (before, version(self)) {
            (Some((from, old)), Some((to, new))) if old != new => {
                Reply::Done { text: format!("{model} goes back from {from} to {to}") }
            }
            (Some((from, _)), Some(_)) => {
                let why = refused.map_or_else(
                    || "the decision could not be written to the disk; see the log".to_owned(),
                    |all| all.into_iter().map(|r| r.why).collect::<Vec<_>>().join("; "),
                );
                Reply::Refused { text: format!("{model} stays on {from}: {why}") }
            }
            _ => Reply::Refused { text: format!("this device runs no model {model}") },
        }
    }

    /// Holds the updates of this device, or lets them go on. The fleet is told: a device that stays behind for a
    /// reason is not a device that fails.
    fn pause_here(&mut self, pause: bool, who: &str) -> Reply {
        if self.core.record().paused_here != pause {
            self.feed(Event::PausedHere(pause));
            if self.core.record().paused_here != pause {
                return Reply::Refused {
                    text: "the decision could not be written to the disk; see the log".into(),
                };
            }
            let (code, text) = if pause {
                (
                    "updates.paused",
                    format!("updates of this device were paused by {who}; what runs goes on running"),
                )
            } else {
                ("updates.resumed", format!("updates of this device were resumed by {who}"))
            };
            self.report_event(Severity::Warning, code, text, None, None);
        }
        let text = if pause {
            "updates of this device are paused, also after a restart; what runs goes on running; `plimsoll-agent \
             resume` ends it"
        } else {
            "updates of this device go on"
        };
        Reply::Done { text: text.into() }
    }

    /// From the application, over either socket: the operator's setting bounds it.
    pub(super) fn not_now(&mut self, for_s: u32) -> Reply {
        let most = self.settings.not_now_max_s;
        if most == 0 && for_s > 0 {
            return Reply::Refused {
                text: "the operator of this device does not let applications put updates off (setting \
                       not_now_max_s = 0)"
                    .into(),
            };
        }
        let for_s = for_s.min(most);
        self.feed(Event::NotNow { for_ms: u64::from(for_s) * 1_000 });
        let text = if for_s == 0 {
            "updates may take over at any time".to_owned()
        } else {
            format!(
                "no update takes over for {for_s} s; ask again to prolong it, up to {most} s for one update"
            )
        };
        Reply::Done { text }
    }

    /// Takes settings that were read again. What cannot change while the agent runs is named and stays.
    pub(super) fn reload(&mut self, new: Settings) {
        let fixed = self.settings.fixed(&new);
        let old = self.settings.clone();
        self.settings.adopt(new);
        let now = self.clock.mono_ms();
        if old.health_interval_s != self.settings.health_interval_s {
            self.health.change(u64::from(self.settings.health_interval_s) * 1000, now);
        }
        if old.window_s != self.settings.window_s {
            self.window.change(u64::from(self.settings.window_s) * 1000, now);
        }
        if old.log != self.settings.log {
            self.log_until = None;
            if let Err(error) = logging::set_filter(&self.settings.log) {
                tracing::warn!(%error, "the log filter stays");
            }
        }
        if old.bandwidth != self.settings.bandwidth {
            self.renew_source();
        }
        self.slots = self.slots.clone().limited(self.settings.limits());
        self.feed_rules();
        if old.labels != self.settings.labels {
            self.publish_birth();
        }
        if fixed.is_empty() {
            tracing::info!("the settings were read again");
        } else {
            let text = format!(
                "the settings were read again; these stay until the agent is restarted: {}",
                fixed.join(", ")
            );
            self.report_event(Severity::Warning, "settings.restart_needed", text, None, None);
        }
    }

    /// Settings that could not be read again: everything stays as it is.
    pub(super) fn reload_failed(&mut self, why: &str) {
        let text = format!("the settings could not be read again, so they stay as they are: {why}");
        self.report_event(Severity::Warning, "settings.refused", text, None, None);
    }

    /// A command of the server. Every one of them may come twice and does no more the second time.
    pub(super) fn on_command(&mut self, command: Command) {
        tracing::info!(command.id = command.id, command.kind = ?command.what, "command");
        let answer = match &command.what {
            CommandKind::Refresh => {
                self.watch.soon(self.clock.mono_ms());
                Ok("the signed metadata is looked at now".to_owned())
            }
            CommandKind::Report => {
                self.publish_birth();
                self.publish_health();
                self.order(Order::CloseWindows { now_ms: self.clock.now_ms() });
                Ok("state, health and the open measurement windows are reported".to_owned())
            }
            CommandKind::Log { filter, for_s } => self.log_for(filter, *for_s),
            CommandKind::Pause => words(self.pause_here(true, "an operator, from the server")),
            CommandKind::Resume => words(self.pause_here(false, "an operator, from the server")),
            CommandKind::Unknown => Err("this agent does not know the command: update the agent".to_owned()),
        };
        let (severity, code, ok) = match &answer {
            Ok(_) => (Severity::Info, "command.done", true),
            Err(_) => (Severity::Warning, "command.refused", false),
        };
        let answer = CommandAnswer { id: command.id, ok, text: answer.unwrap_or_else(|why| why) };
        // Through the outbox too: who asked finds it among the events, and no two commands are told as one.
        let text = super::reports::cut(format!("command {}: {}", answer.id, answer.text));
        self.report(Report::Event(WireEvent {
            severity,
            code: code.to_owned(),
            text,
            model: None,
            digest: None,
        }));
        self.publish(Up::Response, self.stamp.json(0, answer), false, None);
    }

    fn log_for(&mut self, filter: &str, for_s: u32) -> Result<String, String> {
        logging::set_filter(filter).map_err(|e| e.to_string())?;
        let for_s = for_s.clamp(1, MAX_LOG_S);
        self.log_until = Some(self.clock.mono_ms() + u64::from(for_s) * 1_000);
        Ok(format!("the log filter is {filter} for {for_s} s"))
    }

    /// Returns to the settings' log filter when the time of a command is over.
    pub(super) fn end_log_filter(&mut self) {
        if self.log_until.is_some_and(|at| at <= self.clock.mono_ms()) {
            self.log_until = None;
            if let Err(error) = logging::set_filter(&self.settings.log) {
                tracing::warn!(%error, "the log filter stays");
            }
        }
    }

    fn status(&self) -> Status {
        let running = self.core.running();
        Status {
            identity: self.identity.as_ref().map(|i| i.who.to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.stamp.boot,
            uptime_s: self.clock.mono_ms() / 1000,
            inference: self.inference.map(|a| format!("http://{a}")),
            connected: self.link.is_some(),
            connection: self.connection.clone(),
            generation: self.core.generation(),
            paused: self.core.record().paused,
            paused_here: self.core.record().paused_here,
            not_now_s: self.core.not_now_ms(self.clock.mono_ms()).div_ceil(1000),
            maintenance_hours: self.settings.maintenance_hours.to_string(),
            models: running.clone(),
            slots: running.iter().map(|r| (r.model.clone(), self.slots.dir(r.digest))).collect(),
            jobs: self.core.jobs(),
            blocked: self.blocked(),
            downloads: self.downloads,
            outbox_entries: self.outbox.len(),
            outbox_dropped: self.outbox.dropped(),
            serve_restarts: self.serve_restarts,
            messages_refused: self.messages_refused,
            drift: self
                .drifts
                .alarms(|model, digest| running.iter().any(|r| r.model == *model && r.digest == digest)),
            certificate: self.certificate_status(),
            trust: Some(self.trust_status()),
        }
    }
}

impl Driver {
    fn blocked(&self) -> Vec<BlockedHere> {
        let blocked = self.core.record().blocked.iter();
        blocked
            .map(|b| BlockedHere { model: b.model.clone(), digest: b.digest, reason: b.reason.clone() })
            .collect()
    }
}

fn words(reply: Reply) -> Result<String, String> {
    match reply {
        Reply::Done { text } => Ok(text),
        Reply::Refused { text } => Err(text),
        Reply::Status(_) | Reply::Logs { .. } => Err("the agent answered something else".into()),
    }
}
