//! The person at the device and its application: `plimsoll-agent status`, `rollback`, `pause`, `not-now` and others
//! speak with the running driver over a Unix socket in the state folder. One JSON object a line each way; who may enter
//! the folder may ask.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use plimsoll_protocol::wire::v1::{JobReport, RunningModel};
use plimsoll_protocol::{Digest, Generation, ModelName, UnixSeconds};

/// Longest line: a status with 8 models is under 16 KiB, the 48 KiB of [`crate::logging`] are twice that at most as
/// JSON.
const MAX_LINE: u64 = 128 * 1024;
/// Connections at once; one more waits for an end. A person has one, a monitoring script another.
const MAX_CLIENTS: usize = 4;
/// The driver answers between two events, in milliseconds; ten seconds mean that it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// An import reads, hashes and writes a whole bundle: 4 GiB from a stick at 10 MB/s to a card at 10 MB/s are 14
/// minutes.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Everything there is to know.
    Status,
    /// Return a model to the version before.
    Rollback {
        /// Which.
        model: ModelName,
    },
    /// Hold the updates of this device, also after a restart.
    Pause,
    /// Let them go on.
    Resume,
    /// From the application: no update takes over for so many seconds; 0 ends that. The setting `not_now_max_s`
    /// bounds it.
    NotNow {
        /// See above.
        for_s: u32,
    },
    /// The newest log lines.
    Logs,
    /// Take a bundle over from a file.
    Import {
        /// The export; the agent reads it with its own rights.
        file: PathBuf,
    },
}

