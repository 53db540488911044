//! A server in this process on free ports, an operator, a publisher with offline keys, and devices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use plimsoll_protocol::api::{NewJoinToken, Problem, TokenCreated, TrustState, TrustUpload};
use plimsoll_protocol::drift::Baseline;
use plimsoll_protocol::trust::repository::{
    OFFLINE_LIFETIME_S, ROLE_LIFETIME_S, RootKeys, model_paths, sign_next,
};
use plimsoll_protocol::trust::{Doc, Key, KeyPair, Root, Signer, Targets};
use plimsoll_protocol::wire::v1::{ENROLL_PATH, EnrollRequest, EnrollResponse, JoinToken};
use plimsoll_protocol::{DeviceId, Digest, ModelName};
use plimsoll_server::app::Addresses;
use plimsoll_server::config::Raw;
use plimsoll_server::server::Server;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair as DeviceKey};
use reqwest::{Certificate, Client, Identity, Method, RequestBuilder, Response};
use serde_json::{Value, json};

/// A loaded two-core machine is slow; a broken test fails after this and not before.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub server: Option<Server>,
    pub admin: String,
    pub http: String,
    pub https: String,
    client: Client,
}

/// Any free ports; on a folder that was served before, the same ones, so that devices find it again.
pub fn raw(dir: &Path) -> Raw {
    let before = std::fs::read(dir.join("addresses.json"))
        .ok()
        .map(|b| serde_json::from_slice::<Addresses>(&b).unwrap());
    let listen =
        |of: fn(&Addresses) -> SocketAddr| Some(before.as_ref().map_or(([127, 0, 0, 1], 0).into(), of));
    Raw {
        state_dir: Some(dir.to_owned()),
        listen_http: listen(|a| a.http),
        listen_https: listen(|a| a.https),
        listen_mqtt: listen(|a| a.mqtt),
        listen_dashboard: listen(|a| a.dashboard),
        public_hosts: vec!["127.0.0.1".into()],
        tick_ms: Some(50),
        ..Raw::default()
    }
}

