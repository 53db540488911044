//! From a change to its publication: sign it with the keys that are here; publish it when that is enough, and leave it
//! for the others when it is not.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use plimsoll_protocol::api::{Proposal, TrustState, TrustUpload};
use plimsoll_protocol::trust::repository::{
    Current, DAY_S, Standing, change_id, countersign, describe, document_mut, key_label, standing, to_bytes,
};
use plimsoll_protocol::trust::{Key, KeyId};
use serde_json::{Value, json};

use super::Desk;
use crate::api::Api;
use crate::failure::Refused;
use crate::keys::KeyRing;
use crate::output::Screen;
use crate::time;

/// A change waits so long for its signatures: a month covers a holiday, and what it was made on top of is not older.
const PROPOSAL_LIFETIME_S: i64 = 30 * DAY_S;

/// A change with the signatures that could be made here.
#[derive(Debug)]
pub struct Signed {
    /// What was asked for.
    pub why: String,
    /// The documents.
    pub upload: TrustUpload,
    /// Role, who signed here (a file, a command) and with which key, in order.
    pub by: Vec<(String, String, Key)>,
    /// Where each document stands now.
    pub standings: Vec<Standing>,
}

impl Signed {
    /// Whether everybody who must has signed.
    pub fn is_complete(&self) -> bool {
        self.standings.iter().all(Standing::is_complete)
    }

    /// Whose signatures are missing, a line each.
    pub fn missing(&self) -> Vec<String> {
        let open = self.standings.iter().flat_map(|s| s.needs.iter().map(move |need| (s, need)));
        let open = open.filter(|(_, need)| need.missing() > 0);
        open.map(|(s, need)| {
            let labels: Vec<String> = need.open.iter().map(|(id, key)| key_label(id, Some(key))).collect();
            format!(
                "{}.json version {} needs {} more of the keys that {} names: {}",
                s.role,
                s.version,
                need.missing(),
                need.delegator,
                labels.join(", ")
            )
        })
        .collect()
    }

    /// Files and commands that signed for a role.
    pub fn signers(&self, role: &str) -> Vec<String> {
        self.by.iter().filter(|(of, ..)| of == role).map(|(_, holder, _)| holder.clone()).collect()
    }
}

/// What became of a change.
#[derive(Debug)]
pub enum Landed {
    /// The server has verified it and serves it.
    Published,
    /// It waits for signatures, with the server or in a file.
    Waits {
        /// Its name.
        id: String,
        /// Where it lies.
        place: String,
    },
}

/// Signs with every key that is here and still needed. What a signer returns counts only if it verifies.
pub fn sign(ring: &KeyRing, current: Option<&Current>, why: &str, mut upload: TrustUpload) -> Result<Signed> {
    let mut by = Vec::new();
    let mut tried: BTreeSet<(String, KeyId)> = BTreeSet::new();
    loop {
        let standings = standing(current, &upload)?;
        let next = standings.iter().find_map(|s| {
            let new = |(id, _): &&(KeyId, Key)| !tried.contains(&(s.role.clone(), id.clone()));
            let held = |(id, key): &(KeyId, Key)| Some((id.clone(), key.clone(), ring.holder(key)?));
            s.open().filter(new).find_map(held).map(|(id, key, holder)| (s.role.clone(), id, key, holder))
        });
        let Some((role, id, key, holder)) = next else {
            return Ok(Signed { why: why.to_owned(), upload, by, standings });
        };
        let signer = ring.signer(&key)?.context("a key that was just found here")?;
        let document = document_mut(&mut upload, &role).context("a document that was just seen")?;
        countersign(document, &id, signer.as_ref())?;
        let counts = |s: &Standing| {
            s.role != role || s.needs.iter().any(|need| need.signed.iter().any(|(own, _)| *own == id))
        };
        if !standing(current, &upload)?.iter().all(counts) {
            bail!(Refused(format!(
                "{holder} gave a signature of {role}.json that key {} does not verify: it signs with another key, or \
                 other bytes than it was given",
                key_label(&id, Some(&key))
            )));
        }
        by.push((role.clone(), holder, key));
        tried.insert((role, id));
    }
}

