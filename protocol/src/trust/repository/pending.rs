//! A change that several people sign, one after the other: who has, who may still, and does it still follow what is
//! published? Signatures are added here; whether they suffice is decided by the one rule that devices use.

use serde_json::{Value, json};

use super::super::schema::{Doc, RoleType, Root, Targets};
use super::super::verify::{Authority, Unverified};
use super::super::{Key, KeyId, MAX_ROOT_BYTES, MAX_TARGETS_BYTES, Signer, TrustError, canonical};
use super::{Current, to_bytes};
use crate::Digest;
use crate::api::TrustUpload;

/// Digits of a change's name: 48 bits tell the few that are open at a time apart.
const ID_DIGITS: usize = 12;

/// Where one document of a change stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// `root`, `targets`, or a delegated role.
    pub role: String,
    /// Version it will have.
    pub version: u64,
    /// Who must sign: for a root whose holders change, the old ones and the new ones.
    pub needs: Vec<Need>,
}

/// Signatures that one delegator asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Need {
    /// Who asks: `root 3`, `targets`.
    pub delegator: String,
    /// How many keys must sign.
    pub threshold: u32,
    /// Keys that have.
    pub signed: Vec<(KeyId, Key)>,
    /// Keys that may still.
    pub open: Vec<(KeyId, Key)>,
}

impl Need {
    /// How many signatures are missing.
    pub fn missing(&self) -> usize {
        (self.threshold as usize).saturating_sub(self.signed.len())
    }
}

impl Standing {
    /// Whether enough keys have signed.
    pub fn is_complete(&self) -> bool {
        self.needs.iter().all(|need| need.missing() == 0)
    }

    /// Keys whose signature would still count.
    pub fn open(&self) -> impl Iterator<Item = &(KeyId, Key)> {
        self.needs.iter().filter(|need| need.missing() > 0).flat_map(|need| &need.open)
    }

