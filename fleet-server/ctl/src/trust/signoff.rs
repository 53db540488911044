//! The other signatures: look at a change that somebody made, in words, then sign it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use plimsoll_protocol::api::{Proposal, TrustState};
use plimsoll_protocol::trust::repository::{change_id, describe, follows, merge_change};
use serde_json::{Value, json};

use super::land::{Landed, Signed, deliver, sign, tell, write};
use super::read_current;
use crate::api::{Api, encoded};
use crate::failure::{Refused, Usage};
use crate::keys::{KeyArgs, KeyRing};
use crate::output::{Screen, table};
use crate::time;

/// Largest proposal that is read from a file: what the server takes at most.
const MAX_FILE: u64 = 32 * 1024 * 1024;

/// `plimsoll trust sign-off [CHANGE]`
#[derive(Debug, Args)]
pub struct SignOff {
    /// Name of the change, or its file. Without it, the only one that waits.
    change: Option<String>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Sign without being asked.
    #[arg(long)]
    yes: bool,
    /// Ask no server: verify the change against the root.json of --keys and write the signature into the file.
    #[arg(long, requires = "change")]
    offline: bool,
}

/// Adds the signatures of the keys that are here.
pub async fn sign_off(args: &SignOff, api: &Api, screen: &Screen) -> Result<()> {
    let ring = KeyRing::open(&args.keys)?;
    let file = args.change.as_deref().map(Path::new).filter(|path| path.is_file());
    if args.offline && file.is_none() {
        bail!(Usage("--offline signs a file: name the one that the change was written to".into()));
    }
    let mut proposal = match (file, &args.change) {
        (Some(file), _) => read(file)?,
        (None, name) => waiting(api, name.as_deref()).await?,
    };
    let now = time::now();
    if proposal.expires <= now {
        bail!(Refused(format!(
            "change {} ({}) expired on {}: make it again",
            proposal.id,
            proposal.why,
            time::date(proposal.expires)
        )));
    }
    let state: TrustState = if args.offline {
        proposal.base.clone().context("the file does not say what was published when the change was made")?
    } else {
        api.get("trust").await?
    };
    let current = read_current(&ring, &state, screen)?;
    follows(current.as_ref(), &proposal.upload)?;
    let changes = describe(current.as_ref(), &proposal.upload)?;
    if !args.yes {
        confirm(&proposal, &changes)?;
    }
    let signed = sign(&ring, current.as_ref(), &proposal.why, proposal.upload.clone())?;
    if signed.by.is_empty() && !signed.is_complete() {
        bail!(Refused(format!(
            "no key of {} can sign change {}: {}",
            ring.dir().display(),
            proposal.id,
            signed.missing().join("; ")
        )));
    }
    proposal.upload = signed.upload.clone();
    let landed = if args.offline || (file.is_some() && !signed.is_complete()) {
        let file = file.context("a file was read")?; // `offline` without one is refused above
        write(file, &proposal)?;
        Landed::Waits { id: proposal.id.clone(), place: file.display().to_string() }
    } else {
        deliver(&ring, api, &state, &signed, None).await?
    };
    let done = || format!("Everybody has signed: {} is done.", proposal.why);
    let done_offline = signed.is_complete() && matches!(landed, Landed::Waits { .. });
    if done_offline {
        screen.note(&format!(
            "plimsoll: everybody has signed; publish it where there is a network: plimsoll trust sign-off {} --yes",
            file.map(|f| f.display().to_string()).unwrap_or_default()
        ));
    }
    tell(screen, &signed, &landed, &changes, json!({ "complete": signed.is_complete() }), done)
}

