//! What a change changes, in words: for the person who is asked to sign it. Nothing may hide, so what these words
//! do not know is named as a field that differs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::super::schema::{Doc, RoleKeys, Root, TargetMeta, Targets};
use super::super::{Key, KeyId, TrustError};
use super::Current;
use crate::UnixSeconds;
use crate::api::TrustUpload;

/// Digits of a key id that are shown.
const SHOWN: usize = 12;

/// A key as people know it: its name, and the first digits of its id.
pub fn key_label(id: &KeyId, key: Option<&Key>) -> String {
    let short: String = id.0.chars().take(SHOWN).collect();
    match key.and_then(Key::name) {
        Some(name) => format!("{name} ({short})"),
        None => short,
    }
}

/// What a change changes, one line each.
pub fn describe(current: Option<&Current>, change: &TrustUpload) -> Result<Vec<String>, TrustError> {
    let mut lines = Vec::new();
    if let Some(envelope) = &change.root {
        let new = Doc::<Root>::read_unverified(envelope).map_err(|e| TrustError::parse("root", e))?;
        let old = current.map(|c| &c.root);
        header(&mut lines, "root", old.map(|d| (d.version, d.expires)), (new.version, new.expires));
        root(&mut lines, old.map(|d| &d.body), &new.body);
    }
    let targets = change.targets.iter().map(|envelope| ("targets", envelope));
    let roles = change.roles.iter().map(|(name, envelope)| (name.as_str(), envelope));
    for (name, envelope) in targets.chain(roles) {
        let new = Doc::<Targets>::read_unverified(envelope).map_err(|e| TrustError::parse(name, e))?;
        let old = current.and_then(|c| if name == "targets" { Some(&c.targets) } else { c.roles.get(name) });
        header(&mut lines, name, old.map(|d| (d.version, d.expires)), (new.version, new.expires));
        files(&mut lines, name, old.map(|d| &d.body), &new.body);
    }
    Ok(lines)
}

fn header(lines: &mut Vec<String>, role: &str, old: Option<(u64, UnixSeconds)>, new: (u64, UnixSeconds)) {
    let before = old.map(|(_, expires)| format!(" (before: until {})", day(expires))).unwrap_or_default();
    lines.push(format!("{role}.json version {} is valid until {}{before}", new.0, day(new.1)));
}

fn root(lines: &mut Vec<String>, old: Option<&Root>, new: &Root) {
    let empty = BTreeMap::new();
    let (old_roles, old_keys) = old.map_or((BTreeMap::new(), &empty), |r| (r.roles.clone(), &r.keys));
    let names: BTreeSet<&String> = old_roles.keys().chain(new.roles.keys()).collect();
    for name in names {
        holders(lines, name, (old_roles.get(name), old_keys), (new.roles.get(name), &new.keys));
    }
    if !new.consistent_snapshot {
        lines.push("root: documents lose their version numbers (consistent_snapshot is off)".into());
    }
    let none = Root {
        keys: BTreeMap::new(),
        roles: BTreeMap::new(),
        consistent_snapshot: true,
        extra: BTreeMap::new(),
    };
    others(lines, "root", &old.unwrap_or(&none).extra, &new.extra);
}

type Holders<'a> = (Option<&'a RoleKeys>, &'a BTreeMap<KeyId, Key>);

fn holders(lines: &mut Vec<String>, role: &str, (old, old_keys): Holders<'_>, (new, new_keys): Holders<'_>) {
    let ids = |r: Option<&RoleKeys>| r.map(|r| r.keyids.clone()).unwrap_or_default();
    let (before, after) = (ids(old), ids(new));
    for id in after.iter().filter(|id| !before.contains(id)) {
        lines.push(format!("{role}: key {} may sign from now on", key_label(id, new_keys.get(id))));
    }
    for id in before.iter().filter(|id| !after.contains(id)) {
        lines.push(format!("{role}: key {} no longer counts", key_label(id, old_keys.get(id))));
    }
    for id in after.iter().filter(|id| before.contains(id)) {
        // The same id with another key behind it would be the one change that its words do not show.
        if let (Some(was), Some(is)) = (old_keys.get(id), new_keys.get(id))
            && was != is
        {
            lines.push(format!("{role}: the description of key {} changes", key_label(id, Some(is))));
        }
    }
    let said = |r: Option<&RoleKeys>| {
        r.map_or("nobody".into(), |r| format!("{} of {}", r.threshold, r.keyids.len()))
    };
    if said(old) != said(new) {
        lines.push(format!("{role}: {} keys must sign (before: {})", said(new), said(old)));
    }
    let nothing = BTreeMap::new();
    others(lines, role, old.map_or(&nothing, |r| &r.extra), new.map_or(&nothing, |r| &r.extra));
}

