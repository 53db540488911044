//! What every part of the server shares: the owners of each state, and how they tell each other of a change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{DeviceId, DeviceIdentity, TenantId, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};

use crate::auth::Auth;
use crate::blobs::Blobs;
use crate::ca::{Authorities, ServerCertificate};
use crate::clock;
use crate::delta::Deltas;
use crate::drift::Drift;
use crate::fleet::Fleet;
use crate::gateway::GatewayHandle;
use crate::metrics::Metrics;
use crate::outputs::Baselines;
use crate::rollouts::Book;
use crate::store::{NewAudit, NewEvent, Store, StoreError};
use crate::trust::TrustService;

/// Where the server listens, as bound. Written to `<state>/addresses.json`, because port 0 means any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Operators: API and page.
    pub http: SocketAddr,
    /// Devices: enrolment, metadata, blobs.
    pub https: SocketAddr,
    /// Devices: MQTT.
    pub mqtt: SocketAddr,
    /// Dashboards: MQTT.
    pub dashboard: SocketAddr,
}

/// The server's shared state.
pub struct App {
    /// Folder of everything.
    pub state_dir: PathBuf,
    /// Fleet served.
    pub tenant: TenantId,
    /// Host that devices are told to call.
    pub public_host: String,
    /// Read-only pages and metrics without a token (loopback listeners only).
    pub open_pages: bool,
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Files by digest.
    pub blobs: Blobs,
    /// The way from one of them to another.
    pub deltas: Deltas,
    /// Tokens.
    pub auth: Auth,
    /// Who signs certificates.
    pub ca: Arc<Authorities>,
    /// The server's own.
    pub certificate: Arc<ServerCertificate>,
    /// Rises when a device is kept out: connections that stand look whether they may.
    pub barred: watch::Sender<u64>,
    /// Signed metadata.
    pub trust: TrustService,
    /// Devices in memory.
    pub fleet: Fleet,
    /// What the devices' windows say.
    pub drift: Drift,
    /// Baselines of published bundles.
    pub baselines: Baselines,
    /// Rollouts in memory. Its lock serialises everything that plans.
    pub book: Mutex<Book>,
    /// Counters.
    pub metrics: Metrics,
    /// Set once, when everything listens.
    pub addresses: OnceLock<Addresses>,
    /// While the gateway runs. It holds this state too, so the server's end takes it out.
    pub gateway: RwLock<Option<GatewayHandle>>,
    /// Turns true once, when the server stops.
    pub stopping: watch::Sender<bool>,
    /// Wakes the reconciler.
    pub wake: Notify,
    /// Rises with every change that a page may show.
    pub changes: watch::Sender<u64>,
}

impl App {
    /// The identity of a device of this fleet.
    pub fn identity(&self, device: &DeviceId) -> DeviceIdentity {
        DeviceIdentity { tenant: self.tenant.clone(), device: device.clone() }
    }

    /// The MQTT gateway, while it runs.
    pub fn gateway(&self) -> Option<GatewayHandle> {
        self.gateway.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives or takes the gateway.
    pub fn set_gateway(&self, gateway: Option<GatewayHandle>) {
        *self.gateway.write().unwrap_or_else(PoisonError::into_inner) = gateway;
    }

    /// Says that something changed: pages refresh, the reconciler looks.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
        self.wake.notify_one();
    }

    /// Adds an event. A store that cannot take it is logged; the caller has its own errors to handle.
    pub async fn event(&self, device: Option<DeviceId>, severity: Severity, code: &str, text: String) {
        let new = NewEvent { at_ms: clock::now_ms(), device, severity, code: code.to_owned(), text };
        match self.store.add_event(new.clone()).await {
            Ok(_) => self.changed(),
            Err(error) => {
                tracing::error!(event.code = %new.code, event.text = %new.text, %error, "event not stored")
            }
        }
    }

    /// Writes to the audit log; the action counts as done only when this is `Ok`.
    pub async fn audit(
        &self,
        who: &str,
        action: &str,
        object: String,
        detail: String,
    ) -> Result<(), StoreError> {
        let at_ms: UnixMillis = clock::now_ms();
        tracing::info!(audit.who = %who, audit.action = %action, audit.object = %object, audit.detail = %detail, "audit");
        self.store.audit(NewAudit { at_ms, who: who.into(), action: action.into(), object, detail }).await
    }
}

/// Waits until the server stops, or until nobody is left who could say so.
pub async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The guard inside the answer must not live across the caller's next await.
    let _ = stopping.wait_for(|stop| *stop).await;
}
