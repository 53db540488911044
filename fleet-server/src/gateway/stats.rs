//! Counters for `/metrics`: they never name a device.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters, incremented from every connection.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        /// The counters at one moment. They rise from 0 at start, but for the `_now` gauges.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.0.load(Relaxed),)* }
            }
        }

        impl Stats {
            /// Name and value of each, for an exporter.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

/// One number, shared by all connections. Relaxed: nothing is decided by it.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Relaxed);
    }
    pub(super) fn one(&self) {
        self.add(1);
    }
    pub(super) fn less_one(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

counters! {
    /// Devices connected now.
    devices_now,
    /// Dashboards connected now.
    dashboards_now,
    /// TCP connections accepted.
    accepted,
    /// Connections dropped because the limit was reached.
    over_limit,
    /// TLS handshakes or CONNECTs that failed or did not come in time.
    handshakes_failed,
    /// CONNECTs refused: identity, token, will.
    connects_refused,
    /// Connections ended by a newer one with the same identity.
    takeovers,
    /// Connections ended because nothing came for one and a half keepalives.
    keepalive_timeouts,
    /// Connections ended because the peer did not take what it was sent.
    write_timeouts,
    /// Connections ended by bytes that are not MQTT, or not in order.
    protocol_errors,
    /// Connections ended by a defect of ours. Alert on it.
    panics,
    /// Messages of devices that were allowed.
    publishes,
    /// Messages committed, wills included.
    committed,
    /// Batches committed.
    batches,
    /// Batches whose commit failed.
    commit_failures,
    /// Publishes refused by access control.
    publishes_refused,
    /// Filters refused by access control.
    filters_refused,
    /// Refusals that were too many to report to the handler.
    refusals_not_reported,
    /// QoS 0 messages dropped because the ingest queue was full.
    unacknowledged_dropped,
    /// Wills published.
    wills,
    /// Messages sent to devices.
    sent_to_devices,
    /// Devices disconnected because they did not take their orders; they ask again when they return.
    devices_too_slow,
    /// Messages sent to dashboards.
    sent_to_dashboards,
    /// Messages a dashboard was too slow for.
    dashboard_dropped,
}