/// What waits, and for whom.
pub async fn list(args: &KeyArgs, api: &Api, screen: &Screen) -> Result<()> {
    let ring = KeyRing::open(args)?;
    let proposals: Vec<Proposal> = api.get("trust/proposals").await?;
    let state: TrustState = api.get("trust").await?;
    let current = read_current(&ring, &state, screen)?;
    let mut rows = Vec::new();
    for proposal in &proposals {
        // Signed with no key: only the count is wanted.
        let nobody = KeyRing::open(&KeyArgs::at(std::path::PathBuf::new()))?;
        let stand: Result<Signed> = sign(&nobody, current.as_ref(), &proposal.why, proposal.upload.clone());
        let missing = stand.map_or_else(|e| vec![format!("{e:#}")], |s| s.missing());
        rows.push((proposal, missing));
    }
    let json: Vec<Value> = rows
        .iter()
        .map(|(p, missing)| json!({ "id": p.id, "why": p.why, "created": p.created, "expires": p.expires, "missing": missing }))
        .collect();
    screen.show(&json, || {
        if rows.is_empty() {
            return "Nothing waits for signatures.".into();
        }
        let cells = rows
            .iter()
            .map(|(p, missing)| vec![p.id.clone(), p.why.clone(), time::date(p.expires), missing.join("; ")]);
        table(&["CHANGE", "WHAT", "EXPIRES", "MISSING"], &cells.collect::<Vec<_>>())
    })
}

/// Forgets a change.
pub async fn forget(id: &str, api: &Api, screen: &Screen) -> Result<()> {
    api.delete(&format!("trust/proposals/{}", encoded(id))).await?;
    screen.show(&json!({ "dropped": id }), || {
        format!("Change {id} is forgotten; signatures for it are worthless.")
    })
}

async fn waiting(api: &Api, name: Option<&str>) -> Result<Proposal> {
    let mut all: Vec<Proposal> = api.get("trust/proposals").await?;
    let names = all.iter().map(|p| format!("{} ({})", p.id, p.why)).collect::<Vec<_>>().join(", ");
    match name {
        Some(name) => {
            let found = all.iter().position(|p| p.id == name);
            let found = found.ok_or_else(|| {
                let known =
                    if names.is_empty() { "nothing waits".to_owned() } else { format!("waiting: {names}") };
                Refused(format!("no change {name} waits for signatures, and there is no such file; {known}"))
            })?;
            Ok(all.swap_remove(found))
        }
        None if all.len() == 1 => Ok(all.swap_remove(0)),
        None if all.is_empty() => bail!(Refused("nothing waits for signatures".into())),
        None => bail!(Usage(format!("several changes wait for signatures; name one: {names}"))),
    }
}

fn read(path: &Path) -> Result<Proposal> {
    let name = path.display();
    if std::fs::metadata(path).is_ok_and(|m| m.len() > MAX_FILE) {
        bail!(Usage(format!("{name} is larger than any change: at most {MAX_FILE} bytes are read")));
    }
    let text = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
    let proposal: Proposal = serde_json::from_slice(&text)
        .map_err(|e| Usage(format!("{name} is not a change that waits for signatures: {e}")))?;
    if proposal.plimsoll_proposal != 1 {
        bail!(Usage(format!("{name} is of a newer plimsoll (format {})", proposal.plimsoll_proposal)));
    }
    if proposal.id != change_id(&proposal.upload) {
        bail!(Refused(format!(
            "{name} was edited: it carries another change than its name {} says",
            proposal.id
        )));
    }
    let mut copy = proposal.upload.clone();
    merge_change(&mut copy, &proposal.upload); // one signature a key
    Ok(Proposal { upload: copy, ..proposal })
}

/// Shows the change and asks. Signing is the moment at which a person's eyes are the protection.
fn confirm(proposal: &Proposal, changes: &[String]) -> Result<()> {
    let terminal = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty");
    let Ok(mut terminal) = terminal else {
        bail!(Usage("there is no terminal to ask at: look at the change, then sign it with --yes".into()));
    };
    let mut text =
        format!("Change {}: {}, made on {}\n", proposal.id, proposal.why, time::date(proposal.created));
    changes.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    text.push_str("Sign it? [y/N] ");
    write!(terminal, "{text}").and_then(|()| terminal.flush()).context("cannot write to the terminal")?;
    let mut answer = String::new();
    BufReader::new(terminal).read_line(&mut answer).context("cannot read from the terminal")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!(Refused("not signed".into())),
    }
}
