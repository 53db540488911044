//! `/metrics` in Prometheus text: base units, labels state, model, version, rollout, status. Never a device id,
//! because a label per device is a time series per device.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::app::App;

/// Counters that no other state implies. Relaxed: nothing is decided by them.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reports committed.
    pub reports_fresh: AtomicU64,
    /// Reports that had been committed before.
    pub reports_duplicate: AtomicU64,
    /// Messages set aside because they could not be read.
    pub reports_malformed: AtomicU64,
    /// Enrolments accepted.
    pub enrolled: AtomicU64,
    /// Enrolments refused.
    pub enrol_refused: AtomicU64,
    /// Certificates renewed.
    pub renewed: AtomicU64,
    /// Renewals refused.
    pub renewals_refused: AtomicU64,
    /// Requests of devices for blobs.
    pub blob_requests: AtomicU64,
    /// Bytes of blobs promised to devices.
    pub blob_bytes: AtomicU64,
    /// Requests of devices that were answered with a delta; counted among those for blobs too.
    pub delta_requests: AtomicU64,
    /// Bytes by which files are longer than the deltas that were sent instead; a delta that is continued counts once.
    pub delta_saved_bytes: AtomicU64,
    /// Ticks of the reconciler.
    pub ticks: AtomicU64,
    /// Ticks that failed.
    pub tick_failures: AtomicU64,
}

/// Counts one.
pub fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The page of numbers.
pub async fn render(app: &App) -> String {
    let mut out = Page::default();
    let versions = app.trust.versions();
    let mut states: BTreeMap<&str, u64> =
        [("online", 0), ("offline", 0), ("never_seen", 0), ("revoked", 0)].into();
    let mut running: BTreeMap<(String, String), u64> = BTreeMap::new();
    app.fleet.read(|devices| {
        for device in devices.values() {
            let state = match (device.record.revoked, device.connected, device.last_seen_ms) {
                (true, ..) => "revoked",
                (_, true, _) => "online",
                (.., Some(_)) => "offline",
                (.., None) => "never_seen",
            };
            *states.entry(state).or_default() += 1;
            for model in device.running(&versions).into_values() {
                *running.entry((model.model.to_string(), model.version.to_string())).or_default() += 1;
            }
        }
    });
    out.head("plimsoll_devices", "gauge", "Registered devices by state.");
    for (state, count) in states {
        out.line(&format!("plimsoll_devices{{state=\"{state}\"}}"), count);
    }
    out.head("plimsoll_devices_running", "gauge", "Devices by the version they run.");
    for ((model, version), count) in running {
        out.line(&format!("plimsoll_devices_running{{model=\"{model}\",version=\"{version}\"}}"), count);
    }
    let infos = app.book.lock().await.infos(app);
    out.head("plimsoll_rollout_devices", "gauge", "Devices of rollouts under way, by outcome.");
    for info in infos.iter().filter(|i| !i.status.is_end()) {
        let sum = |of: fn(&plimsoll_protocol::api::StageInfo) -> u64| info.stages.iter().map(of).sum::<u64>();
        let outcomes = [
            ("active", sum(|s| s.active)),
            ("failed", sum(|s| s.failed)),
            ("silent", sum(|s| s.silent)),
            ("not_applicable", sum(|s| s.not_applicable)),
            ("in_progress", sum(|s| s.in_progress)),
        ];
        for (outcome, count) in outcomes {
            let labels =
                format!("rollout=\"{}\",model=\"{}\",outcome=\"{outcome}\"", info.id, info.spec.model);
            out.line(&format!("plimsoll_rollout_devices{{{labels}}}"), count);
        }
    }
    let m = &app.metrics;
    for (name, help, counter) in [
        ("reports_fresh_total", "Reports committed.", &m.reports_fresh),
        ("reports_duplicate_total", "Reports that had been committed before.", &m.reports_duplicate),
        (
            "reports_malformed_total",
            "Messages set aside because they could not be read.",
            &m.reports_malformed,
        ),
        ("enrolled_total", "Enrolments accepted.", &m.enrolled),
        ("enrol_refused_total", "Enrolments refused.", &m.enrol_refused),
        ("certificates_renewed_total", "Certificates of devices renewed.", &m.renewed),
        (
            "certificate_renewals_refused_total",
            "Renewals refused: unknown, other key, revoked.",
            &m.renewals_refused,
        ),
        ("blob_requests_total", "Requests of devices for blobs.", &m.blob_requests),
        ("blob_bytes_total", "Bytes of blobs promised to devices.", &m.blob_bytes),
        ("delta_requests_total", "Requests of devices answered with a delta.", &m.delta_requests),
        (
            "delta_saved_bytes_total",
            "Bytes that devices did not have to fetch because a delta was sent.",
            &m.delta_saved_bytes,
        ),
        ("reconciler_ticks_total", "Ticks of the reconciler.", &m.ticks),
        ("reconciler_failures_total", "Ticks of the reconciler that failed.", &m.tick_failures),
    ] {
        out.head(&format!("plimsoll_{name}"), "counter", help);
        out.line(&format!("plimsoll_{name}"), counter.load(Relaxed));
    }
    certificates(app, &mut out);
    out.head("plimsoll_trust_role_expires_seconds", "gauge", "When the signed document of a role expires.");
    for (role, at) in app.trust.expiries() {
        let at = u64::try_from(at).unwrap_or(0);
        out.line(&format!("plimsoll_trust_role_expires_seconds{{role=\"{role}\"}}"), at);
    }
    if let Some(gateway) = app.gateway() {
        for (name, value) in gateway.stats().iter() {
            let kind = if name.ends_with("_now") { "gauge" } else { "counter" };
            let suffix = if kind == "counter" { "_total" } else { "" };
            let name = format!("plimsoll_mqtt_{}{suffix}", name.trim_end_matches("_now"));
            out.head(&name, kind, "See the MQTT gateway.");
            out.line(&name, value);
        }
    }
    out.0
}

/// Ends of certificates, as times: whoever watches compares with the clock.
fn certificates(app: &App, out: &mut Page) {
    let name = "plimsoll_certificate_not_after_seconds";
    out.head(
        name,
        "gauge",
        "When a certificate ends: of the device whose ends first, the server, its authority.",
    );
    let soonest = app.fleet.read(|devices| {
        let admitted = devices.values().filter(|d| !d.record.revoked);
        admitted.map(|d| d.record.certificate_until_ms).min()
    });
    let ends = [
        ("device_soonest", soonest),
        ("server", Some(app.certificate.until_ms())),
        ("authority", Some(app.ca.issuing().until_ms())),
    ];
    for (of, until_ms) in ends {
        if let Some(until_ms) = until_ms {
            let seconds = u64::try_from(until_ms / 1000).unwrap_or(0);
            out.line(&format!("{name}{{of=\"{of}\"}}"), seconds);
        }
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
    fn line(&mut self, series: &str, value: u64) {
        let _ = writeln!(self.0, "{series} {value}");
    }
}
