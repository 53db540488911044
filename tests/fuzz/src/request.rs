//! Inference requests and observations, as applications on a device send them. The first byte says for which model and
//! how much of the body is JSON: none said, one raw tensor, or as the next two bytes say.

use std::sync::LazyLock;

use plimsoll_agent::serve::oip;
use plimsoll_protocol::bundle::Manifest;
use plimsoll_runtime::{Tensor, element_count};

/// One FP32 input, and one of each kind of datatype.
static MODELS: LazyLock<[Option<Manifest>; 2]> = LazyLock::new(|| {
    let tensor = |name: &str, datatype: &str, shape: &str| {
        format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":{shape}}}"#)
    };
    let one = tensor("x", "FP32", "[-1,4]");
    let kinds = ["BOOL", "UINT8", "INT64", "FP16", "BF16", "FP64", "BYTES"];
    let many: Vec<String> = kinds.iter().map(|kind| tensor(&kind.to_lowercase(), kind, "[-1,-1]")).collect();
    [one, many.join(",")].map(|inputs| manifest(&inputs))
});

fn manifest(inputs: &str) -> Option<Manifest> {
    let digest = "0".repeat(64);
    let text = format!(
        r#"{{"format":1,"model":"meter","version":"1.0.0","created":"2026-01-01T00:00:00Z",
            "files":[{{"path":"m","size":1,"sha256":"{digest}"}}],
            "variants":[{{"name":"v","entry":"m","runtime":{{"kind":"onnx","opsets":{{"":17}}}}}}],
            "inputs":[{inputs}],"outputs":[{{"name":"y","datatype":"FP32","shape":[-1,3]}}],
            "golden":{{"origin":"supplied","tolerance":{{"absolute":0.1,"relative":0.1}},
                "samples":[{{"inputs":[{}],"outputs":["m"]}}]}}}}"#,
        vec![r#""m""#; inputs.matches("name").count()].join(",")
    );
    Manifest::parse(text.as_bytes()).ok()
}

/// Any bytes are a request of whole tensors, no larger than the bytes that brought them, or are refused.
pub fn request(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else { return };
    let (json_len, body) = match (flags >> 1) & 0b11 {
        0 => (None, rest),
        1 => (Some(0), rest),
        _ => match rest.split_first_chunk::<2>() {
            Some((length, body)) => (Some(usize::from(u16::from_le_bytes(*length))), body),
            None => return,
        },
    };
    let Some(model) = MODELS.get(usize::from(flags & 1)).and_then(Option::as_ref) else {
        panic!("the models of this target are valid")
    };
    if let Ok(ask) = oip::read(body, json_len, model) {
        assert_eq!(ask.inputs.len(), model.inputs.len(), "every input once");
        check(&ask.inputs, body);
    }
    if let Ok(seen) = oip::read_observation(body, json_len, model) {
        check(&seen.inputs, body);
        check(seen.outputs.as_deref().unwrap_or_default(), body);
    }
}

fn check(tensors: &[Tensor], body: &[u8]) {
    let mut elements = 0;
    for tensor in tensors {
        assert_eq!(
            element_count(tensor.shape()),
            Some(tensor.len()),
            "a shape of another size than its data"
        );
        if let Some(width) = tensor.datatype().width() {
            assert_eq!(
                tensor.to_le_bytes().len(),
                tensor.len() * width,
                "bytes that its datatype does not have"
            );
        }
        elements += tensor.len();
    }
    // Every element takes a byte of the body at least; allocations are some bytes an element.
    assert!(elements <= body.len(), "{elements} elements out of {} bytes", body.len());
}