    fn of<T: RoleType>(
        role: &str,
        doc: &Unverified<T>,
        authorities: &[Authority<'_>],
    ) -> Result<Self, TrustError> {
        let mut needs: Vec<Need> = Vec::new();
        for authority in authorities {
            let ids = doc.signed_by(authority);
            let known =
                authority.keyids.iter().filter_map(|id| Some((id.clone(), authority.keys.get(id)?.clone())));
            let (signed, open) = known.partition(|(id, _)| ids.contains(id));
            let (delegator, threshold) = (authority.delegator.clone(), authority.threshold);
            needs.push(Need { delegator, threshold, signed, open });
        }
        Ok(Self { role: role.to_owned(), version: doc.version(), needs })
    }
}

/// Where each document of a change stands. `current` is `None` for the first documents of a repository.
pub fn standing(current: Option<&Current>, change: &TrustUpload) -> Result<Vec<Standing>, TrustError> {
    let mut standings = Vec::new();
    let mut root = current.map(|c| c.root.clone());
    if let Some(envelope) = &change.root {
        let new = open::<Root>("root", envelope, MAX_ROOT_BYTES)?;
        let doc: Doc<Root> = Doc::read_unverified(envelope).map_err(|e| TrustError::parse("root", e))?;
        let mut authorities = Vec::new();
        if let Some(old) = &root {
            authorities.push(old.authority("root")?);
        }
        let own = doc.authority("root")?;
        let same = |a: &Authority<'_>| a.keyids == own.keyids && a.threshold == own.threshold;
        if !authorities.iter().any(same) {
            authorities.push(own);
        }
        standings.push(Standing::of("root", &new, &authorities)?);
        root = Some(doc);
    }
    let Some(root) = root else {
        return Err(TrustError::Upload("the first change of a repository must carry a root".into()));
    };
    let mut targets = current.map(|c| c.targets.body.clone());
    if let Some(envelope) = &change.targets {
        let new = open::<Targets>("targets", envelope, MAX_TARGETS_BYTES)?;
        standings.push(Standing::of("targets", &new, &[root.authority("targets")?])?);
        let doc = Doc::<Targets>::read_unverified(envelope).map_err(|e| TrustError::parse("targets", e))?;
        targets = Some(doc.body);
    }
    for (name, envelope) in &change.roles {
        let delegations = targets.as_ref().and_then(|t| t.delegations.as_ref());
        let role = targets.as_ref().and_then(|t| t.delegated(name));
        let (Some(delegations), Some(role)) = (delegations, role) else {
            return Err(TrustError::Upload(format!("role {name} is not delegated")));
        };
        let new = open::<Targets>(name, envelope, MAX_TARGETS_BYTES)?;
        standings.push(Standing::of(name, &new, &[delegations.authority("targets", role)])?);
    }
    Ok(standings)
}

/// Refuses a change that does not follow what is published: each document must be the next version of its role.
pub fn follows(current: Option<&Current>, change: &TrustUpload) -> Result<(), TrustError> {
    for (role, envelope) in documents(change) {
        let version = envelope.get("signed").and_then(|s| s.get("version")?.as_u64()).unwrap_or(0);
        let published = current.map_or(0, |c| c.version(role));
        if version != published + 1 {
            return Err(TrustError::Upload(format!(
                "{role}.json version {version} of this change does not follow the published version {published}: \
                 somebody changed the repository since; run the command again to make the change on top of it"
            )));
        }
    }
    Ok(())
}

/// Adds a signature by the key that the documents know as `id`, when it has none yet.
pub fn countersign(envelope: &mut Value, id: &KeyId, signer: &dyn Signer) -> Result<(), TrustError> {
    let fail = |why: String| TrustError::Upload(why);
    let signed = envelope.get("signed").ok_or_else(|| fail("a document has no `signed` part".into()))?;
    let message = canonical(signed).map_err(fail)?;
    let signature = hex::encode(signer.sign(&message).map_err(fail)?);
    merge(envelope, &json!({ "signatures": [{ "keyid": id, "sig": signature }] }));
    Ok(())
}

/// Takes over the signatures of another copy of the same change. Copies that differ are left alone.
pub fn merge_change(into: &mut TrustUpload, from: &TrustUpload) {
    for (role, other) in documents(from) {
        if let Some(own) = document_mut(into, role)
            && own.get("signed") == other.get("signed")
        {
            merge(own, other);
        }
    }
}

/// A name that every copy of one change has, whoever has signed it.
pub fn change_id(change: &TrustUpload) -> String {
    let signed: Vec<Value> = documents(change).map(|(role, doc)| json!([role, doc.get("signed")])).collect();
    // Documents that have no canonical form are refused elsewhere; here they only get a name.
    let digest = Digest::of(&canonical(&Value::Array(signed)).unwrap_or_default()).to_string();
    digest.chars().take(ID_DIGITS).collect()
}

/// The documents of a change with the names of their roles.
pub fn documents(change: &TrustUpload) -> impl Iterator<Item = (&str, &Value)> {
    let top = [("root", &change.root), ("targets", &change.targets)];
    let top = top.into_iter().filter_map(|(role, doc)| Some((role, doc.as_ref()?)));
    top.chain(change.roles.iter().map(|(role, doc)| (role.as_str(), doc)))
}

/// One document of a change.
pub fn document_mut<'a>(change: &'a mut TrustUpload, role: &str) -> Option<&'a mut Value> {
    match role {
        "root" => change.root.as_mut(),
        "targets" => change.targets.as_mut(),
        _ => change.roles.get_mut(role),
    }
}

/// One signature a key id: the one that is there stays.
fn merge(into: &mut Value, from: &Value) {
    let more = from.get("signatures").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(own) = into.get_mut("signatures").and_then(Value::as_array_mut) else { return };
    for signature in more {
        if !own.iter().any(|s| s.get("keyid") == signature.get("keyid")) {
            own.push(signature);
        }
    }
}

fn open<T: RoleType>(role: &str, envelope: &Value, max: u64) -> Result<Unverified<T>, TrustError> {
    Unverified::open(role, &to_bytes(envelope), max)
}
