//! Freshness that lasts as long as a journey: for a bundle that goes to devices without a network.
//!
//! A timestamp lives a day, so that nobody can hold a device on old metadata for longer. One that lives a month is a
//! month in which its holder can do that, to any device that has not seen a newer one. Hence three rules. It is
//! signed for one export, when somebody asks for it, and the repository itself never serves it. It takes a version
//! number of its own, and the repository goes on with the next: a device that was reached by the file and later by
//! the network finds the network newer, never the same number with other contents. And it lives no longer than the
//! role of a model, whose end bounds such a hold already.

use super::super::TrustError;
use super::publish::{Change, Repository};
use super::{Online, ROLE_LIFETIME_S};
use crate::UnixSeconds;

/// Longest freshness of an export.
pub const MAX_EXPORT_LIFETIME_S: i64 = ROLE_LIFETIME_S;

/// Documents by the names that they are fetched by.
type Named = Vec<(String, Vec<u8>)>;

impl Repository {
    /// Signs snapshot and timestamp for `lifetime_s` seconds, by the names that they are fetched by; and the change
    /// that takes the repository past them, which is to be published before they are given away.
    pub fn export(
        &self,
        online: &Online,
        now: UnixSeconds,
        lifetime_s: i64,
    ) -> Result<(Named, Change), TrustError> {
        if !(1..=MAX_EXPORT_LIFETIME_S).contains(&lifetime_s) {
            let most = MAX_EXPORT_LIFETIME_S / super::DAY_S;
            return Err(TrustError::Upload(format!(
                "an export is valid for 1 second to {most} days, not {lifetime_s} seconds: its holder can keep a \
                 device that has not seen anything newer on it for that long"
            )));
        }
        self.check_keys(online)?;
        let mut next = self.clone();
        let exported = next.sign_for(online, now, true, (lifetime_s, lifetime_s))?;
        let documents = next.sign_current(online, now, true)?;
        let listed = next.listed()?;
        Ok((exported, Change { repository: next, documents, listed, removed: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, online, published};
    use super::*;
    use crate::trust::repository::DAY_S;

    #[test]
    fn an_export_lasts_and_the_repository_goes_on_past_it() {
        let before = published();
        let (exported, change) = before.export(&online(), NOW, 30 * DAY_S).unwrap();
        let version = |documents: &Named, name: &str| {
            let (_, bytes) = documents.iter().find(|(n, _)| n.ends_with(name)).unwrap();
            let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            (
                value["signed"]["version"].as_u64().unwrap(),
                value["signed"]["expires"].as_str().unwrap().to_owned(),
            )
        };
        for name in ["timestamp.json", "snapshot.json"] {
            let (lasting, usual) = (version(&exported, name), version(&change.documents, name));
            assert!(usual.0 > lasting.0, "{name}: {usual:?} is not newer than {lasting:?}");
            assert!(usual.1 < lasting.1, "{name}: {usual:?} lasts as long as {lasting:?}");
        }
        assert!(change.removed.is_empty());
    }

    #[test]
    fn an_export_does_not_outlive_a_role() {
        for seconds in [0, -1, 90 * DAY_S + 1] {
            let words = published().export(&online(), NOW, seconds).unwrap_err().to_string();
            assert!(words.contains("1 second to 90 days"), "{words}");
        }
    }
}
