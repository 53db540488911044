//! From a state folder to a driver: open what survived, decide what to do first.

use std::path::{Path, PathBuf};

use plimsoll_agent_core::{Core, Ctx, Outcome, Persistent};
use plimsoll_protocol::Incarnation;
use plimsoll_protocol::wire::v1::Severity;
use tokio::sync::mpsc;

use super::certificate::Certificate;
use super::drift::Drifts;
use super::import::Imports;
use super::reports::Reports;
use super::timer::Every;
use super::trust::Watch;
use super::windows::Windows;
use super::work::Done;
use super::{Driver, STATS_MS};
use crate::anchor::{Anchor, AnchorError, AnchorState, Found};
use crate::ballast::Ballast;
use crate::clock::{Clock, random_u64};
use crate::config::Settings;
use crate::fetch::{HttpSource, Trust};
use crate::files::{self, FileError};
use crate::health::Sampler;
use crate::hours;
use crate::identity::{Identity, IdentityError};
use crate::mqtt::Outflow;
use crate::outbox::{Outbox, OutboxError};
use crate::slots::{Check, SlotError, Slots};
use crate::stamp::Stamp;
use crate::tls;

/// An agent that could not start. Every other trouble is reported by an agent that runs.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Never enrolled and nothing to serve.
    #[error(transparent)]
    NotEnrolled(IdentityError),
    /// The state folder cannot be made.
    #[error(transparent)]
    State(#[from] FileError),
    /// The anchor cannot be used; another agent may have it.
    #[error("the anchor of the state folder cannot be used")]
    Anchor(#[from] AnchorError),
    /// The slots cannot be listed.
    #[error("the slots of the state folder cannot be used")]
    Slots(#[from] SlotError),
    /// The outbox can be neither opened nor made anew.
    #[error("the outbox of the state folder cannot be used")]
    Outbox(#[from] OutboxError),
    /// Signals cannot be listened to.
    #[error("signals cannot be listened to")]
    Signals(#[source] std::io::Error),
}

/// Writes the anchor: the core's record together with what the shell keeps there.
#[derive(Debug)]
pub(super) struct Keeper {
    anchor: Anchor,
    incarnation: Incarnation,
    boot: u64,
    clock: Clock,
}

impl Keeper {
    /// Makes a record durable.
    pub fn write(&mut self, record: &Persistent) -> Result<(), AnchorError> {
        self.anchor.commit(&AnchorState {
            incarnation: self.incarnation,
            boot: self.boot,
            time_floor: self.clock.floor_s(),
            core: record.clone(),
        })
    }
}

/// The highest boot number among reports that wait from before an anchor was lost; 0 when none waits. Counting goes
/// on from there, so that a report of the past and one of today never share their number.
fn waiting_boot(outbox: &mut Outbox, remarks: &mut Remarks) -> u64 {
    outbox.highest_boot().unwrap_or_else(|error| {
        let text = format!("the reports that wait could not be looked through: {}", crate::causes(&error));
        remarks.push((Severity::Warning, "outbox.unreadable", text));
        0
    })
}

/// Opens the outbox, or one in memory where the disk does not let it: a device that cannot keep its reports still
/// serves, and says so to whoever listens.
fn open_outbox(state: &Path, settings: &Settings, remarks: &mut Remarks) -> Result<Outbox, OutboxError> {
    match Outbox::open(&outbox_path(state), settings.outbox_bytes, new_incarnation(), 0) {
        Err(OutboxError::Busy(path)) => Err(OutboxError::Busy(path)),
        Err(error) => {
            let text = format!(
                "the outbox cannot be opened, so reports are kept in memory only: {}",
                crate::causes(&error)
            );
            remarks.push((Severity::Alarm, "outbox.in_memory", text));
            Outbox::in_memory(settings.outbox_bytes, new_incarnation(), 0)
        }
        opened => opened,
    }
}

/// What is told as soon as somebody listens.
type Remarks = Vec<(Severity, &'static str, String)>;

fn outbox_path(state: &Path) -> PathBuf {
    state.join("outbox.redb")
}

/// Opens everything. The outcome is the core's first decision, not yet committed.
pub(super) fn boot(
    settings: Settings,
    program: PathBuf,
    done: mpsc::Sender<Done>,
) -> Result<(Driver, Outcome), BootError> {
    let state = settings.state_dir.clone();
    files::create_private_dir(&state)?;
    let (anchor, found) = Anchor::open(&state)?;
    let slots = Slots::open(&state)?.limited(settings.limits());
    // Every byte is read only when nothing else vouches for the slots; loading reads the model anyway.
    let check = if matches!(found, Found::Record(_)) { Check::Sizes } else { Check::Contents };
    let observed = slots.observe(check)?;
    let mut remarks = Remarks::new();
    let mut outbox = open_outbox(&state, &settings, &mut remarks)?;

    let (incarnation, boot, floor, record) = match found {
        Found::Record(old) => (old.incarnation, old.boot + 1, old.time_floor, old.core),
        Found::Nothing => (
            new_incarnation(),
            waiting_boot(&mut outbox, &mut remarks) + 1,
            0,
            Persistent::rebuild(&observed),
        ),
        Found::Lost => {
            let text = "both copies of the anchor were unreadable; it was rebuilt from the slots that prove \
                        themselves, and this device starts a new incarnation";
            remarks.push((Severity::Alarm, "anchor.rebuilt", text.to_owned()));
            (
                new_incarnation(),
                waiting_boot(&mut outbox, &mut remarks) + 1,
                0,
                Persistent::rebuild(&observed),
            )
        }
    };
    let clock = Clock::start(floor, settings.clock);
    let mut keeper = Keeper { anchor, incarnation, boot, clock: clock.clone() };
    // The boot number is durable before anything is said under it; where it cannot be, this start is a device of its
    // own, so that none of its reports is taken for one of another start.
    if let Err(error) = keeper.write(&record) {
        let text = format!(
            "the disk takes no writes ({}): this device serves what it has, and nothing can be updated",
            crate::causes(&error)
        );
        remarks.push((Severity::Alarm, "disk.unwritable", text));
        keeper.incarnation = new_incarnation();
    }
    let incarnation = keeper.incarnation;

    let identity = match Identity::load(&state) {
        Ok(identity) => Some(identity),
        Err(error) if record.models.is_empty() => return Err(BootError::NotEnrolled(error)),
        Err(error) => {
            remarks.push((Severity::Alarm, "identity.lost", error.to_string()));
            None
        }
    };
    outbox.begin(incarnation, boot);
    outbox.next_seq(); // 0 belongs to state and health
    let ctx = Ctx {
        now_ms: clock.now_ms(),
        mono_ms: clock.mono_ms(),
        seed: random_u64(),
        local: hours::local(&clock),
        ram_available_bytes: None,
    };
    let (core, first) = Core::resume(record, &observed, &ctx);
    let mono = clock.mono_ms();
    let mut driver = Driver {
        source: source(identity.as_ref(), &settings, &clock, &mut remarks),
        trust: Trust::new(&state),
        imports: Imports::default(),
        watch: Watch::starting(u64::from(settings.first_contact_spread_s) * 1000, mono),
        stamp: Stamp { inc: incarnation, boot, clock: clock.clone() },
        identity,
        certificate: Certificate::default(),
        core,
        keeper,
        slots,
        outbox,
        reports: Reports::default(),
        link: None,
        conn: 0,
        connection: String::new(),
        told: Vec::new(),
        outflow: Outflow::default(),
        messages_refused: 0,
        downloads: Default::default(),
        child: None,
        inference: None,
        serve_restarts: 0,
        stats: Vec::new(),
        child_rss: 0,
        windows: Windows::open(&state),
        drifts: Drifts::open(&state),
        done,
        program,
        tasks: Default::default(),
        sampler: Sampler::new(),
        ballast: Ballast::of(&state),
        wake_ms: None,
        log_until: None,
        health: Every::starting(u64::from(settings.health_interval_s) * 1000, mono),
        window: Every::starting(u64::from(settings.window_s) * 1000, mono),
        statistics: Every::starting(STATS_MS, mono),
        // Fed twice a period, as sd_watchdog_enabled(3) advises.
        watchdog: sd_notify::watchdog_enabled()
            .map(|period| Every::starting(u64::try_from(period.as_millis() / 2).unwrap_or(u64::MAX), mono)),
        clock,
        settings,
    };
    for (severity, code, text) in remarks {
        driver.report_event(severity, code, text, None, None);
    }
    Ok((driver, first))
}

impl Driver {
    /// The HTTPS side again, for other settings. One that cannot be made leaves the old one.
    pub(super) fn renew_source(&mut self) {
        let mut remarks = Vec::new();
        if let Some(source) = source(self.identity.as_ref(), &self.settings, &self.clock, &mut remarks) {
            self.source = Some(source);
        }
        for (severity, code, text) in remarks {
            self.report_event(severity, code, text, None, None);
        }
    }
}

/// The HTTPS side, when the identity allows one. A device without it serves what it has.
fn source(
    identity: Option<&Identity>,
    settings: &Settings,
    clock: &Clock,
    remarks: &mut Vec<(Severity, &'static str, String)>,
) -> Option<HttpSource> {
    let identity = identity?;
    let made = tls::mutual(identity, clock).map_err(|e| crate::causes(&e)).and_then(|config| {
        HttpSource::new(&identity.https, config, settings.bandwidth, clock.clone())
            .map_err(|e| crate::causes(&e))
    });
    match made {
        Ok(source) => Some(source),
        Err(why) => {
            remarks.push((Severity::Alarm, "identity.lost", why));
            None
        }
    }
}

fn new_incarnation() -> Incarnation {
    let (a, b) = (random_u64().to_le_bytes(), random_u64().to_le_bytes());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a);
    bytes[8..].copy_from_slice(&b);
    Incarnation::from_bytes(bytes)
}