fn files(lines: &mut Vec<String>, role: &str, old: Option<&Targets>, new: &Targets) {
    let empty = Targets::default();
    let old = old.unwrap_or(&empty);
    for (path, meta) in &new.targets {
        match old.targets.get(path) {
            None => lines.push(format!("{role}: {path} is added (sha256:{})", digest(meta))),
            Some(was) if was != meta => {
                lines.push(format!(
                    "{role}: {path} is replaced (sha256:{}, before: {})",
                    digest(meta),
                    digest(was)
                ));
            }
            Some(_) => {}
        }
    }
    for path in old.targets.keys().filter(|path| !new.targets.contains_key(*path)) {
        lines.push(format!("{role}: {path} is REMOVED: no device installs it any more"));
    }
    delegations(lines, old, new);
    others(lines, role, &old.extra, &new.extra);
}

fn delegations(lines: &mut Vec<String>, old: &Targets, new: &Targets) {
    let none = BTreeMap::new();
    let keys = |t: &'_ Targets| t.delegations.as_ref().map(|d| d.keys.clone()).unwrap_or_default();
    let (old_keys, new_keys) = (keys(old), keys(new));
    let names = |t: &Targets| -> Vec<String> {
        t.delegations.iter().flat_map(|d| &d.roles).map(|r| r.name.clone()).collect()
    };
    let (before, after) = (names(old), names(new));
    for name in &after {
        let (was, is) = (old.delegated(name), new.delegated(name));
        let Some(is) = is else { continue };
        if was.is_none() {
            let paths = is.paths.iter().flatten().chain(is.path_hash_prefixes.iter().flatten());
            let paths: Vec<&str> = paths.map(String::as_str).collect();
            lines.push(format!("{name}: a new role that may sign for {}", paths.join(", ")));
        }
        let as_keys = |r: &super::super::DelegatedRole| RoleKeys::new(r.keyids.clone(), r.threshold);
        let (old_holders, new_holders) = (was.map(as_keys), as_keys(is));
        holders(lines, name, (old_holders.as_ref(), &old_keys), (Some(&new_holders), &new_keys));
        if let Some(was) = was {
            let scope = |r: &super::super::DelegatedRole| {
                (r.paths.clone(), r.path_hash_prefixes.clone(), r.terminating)
            };
            if scope(was) != scope(is) {
                lines.push(format!(
                    "{name}: what it may sign for changes from {:?} to {:?}",
                    scope(was),
                    scope(is)
                ));
            }
        }
        others(lines, name, was.map_or(&none, |r| &r.extra), &is.extra);
    }
    for name in before.iter().filter(|name| !after.contains(name)) {
        lines.push(format!("{name}: REMOVED: nobody may sign for it, and none of its versions is listed"));
    }
    let kept = |own: &[String], other: &[String]| -> Vec<String> {
        own.iter().filter(|n| other.contains(n)).cloned().collect()
    };
    if kept(&before, &after) != kept(&after, &before) {
        lines.push("targets: the order in which roles are asked changes".into());
    }
}

/// Fields that this program does not know, but that are under the signature.
fn others<T: Serialize + PartialEq>(
    lines: &mut Vec<String>,
    role: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
) {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names.into_iter().filter(|name| old.get(*name) != new.get(*name)) {
        let value = new.get(name).and_then(|v| serde_json::to_value(v).ok()).unwrap_or(Value::Null);
        lines.push(format!("{role}: field {name:?} becomes {value}"));
    }
}

fn digest(meta: &TargetMeta) -> String {
    meta.sha256().map_or_else(|| "unknown".into(), |d| d.short().to_string())
}

fn day(seconds: UnixSeconds) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("{seconds} s"), |t| t.strftime("%Y-%m-%d").to_string())
}
