//! Whoever took the server: its data folder, its authority, its two online keys, its addresses. Everything here is
//! made of what lay in that folder; the owners' keys did not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use plimsoll_protocol::api::TrustState;
use plimsoll_protocol::trust::repository::{sign, to_bytes};
use plimsoll_protocol::trust::{
    Doc, FileMeta, KeyPair, RoleType, Snapshot, Targets, Timestamp, file_name, role_file,
};
use plimsoll_protocol::wire::v1::{Desired, DesiredModel, UpdatePolicy};
use plimsoll_protocol::{Digest, UnixSeconds};
use plimsoll_tests::{MODEL, Site};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;

/// 2099-01-01: what a thief signs lasts.
pub const END_OF_TIME: UnixSeconds = 4_070_908_800;

/// What is served under a path.
#[derive(Debug, Clone)]
pub enum Said {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Bytes without end.
    Endless,
    /// 503: not now.
    Busy,
}

/// Everything that is served, by path.
pub type Shop = BTreeMap<String, Said>;

/// The server's two own keys.
pub struct OnlineKeys {
    snapshot: KeyPair,
    timestamp: KeyPair,
}

/// Metadata as a thief may arrange it.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Root documents, targets and roles by the names that they are fetched by, and `timestamp.json`.
    pub documents: BTreeMap<String, Vec<u8>>,
    /// What the present snapshot says of targets and roles.
    pub listed: BTreeMap<String, FileMeta>,
    /// Version of the snapshot.
    pub snapshot_version: u64,
    /// Version of the timestamp.
    pub timestamp_version: u64,
}

/// The place of the server, taken.
pub struct Thief {
    shop: Arc<Mutex<Shop>>,
    serving: tokio::task::JoinHandle<()>,
    _broker: Child,
    orders: PathBuf,
    plain: u16,
    generation: u64,
    /// The repository as the owners left it; its numbers are the highest that were ever signed.
    honest: Repository,
    online: OnlineKeys,
}

impl OnlineKeys {
    /// Out of the data folder.
    pub fn read(server: &Path) -> Result<Self> {
        let key = |role: &str| -> Result<KeyPair> {
            let text =
                std::fs::read_to_string(server.join(format!("{role}.key"))).context("an online key")?;
            let mut seed = [0; 32];
            hex::decode_to_slice(text.trim(), &mut seed)?;
            Ok(KeyPair::from_seed(&seed))
        };
        Ok(Self { snapshot: key("snapshot")?, timestamp: key("timestamp")? })
    }
}

impl Repository {
    /// What is published now.
    pub async fn copy(site: &Site) -> Result<Self> {
        let state: TrustState = site.fleet.api.get("trust").await?;
        let mut this = Self {
            documents: BTreeMap::new(),
            listed: BTreeMap::new(),
            snapshot_version: 0,
            timestamp_version: 0,
        };
        let roots = state.roots.iter().map(|root| ("root", root));
        let roles = state.roles.iter().map(|(name, role)| (name.as_str(), role));
        let targets = state.targets.as_ref().map(|targets| ("targets", targets));
        for (name, document) in roots.chain(roles).chain(targets) {
            this.put(name, document)?;
        }
        for (name, document) in [("snapshot", &state.snapshot), ("timestamp", &state.timestamp)] {
            let document = document.as_ref().context("no freshness is published")?;
            let version = document["signed"]["version"].as_u64().context("a document without a version")?;
            let name = if name == "snapshot" {
                this.snapshot_version = version;
                let doc = Doc::<Snapshot>::read_unverified(document).map_err(anyhow::Error::msg)?;
                this.listed = doc.body.meta;
                file_name(name, version)
            } else {
                this.timestamp_version = version;
                "timestamp.json".to_owned()
            };
            this.documents.insert(name, to_bytes(document));
        }
        Ok(this)
    }

    /// Puts a document of an owner's role where it is fetched; whether anybody believes it is another question.
    pub fn put(&mut self, name: &str, document: &Value) -> Result<u64> {
        let version = document["signed"]["version"].as_u64().context("a document without a version")?;
        self.documents.insert(file_name(name, version), to_bytes(document));
        Ok(version)
    }

    /// Lists a document in what is signed next.
    pub fn list(&mut self, name: &str, document: &Value) -> Result<()> {
        let version = self.put(name, document)?;
        self.listed.insert(role_file(name), FileMeta::of(version, &to_bytes(document)));
        Ok(())
    }

