//! One address of a repository, over HTTP.

use std::path::Path;

use anyhow::{Context, Result, bail};
use reqwest::{Response, StatusCode, Url};

use crate::api;

/// Documents and targets below one address.
pub struct Remote {
    base: Url,
    client: reqwest::Client,
}

impl Remote {
    /// `flag` is where the address came from.
    pub fn new(base: &str, flag: &str, ca: Option<&Path>) -> Result<Self> {
        let wrong = || format!("{flag} {base:?} is not an address: http://host/path or https://host/path");
        let mut url = Url::parse(base).with_context(wrong)?;
        if !matches!(url.scheme(), "http" | "https") {
            bail!(wrong());
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self { base: url, client: api::client(ca)? })
    }

    /// A document; `None` when it does not exist.
    pub async fn document(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut response) = self.get(path).await? else { return Ok(None) };
        let url = response.url().clone();
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.with_context(|| format!("GET {url}: it broke off"))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > max {
                bail!("GET {url}: it has more than {max} bytes, which is the most that is read of it");
            }
        }
        Ok(Some(bytes))
    }

    /// Below the address; `path` is percent-encoded. `None` when there is nothing (object stores say so with 403).
    pub async fn get(&self, path: &str) -> Result<Option<Response>> {
        // Joined as text: a `join` would take a name with a colon for an address of its own.
        let url = format!("{}{path}", self.base);
        let response = self.client.get(&url).send().await.with_context(|| format!("GET {url}"))?;
        match response.status() {
            status if status.is_success() => Ok(Some(response)),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Ok(None),
            status => bail!("GET {url}: {status}"),
        }
    }
}
