//! `POST …/infer`: bytes to tensors, tensors through the model, tensors to bytes.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::{Request, Response, StatusCode};
use plimsoll_runtime::Tensor;

use super::body::{self, Packing};
use super::{Answer, Endpoint, Refusal, busy, refuse};
use crate::serve::hosted::{Hosted, InferError};
use crate::serve::oip::{self, Ask, AskError, BINARY_HEADER, Prediction};

/// Bodies and answers from here on are read and written beside the thread that serves every connection: 64 KiB of
/// JSON numbers take about 0.2 ms, which is what a neighbour may wait; handing work to another thread costs 0.02.
const LARGE: usize = 64 * 1024;

/// Answers one inference request.
pub async fn infer(endpoint: &Endpoint, hosted: &Arc<Hosted>, request: Request<Incoming>) -> Answer {
    hosted.runs_here()?;
    let packing = body::wanted_packing(request.headers());
    let json_len = json_len(hosted, request.headers())?;
    let body = body::read(endpoint, request).await.inspect_err(|_| hosted.refused())?;
    let ask = match read_ask(hosted, body.bytes.clone(), json_len).await {
        Ok(ask) => ask,
        Err(why) => {
            hosted.refused();
            return refuse(StatusCode::BAD_REQUEST, why.to_string());
        }
    };
    let outputs = hosted.infer(ask.inputs).await?;
    let prediction_id = endpoint.prediction_id(hosted, &outputs);
    let reply =
        Reply { hosted: hosted.clone(), outputs, id: ask.id, wanted: ask.outputs, prediction_id, packing };
    let large = reply.outputs.iter().map(Tensor::len).sum::<usize>() > LARGE / size_of::<f32>();
    if large { beside(move || reply.write()).await? } else { reply.write() }
}

/// How much of a body is JSON, when its caller says so.
pub(super) fn json_len(hosted: &Hosted, headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(BINARY_HEADER) else { return Ok(None) };
    match value.to_str().ok().and_then(|v| v.trim().parse::<usize>().ok()) {
        Some(length) => Ok(Some(length)),
        None => {
            hosted.refused();
            refuse(StatusCode::BAD_REQUEST, "header Inference-Header-Content-Length is not a number")
        }
    }
}

async fn read_ask(hosted: &Arc<Hosted>, bytes: Bytes, json_len: Option<usize>) -> Result<Ask, AskError> {
    let hosted = hosted.clone();
    let large = bytes.len() > LARGE;
    let parse = move || oip::read(&bytes, json_len, hosted.manifest());
    if !large {
        return parse();
    }
    beside(parse).await.map_err(|refusal| AskError(refusal.why))?
}

/// Runs something that takes a while on a thread of its own kind.
pub(super) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("the request was not handled: {e}")))
}

/// An answer that is to be written.
struct Reply {
    hosted: Arc<Hosted>,
    outputs: Arc<Vec<Tensor>>,
    id: Option<String>,
    wanted: Vec<oip::Wanted>,
    prediction_id: String,
    packing: Option<Packing>,
}

impl Reply {
    fn write(self) -> Answer {
        let manifest = self.hosted.manifest();
        let lost = |why: &dyn std::fmt::Display| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            why: format!("the answer could not be written: {why}"),
            header: None,
        };
        let prediction = Prediction {
            model: manifest.model.as_str(),
            version: self.hosted.version(),
            id: self.id.as_deref(),
            prediction_id: &self.prediction_id,
            outputs: self.wanted.iter().filter_map(|w| w.of(&manifest.outputs, &self.outputs)).collect(),
        };
        let (mut bytes, json_len) = oip::encode(&prediction).map_err(|e| lost(&e))?;
        if let Some(packing) = self.packing {
            bytes = body::pack(&bytes, packing).map_err(|e| lost(&e))?;
        }
        let mut response = Response::new(Full::new(Bytes::from(bytes)));
        let kind = if json_len.is_some() { "application/octet-stream" } else { "application/json" };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(length) = json_len {
            headers.insert(BINARY_HEADER, HeaderValue::from(length));
        }
        if let Some(packing) = self.packing {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(packing.as_str()));
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        Ok(response)
    }
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Self {
        let why = error.to_string();
        let status = match error {
            InferError::Input(_) | InferError::Value(_) => StatusCode::BAD_REQUEST,
            InferError::Elsewhere(..) => StatusCode::NOT_IMPLEMENTED,
            InferError::Busy(_) => return busy(why),
            InferError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            InferError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, why, header: None }
    }
}
