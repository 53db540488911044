//! The driver: one task owns all state of the agent.
//!
//! ```text
//!   link ──┐                     ┌─> persist (anchor) ─> effects ──> tasks ─┐
//!   child ─┤                     │                                          │
//!   work ──┼─> one event at a time ─> core decides ─> reports ─> outbox     │
//!   asks ──┤                     │                                          │
//!   time ──┘                     └──────────── events <────────────────────-┘
//! ```
//!
//! The driver never waits for anybody: the link, the serving child and the tasks are handed work by calls that
//! return at once, and a full queue is an answer. Everybody else may wait for the driver's mailboxes, so nobody can
//! wait in a circle.
//!
//! Local first: what ran before a restart is served before the network is looked at, and goes on being served
//! whatever the server, the clock or a new bundle does.

mod asks;
mod boot;
mod certificate;
pub mod child;
mod drift;
mod effects;
mod hear;
mod import;
mod reports;
mod selftest;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timer;
mod trust;
mod windows;
mod work;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_agent_core::{Core, Ctx, Event, Outcome, Refused};
use plimsoll_protocol::wire::v1::{ModelHealth, RunningModel, Severity};
use plimsoll_protocol::{Digest, ModelName};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::ballast::{Ballast, Change};
use crate::clock::{Clock, random_u64};
use crate::config::Settings;
use crate::control;
use crate::fetch::{HttpSource, Trust};
use crate::health::Sampler;
use crate::hours;
use crate::identity::Identity;
use crate::mqtt::{self, Link, LinkEvent, Outflow};
use crate::outbox::Outbox;
use crate::serve::control::Order;
use crate::slots::Slots;
use crate::stamp::Stamp;
use crate::tls;

pub use boot::BootError;
use boot::Keeper;
use child::ChildEvent;
use timer::Every;
use windows::Windows;
use work::Done;

/// Events of one kind that may wait for the driver: a fetch, a self-test and a swap for each of 8 models.
const MAILBOX: usize = 32;
/// Statistics of the child while a version is on trial or in shadow: a failing one is noticed within two seconds.
const STATS_ON_TRIAL_MS: u64 = 2_000;
/// Statistics otherwise; also the sign of life that [`child::SILENCE`] counts on, six times within it.
const STATS_MS: u64 = 10_000;
/// After an error of the anchor: when what was not decided is looked at again.
const PERSIST_RETRY_MS: u64 = 5_000;
/// How long a stop waits for the goodbye to leave; the will says the same if it does not.
const GOODBYE: Duration = Duration::from_secs(2);

/// All state of a running agent.
struct Driver {
    settings: Settings,
    /// This program, for its children.
    program: PathBuf,
    clock: Clock,
    stamp: Stamp,
    identity: Option<Identity>,
    certificate: certificate::Certificate,
    source: Option<HttpSource>,
    trust: Trust,
    watch: trust::Watch,
    imports: import::Imports,
    core: Core,
    keeper: Keeper,
    slots: Slots,
    outbox: Outbox,
    reports: reports::Reports,

    link: Option<Box<dyn Link>>,
    conn: u64,
    connection: String,
    /// What the retained state on the server says that runs; the birth is said again when it changes.
    told: Vec<RunningModel>,
    outflow: Outflow,
    messages_refused: u64,
    downloads: control::Downloads,

    child: Option<mpsc::Sender<Order>>,
    inference: Option<SocketAddr>,
    serve_restarts: u64,
    stats: Vec<ModelHealth>,
    child_rss: u64,
    windows: Windows,
    drifts: drift::Drifts,

    done: mpsc::Sender<Done>,
    tasks: BTreeMap<(ModelName, Digest), tokio::task::AbortHandle>,

    sampler: Sampler,
    ballast: Ballast,
    wake_ms: Option<u64>,
    health: Every,
    window: Every,
    statistics: Every,
    watchdog: Option<Every>,
    /// When a log filter that the server asked for ends.
    log_until: Option<u64>,
}

/// Reads the settings again, as at the start; an error in words.
pub type Reload = Box<dyn Fn() -> Result<Settings, String>>;

