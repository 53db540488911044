//! Who is connected, how to reach them, and the last state of every device: the one owner of each.
//!
//! Locks are held for a map operation, a `try_send` or a notice, never across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use plimsoll_protocol::wire::v1::{Topic, Up};
use plimsoll_protocol::{DeviceIdentity, TenantId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use super::access::DashboardFilter;
use super::handler::{Handler, Inbound, Notice};
use super::stats::Counters;

/// Messages that wait for one device. It gets a desired state, settings and acknowledgements: 64 are a minute of
/// acknowledgements at one a second.
const DEVICE_MAILBOX: usize = 64;

/// Messages that wait for one dashboard: a tenth of a second of 10,000 messages a second. Whoever is slower loses
/// some, counted, instead of slowing anyone down.
const DASHBOARD_MAILBOX: usize = 1_024;

/// Why a message could not be put into a device's mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It will ask for what is retained when it returns.
    #[error("the device is not connected")]
    NotConnected,
    /// It does not take what it is sent.
    #[error("the device's mailbox is full")]
    Busy,
}

/// Why the gateway ends a healthy connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kick {
    TakenOver,
    Administrative,
    TooSlow,
    ShuttingDown,
}

/// A message for one device.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    pub(super) topic: Topic,
    pub(super) payload: Bytes,
    /// The store has it too.
    pub(super) retained: bool,
}

/// A message of a device, for dashboards.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) topic: String,
    pub(super) payload: Bytes,
}

/// A connection's own ends.
pub(super) struct Seat<M> {
    pub(super) number: u64,
    pub(super) mailbox: mpsc::Receiver<M>,
    pub(super) kick: watch::Receiver<Option<Kick>>,
}

struct Entry<M> {
    number: u64,
    mailbox: mpsc::Sender<M>,
    kick: watch::Sender<Option<Kick>>,
}

struct Dashboard {
    entry: Entry<Arc<Said>>,
    tenant: TenantId,
    filters: Vec<DashboardFilter>,
}

#[derive(Default)]
struct Seats {
    last_number: u64,
    devices: BTreeMap<DeviceIdentity, Entry<Mail>>,
    dashboards: BTreeMap<u64, Dashboard>,
    closed: bool,
}

/// See the top of this file.
pub(super) struct Registry {
    seats: Mutex<Seats>,
    states: Mutex<BTreeMap<DeviceIdentity, Bytes>>,
}

impl Registry {
    pub(super) fn new(states: Vec<(DeviceIdentity, Bytes)>) -> Self {
        Self { seats: Mutex::default(), states: Mutex::new(states.into_iter().collect()) }
    }

    /// Seats a device; whoever sat there is told to leave and says nothing more.
    pub(super) fn seat_device(
        &self,
        who: &DeviceIdentity,
        peer: SocketAddr,
        handler: &dyn Handler,
        counters: &Counters,
    ) -> Seat<Mail> {
        let mut seats = self.seats();
        let (seat, entry) = seats.new_seat(DEVICE_MAILBOX);
        if let Some(old) = seats.devices.insert(who.clone(), entry) {
            old.kick.send_replace(Some(Kick::TakenOver));
            counters.takeovers.one();
        }
        handler.notice(Notice::Connected { identity: who.clone(), peer });
        seat
    }

    /// Whether seat `number` is still this device's connection.
    pub(super) fn is_seated(&self, who: &DeviceIdentity, number: u64) -> bool {
        self.seats().devices.get(who).is_some_and(|e| e.number == number)
    }

    /// Frees a device's seat, unless a newer connection took it over.
    pub(super) fn free_device(
        &self,
        who: &DeviceIdentity,
        number: u64,
        graceful: bool,
        handler: &dyn Handler,
    ) {
        let mut seats = self.seats();
        if seats.devices.get(who).is_some_and(|e| e.number == number) {
            seats.devices.remove(who);
            handler.notice(Notice::Disconnected { identity: who.clone(), graceful });
        }
    }

