//! The application on a device: it shows images to the local model, one after the other, and counts the answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{Image, Replay};

/// Longer than the model's own timeout of 5 s, so that the model's answer is what is counted.
const REQUEST_LIMIT: Duration = Duration::from_secs(8);

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered with scores.
    pub answered: u64,
    /// Of those, the largest score was on the digit of the image.
    pub correct: u64,
    /// Not answered, or with an error.
    pub failed: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
    /// Version that gave the last answer.
    pub version: Option<String>,
}

impl Tally {
    /// Share of correct answers.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.answered.max(1) as f64
    }
}

/// Feeds one agent until dropped.
#[derive(Debug)]
pub struct Feeder {
    tally: Arc<Mutex<Tally>>,
    task: JoinHandle<()>,
}

impl Feeder {
    /// Asks `model` at `agent` every `pause`, beginning with image number `first`. `see` is the lens: it turns the
    /// image into what the camera delivers.
    pub fn start(
        agent: SocketAddr,
        model: &str,
        replay: Arc<Replay>,
        first: usize,
        pause: Duration,
        see: impl Fn(&Image) -> Vec<f32> + Send + Sync + 'static,
    ) -> Result<Self> {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let counted = Arc::clone(&tally);
        let url = format!("http://{agent}/v2/models/{model}/infer");
        let client =
            reqwest::Client::builder().timeout(REQUEST_LIMIT).no_proxy().build().context("no HTTP client")?;
        let task = tokio::spawn(async move {
            for i in first.. {
                let image = &replay.images[i % replay.images.len()];
                let outcome = ask(&client, &url, see(image)).await;
                count(&mut counted.lock().unwrap_or_else(PoisonError::into_inner), image, outcome);
                tokio::time::sleep(pause).await;
            }
        });
        Ok(Self { tally, task })
    }

    /// What was counted since the last reset.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = Tally::default();
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn count(tally: &mut Tally, image: &Image, outcome: Result<(usize, String)>) {
    match outcome {
        Ok((digit, version)) => {
            tally.answered += 1;
            tally.correct += u64::from(digit == image.label);
            tally.version = Some(version);
        }
        Err(error) => {
            tally.failed += 1;
            tally.last_failure = Some(format!("{error:#}"));
        }
    }
}

/// One request; the digit with the largest score and the version that answered.
pub(crate) async fn ask(client: &reqwest::Client, url: &str, pixels: Vec<f32>) -> Result<(usize, String)> {
    let body =
        json!({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels}]});
    let response = client.post(url).json(&body).send().await.context("no answer")?;
    let status = response.status();
    let answer: Value = response.json().await.context("an answer that is not JSON")?;
    if !status.is_success() {
        bail!("{status}: {answer}");
    }
    let scores = answer["outputs"][0]["data"].as_array().with_context(|| format!("no scores in {answer}"))?;
    let scores: Vec<f64> = scores.iter().filter_map(Value::as_f64).collect();
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).context("no scores")?;
    Ok((best.0, answer["model_version"].as_str().unwrap_or_default().to_owned()))
}
