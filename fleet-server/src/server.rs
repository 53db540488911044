//! The server put together: open what is stored, listen, run the loops, stop in order.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plimsoll_protocol::wire::v1::Severity;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::{Addresses, App, stopped};
use crate::auth::Auth;
use crate::auth::device::registered;
use crate::blobs::Blobs;
use crate::ca::{Authorities, Notes, ServerCertificate, TlsConfigs};
use crate::config::Config;
use crate::delta::Deltas;
use crate::drift::{self, Drift};
use crate::fleet::Fleet;
use crate::gateway::{self, Gateway};
use crate::http::listener::{Handover, Listener, Standing};
use crate::http::{device, listener, operator};
use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::outputs::{self, Baselines};
use crate::rollouts::Book;
use crate::store::Store;
use crate::store::embedded::{Embedded, Opened, open_or_recover};
use crate::trust::{TrustService, expiry};
use crate::{clock, reconciler, secret};

/// Between two looks at what grows old. Timestamps live a day and certificates 90, so six hours leave three more
/// tries before anything expires.
const HOUSEKEEPING: Duration = Duration::from_secs(6 * 3600);
/// Housekeepings between two exports of the store: one a day.
const EXPORT_EVERY: u32 = 4;
/// Between two looks for connections that outlived their certificate: one comparison a device, against lives of days.
const LOOK_FOR_EXPIRED: Duration = Duration::from_secs(10);
/// Time for MQTT clients to take their goodbye.
const GOODBYE: Duration = Duration::from_secs(3);

/// A running server.
pub struct Server {
    app: Arc<App>,
    tasks: Vec<JoinHandle<()>>,
    // Held until the end: one server for a state folder.
    _lock: File,
}