    pub(super) fn seat_dashboard(&self, tenant: TenantId) -> Seat<Arc<Said>> {
        let mut seats = self.seats();
        let (seat, entry) = seats.new_seat(DASHBOARD_MAILBOX);
        seats.dashboards.insert(seat.number, Dashboard { entry, tenant, filters: Vec::new() });
        seat
    }

    pub(super) fn free_dashboard(&self, number: u64) {
        self.seats().dashboards.remove(&number);
    }

    /// Replaces what a dashboard hears.
    pub(super) fn set_filters(&self, number: u64, filters: Vec<DashboardFilter>) {
        if let Some(dashboard) = self.seats().dashboards.get_mut(&number) {
            dashboard.filters = filters;
        }
    }

    /// Puts a message into a device's mailbox.
    pub(super) fn send(&self, to: &DeviceIdentity, mail: Mail) -> Result<(), SendError> {
        let seats = self.seats();
        let entry = seats.devices.get(to).ok_or(SendError::NotConnected)?;
        entry.mailbox.try_send(mail).map_err(|e| match e {
            TrySendError::Full(_) => SendError::Busy,
            TrySendError::Closed(_) => SendError::NotConnected,
        })
    }

    /// Tells a device's connection to end.
    pub(super) fn kick(&self, who: &DeviceIdentity, why: Kick) -> bool {
        self.seats().devices.get(who).map(|e| e.kick.send_replace(Some(why))).is_some()
    }

    /// Tells every connection to end, and those that come later too.
    pub(super) fn kick_all(&self, why: Kick) {
        let mut seats = self.seats();
        seats.closed = true;
        let dashboards = seats.dashboards.values().map(|d| &d.entry.kick);
        for kick in seats.devices.values().map(|e| &e.kick).chain(dashboards) {
            kick.send_replace(Some(why));
        }
    }

    pub(super) fn connected(&self) -> BTreeSet<DeviceIdentity> {
        self.seats().devices.keys().cloned().collect()
    }

    /// Remembers committed states and passes committed messages on to the dashboards that asked.
    pub(super) fn publish(&self, batch: &[Inbound], counters: &Counters) {
        let mut states = self.states();
        for message in batch.iter().filter(|m| m.kind == Up::State && m.retain) {
            match message.payload.is_empty() {
                true => states.remove(&message.from),
                false => states.insert(message.from.clone(), message.payload.clone()),
            };
        }
        drop(states);
        let seats = self.seats();
        if seats.dashboards.is_empty() {
            return;
        }
        for message in batch {
            let hears = |d: &&Dashboard| {
                d.tenant == message.from.tenant
                    && d.filters.iter().any(|f| f.matches(&message.from.device, message.kind))
            };
            let mut said = None;
            for dashboard in seats.dashboards.values().filter(hears) {
                let said = said.get_or_insert_with(|| {
                    let topic = Topic::Up(message.from.clone(), message.kind).to_string();
                    Arc::new(Said { topic, payload: message.payload.clone() })
                });
                if let Err(TrySendError::Full(_)) = dashboard.entry.mailbox.try_send(said.clone()) {
                    counters.dashboard_dropped.one();
                }
            }
        }
    }

    /// The last states that these filters mean.
    pub(super) fn states_for(&self, tenant: &TenantId, filters: &[DashboardFilter]) -> Vec<Said> {
        let wanted = |who: &DeviceIdentity| {
            who.tenant == *tenant && filters.iter().any(|f| f.matches(&who.device, Up::State))
        };
        let states = self.states();
        let said = |(who, payload): (&DeviceIdentity, &Bytes)| {
            let topic = Topic::Up(who.clone(), Up::State).to_string();
            Said { topic, payload: payload.clone() }
        };
        states.iter().filter(|(who, _)| wanted(who)).map(said).collect()
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<DeviceIdentity, Bytes>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seats {
    fn new_seat<M>(&mut self, mailbox: usize) -> (Seat<M>, Entry<M>) {
        self.last_number += 1;
        let number = self.last_number;
        let (to, mailbox) = mpsc::channel(mailbox);
        let (kick, kicked) = watch::channel(self.closed.then_some(Kick::ShuttingDown));
        (Seat { number, mailbox, kick: kicked }, Entry { number, mailbox: to, kick })
    }
}