impl Rig {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::on(dir).await
    }

    pub async fn on(dir: tempfile::TempDir) -> Self {
        Self::with(dir, |raw| raw).await
    }

    pub async fn with(dir: tempfile::TempDir, change: impl FnOnce(Raw) -> Raw) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default(); // Err: another test of this process did
        let server = Server::start(change(raw(dir.path())).check().unwrap()).await.unwrap();
        let addresses = server.addresses().unwrap();
        let admin = std::fs::read_to_string(dir.path().join("admin.token")).unwrap().trim().to_owned();
        let client = Client::builder().no_proxy().build().unwrap();
        let (http, https) = (format!("http://{}", addresses.http), format!("https://{}", addresses.https));
        Self { dir, server: Some(server), admin, http, https, client }
    }

    /// Stops the server and starts it on the same folder.
    pub async fn restart(mut self) -> Self {
        self.server.take().unwrap().stop().await;
        Self::on(self.dir).await
    }

    pub fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/api/v1{path}", self.http)).bearer_auth(&self.admin)
    }

    pub fn page(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.http))
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "GET {path}");
        answer.json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.call(Method::POST, path).json(&body).send().await.unwrap()
    }

    pub async fn join_token(&self, uses: u32, minutes: u32) -> JoinToken {
        let new = NewJoinToken {
            uses,
            minutes,
            labels: BTreeMap::from([("site".into(), "lyon".into())]),
            names: None,
        };
        let answer = self.post("/join-tokens", serde_json::to_value(new).unwrap()).await;
        let made: TokenCreated = answer.json().await.unwrap();
        made.token.parse().unwrap()
    }

    /// A client that believes this fleet's CA and nobody else; with a device's certificate if one is given.
    pub fn device_client(&self, identity: Option<&Enrolled>) -> Client {
        let ca = std::fs::read(self.dir.path().join("ca.pem")).unwrap();
        let mut builder = Client::builder().no_proxy().tls_certs_only([Certificate::from_pem(&ca).unwrap()]);
        if let Some(device) = identity {
            let pem = format!("{}{}", device.key.serialize_pem(), device.response.certificate_pem);
            builder = builder.identity(Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }

    pub async fn try_enrol(&self, token: &JoinToken, name: &str, csr_pem: String) -> Response {
        let request = EnrollRequest {
            token_id: token.id.clone(),
            token_secret: token.secret.clone(),
            device: DeviceId::new(name).unwrap(),
            csr_pem,
            arch: "x86_64".into(),
            // What it says of itself; where it belongs is its token's to say.
            labels: [("site", "paris"), ("floor", "2")].map(|(k, v)| (k.into(), v.into())).into(),
        };
        let url = format!("{}{ENROLL_PATH}", self.https);
        self.device_client(None).post(url).json(&request).send().await.unwrap()
    }

    pub async fn enrol(&self, token: &JoinToken, name: &str) -> Enrolled {
        let key = DeviceKey::generate().unwrap();
        let answer = self.try_enrol(token, name, csr(&key, name)).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        Enrolled { key, response: answer.json().await.unwrap() }
    }
}

pub struct Enrolled {
    pub key: DeviceKey,
    pub response: EnrollResponse,
}

pub fn csr(key: &DeviceKey, name: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(key).unwrap().pem().unwrap()
}

pub async fn problem(answer: Response, status: u16) -> Problem {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    answer.json().await.unwrap()
}

/// Waits until a look succeeds, looking again after each change of the server.
pub async fn until<T>(rig: &Rig, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut changes = rig.server.as_ref().unwrap().app().changes.subscribe();
    let wait = async {
        loop {
            changes.borrow_and_update();
            if let Some(found) = look().await {
                return found;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Holds the offline keys.
pub struct Publisher {
    root: KeyPair,
    targets: KeyPair,
    pub release: KeyPair,
}

impl Publisher {
    pub fn new() -> Self {
        let key = |n| KeyPair::from_seed(&[n; 32]);
        Self { root: key(1), targets: key(2), release: key(3) }
    }

    pub async fn init(&self, rig: &Rig) {
        let answer = self.upload(rig, &self.first(&rig.get("/trust").await)).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    pub fn first(&self, state: &Value) -> TrustUpload {
        let state: TrustState = serde_json::from_value(state.clone()).unwrap();
        let root = Root::of(&RootKeys {
            root: (vec![self.root.key()], 1),
            targets: (vec![self.targets.key()], 1),
            snapshot: Key::from_hex(&state.snapshot_key).unwrap(),
            timestamp: Key::from_hex(&state.timestamp_key).unwrap(),
        });
        let mut targets = Targets::default();
        let meter = ModelName::new("meter").unwrap();
        targets.delegate("meter", &[self.release.key()], 1, model_paths(&meter));
        let root = sign_next(None, root, now(), OFFLINE_LIFETIME_S, &[&self.root as &dyn Signer]).unwrap();
        let targets =
            sign_next(None, targets, now(), OFFLINE_LIFETIME_S, &[&self.targets as &dyn Signer]).unwrap();
        TrustUpload { root: Some(root), targets: Some(targets), roles: BTreeMap::new() }
    }

    pub async fn upload(&self, rig: &Rig, upload: &TrustUpload) -> Response {
        rig.call(Method::PUT, "/trust/metadata").json(upload).send().await.unwrap()
    }

    /// The role's next metadata with these bundles added, signed by `signer`.
    pub async fn role(&self, rig: &Rig, bundles: &[Bundle], signer: &KeyPair) -> TrustUpload {
        let state: TrustState = serde_json::from_value(rig.get("/trust").await).unwrap();
        let known = state.roles.get("meter").map(|v| Doc::<Targets>::read_unverified(v).unwrap());
        let (version, mut body) = known.map_or((None, Targets::default()), |d| (Some(d.version), d.body));
        for bundle in bundles {
            body.add_bundle(&ModelName::new("meter").unwrap(), &bundle.version, &bundle.manifest);
        }
        let signed = sign_next(version, body, now(), ROLE_LIFETIME_S, &[signer as &dyn Signer]).unwrap();
        TrustUpload { roles: BTreeMap::from([("meter".into(), signed)]), ..TrustUpload::default() }
    }

    /// Uploads files and metadata of a version.
    pub async fn publish(&self, rig: &Rig, version: &str) -> Bundle {
        self.publish_bundle(rig, Bundle::new(version)).await
    }

    /// Uploads files and metadata of a bundle.
    pub async fn publish_bundle(&self, rig: &Rig, bundle: Bundle) -> Bundle {
        for bytes in bundle.blobs() {
            assert!(put_blob(rig, &bytes).await.status().is_success());
        }
        let upload = self.role(rig, std::slice::from_ref(&bundle), &self.release).await;
        let answer = self.upload(rig, &upload).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        bundle
    }
}

pub async fn put_blob(rig: &Rig, bytes: &[u8]) -> Response {
    let path = format!("/blobs/sha256/{}", Digest::of(bytes));
    rig.call(Method::PUT, &path).body(bytes.to_vec()).send().await.unwrap()
}

pub fn now() -> i64 {
    plimsoll_server::clock::now_ms() / 1000
}

/// A version whose files are text: the server looks at digests and sizes, not into models.
pub struct Bundle {
    pub version: semver::Version,
    pub manifest: Vec<u8>,
    pub files: Vec<Vec<u8>>,
}

impl Bundle {
    pub fn new(version: &str) -> Self {
        Self::build(version, None)
    }

    /// One that measures the confidence of its answers.
    pub fn measured(version: &str, baseline: &Baseline) -> Self {
        Self::build(version, Some(baseline.to_bytes()))
    }

    fn build(version: &str, baseline: Option<Vec<u8>>) -> Self {
        let mut files: Vec<Vec<u8>> = ["model", "input", "output"]
            .iter()
            .map(|name| format!("{name} of {version}").into_bytes())
            .collect();
        let mut paths =
            vec!["model.onnx", "golden/test_data_set_0/input_0.pb", "golden/test_data_set_0/output_0.pb"];
        let is_measured = baseline.is_some();
        if let Some(baseline) = baseline {
            paths.push("baseline.json");
            files.push(baseline);
        }
        let entries: Vec<Value> = paths
            .iter()
            .zip(&files)
            .map(|(path, bytes)| json!({ "path": path, "size": bytes.len(), "sha256": Digest::of(bytes) }))
            .collect();
        let mut manifest = json!({
            "format": 1, "model": "meter", "version": version, "created": "2026-01-01T00:00:00Z",
            "files": entries,
            "variants": [{ "name": "default", "entry": "model.onnx",
                           "runtime": { "kind": "onnx", "opsets": { "": 17 } } }],
            "inputs": [{ "name": "x", "datatype": "FP32", "shape": [-1, 64] }],
            "outputs": [{ "name": "y", "datatype": "FP32", "shape": [-1, 10] }],
            "golden": { "origin": "supplied",
                        "tolerance": { "absolute": 1e-4, "relative": 1e-3, "top1": true },
                        "samples": [{ "inputs": [paths[1]], "outputs": [paths[2]] }] },
        });
        if is_measured {
            manifest["baseline"] = json!("baseline.json");
        }
        let manifest = manifest.to_string().into_bytes();
        Self { version: version.parse().unwrap(), manifest, files }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub fn blobs(&self) -> Vec<Vec<u8>> {
        self.files.iter().chain([&self.manifest]).cloned().collect()
    }
}