impl Server {
    /// Opens the state, binds every listener and starts. On an error nothing is left running.
    pub async fn start(config: Config) -> Result<Self> {
        let dir = config.state_dir.clone();
        create_private(&dir)?;
        let lock = lock(&dir)?;
        fix_tenant(&dir, config.tenant.as_str())?;
        let Opened { store, notes } = open_store(&config).await?;
        let embedded = Arc::new(store);
        let store: Arc<dyn Store> = Arc::<Embedded>::clone(&embedded);
        let blobs = Blobs::open(&dir.join("blobs")).context("cannot open the folder of blobs")?;
        let deltas =
            Deltas::open(&dir.join("deltas"), blobs.clone()).context("cannot open the index of deltas")?;
        let auth = Auth::load(Arc::clone(&store)).await?;
        auth.ensure_admin(&dir, clock::now_ms()).await?;
        let ca = Arc::new(Authorities::open(&dir, &config.tenant, config.ca.clone(), clock::now_ms())?);
        let trust = TrustService::open(&dir, Arc::clone(&store), blobs.clone()).await?;
        let fleet = Fleet::load(store.as_ref()).await?;
        let book = Book::load(store.as_ref()).await?;

        let hosts = certificate_hosts(&config.public_hosts);
        let certificate = ServerCertificate::new(&ca.issuing(), hosts, clock::now_ms())?;
        Notes::write(&dir, &ca, &certificate);
        let tls = TlsConfigs::new(&ca, &certificate)?;
        let http = bind(config.http, "operators").await?;
        let https = bind(config.https, "devices").await?;
        let app = Arc::new(App {
            state_dir: dir.clone(),
            tenant: config.tenant.clone(),
            public_host: config.public_hosts.first().cloned().unwrap_or_else(|| "localhost".into()),
            open_pages: config.open_pages,
            store,
            blobs,
            deltas,
            auth,
            ca,
            certificate,
            barred: watch::Sender::new(0),
            trust,
            fleet,
            drift: Drift::default(),
            baselines: Baselines::default(),
            book: Mutex::new(book),
            metrics: Metrics::default(),
            addresses: OnceLock::new(),
            gateway: RwLock::new(None),
            stopping: watch::Sender::new(false),
            wake: Notify::new(),
            changes: watch::Sender::new(0),
        });
        outputs::load(&app).await?;
        let outside =
            |address: std::net::SocketAddr| (!address.ip().is_loopback()).then(|| Arc::clone(&tls.https));
        let mqtt = gateway::Config {
            devices: config.mqtt,
            devices_tls: Arc::clone(&tls.mqtt),
            dashboards: config.dashboard,
            dashboards_tls: outside(config.dashboard),
            limits: gateway::Limits::default(),
        };
        let gateway = Gateway::start(mqtt, Ingest::new(Arc::clone(&app), config.fleet.clone())).await?;
        let addresses = Addresses {
            http: http.local_addr()?,
            https: https.local_addr()?,
            mqtt: gateway.devices_address(),
            dashboard: gateway.dashboards_address(),
        };
        secret::write_public(&dir.join("addresses.json"), &serde_json::to_vec_pretty(&addresses)?)?;
        // Set before anything serves, and only here: nobody can have set it.
        let _ = app.addresses.set(addresses);
        app.set_gateway(Some(gateway.clone()));

        let handover: Handover = Arc::new(move |stream, certificate, peer| {
            let gateway = gateway.clone();
            tokio::spawn(async move { gateway.serve_stream(stream, certificate, peer).await });
        });
        let stop = || app.stopping.subscribe();
        let operators = Listener {
            socket: http,
            tls: outside(config.http),
            mqtt: None,
            standing: None,
            router: operator::router(Arc::clone(&app)),
        };
        let devices = Listener {
            socket: https,
            tls: Some(Arc::clone(&tls.https)),
            mqtt: Some(handover),
            standing: Some(standing(&app)),
            router: device::router(Arc::clone(&app)),
        };
        let tasks = vec![
            tokio::spawn(listener::serve(operators, stop())),
            tokio::spawn(listener::serve(devices, stop())),
            tokio::spawn(drift::rebuild(Arc::clone(&app))),
            tokio::spawn(reconciler::run(Arc::clone(&app), config.tick, stop())),
            tokio::spawn(housekeeping(Arc::clone(&app), embedded)),
            tokio::spawn(put_out_expired(Arc::clone(&app), stop())),
        ];
        for note in notes {
            tracing::error!(store.note = %note, "the store was recovered");
            app.event(None, Severity::Alarm, "store.recovered", note).await;
        }
        Ok(Self { app, tasks, _lock: lock })
    }

    /// What is shared; for tests and for `main`.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Where it listens.
    pub fn addresses(&self) -> Result<Addresses> {
        self.app.addresses.get().cloned().context("the server does not listen")
    }

    /// Stops taking requests, lets those under way finish, says goodbye to devices, exports and closes the store.
    pub async fn stop(self) {
        self.app.stopping.send_replace(true);
        if let Some(gateway) = self.app.gateway() {
            gateway.shutdown(GOODBYE).await;
        }
        self.app.set_gateway(None);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the server ended badly");
            }
        }
        // The last handle of the store closes it, which blocks.
        let app = self.app;
        if let Err(error) = tokio::task::spawn_blocking(move || drop(app)).await {
            tracing::error!(%error, "the store did not close in order");
        }
    }
}

async fn open_store(config: &Config) -> Result<Opened> {
    let (store, export) = (config.state_dir.join("store"), config.state_dir.join("export.jsonl"));
    let probe = config.probe.clone();
    let open = move || open_or_recover(&store, &export, &probe, clock::now_ms());
    Ok(tokio::task::spawn_blocking(open).await??)
}

