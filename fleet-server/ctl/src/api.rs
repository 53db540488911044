//! The server's `/api/v1`, as the commands use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use plimsoll_protocol::api::Problem;
use reqwest::{Body, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Usage;

/// A server on the same machine answers in milliseconds, one across a bad link in a second or two; ten times that
/// before a connection is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence within a transfer: a server that verifies a 10 MiB upload needs under a second; a minute covers a slow
/// disk that syncs a large blob.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How to reach the server; global flags.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// The server's address for operators.
    #[arg(
        long,
        global = true,
        env = "PLIMSOLL_SERVER",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    pub server: String,
    /// API token. Prefer PLIMSOLL_TOKEN or --token-file: arguments are visible to every user of the machine.
    #[arg(long, global = true, env = "PLIMSOLL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File that holds the API token.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// PEM certificates to trust for https, instead of the system's.
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// An answer that is not a success.
#[derive(Debug, thiserror::Error)]
#[error("{method} {path}: {status}: {detail}")]
pub struct ApiError {
    method: Method,
    path: String,
    status: StatusCode,
    /// The server's words, or what it sent instead of words.
    detail: String,
}

impl ApiError {
    /// Whether the server understood and said no, rather than failed: conflicts, verification, limits.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.status,
            StatusCode::CONFLICT
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNPROCESSABLE_ENTITY
        )
    }

    /// The HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: Option<String>,
    client: reqwest::Client,
}

impl Api {
    /// Prepares a client; nothing is sent yet.
    pub fn new(connection: &Connection) -> Result<Self> {
        let base = connection.server.trim_end_matches('/').to_owned();
        let secure = base.starts_with("https://");
        if !secure && !base.starts_with("http://") {
            return Err(Usage(format!(
                "--server {base:?} is not a URL: http://host:port or https://host:port"
            ))
            .into());
        }
        let token = token(connection)?;
        Ok(Self { base, token, client: client(connection.ca.as_deref())? })
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET of a path under `/api/v1/`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// POST of a JSON body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// PUT of a JSON body; what the server answers is not read.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.send(Method::PUT, path, Some(Body::from(serde_json::to_vec(body)?)), "application/json").await?;
        Ok(())
    }

    /// PUT of a JSON body; the answer is wanted.
    pub async fn put_for<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// GET of bytes that are not JSON of the API: a document, a blob.
    pub async fn bytes(&self, path: &str) -> Result<bytes::Bytes> {
        self.send(Method::GET, path, None, "").await
    }

    /// GET of bytes that may be many: each piece as it comes.
    pub async fn download(&self, path: &str, mut piece: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut response = self.open(Method::GET, path, None, "").await?;
        let broke = || format!("GET {}/api/v1/{path}: the answer broke off", self.base);
        while let Some(bytes) = response.chunk().await.with_context(broke)? {
            piece(&bytes)?;
        }
        Ok(())
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, None, "").await?;
        Ok(())
    }

    /// POST whose answer is not read.
    pub async fn act(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.send(Method::POST, path, Some(Body::from(serde_json::to_vec(body)?)), "application/json")
            .await?;
        Ok(())
    }

    /// PUT of a stream.
    pub async fn put_stream(&self, path: &str, body: Body) -> Result<()> {
        self.send(Method::PUT, path, Some(body), "application/octet-stream").await?;
        Ok(())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = body.map(serde_json::to_vec).transpose()?.map(Body::from);
        let text = self.send(method, path, body, "application/json").await?;
        serde_json::from_slice(&text).with_context(|| {
            let start: String = String::from_utf8_lossy(&text).chars().take(200).collect();
            format!("{}/api/v1/{path} answered something else than this command knows ({start}); are both of one version?", self.base)
        })
    }

    async fn send(&self, method: Method, path: &str, body: Option<Body>, kind: &str) -> Result<bytes::Bytes> {
        let broke = || format!("{} {path}: the answer broke off", self.base);
        self.open(method, path, body, kind).await?.bytes().await.with_context(broke)
    }

    /// The answer to a request, its body still to come, when it is a success.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<Body>,
        kind: &str,
    ) -> Result<reqwest::Response> {
        let url = format!("{}/api/v1/{path}", self.base);
        let mut request = self.client.request(method.clone(), &url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header(reqwest::header::CONTENT_TYPE, kind).body(body);
        }
        let reach =
            || format!("{method} {url}: cannot reach the server; is it running, and is --server right?");
        let response = request.send().await.with_context(reach)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.bytes().await.with_context(|| format!("{method} {url}: the answer broke off"))?;
        let problem = serde_json::from_slice::<Problem>(&text).map(|p| p.detail);
        let detail = problem.unwrap_or_else(|_| String::from_utf8_lossy(&text).chars().take(300).collect());
        let detail = match status {
            StatusCode::UNAUTHORIZED => format!("{detail} (set PLIMSOLL_TOKEN or --token-file)"),
            _ => detail,
        };
        Err(ApiError { method, path: path.to_owned(), status, detail }.into())
    }
}

/// A client of HTTP, to which `ca` vouches for servers if it is given.
pub fn client(ca: Option<&Path>) -> Result<reqwest::Client> {
    let mut builder =
        reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).no_proxy();
    if let Some(file) = ca {
        let pem = std::fs::read(file).with_context(|| format!("cannot read --ca {}", file.display()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("--ca {} holds no PEM certificates", file.display()))?;
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().context("cannot prepare TLS: give --ca with the server's certificate")
}

fn token(connection: &Connection) -> Result<Option<String>> {
    let text = match (&connection.token, &connection.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => read_token(file)?,
        (None, None) => return Ok(None),
    };
    let token = text.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Usage("the API token is empty or has characters that no token has".into()).into());
    }
    Ok(Some(token))
}

fn read_token(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read --token-file {}", file.display()))
}

/// A part of a path or query, percent-encoded.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(server: &str, token: Option<&str>) -> Connection {
        Connection { server: server.into(), token: token.map(str::to_owned), token_file: None, ca: None }
    }

    #[test]
    fn an_address_without_a_scheme_and_a_broken_token_are_wrong_usage() {
        for (server, token) in [("127.0.0.1:8080", None), ("http://x", Some("a b")), ("http://x", Some(""))] {
            let error = Api::new(&connection(server, token)).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error), crate::failure::USAGE, "{error:#}");
        }
    }

    #[test]
    fn a_part_of_a_path_cannot_leave_it() {
        assert_eq!(encoded("a/../b?c"), "a%2F..%2Fb%3Fc");
    }
}
