//! A TCP proxy with weather.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Read at once; small, so that a fault falls into the middle of something.
const CHUNK: usize = 4096;

/// What happens to bytes on their way down to the device, on every connection. Places are counted from the change of
/// weather, or from the connection's start when that was later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Nothing.
    Fair,
    /// Connections are accepted and dropped at once.
    Down,
    /// A connection ends after so many bytes.
    Cut(u64),
    /// After so many bytes of a connection nothing more comes, until the weather changes; then it goes on.
    Hold(u64),
    /// So many bytes a second.
    Throttle(u64),
    /// One bit of the byte at this place of a connection is another.
    Flip(u64),
}

/// The proxy. Ends when dropped.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    struck: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Wire {
    /// Listens on loopback and passes everything on.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for a proxy")?;
        let address = listener.local_addr()?;
        let (weather, struck, down) = (watch::Sender::new(Weather::Fair), Arc::default(), Arc::default());
        let counters = (Arc::clone(&struck), Arc::clone(&down));
        let sky = weather.clone();
        let task = tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                tokio::spawn(connection(device, upstream, sky.subscribe(), counters.clone()));
            }
        });
        Ok(Self { address, weather, struck, down, task })
    }

    /// Where devices connect to.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather; for connections that stand, too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// How often a fault was done to a connection.
    pub fn struck(&self) -> u64 {
        self.struck.load(SeqCst)
    }

    /// Bytes that went down to devices.
    pub fn bytes_down(&self) -> u64 {
        self.down.load(SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Counters = (Arc<AtomicU64>, Arc<AtomicU64>);

async fn connection(
    device: TcpStream,
    upstream: SocketAddr,
    weather: watch::Receiver<Weather>,
    counters: Counters,
) {
    if *weather.borrow() == Weather::Down {
        counters.0.fetch_add(1, SeqCst);
        return;
    }
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let ((mut from_device, to_device), (from_server, mut to_server)) =
        (device.into_split(), server.into_split());
    // Whichever direction ends first ends both: half a connection is of no use to TLS.
    tokio::select! {
        _ = tokio::io::copy(&mut from_device, &mut to_server) => {}
        () = down(from_server, to_device, weather, counters) => {}
    }
}

async fn down(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut weather: watch::Receiver<Weather>,
    (struck, counted): Counters,
) {
    let (mut passed, mut buffer) = (0_u64, [0; CHUNK]);
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = weather.changed() => {
                if *weather.borrow() == Weather::Down {
                    struck.fetch_add(1, SeqCst);
                    return;
                }
                passed = 0;
                continue;
            }
        };
        let Ok(n @ 1..) = read else { return };
        let end = passed + n as u64;
        let now = *weather.borrow();
        let mut keep = n;
        match now {
            Weather::Down => return,
            Weather::Cut(after) if end > after => {
                struck.fetch_add(1, SeqCst);
                keep = usize::try_from(after.saturating_sub(passed)).unwrap_or(0);
                let _ = to.write_all(&buffer[..keep]).await; // the device may have left by itself
                return;
            }
            Weather::Hold(after) if end > after => {
                struck.fetch_add(1, SeqCst);
                let over = weather.wait_for(|w| *w != now).await.map_or(true, |w| *w == Weather::Down);
                if over {
                    return;
                }
            }
            Weather::Flip(at) if (passed..end).contains(&at) => {
                struck.fetch_add(1, SeqCst);
                buffer[usize::try_from(at - passed).unwrap_or(0)] ^= 1;
            }
            Weather::Throttle(rate) => {
                struck.fetch_add(1, SeqCst);
                // The rate is the behaviour of this link, not a wait for something.
                tokio::time::sleep(Duration::from_secs_f64(n as f64 / rate.max(1) as f64)).await;
            }
            _ => {}
        }
        if to.write_all(&buffer[..keep]).await.is_err() {
            return;
        }
        passed = end;
        counted.fetch_add(keep as u64, SeqCst);
    }
}
