//! One connection, one task: it alone reads, writes and waits for its peer.
//!
//! Greeting (CONNECT within a deadline, checked against the certificate or token), then a loop over four things
//! that can happen: the peer sends, the server has something for it, the server wants it gone, silence.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mqtt_protocol_core::mqtt::common::Cursor;
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::dashboard::Dashboard;
use super::device::Device;
use super::handler::Refused;
use super::link::{Duplex, Link, kicked};
use super::packets::{Goodbye, Refusal};
use super::registry::Kick;
use super::session::{Broken, Connect, Session, Step};
use super::{DeviceCertificate, Shared};

/// What one read takes in: five reports of 3 KiB. Of every connection, so it is not larger.
const READ_BUFFER: usize = 16 * 1024;

/// Refused attempts after which a connection ends: a wrong configuration shows itself in one or two, and the
/// reports of an attack are bounded by the handshakes it must make.
pub(super) const MAX_REFUSALS: u32 = 10;

/// Which listener a connection came through, and whom TLS proved it to be.
pub(super) enum Door {
    /// Devices; `None` for a connection without a device's certificate, which is refused by name.
    Device(Option<DeviceCertificate>),
    Dashboard,
}

/// A connection before its CONNECT.
pub(super) struct Arrival {
    pub(super) stream: Box<dyn Duplex>,
    pub(super) door: Door,
    pub(super) peer: SocketAddr,
    pub(super) connect_by: Instant,
    /// Given back after the greeting.
    pub(super) handshake: OwnedSemaphorePermit,
}

/// A peer with its seat and the order to leave it, or why it gets none: for the peer, and for the server.
pub(super) type Admission<T> = Result<(T, watch::Receiver<Option<Kick>>), (Refusal, Refused)>;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The peer said goodbye.
    Goodbye {
        with_will: bool,
    },
    /// The transport ended, or nothing could be written.
    Lost,
    /// CONNECT was refused.
    Refused,
    /// Too many refused attempts, or one in version 3.1.1, which has no other answer.
    NotAuthorized,
    /// Not MQTT.
    Broken(Broken),
    KeepAlive,
    WriteTimeout,
    Kicked(Kick),
    CommitFailed,
}

/// Who is at the other end.
enum Role {
    Device(Box<Device>),
    Dashboard(Dashboard),
}

/// Serves one connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, arrival: Arrival) {
    let Arrival { stream, door, peer, connect_by, handshake } = arrival;
    // Replaced by the registry's when the peer gets its seat.
    let (_no_kick, kick) = watch::channel(None);
    let mut link = Link::new(stream, kick, shared.limits.write_time);

    let greeted = tokio::select! {
        () = shared.stopped() => return,
        greeted = timeout_at(connect_by, greet(&shared, &mut link, door, peer)) => greeted,
    };
    drop(handshake);
    let (mut role, rest, silence) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(End::Refused)) => {
            shared.counters.connects_refused.one();
            return link.last_words().await;
        }
        Ok(Err(_)) | Err(_) => {
            shared.counters.handshakes_failed.one();
            return link.last_words().await;
        }
    };
    let end = converse(&mut link, &mut role, rest, silence).await;
    count(&shared, &end, peer);
    if let Some(why) = goodbye(&end) {
        link.session.goodbye(why);
    }
    link.last_words().await;
    if let Role::Device(device) = role {
        device.leave(&end).await;
    }
}

/// Reads CONNECT and gives the peer its seat; returns what it sent after CONNECT, and how long it may be silent.
async fn greet(
    shared: &Arc<Shared>,
    link: &mut Link,
    door: Door,
    peer: SocketAddr,
) -> Result<(Role, Vec<u8>, Duration), End> {
    let mut buffer = vec![0; READ_BUFFER];
    let (connect, rest) = loop {
        let n = link.stream.read(&mut buffer).await.map_err(|_| End::Lost)?;
        if n == 0 {
            return Err(End::Lost);
        }
        let received = buffer.get(..n).unwrap_or_default();
        let mut input = Cursor::new(received);
        match link.session.next(&mut input).map_err(End::Broken)? {
            Some(Step::Connect(connect)) => break (connect, input.remaining_slice().to_vec()),
            Some(_) => return Err(End::Lost), // the session refuses anything before CONNECT
            None => {}
        }
    };
    let role = match seat(shared, link, door, &connect, peer) {
        Ok(role) => role,
        Err((refusal, refused)) => {
            shared.refused(refused);
            link.session.refuse(refusal);
            return Err(End::Refused);
        }
    };
    let silence = link.session.accept(&connect).map_err(End::Broken)?;
    Ok((role, rest, Duration::from_secs_f64(silence)))
}

fn seat(
    shared: &Arc<Shared>,
    link: &mut Link,
    door: Door,
    connect: &Connect,
    peer: SocketAddr,
) -> Result<Role, (Refusal, Refused)> {
    match door {
        Door::Device(Some(certificate)) => {
            let (device, kick) = Device::admit(shared, certificate, connect, peer)?;
            link.kick = kick;
            Ok(Role::Device(Box::new(device)))
        }
        Door::Device(None) => {
            let what = format!("client {:?} came without a device's certificate", cut(&connect.client_id));
            Err((Refusal::NotAuthorized, Refused { peer, identity: None, what }))
        }
        Door::Dashboard => {
            let (dashboard, kick) = Dashboard::admit(shared, connect, peer)?;
            link.kick = kick;
            Ok(Role::Dashboard(dashboard))
        }
    }
}

