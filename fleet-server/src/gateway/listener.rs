//! Accepting connections. Nothing slow happens in the accept loop: handshakes are spawned, timed and counted.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::connection::{Arrival, Door, serve};
use super::link::Duplex;
use super::{DeviceCertificate, Shared};

/// Pause after a failed accept, usually for want of file descriptors: ten attempts a second do not burn a core and
/// go on as soon as a connection has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which clients a listener is for.
#[derive(Clone)]
pub(super) enum Kind {
    Devices(Arc<ServerConfig>),
    Dashboards(Option<Arc<ServerConfig>>),
}

/// Accepts until the gateway stops.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, kind: Kind) {
    loop {
        let next = async {
            // Without a permit the listen queue waits, which costs nothing.
            let handshake = shared.handshakes.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((stream, peer, handshake))
        };
        let accepted = tokio::select! {
            () = shared.stopped() => return,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, peer, handshake)) => {
                shared.counters.accepted.one();
                let Ok(connection) = shared.connections.clone().try_acquire_owned() else {
                    shared.counters.over_limit.one();
                    continue;
                };
                let (shared, kind) = (shared.clone(), kind.clone());
                tokio::spawn(async move {
                    contain(&shared.clone(), welcome(shared, stream, peer, kind, handshake)).await;
                    drop(connection);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an MQTT connection could not be accepted; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Runs one connection so that a defect in it ends that connection only.
pub(super) async fn contain(shared: &Shared, connection: impl Future<Output = ()>) {
    if AssertUnwindSafe(connection).catch_unwind().await.is_err() {
        shared.counters.panics.one();
        tracing::error!("an MQTT connection ended by a defect of the server; the others are not affected");
    }
}

async fn welcome(
    shared: Arc<Shared>,
    tcp: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    handshake: OwnedSemaphorePermit,
) {
    let connect_by = Instant::now() + shared.limits.handshake_time;
    let secured = tokio::select! {
        () = shared.stopped() => return,
        secured = timeout_at(connect_by, secure(tcp, kind)) => secured,
    };
    let (stream, door) = match secured {
        Ok(Ok(secured)) => secured,
        Ok(Err(error)) => {
            shared.counters.handshakes_failed.one();
            return tracing::debug!(%peer, %error, "a TLS handshake for MQTT failed");
        }
        Err(_) => return shared.counters.handshakes_failed.one(),
    };
    serve(shared, Arrival { stream, door, peer, connect_by, handshake }).await;
}

async fn secure(tcp: TcpStream, kind: Kind) -> io::Result<(Box<dyn Duplex>, Door)> {
    tcp.set_nodelay(true)?; // an acknowledgement must not wait for the next packet
    let (tls, is_device) = match kind {
        Kind::Devices(tls) => (tls, true),
        Kind::Dashboards(Some(tls)) => (tls, false),
        Kind::Dashboards(None) => return Ok((Box::new(tcp), Door::Dashboard)),
    };
    let stream = TlsAcceptor::from(tls).accept(tcp).await?;
    if !is_device {
        return Ok((Box::new(stream), Door::Dashboard));
    }
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = leaf.and_then(|der| DeviceCertificate::from_verified(der.clone().into_owned()).ok());
    Ok((Box::new(stream), Door::Device(certificate)))
}
