//! QoS 1 publishes a second that are acknowledged, from 50 loopback clients with 20 in flight each, and mutual TLS
//! connects a second; the same load on mosquitto when it is installed. Clients, gateway and its runtime share the
//! machine's cores; the gateway's commit does nothing, so this is the ceiling of the protocol side.
//!
//! Prints `name value unit`, one a line. Take the best of a few runs: noise only makes it slower.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use plimsoll_protocol::wire::v1::Topic;
use plimsoll_protocol::{DeviceIdentity, TenantId};
use plimsoll_server::gateway::{
    CommitError, Config, DeviceCertificate, Gateway, GatewayHandle, Handler, Inbound, Limits, Notice,
    RateLimit,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const CLIENTS: usize = 50;
const WINDOW: u16 = 20;
const PAYLOAD: [u8; 200] = [b'x'; 200];
/// Long enough that start and end weigh under a percent.
const MEASURE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return Ok(()); // a test runner that enumerates benches
    }
    // Installing twice is the only way this fails.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let pki = Pki::new()?;
    let gateway = start_gateway(&pki).await?;
    let plain = serve_plain(gateway.clone(), &pki).await?;
    report("gateway_plain_qos1", load(plain, None).await?);
    report("gateway_tls_qos1", load(gateway.devices_address(), Some(&pki)).await?);
    println!("gateway_tls_connects {:.0} connects/s", connects(gateway.devices_address(), &pki).await?);
    let stats = gateway.stats();
    if stats.committed != stats.publishes || stats.panics + stats.protocol_errors + stats.commit_failures > 0
    {
        bail!("the numbers above mean nothing, something went wrong: {stats:?}");
    }
    println!("gateway_batch {:.1} messages", stats.committed as f64 / stats.batches.max(1) as f64);
    gateway.shutdown(Duration::from_secs(5)).await;

    let Some(mosquitto) = Mosquitto::start(&pki).await? else {
        println!("# mosquitto is not installed (apt-get install mosquitto): nothing to compare with");
        return Ok(());
    };
    report("mosquitto_plain_qos1", load(mosquitto.plain, None).await?);
    report("mosquitto_tls_qos1", load(mosquitto.tls, Some(&pki)).await?);
    println!("mosquitto_tls_connects {:.0} connects/s", connects(mosquitto.tls, &pki).await?);
    Ok(())
}

fn report(name: &str, per_second: f64) {
    println!("{name} {per_second:.0} messages/s");
}