/// Freshness of metadata and of the server's certificate, and the export that [`open_or_recover`] falls back to.
async fn housekeeping(app: Arc<App>, store: Arc<Embedded>) {
    let mut stopping = app.stopping.subscribe();
    let mut clockwork = interval(HOUSEKEEPING);
    clockwork.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0u32;
    loop {
        let last = tokio::select! {
            _ = clockwork.tick() => false,
            () = stopped(&mut stopping) => true,
        };
        if round.is_multiple_of(EXPORT_EVERY) || last {
            let (store, to) = (Arc::clone(&store), app.state_dir.join("export.jsonl"));
            match tokio::task::spawn_blocking(move || store.export(&to)).await {
                Ok(Ok(records)) => tracing::info!(export.records = records, "store exported"),
                Ok(Err(error)) => tracing::error!(%error, "store not exported"),
                Err(error) => tracing::error!(%error, "export ended badly"),
            }
        }
        if last {
            return;
        }
        let now = clock::now_ms();
        if let Err(error) = app.trust.refresh(now).await {
            let text = format!(
                "metadata could not be signed again: {error}; devices stop installing when it expires"
            );
            app.event(None, Severity::Alarm, "trust.refresh-failed", text).await;
        }
        if round.is_multiple_of(EXPORT_EVERY) {
            for warning in expiry::warnings(&app.trust.expiries(), now / 1000) {
                let severity = if warning.expired { Severity::Alarm } else { Severity::Warning };
                app.event(None, severity, "trust.expiring", warning.text).await;
            }
        }
        if round > 0 {
            match app.certificate.renew(&app.ca.issuing(), now) {
                Ok(()) => Notes::write(&app.state_dir, &app.ca, &app.certificate),
                Err(error) => {
                    tracing::error!(%error, "the server's certificate was not renewed; tried again in six hours");
                }
            }
        }
        round += 1;
    }
}

/// Ends MQTT connections that have outlived the newest certificate of their device: a handshake looks at the dates
/// once, and a connection may stand for months. The device renews, and comes back.
async fn put_out_expired(app: Arc<App>, mut stopping: watch::Receiver<bool>) {
    let mut clockwork = interval(LOOK_FOR_EXPIRED);
    clockwork.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = clockwork.tick() => {}
            () = stopped(&mut stopping) => return,
        }
        let now = clock::now_ms();
        let expired: Vec<_> = app.fleet.read(|devices| {
            let standing = devices.values().filter(|d| d.connected && d.record.certificate_until_ms <= now);
            standing.map(|d| d.record.device.clone()).collect()
        });
        for device in expired {
            tracing::info!(%device, "its certificate has ended: its connection is closed, so that it renews");
            if let Some(gateway) = app.gateway() {
                gateway.kick(&app.identity(&device));
            }
        }
    }
}

/// Whether a device's open connection may go on, and when that is to be asked again.
fn standing(app: &Arc<App>) -> Standing {
    let (changes, app) = (app.barred.subscribe(), Arc::clone(app));
    let holds = move |certificate: &_| registered(&app.fleet, &app.tenant, certificate).is_ok();
    Standing { changes, holds: Arc::new(holds) }
}

/// What the server's certificate must carry: its names, and loopback for whoever is on this machine.
fn certificate_hosts(public: &[String]) -> Vec<String> {
    let mut hosts = public.to_vec();
    for local in ["localhost", "127.0.0.1", "::1"] {
        if !hosts.iter().any(|h| h == local) {
            hosts.push(local.to_owned());
        }
    }
    hosts
}

fn create_private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| {
        format!("cannot create the state folder {}: give another with --state-dir", dir.display())
    })
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => {
            bail!("another plimsoll-server uses {}: stop it, or give another --state-dir", dir.display())
        }
    }
}

fn fix_tenant(dir: &Path, tenant: &str) -> Result<()> {
    let path = dir.join("tenant");
    match std::fs::read_to_string(&path) {
        Ok(known) if known.trim() == tenant => Ok(()),
        Ok(known) => bail!(
            "{} belongs to tenant {:?}, not {tenant:?}: its certificates and topics carry that name; start with \
             --tenant {}",
            dir.display(),
            known.trim(),
            known.trim()
        ),
        Err(_) => Ok(secret::write_public(&path, tenant.as_bytes())?),
    }
}

async fn bind(address: std::net::SocketAddr, whom: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address} for {whom}: is it in use?"))
}
