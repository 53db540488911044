//! Chromium without a window, told what to do through its debugging pipe: JSON messages that end in a zero byte.
//! `--dump-dom` would show the page as it was loaded, before any script had news to show.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A browser that starts on a loaded machine takes ten seconds before its first answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The pipe's ends are descriptors 3 and 4 of the browser: the shell puts them there and becomes the browser.
const ON_PIPE: &str = r#"exec chromium "$@" 3<&0 4>&1 >/dev/null 2>/dev/null"#;

/// A browser with one page. Ends when dropped.
pub struct Browser {
    pipe: Mutex<Pipe>,
    session: String,
    _child: Child,
}

struct Pipe {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    last: u64,
}

impl Browser {
    /// Starts it and opens a page; its profile lies under `dir`.
    pub async fn open(dir: &Path, url: &str) -> Result<Self> {
        let profile = format!("--user-data-dir={}", dir.join("browser").display());
        let mut child = Command::new("sh")
            .args(["-c", ON_PIPE, "browser", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", &profile])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start chromium")?;
        let to = child.stdin.take().context("no way to the browser")?;
        let from = BufReader::new(child.stdout.take().context("no way from the browser")?);
        let mut pipe = Pipe { to, from, last: 0 };
        let page = pipe.call(None, "Target.createTarget", json!({ "url": url })).await?;
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = pipe.call(None, "Target.attachToTarget", attach).await?;
        let session = attached["sessionId"].as_str().context("no session with the page")?.to_owned();
        Ok(Self { pipe: Mutex::new(pipe), session, _child: child })
    }

    /// Evaluates an expression that gives a text.
    pub async fn evaluate(&self, expression: &str) -> Result<String> {
        let params = json!({ "expression": expression, "returnByValue": true });
        let said = self.pipe.lock().await.call(Some(&self.session), "Runtime.evaluate", params).await?;
        let text = said["result"]["value"].as_str();
        Ok(text.with_context(|| format!("{expression} gave {said}"))?.to_owned())
    }

    /// What a person reads in the part of the page that a selector names; nothing while there is no such part.
    pub async fn text(&self, selector: &str) -> Result<String> {
        self.evaluate(&format!("document.querySelector({selector:?})?.innerText ?? ''")).await
    }
}

impl Pipe {
    async fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        match timeout(ANSWER_LIMIT, self.exchange(session, method, params)).await {
            Ok(answer) => answer,
            Err(_) => bail!("the browser did not answer {method} within {ANSWER_LIMIT:?}"),
        }
    }

    async fn exchange(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes).await.context("the browser is gone")?;
        loop {
            let mut line = Vec::new();
            ensure!(self.from.read_until(0, &mut line).await? > 0, "the browser ended at {method}");
            line.pop();
            let mut answer: Value = serde_json::from_slice(&line)?;
            if answer["id"] == self.last {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].take());
            }
        }
    }
}