/// Publishes a change, or leaves it for others to sign.
pub async fn deliver(
    ring: &KeyRing,
    api: &Api,
    base: &TrustState,
    signed: &Signed,
    file: Option<&Path>,
) -> Result<Landed> {
    if signed.is_complete() {
        api.put("trust/metadata", &signed.upload).await?;
        if let Some(root) = &signed.upload.root {
            ring.pin_root(&to_bytes(root))?;
        }
        return Ok(Landed::Published);
    }
    let created = time::now();
    let mut proposal = Proposal {
        plimsoll_proposal: 1,
        id: change_id(&signed.upload),
        why: signed.why.clone(),
        created,
        expires: created + PROPOSAL_LIFETIME_S,
        upload: signed.upload.clone(),
        base: None,
    };
    if let Some(file) = file {
        proposal.base = Some(base.clone());
        write(file, &proposal)?;
        return Ok(Landed::Waits { id: proposal.id, place: file.display().to_string() });
    }
    if signed.by.is_empty() {
        let commands = "run it where one of them is, let a command sign (--sign-with), or write the change to a file \
                        for their owners (--proposal FILE)";
        bail!(Refused(format!(
            "{}: none of the keys that must sign is in {}: {}; {commands}",
            signed.why,
            ring.dir().display(),
            signed.missing().join("; ")
        )));
    }
    let kept: Proposal = api.put_for(&format!("trust/proposals/{}", proposal.id), &proposal).await?;
    Ok(Landed::Waits { id: kept.id, place: "the server".into() })
}

/// A proposal as a file that goes from hand to hand.
pub fn write(path: &Path, proposal: &Proposal) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(proposal)?;
    text.push(b'\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The whole way of a change that needs nothing else: sign, deliver, tell. `extra` goes into the JSON result, `done`
/// is said once it is published.
pub async fn land(
    desk: &Desk<'_>,
    why: &str,
    upload: TrustUpload,
    file: Option<&Path>,
    extra: Value,
    done: impl FnOnce() -> String,
) -> Result<()> {
    let changes = describe(Some(&desk.current), &upload)?;
    let signed = sign(&desk.ring, Some(&desk.current), why, upload)?;
    let landed = deliver(&desk.ring, desk.api, &desk.current.documents, &signed, file).await?;
    tell(desk.screen, &signed, &landed, &changes, extra, done)
}

/// Says what became of a change.
pub fn tell(
    screen: &Screen,
    signed: &Signed,
    landed: &Landed,
    changes: &[String],
    extra: Value,
    done: impl FnOnce() -> String,
) -> Result<()> {
    let by: Vec<Value> = signed
        .by
        .iter()
        .map(|(role, holder, key)| json!({ "role": role, "with": holder, "key": key.id() }))
        .collect();
    let mut result = json!({
        "what": signed.why, "changes": changes, "signed": by, "published": matches!(landed, Landed::Published),
    });
    if let (Some(into), Value::Object(from)) = (result.as_object_mut(), extra) {
        into.extend(from);
    }
    if let Landed::Waits { id, place } = landed {
        result["proposal"] = json!(id);
        result["place"] = json!(place);
        result["missing"] = json!(signed.missing());
    }
    screen.show(&result, || {
        let mut lines: Vec<String> = changes.iter().map(|line| format!("  {line}")).collect();
        let holders: BTreeSet<&str> = signed.by.iter().map(|(_, holder, _)| holder.as_str()).collect();
        if !holders.is_empty() {
            lines.push(format!("Signed with {}.", holders.into_iter().collect::<Vec<_>>().join(" and ")));
        }
        match landed {
            Landed::Published => lines.push(done()),
            Landed::Waits { id, place } => {
                lines.push(format!("Not published yet; change {id} waits with {place} for signatures:"));
                lines.extend(signed.missing().iter().map(|line| format!("  {line}")));
                let what = if place == "the server" { id } else { place };
                lines.push(format!(
                    "Next, by their owners: plimsoll trust sign-off {what} --keys <their folder>"
                ));
            }
        }
        lines.join("\n")
    })
}