    /// The published document of a role, and its body to change.
    pub fn role(&self, name: &str) -> Result<(Value, Doc<Targets>)> {
        let version =
            self.listed.get(&role_file(name)).with_context(|| format!("{name} is not listed"))?.version;
        let bytes = self.documents.get(&file_name(name, version)).context("a listed role")?;
        let value: Value = serde_json::from_slice(bytes)?;
        let doc = Doc::read_unverified(&value).map_err(anyhow::Error::msg)?;
        Ok((value, doc))
    }

    /// All of it under the paths of the server.
    pub fn shop(&self) -> Shop {
        self.documents.iter().map(|(name, b)| (format!("/tuf/{name}"), Said::Bytes(b.clone()))).collect()
    }
}

/// A signed document.
pub fn envelope<T: RoleType>(
    version: u64,
    issued: Option<UnixSeconds>,
    expires: UnixSeconds,
    body: T,
    key: &KeyPair,
) -> Result<Value> {
    Ok(sign(&Doc::new(version, issued, expires, body), &[key])?)
}

impl Thief {
    /// Stops the server and takes its place at its addresses.
    pub async fn rob(site: &mut Site, honest: Repository) -> Result<Self> {
        let server = site.fleet.dir.join("server");
        let online = OnlineKeys::read(&server)?;
        site.fleet.server.down().await?;
        let text = |name: &str| std::fs::read_to_string(server.join(name)).with_context(|| name.to_owned());
        let (chain, key) = certificate(&text("ca.pem")?, &text("ca.key")?)?;
        let own = site.fleet.dir.join("thief");
        std::fs::create_dir_all(&own)?;
        let plain = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let broker = broker(&own, site.fleet.mqtt.port(), plain, &chain, &key, &server.join("ca.pem"))?;

        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        let listener = listen(site.fleet.https()).await?;
        let shop = Arc::new(Mutex::new(Shop::new()));
        let (acceptor, goods) = (TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shop));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, goods) = (acceptor.clone(), Arc::clone(&goods));
                tokio::spawn(async move { drop(serve(stream, acceptor, &goods).await) }); // the device left
            }
        });
        let (orders, generation) = (own.join("order.json"), 1_000_000);
        Ok(Self { shop, serving, _broker: broker, orders, plain, generation, honest, online })
    }

    /// Signs what a repository lists with the stolen keys, for as long as a thief likes; under numbers that no device
    /// has seen, for an old number would be refused already.
    pub fn sign(&mut self, repository: &mut Repository, issued: Option<UnixSeconds>) -> Result<()> {
        self.sign_until(repository, issued, END_OF_TIME)
    }

    /// The same, to end at a time.
    pub fn sign_until(
        &mut self,
        repository: &mut Repository,
        issued: Option<UnixSeconds>,
        expires: UnixSeconds,
    ) -> Result<()> {
        self.honest.snapshot_version += 1;
        self.honest.timestamp_version += 1;
        let (snapshot_version, timestamp_version) =
            (self.honest.snapshot_version, self.honest.timestamp_version);
        let body = Snapshot { meta: repository.listed.clone(), extra: BTreeMap::new() };
        let snapshot = envelope(snapshot_version, issued, expires, body, &self.online.snapshot)?;
        let meta = FileMeta::of(snapshot_version, &to_bytes(&snapshot));
        repository.documents.insert(file_name("snapshot", snapshot_version), to_bytes(&snapshot));
        let body =
            Timestamp { meta: BTreeMap::from([("snapshot.json".to_owned(), meta)]), extra: BTreeMap::new() };
        let timestamp = envelope(timestamp_version, issued, expires, body, &self.online.timestamp)?;
        repository.documents.insert("timestamp.json".to_owned(), to_bytes(&timestamp));
        Ok(())
    }

    /// The repository as the owners left it, signed anew.
    pub fn honest(&mut self, issued: Option<UnixSeconds>) -> Result<Repository> {
        let mut repository = self.honest.clone();
        self.sign(&mut repository, issued)?;
        Ok(repository)
    }

    /// Makes a change that every later repository has.
    pub fn remember(&mut self, change: impl FnOnce(&mut Repository) -> Result<()>) -> Result<()> {
        change(&mut self.honest)
    }

    /// What is served from now on.
    pub fn show(&self, shop: Shop) {
        *self.goods() = shop;
    }

    /// Serves one more thing.
    pub fn also(&self, path: &str, said: Said) {
        self.goods().insert(path.to_owned(), said);
    }

    fn goods(&self) -> MutexGuard<'_, Shop> {
        self.shop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves every file of a bundle.
    pub fn stock(&self, bundle: &Path) -> Result<Digest> {
        let manifest = std::fs::read(bundle.join("bundle.json"))?;
        let listed: Value = serde_json::from_slice(&manifest)?;
        for entry in listed["files"].as_array().context("no files")? {
            let bytes = std::fs::read(bundle.join(entry["path"].as_str().context("a file without a path")?))?;
            self.also(&blob(&Digest::of(&bytes)), Said::Bytes(bytes));
        }
        let digest = Digest::of(&manifest);
        self.also(&blob(&digest), Said::Bytes(manifest));
        Ok(digest)
    }

    /// Orders a version, as the server would. Gives back the generation.
    pub async fn order(&mut self, version: &str, digest: Digest) -> Result<u64> {
        self.generation += 1;
        let wanted = DesiredModel {
            model: MODEL.parse()?,
            version: version.parse()?,
            digest,
            rollout: None,
            policy: UpdatePolicy { jitter_s: 0, trial_s: 1, trial_requests: 0, ..UpdatePolicy::default() },
            rollback: false,
            blocked: Vec::new(),
            attempt: self.generation,
        };
        let desired = Desired { v: 1, generation: self.generation, models: vec![wanted], issued_ms: 0 };
        std::fs::write(&self.orders, serde_json::to_vec(&desired)?)?;
        let topic = "plimsoll/1/fleet/camera-1/dn/desired";
        let output = Command::new("mosquitto_pub")
            .args([
                "-V",
                "mqttv5",
                "-q",
                "1",
                "-r",
                "-h",
                "127.0.0.1",
                "-p",
                &self.plain.to_string(),
                "-t",
                topic,
                "-f",
            ])
            .arg(&self.orders)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("mosquitto_pub of Debian's mosquitto-clients")?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(self.generation)
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Path of a blob.
pub fn blob(digest: &Digest) -> String {
    format!("/blobs/sha256/{digest}")
}

/// A certificate for loopback that the fleet's authority signed, and its key.
fn certificate(ca_pem: &str, ca_key: &str) -> Result<(String, String)> {
    let authority = rcgen::Issuer::from_ca_cert_pem(ca_pem, rcgen::KeyPair::from_pem(ca_key)?)?;
    let key = rcgen::KeyPair::generate()?;
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
    Ok((own.pem() + ca_pem, key.serialize_pem()))
}

/// Debian's broker at the server's address of MQTT: it lets everybody in who has a certificate of the fleet, and the
/// thief without one.
fn broker(dir: &Path, port: u16, plain: u16, chain: &str, key: &str, ca: &Path) -> Result<Child> {
    std::fs::write(dir.join("chain.pem"), chain)?;
    std::fs::write(dir.join("key.pem"), key)?;
    let at = |name: &str| dir.join(name).display().to_string();
    let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
    let config = format!(
        "{user}per_listener_settings false\nallow_anonymous true\npersistence false\nlistener {plain} 127.0.0.1\n\
         listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        ca.display(),
        at("chain.pem"),
        at("key.pem")
    );
    std::fs::write(dir.join("broker.conf"), config)?;
    let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].into_iter().find(|p| Path::new(p).exists());
    let log = std::fs::File::create(dir.join("broker.log"))?;
    Command::new(program.unwrap_or("mosquitto"))
        .arg("-c")
        .arg(dir.join("broker.conf"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("mosquitto of Debian's mosquitto")
}

/// At the address that the server has just left.
async fn listen(address: SocketAddr) -> Result<TcpListener> {
    plimsoll_tests::until("the server's address to be free", plimsoll_tests::STEP, || async move {
        TcpListener::bind(address).await.with_context(|| address.to_string())
    })
    .await
}

/// Answers GET, one request after the other.
async fn serve(stream: TcpStream, tls: TlsAcceptor, shop: &Mutex<Shop>) -> Result<()> {
    let mut stream = BufReader::new(tls.accept(stream).await?);
    loop {
        let (mut line, mut path) = (String::new(), String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            }
        }
        let said = shop.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
        match said {
            Some(Said::Bytes(bytes)) => {
                stream
                    .write_all(
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len()).as_bytes(),
                    )
                    .await?;
                stream.write_all(&bytes).await?;
            }
            Some(Said::Endless) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
                loop {
                    stream.write_all(&[b' '; 4096]).await?;
                }
            }
            Some(Said::Busy) => {
                stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await?;
            }
            None => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?,
        }
        stream.flush().await?;
    }
}
