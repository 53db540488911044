//! An import, beside the driver: verified like a fetch, and from the staging folder on the same way.

use std::path::PathBuf;

use plimsoll_agent_core::{Event, State, preflight};
use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{Digest, ModelName, UnixSeconds};
use tokio::sync::{mpsc, oneshot};

use super::{Driver, work};
use crate::control::Answer;
use crate::fetch::{FetchError, Trust};
use crate::import::Export;
use crate::slots::Slots;

/// What an import needs.
struct Job {
    file: PathBuf,
    trust: Trust,
    slots: Slots,
    now: UnixSeconds,
    ram_bytes: u64,
    engines: std::collections::BTreeSet<String>,
}

/// Where imports end: one at a time, which its capacity makes sure of.
#[derive(Debug)]
pub(super) struct Imports {
    send: mpsc::Sender<End>,
    ended: mpsc::Receiver<End>,
}

impl Default for Imports {
    fn default() -> Self {
        let (send, ended) = mpsc::channel(1);
        Self { send, ended }
    }
}

impl Imports {
    /// The end of the import under way; waits for ever while there is none.
    pub async fn end(&mut self) -> Option<End> {
        self.ended.recv().await
    }
}

/// A bundle in the staging folder.
#[derive(Debug)]
struct Brought {
    model: ModelName,
    version: semver::Version,
    digest: Digest,
}

/// The end of an import.
#[derive(Debug)]
pub(super) struct End {
    issued: Option<UnixSeconds>,
    result: Result<Brought, FetchError>,
    reply: oneshot::Sender<Answer>,
}

impl Driver {
    /// Begins an import; the person is answered at its end. One at a time.
    pub(super) fn import(&mut self, file: PathBuf, reply: oneshot::Sender<Answer>) {
        let Ok(permit) = self.imports.send.clone().try_reserve_owned() else {
            let text = "another import is under way; try again when it has ended".to_owned();
            let _ = reply.send(Answer::Refused { text }); // an error means that the person left
            return;
        };
        tracing::warn!(import.file = %file.display(), "somebody at the device imports a bundle");
        let job = Job {
            file,
            trust: self.trust.clone(),
            slots: self.slots.clone(),
            now: self.clock.trust_s(),
            ram_bytes: self.sampler.machine().ram_bytes,
            engines: self.settings.engines.keys().cloned().collect(),
        };
        tokio::spawn(async move {
            let mut issued = None;
            let result = bring(job, &mut issued).await;
            permit.send(End { issued, result, reply });
        });
    }

    /// The end of an import.
    pub(super) fn on_import(&mut self, end: End) {
        if let Some(issued) = end.issued {
            self.raise_floor(issued);
        }
        let answer = match end.result {
            Err(error) => {
                let text = format!("an import at the device was refused: {}", error.text);
                self.report_event(Severity::Warning, error.code, text, None, None);
                Answer::Refused { text: error.text }
            }
            Ok(Brought { model, version, digest }) => {
                let text = format!("{model} {version} ({}) is verified", digest.short());
                self.feed(Event::Imported { model: model.clone(), version, digest });
                let record = self.core.record().models.get(&model);
                if record.is_some_and(|r| r.ordered() == Some(digest) && r.state == State::Verified) {
                    Answer::Done {
                        text: format!(
                            "{text}; its self-test and its trial follow, see `plimsoll-agent status`"
                        ),
                    }
                } else {
                    Answer::Refused {
                        text: format!(
                            "{text}, but it is not taken over: {}",
                            self.import_refused(&model, digest)
                        ),
                    }
                }
            }
        };
        let _ = end.reply.send(answer); // an error means that the person left
    }

    /// Why the core did not take a bundle that was brought.
    fn import_refused(&self, model: &ModelName, digest: Digest) -> String {
        let record = self.core.record();
        let runs =
            record.models.get(model).and_then(|m| m.active.as_ref()).is_some_and(|a| a.digest == digest);
        match record.blocked(model, digest) {
            _ if runs => "it runs already".into(),
            Some(blocked) => format!("it is blocked on this device: {}", blocked.reason),
            None => "it is on its way already, or the server has blocked it here, or this device runs as many models as \
                     it can"
                .into(),
        }
    }
}

async fn bring(job: Job, issued: &mut Option<UnixSeconds>) -> Result<Brought, FetchError> {
    let path = job.file;
    let export = off_thread(move || Export::open(&path)).await?;
    let (index, documents, mut blobs) = export.split();
    let mut view = job.trust.refresh(&documents, job.now).await?;
    *issued = view.issued();
    let target = view.signed(&documents, &index.model, &index.version).await?;
    drop(view); // the next look need not wait for the files
    let (mut blobs, bytes) = off_thread(move || blobs.manifest().map(|bytes| (blobs, bytes))).await?;
    let manifest =
        target.admit_manifest(&bytes).map_err(|e| FetchError::permanent("trust.refused", e.to_string()))?;
    let digest = target.sha256();
    let device = work::device(&job.slots, job.ram_bytes, digest, job.engines)?;
    if let Err(reason) = preflight(&manifest, &device) {
        let text = format!("{} {} does not suit this device: {reason}", index.model, index.version);
        return Err(FetchError::permanent("import.not_applicable", text));
    }
    let slots = job.slots;
    let staged = off_thread(move || {
        let staged = blobs.stage(&slots, &manifest, &bytes);
        if staged.as_ref().is_err_and(|e| !e.transient)
            && let Err(error) = slots.discard(digest)
        {
            tracing::warn!(slot.digest = %digest, error = crate::causes(&error), "staging folder stays");
        }
        staged
    });
    staged.await?;
    Ok(Brought { model: index.model, version: index.version, digest })
}

/// Runs disk work off the driver's thread.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let lost = |_| FetchError::transient("fetch.disk", "the disk task was lost");
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}
