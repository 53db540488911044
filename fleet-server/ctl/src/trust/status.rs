//! Roles, how long they are valid, whose keys they are, and what waits.

use anyhow::Result;
use plimsoll_protocol::UnixSeconds;
use plimsoll_protocol::api::{Proposal, TrustState};
use plimsoll_protocol::trust::repository::{Current, DAY_S, Edit, key_label};
use plimsoll_protocol::trust::{Doc, Snapshot, Timestamp};
use serde_json::{Value, json};

use super::read_current;
use crate::api::Api;
use crate::keys::{KeyArgs, KeyRing};
use crate::output::{Screen, table};
use crate::time;

/// A role that ends within a month is to be renewed: a month is enough to find the owners of its keys.
pub const SOON_S: i64 = 30 * DAY_S;

/// One line of the table.
struct Row {
    role: String,
    version: Option<u64>,
    expires: Option<UnixSeconds>,
    threshold: u32,
    keys: Vec<String>,
    here: Vec<String>,
    bundles: usize,
    online: bool,
}

/// `plimsoll trust status`
pub async fn status(args: &KeyArgs, api: &Api, screen: &Screen) -> Result<()> {
    let ring = KeyRing::open(args)?;
    let state: TrustState = api.get("trust").await?;
    let waiting: Vec<Proposal> = api.get("trust/proposals").await?;
    let waits: Vec<Value> =
        waiting.iter().map(|p| json!({ "id": p.id, "why": p.why, "expires": p.expires })).collect();
    let waits_text = || waiting.iter().map(|p| format!("\nwaits for signatures: {} ({})", p.id, p.why));
    let Some(current) = read_current(&ring, &state, screen)? else {
        return screen.show(&json!({ "initialised": false, "proposals": waits }), || {
            let none = "The server has no trust repository yet: run `plimsoll trust init`.".to_owned();
            waits_text().fold(none, |text, line| text + &line)
        });
    };
    let now = time::now();
    let rows = rows(&ring, &current);
    let json: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "role": r.role, "version": r.version, "expires": r.expires,
                "expires_in_days": r.expires.map(|at| (at - now).div_euclid(DAY_S)),
                "expired": r.expires.is_some_and(|at| at <= now), "threshold": r.threshold, "keys": r.keys.len(),
                "key_ids": r.keys, "keys_here": r.here, "bundles": r.bundles,
            })
        })
        .collect();
    screen.show(&json!({ "initialised": true, "roles": json, "proposals": waits }), || {
        let cells = rows.iter().map(|r| {
            let here = if r.here.is_empty() { "-".into() } else { r.here.join(", ") };
            let version = r.version.map_or("-".into(), |v| v.to_string());
            let keys = format!("{} of {}: {}", r.threshold, r.keys.len(), r.keys.join(", "));
            vec![r.role.clone(), version, expiry(r, now), here, r.bundles.to_string(), keys]
        });
        let head = ["ROLE", "VERSION", "EXPIRES", "KEYS HERE", "BUNDLES", "KEYS"];
        let mut text = table(&head, &cells.collect::<Vec<_>>());
        let soon = |r: &&Row| !r.online && r.expires.is_some_and(|at| at - now < SOON_S);
        let soon: Vec<&str> = rows.iter().filter(soon).map(|r| r.role.as_str()).collect();
        if !soon.is_empty() {
            text.push_str(&format!("\nexpires soon: {}; sign again: plimsoll trust renew", soon.join(", ")));
        }
        waits_text().fold(text, |text, line| text + &line)
    })
}

/// Name, version and expiry where there is a document, bundles.
type Role = (String, Option<(u64, UnixSeconds)>, usize);

fn rows(ring: &KeyRing, current: &Current) -> Vec<Row> {
    let edit = Edit::new(current, 0);
    let online = |role: &str| -> Option<(u64, UnixSeconds)> {
        if role == "snapshot" {
            let doc = Doc::<Snapshot>::read_unverified(current.documents.snapshot.as_ref()?).ok()?;
            return Some((doc.version, doc.expires));
        }
        let doc = Doc::<Timestamp>::read_unverified(current.documents.timestamp.as_ref()?).ok()?;
        Some((doc.version, doc.expires))
    };
    let mut roles: Vec<Role> = vec![
        ("root".into(), Some((current.root.version, current.root.expires)), 0),
        ("targets".into(), Some((current.targets.version, current.targets.expires)), 0),
        ("snapshot".into(), online("snapshot"), 0),
        ("timestamp".into(), online("timestamp"), 0),
    ];
    for role in current.targets.body.delegations.iter().flat_map(|d| &d.roles) {
        let doc = current.roles.get(&role.name);
        let listed = doc.map_or(0, |d| d.body.targets.len());
        roles.push((role.name.clone(), doc.map(|d| (d.version, d.expires)), listed));
    }
    let row = |(role, document, bundles): (String, Option<(u64, UnixSeconds)>, usize)| {
        let (keys, threshold) = edit.keys(&role).unwrap_or_default();
        let here = keys.iter().filter_map(|key| ring.holder(key));
        Row {
            version: document.map(|d| d.0),
            expires: document.map(|d| d.1),
            threshold,
            here: here.map(|holder| holder.trim_end_matches(".key").to_owned()).collect(),
            keys: keys.iter().map(|key| key_label(&key.id(), Some(key))).collect(),
            bundles,
            online: matches!(role.as_str(), "snapshot" | "timestamp"),
            role,
        }
    };
    roles.into_iter().map(row).collect()
}

fn expiry(row: &Row, now: UnixSeconds) -> String {
    let Some(at) = row.expires else { return "nothing signed yet".into() };
    let days = (at - now).div_euclid(DAY_S);
    match (at <= now, row.online) {
        (true, _) => format!("EXPIRED {}", time::date(at)),
        (_, true) => format!("{}, kept fresh by the server", time::date(at)),
        (_, false) => format!("{}, in {days} days", time::date(at)),
    }
}
