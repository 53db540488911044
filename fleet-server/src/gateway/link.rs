//! The socket of a connection: writing with an end in sight, waiting unless told to leave.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::connection::End;
use super::registry::Kick;
use super::session::Session;

/// Time for the last packet (a refusal, a goodbye): one round trip on a bad mobile link.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A socket, with or without TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The connection's ends: protocol state, socket, and the order to leave.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) stream: Box<dyn Duplex>,
    pub(super) kick: watch::Receiver<Option<Kick>>,
    write_time: Duration,
    /// A write was given up half-way: what follows would be taken for the rest of that packet.
    is_torn: bool,
}

impl Link {
    /// Nothing said yet.
    pub(super) fn new(
        stream: Box<dyn Duplex>,
        kick: watch::Receiver<Option<Kick>>,
        write_time: Duration,
    ) -> Self {
        Self { session: Session::new(), stream, kick, write_time, is_torn: false }
    }

    /// Writes the output, as long as the peer takes it.
    pub(super) async fn flush(&mut self) -> Result<(), End> {
        let output = self.session.output();
        if output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(output);
        let write = async {
            self.stream.write_all(&output).await?;
            self.stream.flush().await
        };
        self.is_torn = true;
        tokio::select! {
            why = kicked(&mut self.kick) => return Err(End::Kicked(why)),
            written = timeout(self.write_time, write) => match written {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(End::Lost),
                Err(_) => return Err(End::WriteTimeout),
            }
        }
        self.is_torn = false;
        Ok(())
    }

    /// Waits for `what`, unless the server wants the connection gone.
    pub(super) async fn unless_kicked<T>(&mut self, what: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            why = kicked(&mut self.kick) => Err(End::Kicked(why)),
            done = what => Ok(done),
        }
    }

    /// Writes what is left, if the peer can still make sense of it, and closes.
    pub(super) async fn last_words(&mut self) {
        let output = std::mem::take(self.session.output());
        let say = async {
            if !self.is_torn {
                self.stream.write_all(&output).await?;
            }
            self.stream.shutdown().await
        };
        let _the_peer_may_be_gone = timeout(LAST_WORDS, say).await;
    }
}

/// Waits for the order to leave.
pub(super) async fn kicked(kick: &mut watch::Receiver<Option<Kick>>) -> Kick {
    let why = match kick.wait_for(Option::is_some).await {
        Ok(why) => *why,
        Err(_) => None,
    };
    // The sender lives as long as the seat: without it a newer connection has replaced this one.
    why.unwrap_or(Kick::TakenOver)
}
