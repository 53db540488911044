//! The operators' API as a reader sees it.

use anyhow::{Context, Result, bail};
use plimsoll_protocol::api::{DeviceInfo, EventInfo, RolloutInfo};
use plimsoll_protocol::ids::RolloutId;
use serde::de::DeserializeOwned;

/// A client of `/api/v1` with a token.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: String,
    client: reqwest::Client,
}

impl Api {
    /// `base` is `http://host:port`.
    pub fn new(base: &str, token: &str) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().build().context("no HTTP client")?;
        Ok(Self { base: base.to_owned(), token: token.to_owned(), client })
    }

    /// `http://host:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The operator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// GET of a path under `/api/v1/`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}/api/v1/{path}", self.base);
        let response = self.client.get(&url).bearer_auth(&self.token).send().await;
        let response = response.with_context(|| format!("GET {url}"))?;
        let status = response.status();
        let body = response.bytes().await.with_context(|| format!("GET {url}"))?;
        if !status.is_success() {
            bail!("GET {url}: {status}: {}", String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("GET {url}: {}", String::from_utf8_lossy(&body)))
    }

    /// PUT of a path under `/api/v1/`: status and body, whatever they are.
    pub async fn put(&self, path: &str, body: Vec<u8>) -> Result<(u16, String)> {
        let url = format!("{}/api/v1/{path}", self.base);
        let request = self.client.put(&url).bearer_auth(&self.token);
        let request = request.header("content-type", "application/json").body(body);
        let response = request.send().await.with_context(|| format!("PUT {url}"))?;
        let status = response.status().as_u16();
        Ok((status, response.text().await.with_context(|| format!("PUT {url}"))?))
    }

    /// GET of a path outside `/api/v1/` by somebody without a token: a page, the numbers.
    pub async fn page(&self, path: &str) -> Result<String> {
        let url = format!("{}{path}", self.base);
        let response = self.client.get(&url).send().await.with_context(|| format!("GET {url}"))?;
        let response = response.error_for_status().with_context(|| format!("GET {url}"))?;
        response.text().await.with_context(|| format!("GET {url}"))
    }

    /// All devices.
    pub async fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.get("devices").await
    }

    /// One rollout.
    pub async fn rollout(&self, id: &RolloutId) -> Result<RolloutInfo> {
        self.get(&format!("rollouts/{id}")).await
    }

    /// The newest events.
    pub async fn events(&self) -> Result<Vec<EventInfo>> {
        self.get("events?limit=200").await
    }
}