impl Ask {
    /// How long the driver may take.
    const fn limit(&self) -> Duration {
        match self {
            Self::Import { .. } => IMPORT_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Status`].
    Status(Box<Status>),
    /// To [`Ask::Logs`].
    Logs {
        /// The oldest first.
        lines: Vec<String>,
    },
    /// Done, with words.
    Done {
        /// What.
        text: String,
    },
    /// Not done.
    Refused {
        /// Why.
        text: String,
    },
}

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `tenant.device`; `None` before enrolment.
    pub identity: Option<String>,
    /// Of the agent.
    pub version: String,
    /// Boot counter.
    pub boot: u64,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Where inference requests go; `None` while the serving child starts.
    pub inference: Option<String>,
    /// Whether the MQTT connection stands.
    pub connected: bool,
    /// Why not, in words.
    pub connection: String,
    /// Of the desired state.
    pub generation: Generation,
    /// Whether the fleet is paused.
    pub paused: bool,
    /// Whether a person paused the updates of this device.
    #[serde(default)]
    pub paused_here: bool,
    /// Seconds for which the application still says "not now".
    #[serde(default)]
    pub not_now_s: u64,
    /// When this device updates, by its own settings.
    #[serde(default)]
    pub maintenance_hours: String,
    /// What runs.
    pub models: Vec<RunningModel>,
    /// Where the bundle of each lies, by model.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<ModelName, PathBuf>,
    /// Where every order stands.
    pub jobs: Vec<JobReport>,
    /// Versions that this device found bad and does not try again.
    #[serde(default)]
    pub blocked: Vec<BlockedHere>,
    /// What updates have cost on the network since the start.
    #[serde(default)]
    pub downloads: Downloads,
    /// Reports that wait for the server.
    pub outbox_entries: u64,
    /// Reports dropped because the outbox was full.
    pub outbox_dropped: u64,
    /// The device's certificate; `None` before enrolment.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
    /// What is known about the signed metadata.
    #[serde(default)]
    pub trust: Option<TrustStatus>,
    /// Restarts of the serving child.
    pub serve_restarts: u64,
    /// Messages refused: foreign, malformed, unsupported.
    pub messages_refused: u64,
    /// Models whose data have moved away from their reference.
    #[serde(default)]
    pub drift: Vec<DriftAlarm>,
}

/// What updates have cost on the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downloads {
    /// Bundles whose files came.
    pub bundles: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Bytes that came over the network for them: deltas instead of files, and nothing for what was here already.
    pub received: u64,
}

impl Downloads {
    /// Counts more.
    pub const fn add(&mut self, more: Self) {
        self.bundles += more.bundles;
        self.bytes += more.bytes;
        self.received += more.received;
    }

    /// Bytes that did not have to come.
    pub const fn saved(&self) -> u64 {
        self.bytes.saturating_sub(self.received)
    }
}

/// A version that this device found bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedHere {
    /// Model.
    pub model: ModelName,
    /// Bundle.
    pub digest: Digest,
    /// What it did.
    pub reason: String,
}

/// The device's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its end.
    pub until_s: UnixSeconds,
    /// When it is to be renewed.
    pub renews_s: UnixSeconds,
    /// `valid for 89 days`.
    pub words: String,
    /// Why it was not renewed, or the fleet's authorities not learned, in words.
    pub problem: Option<String>,
}

/// The signed metadata as this device knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustStatus {
    /// Version of the trusted root, once it was looked at since the start.
    pub root_version: Option<u64>,
    /// Seconds since all of it was last found fresh and complete; `None`: not since the start.
    pub fresh_s_ago: Option<u64>,
    /// Why nothing can be installed, in words.
    pub problem: Option<String>,
    /// Whether that is because it has expired.
    pub expired: bool,
    /// Versions here that nobody signs for any more: `meter 1.0.0`.
    pub revoked: Vec<String>,
    /// Whether the system's clock is believed.
    pub clock_believed: bool,
    /// The time by which metadata expires.
    pub time_s: UnixSeconds,
    /// Earlier than that it cannot be, as the fleet's owner has signed.
    pub floor_s: UnixSeconds,
}

impl std::fmt::Display for TrustStatus {
    /// For people, on one line or more.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.fresh_s_ago, &self.problem) {
            (_, Some(problem)) => write!(f, "nothing can be installed: {problem}")?,
            (Some(s), None) => write!(f, "fresh {s} s ago")?,
            (None, None) => write!(f, "not looked at since the start")?,
        }
        if let Some(version) = self.root_version {
            write!(f, ", root version {version}")?;
        }
        if !self.clock_believed {
            write!(f, "; the clock is not believed, the time floor stands for it (setting `clock`)")?;
        }
        for revoked in &self.revoked {
            write!(f, "\nrevoked     {revoked}: the fleet's owner no longer signs for it")?;
        }
        Ok(())
    }
}

/// A model whose data have moved, by this device's own judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftAlarm {
    /// Model.
    pub model: ModelName,
    /// Version that runs.
    pub version: semver::Version,
    /// One sentence a feature, with numbers.
    pub features: Vec<String>,
}

/// A request on its way to the driver, with where the answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes; a person who left is not waited for.
    pub reply: oneshot::Sender<Answer>,
}

/// Where the socket lies.
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("agent.sock")
}

/// Opens the socket. A left-over of a crash is replaced: the lock of the state folder proves that it is one.
pub fn listen(state: &Path) -> std::io::Result<UnixListener> {
    let path = socket_path(state);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until the driver drops its end.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let clients = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: the next accept would fail at once, for ever.
                tracing::warn!(%error, "control socket cannot accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let requests = requests.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = client(stream, requests).await {
                tracing::debug!(%error, "control connection ended");
            }
        });
    }
}

async fn client(stream: UnixStream, requests: mpsc::Sender<Request>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Ask>(&line) {
        Ok(ask) => ask_driver(ask, &requests).await,
        Err(error) => Answer::Refused { text: format!("this is not a request: {error}") },
    };
    let mut json = serde_json::to_vec(&answer).unwrap_or_default(); // text keys only: cannot fail
    json.push(b'\n');
    write.write_all(&json).await
}

async fn ask_driver(ask: Ask, requests: &mpsc::Sender<Request>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let limit = ask.limit();
    if requests.try_send(Request { ask, reply }).is_err() {
        return Answer::Refused { text: "the agent is busy or stopping; try again".into() };
    }
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => answer,
        _ => Answer::Refused { text: "the agent did not answer; see its log".into() },
    }
}

/// Asks the running agent of a state folder.
pub async fn ask(state: &Path, ask: &Ask) -> Result<Answer, String> {
    let path = socket_path(state);
    let talk = async {
        let stream = UnixStream::connect(&path).await?;
        let (read, mut write) = stream.into_split();
        let mut json = serde_json::to_vec(ask).unwrap_or_default(); // text keys only: cannot fail
        json.push(b'\n');
        write.write_all(&json).await?;
        let mut line = String::new();
        BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
        Ok::<_, std::io::Error>(line)
    };
    let line = match tokio::time::timeout(ask.limit() * 2, talk).await {
        Ok(Ok(line)) => line,
        Ok(Err(e)) => {
            return Err(format!(
                "cannot reach the agent at {}: {e}; is it running, and is this its --state-dir?",
                path.display()
            ));
        }
        Err(_) => return Err(format!("the agent at {} does not answer", path.display())),
    };
    serde_json::from_str(&line).map_err(|e| format!("the agent's answer is not understood: {e}"))
}

/// A status for people.
pub fn render(status: &Status) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let identity = status.identity.as_deref().unwrap_or("not enrolled");
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "{identity}   agent {}   boot {}   up {} s",
        status.version, status.boot, status.uptime_s
    );
    let _ = writeln!(out, "server      {}", status.connection);
    let inference = status.inference.as_deref().unwrap_or("starting");
    let _ = writeln!(
        out,
        "inference   {inference}   (restarts of the serving process: {})",
        status.serve_restarts
    );
    let paused = if status.paused { ", paused by the fleet" } else { "" };
    let here =
        if status.paused_here { ", paused on this device (`plimsoll-agent resume` ends it)" } else { "" };
    let _ = writeln!(out, "goal        generation {}{paused}{here}", status.generation);
    if !status.maintenance_hours.is_empty() {
        let _ = writeln!(out, "updates     {}", status.maintenance_hours);
    }
    if status.not_now_s > 0 {
        let _ = writeln!(out, "not now     the application puts updates off for {} s", status.not_now_s);
    }
    if let Some(certificate) = &status.certificate {
        let problem = certificate.problem.as_deref().map(|p| format!("; {p}")).unwrap_or_default();
        let _ = writeln!(out, "certificate {}{problem}", certificate.words);
    }
    let _ = writeln!(out, "reports     {} waiting, {} dropped", status.outbox_entries, status.outbox_dropped);
    if status.downloads.bundles > 0 {
        let Downloads { bundles, bytes, received } = status.downloads;
        let saved = status.downloads.saved();
        let _ = writeln!(
            out,
            "downloads   {received} of {bytes} bytes came over the network for {bundles} bundles; {saved} were saved"
        );
    }
    if let Some(trust) = &status.trust {
        let _ = writeln!(out, "trust       {trust}");
    }
    for model in &status.models {
        let trial = if model.trial_passed { "" } else { "   on trial" };
        let _ =
            writeln!(out, "runs        {} {} ({}){trial}", model.model, model.version, model.digest.short());
    }
    for job in &status.jobs {
        let phase = serde_json::to_value(job.phase).ok();
        let phase = phase.as_ref().and_then(|v| v.as_str()).unwrap_or("?");
        let reason = job.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let _ = writeln!(out, "order       {} {} {phase}{reason}", job.model, job.version);
    }
    for blocked in &status.blocked {
        let _ =
            writeln!(out, "blocked     {} ({}): {}", blocked.model, blocked.digest.short(), blocked.reason);
    }
    for alarm in &status.drift {
        for feature in &alarm.features {
            let _ = writeln!(out, "drift       {} {}: {feature}", alarm.model, alarm.version);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            identity: Some("acme.cam-1".into()),
            version: "0.1.0".into(),
            boot: 3,
            uptime_s: 5,
            inference: None,
            connected: false,
            connection: "not connected: refused".into(),
            generation: 9,
            paused: true,
            paused_here: true,
            not_now_s: 30,
            maintenance_hours: "Sat,Sun 02:00-04:00".into(),
            slots: BTreeMap::new(),
            models: vec![RunningModel {
                model: ModelName::new("meter").unwrap(),
                version: "1.0.0".parse().unwrap(),
                digest: Digest::of(b"x"),
                trial_passed: false,
            }],
            jobs: Vec::new(),
            blocked: vec![BlockedHere {
                model: ModelName::new("meter").unwrap(),
                digest: Digest::of(b"bad"),
                reason: "it stopped in its trial".into(),
            }],
            downloads: Downloads { bundles: 2, bytes: 1000, received: 300 },
            outbox_entries: 1,
            outbox_dropped: 0,
            trust: Some(TrustStatus {
                root_version: Some(3),
                fresh_s_ago: None,
                problem: Some("timestamp.json expired".into()),
                expired: true,
                revoked: vec!["meter 1.0.0".into()],
                clock_believed: false,
                time_s: 1,
                floor_s: 1,
            }),
            certificate: Some(CertificateStatus {
                until_s: 0,
                renews_s: 0,
                words: "ended 2 days ago".into(),
                problem: Some("the certificate was not renewed".into()),
            }),
            serve_restarts: 0,
            messages_refused: 0,
            drift: vec![DriftAlarm {
                model: ModelName::new("meter").unwrap(),
                version: "1.0.0".parse().unwrap(),
                features: vec!["sharpness fell from 2 to 0.1 on average".into()],
            }],
        }
    }

    #[tokio::test]
    async fn a_question_gets_the_drivers_answer_and_nonsense_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let (send, mut receive) = mpsc::channel::<Request>(4);
        tokio::spawn(serve(listen(dir.path()).unwrap(), send));
        tokio::spawn(async move {
            while let Some(request) = receive.recv().await {
                let answer = match request.ask {
                    Ask::Status => Answer::Status(Box::new(status())),
                    Ask::Rollback { model } => Answer::Done { text: format!("{model} goes back") },
                    other => Answer::Refused { text: format!("{other:?}") },
                };
                request.reply.send(answer).unwrap();
            }
        });
        assert_eq!(ask(dir.path(), &Ask::Status).await, Ok(Answer::Status(Box::new(status()))));
        let model = ModelName::new("meter").unwrap();
        let answer = ask(dir.path(), &Ask::Rollback { model }).await.unwrap();
        assert_eq!(answer, Answer::Done { text: "meter goes back".into() });

        let mut stream = UnixStream::connect(socket_path(dir.path())).await.unwrap();
        stream.write_all(b"{\"ask\":\"format the disk\"}\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("refused") && text.contains("format the disk"), "{text}");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_run_is_named_with_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask(dir.path(), &Ask::Status).await.unwrap_err();
        assert!(error.contains("--state-dir") && error.contains("agent.sock"), "{error}");
    }

    #[test]
    fn the_status_reads_well() {
        let text = render(&status());
        for words in [
            "acme.cam-1",
            "meter 1.0.0",
            "on trial",
            "paused by the fleet",
            "plimsoll-agent resume",
            "puts updates off for 30 s",
            "Sat,Sun 02:00-04:00",
            "not connected: refused",
            "starting",
            "sharpness fell",
            "certificate ended 2 days ago; the certificate was not renewed",
            "nothing can be installed: timestamp.json expired",
            "the clock is not believed",
            "revoked     meter 1.0.0",
            "blocked     meter",
            "it stopped in its trial",
            "300 of 1000 bytes came over the network for 2 bundles; 700 were saved",
        ] {
            assert!(text.contains(words), "{words:?} is missing in\n{text}");
        }
    }
}
