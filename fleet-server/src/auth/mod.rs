//! Tokens of people and programs: `plt1.<id>.<secret>`, shown once, stored as a hash, with a role and an end.

pub mod device;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use plimsoll_protocol::api::{NewToken, Role, TokenCreated};
use plimsoll_protocol::{Digest, UnixMillis};

use crate::secret;
use crate::store::{Store, StoreError, TokenRecord};

/// Days of the first token: a year, and a restart within the last 30 days makes the next.
const ADMIN_DAYS: u32 = 365;
const ADMIN_RENEWED_DAYS: i64 = 30;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// Longest life of a token that the API gives out: ten years, so that no sum of times can overflow.
pub const MAX_TOKEN_DAYS: u32 = 3650;

/// Who speaks, proven by a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Public part of the token, for the audit log.
    pub id: String,
    /// What the caller may do.
    pub role: Role,
}

/// Whether a role includes another. Approver and publisher stand side by side.
pub fn includes(have: Role, need: Role) -> bool {
    match need {
        Role::Viewer => true,
        Role::Operator => matches!(have, Role::Operator | Role::Approver | Role::Admin),
        Role::Approver => matches!(have, Role::Approver | Role::Admin),
        Role::Publisher => matches!(have, Role::Publisher | Role::Admin),
        Role::Admin => have == Role::Admin,
    }
}

/// Splits the text of a token into id and hash of the secret; `None` when it is no token.
fn parse(text: &str) -> Option<(&str, Digest)> {
    let mut parts = text.trim().split('.');
    let (tag, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = |s: &str| !s.is_empty() && s.len() <= 64 && s.bytes().all(|b| b.is_ascii_alphanumeric());
    (tag == "plt1" && plain(id) && plain(secret) && parts.next().is_none())
        .then(|| (id, secret::hash(secret)))
}

/// A random public part and a random secret.
pub fn random_pair() -> std::io::Result<(String, String)> {
    Ok((hex::encode(secret::random::<4>()?), hex::encode(secret::random::<16>()?)))
}

/// All tokens, in memory: every request and every dashboard asks.
pub struct Auth {
    store: Arc<dyn Store>,
    tokens: RwLock<BTreeMap<String, TokenRecord>>,
}

impl Auth {
    /// Reads all tokens.
    pub async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let tokens = store.tokens().await?.into_iter().map(|t| (t.id.clone(), t)).collect();
        Ok(Self { store, tokens: RwLock::new(tokens) })
    }

    /// Who a token belongs to; `None` for an unknown, wrong or expired one.
    pub fn check(&self, text: &str, now: UnixMillis) -> Option<Caller> {
        let (id, hash) = parse(text)?;
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let record = tokens.get(id)?;
        let valid = secret::same(&record.secret, &hash) && now < record.expires_ms;
        valid.then(|| Caller { id: record.id.clone(), role: record.role })
    }

    /// Makes a token.
    pub async fn create(&self, new: &NewToken, now: UnixMillis) -> Result<TokenCreated, StoreError> {
        let (id, secret) = random_pair().map_err(|e| StoreError::storage("making a token", e))?;
        let expires_ms = now + i64::from(new.days.min(MAX_TOKEN_DAYS)) * DAY_MS;
        let record = TokenRecord {
            id: id.clone(),
            name: new.name.clone(),
            role: new.role,
            secret: secret::hash(&secret),
            expires_ms,
        };
        self.store.add_token(record.clone()).await?;
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), record);
        Ok(TokenCreated { token: format!("plt1.{id}.{secret}"), id, expires_ms })
    }

    /// Keeps a valid administrator's token in `<dir>/admin.token`; makes one when there is none.
    pub async fn ensure_admin(&self, dir: &Path, now: UnixMillis) -> Result<PathBuf, StoreError> {
        let path = dir.join("admin.token");
        let soon = now + ADMIN_RENEWED_DAYS * DAY_MS;
        if let Ok(text) = std::fs::read_to_string(&path)
            && self.check(&text, soon).is_some_and(|c| c.role == Role::Admin)
        {
            return Ok(path);
        }
        let new = NewToken { name: "first administrator".into(), role: Role::Admin, days: ADMIN_DAYS };
        let created = self.create(&new, now).await?;
        secret::write_private(&path, format!("{}\n", created.token).as_bytes())
            .map_err(|e| StoreError::storage(format!("writing {}", path.display()), e))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    #[test]
    fn each_role_includes_what_the_contract_says() {
        use Role::{Admin, Approver, Operator, Publisher, Viewer};
        let table = [
            (Viewer, vec![Viewer]),
            (Operator, vec![Viewer, Operator]),
            (Approver, vec![Viewer, Operator, Approver]),
            (Publisher, vec![Viewer, Publisher]),
            (Admin, vec![Viewer, Operator, Approver, Publisher, Admin]),
        ];
        for (have, may) in table {
            for need in [Viewer, Operator, Approver, Publisher, Admin] {
                assert_eq!(includes(have, need), may.contains(&need), "{have:?} asked for {need:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_token_works_until_it_ends_and_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let auth = Auth::load(Arc::new(Embedded::open(dir.path()).unwrap())).await.unwrap();
        let new = NewToken { name: "ci".into(), role: Role::Publisher, days: 1 };
        let made = auth.create(&new, 0).await.unwrap();
        let caller = auth.check(&made.token, 0).unwrap();
        assert_eq!((caller.id.as_str(), caller.role), (made.id.as_str(), Role::Publisher));
        assert_eq!(auth.check(&made.token, made.expires_ms), None);
        let cut = &made.token[..made.token.len() - 1];
        for bad in
            ["", "plt1", "plt1..", cut, &format!("{}0", made.token), &made.token.replace("plt1", "plj1")]
        {
            assert_eq!(auth.check(bad, 0), None, "{bad:?} was accepted");
        }
    }

    #[tokio::test]
    async fn the_first_start_writes_an_admin_token_and_the_second_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let auth = Auth::load(Arc::new(Embedded::open(&dir.path().join("store")).unwrap())).await.unwrap();
        let path = auth.ensure_admin(dir.path(), 0).await.unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        assert_eq!(auth.check(&first, 0).unwrap().role, Role::Admin);
        auth.ensure_admin(dir.path(), DAY_MS).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        auth.ensure_admin(dir.path(), 350 * DAY_MS).await.unwrap();
        assert_ne!(std::fs::read_to_string(&path).unwrap(), first, "a token about to end is replaced");
    }
}
