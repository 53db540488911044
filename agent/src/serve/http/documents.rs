//! The answers that describe: server, index, metadata, configuration, statistics.
//!
//! Configuration and statistics are Triton's extensions; they are given in its form as far as there is something true
//! to say.

use std::sync::Arc;

use plimsoll_protocol::bundle::{DataType, Manifest};
use serde_json::{Value, json};

use super::Endpoint;
use crate::serve::hosted::Hosted;

/// `GET /v2`
pub fn server(endpoint: &Endpoint) -> Value {
    json!({
        "name": "plimsoll-agent",
        "version": endpoint.agent_version,
        "extensions": ["binary_tensor_data", "classification", "model_repository", "model_configuration", "statistics", "feedback", "observe", "hold"],
    })
}

/// `POST /v2/repository/index`
pub fn index(endpoint: &Endpoint) -> Value {
    let registry = endpoint.registry();
    let entry = |h: &Arc<Hosted>| json!({ "name": h.manifest().model, "version": h.manifest().version, "state": "READY", "reason": "" });
    Value::Array(registry.all_served().map(entry).collect())
}

/// `GET /v2/models/{m}/ready`
pub fn ready(_: &Endpoint, hosted: &Hosted) -> Value {
    json!({ "name": hosted.manifest().model, "version": hosted.manifest().version, "ready": true })
}

/// `GET /v2/models/{m}`
pub fn metadata(endpoint: &Endpoint, hosted: &Hosted) -> Value {
    let m = hosted.manifest();
    let inputs: Vec<Value> = m
        .inputs
        .iter()
        .map(|i| json!({ "name": i.name, "datatype": i.datatype, "shape": i.shape }))
        .collect();
    let output = |o: &plimsoll_protocol::bundle::OutputSpec| {
        let mut value = json!({ "name": o.name, "datatype": o.datatype, "shape": o.shape });
        if !o.labels.is_empty() {
            value["properties"] = json!({ "labels": o.labels });
        }
        value
    };
    let outputs: Vec<Value> = m.outputs.iter().map(output).collect();
    let versions: Vec<String> = endpoint.registry().versions(&m.model).collect();
    let mut properties = json!({ "bundle_digest": hosted.digest(), "max_batch": m.limits.max_batch });
    if let Some((engine, entry)) = hosted.engine() {
        // Which version this is about: the one that the path names, or the one that answers for the model.
        properties["version"] = json!(m.version);
        properties["engine"] = json!(engine);
        properties["entry"] = json!(entry);
    }
    json!({
        "name": m.model, "versions": versions, "platform": platform(hosted), "inputs": inputs, "outputs": outputs,
        "properties": properties,
    })
}

/// What runs it, as the protocol says it: a framework and its format.
fn platform(hosted: &Hosted) -> String {
    hosted.engine().map_or_else(|| PLATFORM.to_owned(), |(engine, _)| format!("external_{engine}"))
}

/// The protocol's word for ONNX.
const PLATFORM: &str = "onnx_onnxv1";

/// `GET /v2/models/{m}/config`: what a client needs to build requests.
pub fn config(_: &Endpoint, hosted: &Hosted) -> Value {
    let m = hosted.manifest();
    // Triton leaves the batch out of the dimensions when there is one.
    let batched = m.inputs.iter().all(|i| i.shape.first() == Some(&-1))
        && m.outputs.iter().all(|o| o.shape.first() == Some(&-1));
    let dims = |shape: &[i64]| shape.get(usize::from(batched)..).unwrap_or_default().to_vec();
    let tensor = |name: &str, datatype: DataType, shape: &[i64]| json!({ "name": name, "data_type": config_type(datatype), "dims": dims(shape) });
    let inputs: Vec<Value> = m.inputs.iter().map(|i| tensor(&i.name, i.datatype, &i.shape)).collect();
    let outputs: Vec<Value> = m.outputs.iter().map(|o| tensor(&o.name, o.datatype, &o.shape)).collect();
    json!({
        "name": m.model,
        "platform": platform(hosted),
        "backend": "plimsoll",
        "max_batch_size": if batched { m.limits.max_batch } else { 0 },
        "input": inputs,
        "output": outputs,
        "version_policy": { "specific": { "versions": [m.version] } },
        "parameters": {
            "timeout_ms": { "string_value": m.limits.timeout_ms.to_string() },
            "queue": { "string_value": m.limits.queue.to_string() },
        },
    })
}

/// `TYPE_FP32`; Triton says STRING there for what it calls BYTES everywhere else.
fn config_type(datatype: DataType) -> String {
    match datatype {
        DataType::Bytes => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.as_str()),
    }
}

/// `GET /v2/models/{m}/versions/{v}/stats`
pub fn version_statistics(_: &Endpoint, hosted: &Hosted) -> Value {
    json!({ "model_stats": [entry(hosted)] })
}

/// `GET /v2/models/{m}/stats`: all versions that answer.
pub fn statistics(endpoint: &Endpoint, hosted: &Hosted) -> Value {
    let m: &Manifest = hosted.manifest();
    let registry = endpoint.registry();
    let of_model = registry.all_served().filter(|h| h.manifest().model == m.model);
    json!({ "model_stats": of_model.map(|h| entry(h)).collect::<Vec<_>>() })
}

/// `GET /v2/models/stats`
pub fn all_statistics(endpoint: &Endpoint) -> Value {
    json!({ "model_stats": endpoint.registry().all_served().map(|h| entry(h)).collect::<Vec<_>>() })
}

fn entry(hosted: &Hosted) -> Value {
    let counted = hosted.account().counted();
    let duration = |count: u64, ns: u64| json!({ "count": count, "ns": ns });
    let zero = duration(0, 0);
    json!({
        "name": hosted.manifest().model,
        "version": hosted.manifest().version,
        "last_inference": counted.last_ms,
        "inference_count": counted.rows,
        "execution_count": counted.runs,
        "inference_stats": {
            "success": duration(counted.requests - counted.failed, counted.success_ns),
            "fail": duration(counted.failed, counted.fail_ns),
            "queue": duration(counted.runs, counted.queue_ns),
            "compute_input": zero,
            "compute_infer": duration(counted.runs, counted.infer_ns),
            "compute_output": zero,
            "cache_hit": zero,
            "cache_miss": zero,
        },
        "batch_stats": [],
    })
}