/// Runs the agent until it is told to stop. `reload` is called on SIGHUP.
pub async fn run(settings: Settings, reload: Reload) -> Result<(), BootError> {
    let (send_work, mut work) = mpsc::channel(MAILBOX);
    let (mut driver, first) = boot::boot(settings, work::own_program(), send_work)?;
    let (send_ask, mut asks) = mpsc::channel(MAILBOX);
    match control::listen(&driver.settings.state_dir) {
        Ok(socket) => drop(tokio::spawn(control::serve(socket, send_ask))),
        // On a disk that takes no writes there is nobody to ask, and a model to serve.
        Err(error) => driver.no_socket(&error),
    }
    let [mut terminate, mut interrupt, mut hangup] = signals()?;
    // The service is up: models load next, and a slow one must not look like a service that does not start.
    notify(&[NotifyState::Ready]);
    tracing::info!(agent.boot = driver.stamp.boot, agent.state = %driver.settings.state_dir.display(), "agent started");

    let _ = driver.settle(first); // the first decision is no answer to anybody
    driver.feed_rules();
    driver.look_at_disk();
    let (send_child, mut child) = mpsc::channel(MAILBOX);
    let supervisor = tokio::spawn(child::supervise(driver.spawn_serve(), send_child));
    let (send_link, mut link) = mpsc::channel(MAILBOX);
    driver.start_link(send_link);

    loop {
        let pause = driver.until_due();
        tokio::select! {
            Some(event) = link.recv() => driver.on_link(event),
            Some(event) = child.recv() => driver.on_child(event),
            Some(done) = work.recv() => driver.on_done(done),
            Some(end) = driver.imports.end() => driver.on_import(end),
            Some(look) = driver.watch.end() => driver.on_look(look),
            Some(news) = driver.certificate.news() => driver.on_certificate(news),
            Some(request) = asks.recv() => driver.on_ask(request),
            () = tokio::time::sleep(pause) => driver.on_time(),
            _ = hangup.recv() => {
                notify_reloading();
                match reload() {
                    Ok(new) => driver.reload(new),
                    Err(why) => driver.reload_failed(&why),
                }
                notify(&[NotifyState::Ready]);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        driver.publish_waiting();
    }
    stop(driver, link, child, supervisor).await;
    Ok(())
}

impl Driver {
    fn no_socket(&mut self, error: &std::io::Error) {
        let text = format!(
            "the control socket of the state folder cannot be opened, so `plimsoll-agent status` and others have \
             nobody to ask (a path of more than 107 bytes is too long): {error}"
        );
        self.report_event(Severity::Alarm, "control.unavailable", text, None, None);
    }
}

fn signals() -> Result<[tokio::signal::unix::Signal; 3], BootError> {
    let open = |kind| signal(kind).map_err(BootError::Signals);
    Ok([open(SignalKind::terminate())?, open(SignalKind::interrupt())?, open(SignalKind::hangup())?])
}

/// Tells systemd; a process that systemd did not start tells nobody.
/// systemd wants the time of the reload with it; without a monotonic clock any time will do.
fn notify_reloading() {
    let at = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
    notify(&[NotifyState::Reloading, at]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// Says goodbye, so that the server does not take a stop for a crash, and lets running requests finish.
async fn stop(
    driver: Driver,
    mut link: mpsc::Receiver<LinkEvent>,
    child: mpsc::Receiver<ChildEvent>,
    supervisor: tokio::task::JoinHandle<()>,
) {
    notify(&[NotifyState::Stopping]);
    tracing::info!("agent stops");
    if driver.say_goodbye() {
        let gone = async {
            while let Some(event) = link.recv().await {
                if matches!(event, LinkEvent::Down { .. }) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(GOODBYE, gone).await;
    }
    for task in driver.tasks.values() {
        task.abort();
    }
    drop(child); // the supervisor lets the child drain when its mailbox is gone
    let _ = tokio::time::timeout(child::DRAIN, supervisor).await;
}

impl Driver {
    /// Decides about one event, persists the decision, then does what follows from it.
    fn feed(&mut self, event: Event) {
        let ctx = self.ctx();
        let outcome = self.core.decide(event, &ctx);
        let _ = self.settle(outcome); // what was refused is logged
    }

    fn ctx(&mut self) -> Ctx {
        Ctx {
            now_ms: self.clock.now_ms(),
            mono_ms: self.clock.mono_ms(),
            seed: random_u64(),
            local: hours::local(&self.clock),
            ram_available_bytes: self.sampler.ram_available(),
        }
    }

    /// Persist, then act. Without a durable record nothing happens; the deadline of the state brings it back. Gives
    /// what was refused, or nothing when the decision could not be written.
    fn settle(&mut self, outcome: Outcome) -> Option<Vec<Refused>> {
        let Self { core, keeper, .. } = self;
        let after = match outcome.commit(core, |record| keeper.write(record)) {
            Ok(after) => after,
            Err(error) => {
                let text = format!(
                    "a decision could not be made durable ({}), so nothing was done; what runs goes on running",
                    crate::causes(&error)
                );
                self.report_event(Severity::Alarm, "anchor.failed", text, None, None);
                self.wake_ms = Some(self.clock.mono_ms() + PERSIST_RETRY_MS);
                return None;
            }
        };
        for refused in &after.refused {
            tracing::info!(refused = %refused, "event refused");
        }
        for report in after.reports {
            self.report(report);
        }
        for effect in after.effects {
            self.start(effect);
        }
        self.wake_ms = after.wake_mono_ms;
        let running = self.core.running();
        if running != self.told {
            self.publish_birth();
        }
        let is_watched = running.iter().any(|m| !m.trial_passed) || self.core.is_shadowing();
        let period = if is_watched { STATS_ON_TRIAL_MS } else { STATS_MS };
        self.statistics.change(period, self.clock.mono_ms());
        Some(after.refused)
    }

    /// Gives up the ballast when the disk is full, and with it everything that was fetched and is not needed now.
    fn look_at_disk(&mut self) {
        match self.ballast.look() {
            Ok(None) => {}
            Ok(Some(Change::Restored)) => tracing::info!("the ballast file is there"),
            Ok(Some(Change::GivenUp)) => {
                let wanted = self.core.in_flight();
                let freed = self.slots.discard_all_but(&wanted);
                let end = freed.err().map(|e| crate::causes(&e)).unwrap_or_default();
                let text = format!(
                    "the disk is full: the ballast of 2 MiB was given up and unfinished downloads were dropped; \
                     free some space{}{end}",
                    if end.is_empty() { "" } else { "; not everything could be dropped: " }
                );
                self.report_event(Severity::Alarm, "disk.full", text, None, None);
            }
            Err(error) => tracing::warn!(error = crate::causes(&error), "the ballast stays as it is"),
        }
    }

    /// How long nothing is due.
    fn until_due(&self) -> Duration {
        let timers =
            [Some(self.health.next_ms()), Some(self.window.next_ms()), Some(self.statistics.next_ms())];
        let others = [
            self.wake_ms,
            self.watchdog.map(|w| w.next_ms()),
            self.next_publish_ms(),
            self.watch.next_ms(),
            self.log_until,
        ];
        let next = timers.into_iter().chain(others).flatten().min().unwrap_or(u64::MAX);
        Duration::from_millis(next.saturating_sub(self.clock.mono_ms()))
    }

    /// Does whatever is due.
    fn on_time(&mut self) {
        let now = self.clock.mono_ms();
        if self.wake_ms.is_some_and(|at| at <= now) {
            self.wake_ms = None;
            self.feed(Event::Tick);
        }
        self.look_at_trust();
        self.end_log_filter();
        if self.health.due(now) {
            self.look_at_disk();
            self.publish_health();
        }
        if self.window.due(now) {
            self.order(Order::CloseWindows { now_ms: self.clock.now_ms() });
        }
        if self.statistics.due(now) {
            self.order(Order::Stats);
        }
        if self.watchdog.as_mut().is_some_and(|w| w.due(now)) {
            notify(&[NotifyState::Watchdog]);
        }
    }

    fn spawn_serve(&self) -> child::Spawn {
        child::Spawn {
            program: self.program.clone(),
            args: vec!["serve".into()],
            log: self.settings.log.clone(),
            configure: Order::Configure {
                listen: self.settings.listen,
                socket: self.settings.socket.clone(),
                bridge: self.settings.bridge.clone().map(Box::new),
                max_body: self.settings.max_body_bytes,
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            },
        }
    }

    /// Starts connecting, when there is somebody to connect to. The task ends with the driver's mailbox.
    fn start_link(&mut self, events: mpsc::Sender<LinkEvent>) {
        let Some(identity) = self.identity.clone() else {
            self.connection = "not enrolled: serving what is here".into();
            return;
        };
        let parts = identity.mqtt_address().map_err(|e| e.to_string());
        let parts = parts
            .and_then(|a| tls::mutual(&identity, &self.clock).map(|t| (a, t)).map_err(|e| e.to_string()));
        let ((host, port), config) = match parts {
            Ok(parts) => parts,
            Err(why) => {
                tracing::error!(why, "cannot connect to the server; serving what is here");
                self.connection = format!("cannot connect: {why}");
                return;
            }
        };
        let device_seed = certificate::device_seed(&identity);
        let tls = self.keep_certificate(identity.clone(), config);
        self.connection = "connecting".into();
        tokio::spawn(mqtt::run(
            mqtt::Broker {
                who: identity.who,
                host,
                port,
                tls,
                stamp: self.stamp.clone(),
                first_contact_spread_s: self.settings.first_contact_spread_s,
                device_seed,
            },
            events,
        ));
    }
}
