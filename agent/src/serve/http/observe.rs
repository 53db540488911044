//! `POST …/observe`: what an engine outside of the agent inferred, told by the owner's process.
//!
//! The body is that of an inference request, and the answer with it: `inputs` and `outputs` as tensors, `latency_us`,
//! or `error` when there was no answer. It counts as a request that was served: in windows, health, trial and gates.
//! The answer to it carries a prediction id, so that a label can come later.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::json;

use super::infer::{beside, json_len};
use super::{Answer, Endpoint, body, ok, refuse};
use crate::serve::hosted::Hosted;
use crate::serve::oip;

/// Bodies from here on are read beside the thread that serves every connection, as those of inference are.
const LARGE: usize = 64 * 1024;

/// Takes one observation.
pub async fn observe(endpoint: &Endpoint, hosted: &Arc<Hosted>, request: Request<Incoming>) -> Answer {
    if hosted.engine().is_none() {
        let why = "the agent itself runs this model and counts what it answers; only bundles of an external engine are \
                   observed";
        return refuse(StatusCode::BAD_REQUEST, why);
    }
    let json_len = json_len(hosted, request.headers())?;
    let body = body::read(endpoint, request).await.inspect_err(|_| hosted.refused())?;
    let (of, bytes) = (hosted.clone(), body.bytes.clone());
    let read = move || oip::read_observation(&bytes, json_len, of.manifest());
    let observed = if body.bytes.len() > LARGE { beside(read).await? } else { read() };
    let observation = match observed {
        Ok(observation) => observation,
        Err(why) => {
            hosted.refused();
            return refuse(StatusCode::BAD_REQUEST, why.to_string());
        }
    };
    let prediction_id = endpoint.prediction_id(hosted, observation.outputs.as_deref().unwrap_or_default());
    hosted.observe(observation)?;
    let manifest = hosted.manifest();
    Ok(ok(&json!({
        "model_name": manifest.model, "model_version": manifest.version,
        "parameters": { "prediction_id": prediction_id },
    })))
}
