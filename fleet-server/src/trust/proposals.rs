//! Changes that wait for signatures of more people than one. The server only keeps them: it takes a change that
//! follows what is published and that somebody who may has signed, and collects the signatures of its copies.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::UnixSeconds;
use plimsoll_protocol::api::Proposal;
use plimsoll_protocol::trust::repository::{
    Current, change_id, document_mut, follows, merge_change, standing,
};
use plimsoll_protocol::trust::{KeyId, MAX_TARGETS_BYTES, TrustError};

use super::{PublishError, TrustService};
use crate::store::{TrustDoc, TrustIndex};

/// Changes that wait at a time. A fleet has one or two; sixteen forgotten ones are 16 files of a few KiB.
const MAX_PROPOSALS: usize = 16;
/// Longest that a change waits: two people's holidays in a row.
const MAX_WAIT_S: i64 = 60 * 24 * 3600;
/// Largest stored proposal: targets and a role of the largest kind, and a root.
const MAX_BYTES: u64 = 3 * MAX_TARGETS_BYTES;

impl TrustService {
    /// Changes that wait, oldest first.
    pub async fn proposals(&self) -> Vec<Proposal> {
        let mut proposals = self.read_proposals(&self.now().index).await;
        proposals.sort_by_key(|p| p.created);
        proposals
    }

    /// Keeps a change, or the signatures of another copy of one that is kept. Answers what is kept now.
    pub async fn keep_proposal(&self, offered: Proposal, now: UnixSeconds) -> Result<Proposal, PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        let current = Current::read(&self.state(), None)?;
        let mut kept = check(offered, current.as_ref(), now)?;
        let mut others = self.read_proposals(&published.index).await;
        others.retain(|p| p.expires > now && follows(current.as_ref(), &p.upload).is_ok());
        if let Some(known) = others.iter().find(|p| p.id == kept.id) {
            merge_change(&mut kept.upload, &known.upload);
            (kept.created, kept.expires) = (known.created, known.expires);
            kept.why.clone_from(&known.why);
        } else if others.len() >= MAX_PROPOSALS {
            let why = format!(
                "{MAX_PROPOSALS} changes wait for signatures already: sign or drop one of them first"
            );
            return Err(TrustError::Upload(why).into());
        }
        others.retain(|p| p.id != kept.id);
        others.push(kept.clone());
        let mut index = published.index.clone();
        index.proposals = self.store_proposals(&others).await?;
        self.set_index(&published, index).await?;
        Ok(kept)
    }

    /// Forgets a change; `false` when there is none of that name.
    pub async fn drop_proposal(&self, id: &str) -> Result<bool, PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        let mut index = published.index.clone();
        if index.proposals.remove(id).is_none() {
            return Ok(false);
        }
        self.set_index(&published, index).await?;
        Ok(true)
    }

    /// Those that can still be signed after what is published has changed to `current`.
    pub(super) async fn still_open(
        &self,
        index: &TrustIndex,
        current: Option<&Current>,
    ) -> BTreeMap<String, TrustDoc> {
        let mut open = index.proposals.clone();
        for proposal in self.read_proposals(index).await {
            if follows(current, &proposal.upload).is_err() {
                open.remove(&proposal.id);
            }
        }
        open
    }

    async fn read_proposals(&self, index: &TrustIndex) -> Vec<Proposal> {
        let mut proposals = Vec::new();
        for (id, doc) in &index.proposals {
            // One that is spoilt must not keep the others, or a publication, from going on: it can be made again.
            let read = self.blobs.read(&doc.sha256, MAX_BYTES).await.map_err(|e| e.to_string());
            match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string())) {
                Ok(proposal) => proposals.push(proposal),
                Err(error) => tracing::error!(proposal.id = %id, %error, "a stored proposal cannot be read"),
            }
        }
        proposals
    }

    async fn store_proposals(
        &self,
        proposals: &[Proposal],
    ) -> Result<BTreeMap<String, TrustDoc>, PublishError> {
        let mut stored = BTreeMap::new();
        for proposal in proposals {
            let bytes = serde_json::to_vec(proposal).unwrap_or_default(); // text keys only: cannot fail
            let doc = TrustDoc { sha256: self.blobs.put_bytes(&bytes).await?, length: bytes.len() as u64 };
            stored.insert(proposal.id.clone(), doc);
        }
        Ok(stored)
    }
}

/// What may be kept of an offered change: the change itself, and the signatures that count.
fn check(mut offered: Proposal, current: Option<&Current>, now: UnixSeconds) -> Result<Proposal, TrustError> {
    let refuse = |why: String| Err(TrustError::Upload(why));
    if offered.plimsoll_proposal != 1 {
        return refuse(format!("a proposal of format {}; this server knows 1", offered.plimsoll_proposal));
    }
    if offered.id != change_id(&offered.upload) {
        return refuse(format!("proposal {} carries another change than its name says", offered.id));
    }
    if offered.expires <= now || offered.expires > now + MAX_WAIT_S {
        return refuse(format!(
            "proposal {} has expired, or waits longer than 60 days: run the command again",
            offered.id
        ));
    }
    follows(current, &offered.upload)?;
    let mut signatures = 0;
    for standing in standing(current, &offered.upload)? {
        let good: BTreeSet<&KeyId> =
            standing.needs.iter().flat_map(|need| &need.signed).map(|(id, _)| id).collect();
        signatures += good.len();
        let envelope = document_mut(&mut offered.upload, &standing.role);
        let listed = envelope.and_then(|e| e.get_mut("signatures")?.as_array_mut());
        if let Some(listed) = listed {
            listed.retain(|s| {
                s.get("keyid")
                    .and_then(|id| id.as_str())
                    .is_some_and(|id| good.contains(&KeyId(id.to_owned())))
            });
        }
    }
    if signatures == 0 {
        return refuse(format!("nobody who may has signed proposal {} yet: sign it first", offered.id));
    }
    offered.base = None;
    Ok(offered)
}
