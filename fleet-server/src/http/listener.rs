//! The accept loop of both HTTP listeners: handshakes are spawned, timed and limited, requests carry their peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::app::stopped;
use crate::gateway::DeviceCertificate;

/// Connections at once: 2,048 of at most 40 KiB each are 80 MB.
const CONNECTIONS: usize = 2048;
/// TLS handshakes at once. One costs about 1 ms of a core, so 256 are an eighth of a second on two cores; others
/// wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Three round trips of 2 s on a bad mobile link, and room.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of a request, and for an idle connection to send the next: a slow sender of headers must not
/// hold a connection for ever.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after an accept that failed, so that a lack of file descriptors does not spin a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that open requests get when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Who sent a request; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// The verified client certificate, when there was one that names a device.
    pub certificate: Option<DeviceCertificate>,
}

/// What a connection that speaks another protocol by ALPN is handed to.
pub type Handover =
    Arc<dyn Fn(tokio_rustls::server::TlsStream<TcpStream>, DeviceCertificate, SocketAddr) + Send + Sync>;

/// Asks whether a device's open connection may go on: when `changes` does, `holds` is asked.
#[derive(Clone)]
pub struct Standing {
    /// Rises when a device is kept out.
    pub changes: watch::Receiver<u64>,
    /// The answer.
    pub holds: Arc<dyn Fn(&DeviceCertificate) -> bool + Send + Sync>,
}

impl Standing {
    /// Returns when this device is kept out; never without a certificate.
    async fn lost(this: Option<Self>, certificate: Option<DeviceCertificate>) {
        if let (Some(mut this), Some(certificate)) = (this, certificate) {
            // What changed before is answered request by request, in words.
            this.changes.mark_unchanged();
            while this.changes.changed().await.is_ok() {
                if !(this.holds)(&certificate) {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}

/// A listener to be served.
pub struct Listener {
    /// Bound.
    pub socket: TcpListener,
    /// TLS, or plain for loopback.
    pub tls: Option<Arc<ServerConfig>>,
    /// Who takes connections with ALPN `mqtt`.
    pub mqtt: Option<Handover>,
    /// For connections of devices.
    pub standing: Option<Standing>,
    /// What answers.
    pub router: Router,
}

/// Serves until `stopping` turns true, then lets open requests finish.
pub async fn serve(listener: Listener, mut stopping: watch::Receiver<bool>) {
    let Listener { socket, tls, mqtt, standing, router } = listener;
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        // Both permits before the accept: what cannot be served waits in the kernel's queue and costs nothing.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stopped(&mut stopping) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, mqtt, router, stopping) = (tls.clone(), mqtt.clone(), router.clone(), stopping.clone());
        let standing = standing.clone();
        tokio::spawn(async move {
            // Small answers should not wait for more; a socket that refuses this is about to fail anyway.
            let _ = stream.set_nodelay(true);
            match tls {
                None => {
                    drop(handshake);
                    connection(stream, Peer { address, certificate: None }, router, stopping).await;
                }
                Some(config) => {
                    let accepting = TlsAcceptor::from(config).accept(stream);
                    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await else {
                        tracing::debug!(peer.address = %address, "TLS handshake failed");
                        return;
                    };
                    drop(handshake);
                    let certificate = certificate(&stream);
                    let wants_mqtt = stream.get_ref().1.alpn_protocol() == Some(crate::gateway::ALPN);
                    match (wants_mqtt, mqtt, certificate) {
                        (true, Some(handover), Some(certificate)) => handover(stream, certificate, address),
                        (true, ..) => {}
                        (false, _, certificate) => {
                            let lost = Standing::lost(standing, certificate.clone());
                            let served = connection(stream, Peer { address, certificate }, router, stopping);
                            tokio::select! {
                                () = served => {}
                                () = lost => tracing::info!(peer.address = %address, "a device was put out"),
                            }
                        }
                    }
                }
            }
            drop(permit);
        });
    }
    drop(socket);
    let everyone = connections.acquire_many(CONNECTIONS as u32);
    if tokio::time::timeout(DRAIN, everyone).await.is_err() {
        tracing::info!("some HTTP requests did not end in {DRAIN:?} and are abandoned");
    }
}

fn certificate(stream: &tokio_rustls::server::TlsStream<TcpStream>) -> Option<DeviceCertificate> {
    let leaf = stream.get_ref().1.peer_certificates()?.first()?.clone().into_owned();
    match DeviceCertificate::from_verified(leaf) {
        Ok(certificate) => Some(certificate),
        Err(error) => {
            tracing::warn!(%error, "a client certificate of this fleet names no device");
            None
        }
    }
}

async fn connection<S>(stream: S, peer: Peer, router: Router, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&mut stopping) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection ended early");
    }
}