async fn converse(link: &mut Link, role: &mut Role, rest: Vec<u8>, silence: Duration) -> End {
    let mut heard = Instant::now();
    let mut buffer = vec![0; READ_BUFFER];
    let alarm = sleep_until(heard + silence);
    tokio::pin!(alarm);
    let mut first = Some(rest);
    loop {
        let happened = async {
            if let Some(rest) = first.take() {
                role.received(link, &rest).await?;
            }
            link.flush().await?;
            let (room, reads) = (link.session.has_room(), role.reads());
            tokio::select! {
                why = kicked(&mut link.kick) => Err(End::Kicked(why)),
                ended = role.serve_server(&mut link.session, room) => ended,
                read = link.stream.read(&mut buffer), if reads => {
                    let n = read.map_err(|_| End::Lost)?;
                    let received = buffer.get(..n).filter(|r| !r.is_empty()).ok_or(End::Lost)?;
                    if role.received(link, received).await? {
                        heard = Instant::now();
                    }
                    Ok(())
                }
                () = &mut alarm => {
                    // While it is we who do not read, its silence says nothing.
                    let due = if reads { heard + silence } else { Instant::now() + silence };
                    alarm.as_mut().reset(due);
                    if due <= Instant::now() { Err(End::KeepAlive) } else { Ok(()) }
                }
            }
        };
        if let Err(end) = happened.await {
            return end;
        }
    }
}

impl Role {
    /// Takes what the peer sent; whether a whole packet was among it.
    async fn received(&mut self, link: &mut Link, bytes: &[u8]) -> Result<bool, End> {
        if let Self::Dashboard(dashboard) = self {
            dashboard.check_token()?;
        }
        let mut input = Cursor::new(bytes);
        let mut whole = false;
        while let Some(step) = link.session.next(&mut input).map_err(End::Broken)? {
            whole = true;
            match (&mut *self, step) {
                (_, Step::Goodbye { with_will }) => {
                    self.submit(link).await?;
                    return Err(End::Goodbye { with_will });
                }
                (_, Step::Connect(_) | Step::Nothing) => {}
                (Self::Device(d), Step::Publish(publish)) => d.publish(&mut link.session, publish)?,
                (Self::Device(d), Step::Subscribe(wanted)) => d.subscribe(link, wanted).await?,
                (Self::Device(d), Step::Unsubscribe(filters)) => d.unsubscribe(&filters),
                (Self::Dashboard(d), Step::Publish(publish)) => d.publish(&mut link.session, publish)?,
                (Self::Dashboard(d), Step::Subscribe(wanted)) => d.subscribe(link, wanted).await?,
                (Self::Dashboard(d), Step::Unsubscribe(filters)) => d.unsubscribe(&filters),
            }
        }
        self.submit(link).await?;
        Ok(whole)
    }

    async fn submit(&mut self, link: &mut Link) -> Result<(), End> {
        match self {
            Self::Device(device) => device.submit(link).await,
            Self::Dashboard(_) => Ok(()),
        }
    }

    /// Whether more of the peer should be read now.
    fn reads(&self) -> bool {
        match self {
            Self::Device(device) => device.reads(),
            Self::Dashboard(_) => true,
        }
    }

    /// Waits for something the server has for the peer and puts it into the output. Cancelling it loses nothing.
    async fn serve_server(&mut self, session: &mut Session, room: bool) -> Result<(), End> {
        match self {
            Self::Device(device) => device.serve_server(session, room).await,
            Self::Dashboard(dashboard) => dashboard.serve_server(session).await,
        }
    }
}

/// What a version 5 client is told; `None` when it left, or was told by the session.
fn goodbye(end: &End) -> Option<Goodbye> {
    match end {
        End::Goodbye { .. } | End::Lost | End::Refused | End::Broken(_) | End::WriteTimeout => None,
        End::NotAuthorized => Some(Goodbye::NotAuthorized),
        End::KeepAlive => Some(Goodbye::KeepAlive),
        End::CommitFailed => Some(Goodbye::Busy),
        End::Kicked(Kick::TakenOver) => Some(Goodbye::TakenOver),
        End::Kicked(Kick::Administrative) => Some(Goodbye::Administrative),
        End::Kicked(Kick::TooSlow) => Some(Goodbye::Quota),
        End::Kicked(Kick::ShuttingDown) => Some(Goodbye::ShuttingDown),
    }
}

fn count(shared: &Shared, end: &End, peer: SocketAddr) {
    match end {
        End::KeepAlive => shared.counters.keepalive_timeouts.one(),
        End::WriteTimeout => shared.counters.write_timeouts.one(),
        End::Broken(error) => {
            shared.counters.protocol_errors.one();
            tracing::info!(%peer, %error, "an MQTT connection was closed");
        }
        _ => {}
    }
}

/// A peer's text, short enough for a log line.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(120).collect()
}
