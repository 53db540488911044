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
