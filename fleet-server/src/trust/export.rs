//! Freshness for an export, see `plimsoll_protocol::trust::repository`.

use std::collections::BTreeMap;

use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::trust::TrustError;

use super::{PublishError, TrustService, newest_root};

impl TrustService {
    /// Signs snapshot and timestamp that last for so many seconds, and publishes newer ones. Answers the lasting ones.
    pub async fn freshness(
        &self,
        lifetime_s: i64,
        now: UnixMillis,
    ) -> Result<BTreeMap<String, String>, PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        if !published.repository.is_initialised() {
            return Err(PublishError::NotInitialised);
        }
        let online = self.online().for_root(newest_root(&published.repository).as_ref());
        let (exported, change) = published.repository.export(&online, now / 1000, lifetime_s)?;
        // Before they are given away: what the network says must be newer than what any file says.
        self.take(&published, change, now).await?;
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|e| PublishError::from(TrustError::Upload(e.to_string())))
        };
        exported.into_iter().map(|(name, bytes)| Ok((name, text(bytes)?))).collect()
    }
}