/// Acknowledged publishes a second.
async fn load(to: SocketAddr, tls: Option<&Pki>) -> Result<f64> {
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let clients = (0..CLIENTS).map(|n| {
        let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
        let tls = tls.map(|pki| pki.client(&client_id(n)));
        tokio::spawn(async move {
            let tcp = TcpStream::connect(to).await?;
            tcp.set_nodelay(true)?;
            match tls {
                None => client(tcp, n, &acknowledged, &stop).await,
                Some(tls) => {
                    let stream = TlsConnector::from(tls?).connect("localhost".try_into()?, tcp).await?;
                    client(stream, n, &acknowledged, &stop).await
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    tokio::time::sleep(Duration::from_millis(500)).await; // connected and warm
    let (before, since) = (acknowledged.load(Relaxed), Instant::now());
    tokio::time::sleep(MEASURE).await;
    let rate = (acknowledged.load(Relaxed) - before) as f64 / since.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    for ended in join_all(clients).await {
        ended??;
    }
    if rate == 0.0 {
        bail!("nothing was acknowledged by {to}");
    }
    Ok(rate)
}

async fn client(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    n: usize,
    acknowledged: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    stream.write_all(&connect_packet(&client_id(n))).await?;
    stream.flush().await?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await.context("no CONNACK")?;
    if connack[3] != 0 {
        bail!("client {n} was refused with {}", connack[3]);
    }
    let topic = format!("plimsoll/1/acme/cam-{n}/up/event");
    let publish = |id: u16| {
        let body =
            [&(topic.len() as u16).to_be_bytes()[..], topic.as_bytes(), &id.to_be_bytes(), &PAYLOAD].concat();
        [&[0x32, (body.len() % 128) as u8 | 0x80, (body.len() / 128) as u8], &body[..]].concat()
    };
    let packets: Vec<Vec<u8>> = (1..=WINDOW).map(publish).collect();
    stream.write_all(&packets.concat()).await?;
    let (mut buffer, mut have) = (vec![0; 4096], 0);
    let mut out = Vec::new();
    while !stop.load(Relaxed) {
        stream.flush().await?;
        let n = stream.read(&mut buffer[have..]).await?;
        if n == 0 {
            bail!("the server closed the connection");
        }
        have += n;
        let whole = have / 4 * 4; // a PUBACK of version 3.1.1 has four bytes
        for ack in buffer[..whole].chunks_exact(4) {
            let id = u16::from_be_bytes([ack[2], ack[3]]);
            out.extend_from_slice(&packets[usize::from(id) - 1]);
        }
        acknowledged.fetch_add(whole as u64 / 4, Relaxed);
        buffer.copy_within(whole..have, 0);
        have -= whole;
        stream.write_all(&out).await?;
        out.clear();
    }
    Ok(())
}

/// Mutual TLS handshakes with CONNECT and CONNACK a second, full handshakes, 32 at a time.
async fn connects(to: SocketAddr, pki: &Pki) -> Result<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    let since = Instant::now();
    let mut clients = Vec::new();
    for n in 0..32 {
        let mut tls = Arc::unwrap_or_clone(pki.client(&client_id(n))?);
        tls.resumption = rustls::client::Resumption::disabled();
        let (tls, stop) = (TlsConnector::from(Arc::new(tls)), stop.clone());
        clients.push(tokio::spawn(async move {
            let mut done = 0u32;
            while !stop.load(Relaxed) {
                let tcp = TcpStream::connect(to).await?;
                let mut stream = tls.connect("localhost".try_into()?, tcp).await?;
                stream.write_all(&connect_packet(&client_id(n))).await?;
                stream.flush().await?;
                let mut connack = [0; 4];
                stream.read_exact(&mut connack).await?;
                stream.write_all(&[0xe0, 0]).await?;
                stream.shutdown().await?;
                done += 1;
            }
            Ok::<_, anyhow::Error>(done)
        }));
    }
    tokio::time::sleep(MEASURE).await;
    stop.store(true, Relaxed);
    let mut total = 0;
    for client in clients {
        total += client.await??;
    }
    Ok(f64::from(total) / since.elapsed().as_secs_f64())
}

fn client_id(n: usize) -> String {
    format!("acme.cam-{n}")
}

fn connect_packet(client_id: &str) -> Vec<u8> {
    let body = [b"\0\x04MQTT\x04\x02\0\x3c\0", &[client_id.len() as u8][..], client_id.as_bytes()].concat();
    [&[0x10, body.len() as u8], &body[..]].concat()
}

/// The device listener is TLS only; this one hands plain connections to the same gateway, to compare with a plain
/// mosquitto. The n-th connection is the n-th device.
async fn serve_plain(gateway: GatewayHandle, pki: &Pki) -> Result<SocketAddr> {
    let certificates = (0..CLIENTS).map(|n| {
        let (certificate, _key) = pki.issue(&client_id(n), ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok((client_id(n), DeviceCertificate::from_verified(certificate.der().clone())?))
    });
    let certificates: std::collections::BTreeMap<_, _> = certificates.collect::<Result<_>>()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (gateway, certificates) = (gateway.clone(), certificates.clone());
            tokio::spawn(async move {
                // CONNECT is in one segment on loopback: its client id says which certificate to stand in for.
                let mut head = [0; 64];
                let n = stream.peek(&mut head).await.unwrap_or(0);
                let name = head.get(14..n).and_then(|id| std::str::from_utf8(id).ok()).unwrap_or_default();
                if let Some(certificate) = certificates.get(name) {
                    gateway.serve_stream(stream, certificate.clone(), peer).await;
                }
            });
        }
        #[expect(unreachable_code, reason = "gives the block its error type")]
        Ok::<(), std::io::Error>(())
    });
    Ok(address)
}

struct Nothing;

impl Handler for Nothing {
    fn commit(&self, _batch: Arc<[Inbound]>) -> BoxFuture<'_, Result<(), CommitError>> {
        async { Ok(()) }.boxed()
    }
    fn retained<'a>(&'a self, _who: &'a DeviceIdentity) -> BoxFuture<'a, Vec<(Topic, Bytes)>> {
        async { Vec::new() }.boxed()
    }
    fn retained_states(&self) -> BoxFuture<'_, Vec<(DeviceIdentity, Bytes)>> {
        async { Vec::new() }.boxed()
    }
    fn is_allowed(&self, _certificate: &DeviceCertificate) -> bool {
        true
    }
    fn watcher(&self, _token: &str) -> Option<TenantId> {
        None
    }
    fn notice(&self, _notice: Notice) {}
}

async fn start_gateway(pki: &Pki) -> Result<GatewayHandle> {
    let (certificate, key) = pki.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(pki.roots()?)).build()?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let tls = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)?;
    let loopback = "127.0.0.1:0".parse()?;
    let rate = RateLimit { per_second: u32::MAX, burst: u32::MAX };
    let config = Config {
        devices: loopback,
        devices_tls: Arc::new(tls),
        dashboards: loopback,
        dashboards_tls: None,
        limits: Limits { rate, ..Limits::default() },
    };
    Ok(Gateway::start(config, Arc::new(Nothing)).await?)
}

struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bench CA");
        Ok(Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Result<(rcgen::Certificate, KeyPair)> {
        let names = if name == "localhost" { vec![name.to_owned()] } else { Vec::new() };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.ca)?, key))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone())?;
        Ok(roots)
    }

    fn client(&self, name: &str) -> Result<Arc<ClientConfig>> {
        let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ClientConfig::builder().with_root_certificates(self.roots()?);
        Ok(Arc::new(config.with_client_auth_cert(vec![certificate.der().clone()], key)?))
    }
}

/// Mosquitto at its best for this: no persistence, no delay, mutual TLS with the same keys.
struct Mosquitto {
    process: Child,
    plain: SocketAddr,
    tls: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Mosquitto {
    async fn start(pki: &Pki) -> Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let (plain, tls) = (free_port().await?, free_port().await?);
        let (certificate, key) = pki.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth)?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("ca.pem"), pki.ca.pem())?;
        std::fs::write(at("cert.pem"), certificate.pem())?;
        std::fs::write(at("key.pem"), key.serialize_pem())?;
        let config = format!(
            "persistence false\nset_tcp_nodelay true\nallow_anonymous true\nlog_type none\nmax_inflight_messages 0\n\
             listener {} 127.0.0.1\nlistener {} 127.0.0.1\nrequire_certificate true\n\
             cafile {}\ncertfile {}\nkeyfile {}\n",
            plain.port(),
            tls.port(),
            at("ca.pem"),
            at("cert.pem"),
            at("key.pem"),
        );
        std::fs::write(at("mosquitto.conf"), config)?;
        for program in ["mosquitto", "/usr/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto"] {
            let mut command = Command::new(program);
            command.args(["-c", &at("mosquitto.conf")]).stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(process) = command.spawn() {
                let started = Self { process, plain, tls, _dir: dir };
                let until = Instant::now() + Duration::from_secs(10);
                while TcpStream::connect(tls).await.is_err() {
                    if Instant::now() > until {
                        bail!("{program} does not listen on {tls}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                return Ok(Some(started));
            }
        }
        Ok(None)
    }
}

async fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}
