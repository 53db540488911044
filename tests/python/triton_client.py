"""Triton's own client, unchanged, against the local endpoint: every call that a user of Triton would make.

    triton_client.py HOST:PORT     (serves the model `meter`: x FP32 [-1, 4] -> y FP32 [-1, 3], labelled)

Ends with status 0 when everything is as Triton would have it, and with a traceback that names what is not.
"""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL, VERSION = "meter", "1.0.0"


def refused(words, status, call, *args, **kwargs):
    """The call raises Triton's exception with this endpoint's words."""
    try:
        call(*args, **kwargs)
    except InferenceServerException as error:
        assert words in error.message(), f"{error.message()!r} does not say {words!r}"
        assert error.status() == str(status), f"{error.status()} is not {status}"
        return
    raise AssertionError(f"{call.__name__} was not refused; expected {words!r}")


def row(values, binary=True):
    tensor = triton.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return [tensor]


def main(address):
    client = triton.InferenceServerClient(address, concurrency=4)

    # Health.
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, VERSION)
    assert not client.is_model_ready("nobody")

    # Descriptions.
    server = client.get_server_metadata()
    assert server["name"] == "plimsoll-agent" and "binary_tensor_data" in server["extensions"], server
    for version in ("", VERSION):
        meta = client.get_model_metadata(MODEL, version)
        assert meta["versions"] == [VERSION], meta
        assert meta["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], meta
        assert [o["name"] for o in meta["outputs"]] == ["y"], meta
    config = client.get_model_config(MODEL)
    assert config["max_batch_size"] == 64 and config["input"][0]["data_type"] == "TYPE_FP32", config
    index = client.get_model_repository_index()
    assert [(m["name"], m["version"], m["state"]) for m in index] == [(MODEL, VERSION, "READY")], index

    # Inference, in every form the client has.
    x = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 2.0, 1.0, 0.0]], dtype=np.float32)
    first = client.infer(MODEL, row(x), request_id="call-1")
    expected = first.as_numpy("y")
    assert expected.shape == (2, 3) and expected.dtype == np.float32
    assert np.allclose(expected.sum(axis=1), 1.0, atol=1e-5)
    response = first.get_response()
    assert response["id"] == "call-1" and response["model_version"] == VERSION, response
    assert response["parameters"]["prediction_id"], response
    for binary_in in (True, False):
        for binary_out in (True, False):
            for packing in (None, "gzip", "deflate"):
                result = client.infer(
                    MODEL,
                    row(x, binary_in),
                    model_version=VERSION,
                    outputs=[triton.InferRequestedOutput("y", binary_data=binary_out)],
                    request_compression_algorithm=packing,
                    response_compression_algorithm=packing,
                    parameters={"site": "lyon"},
                )
                got = result.as_numpy("y")
                assert np.array_equal(got, expected), (binary_in, binary_out, packing, got)

    # A value that is missing, in the JSON that this client writes: a bare NaN.
    hole = x.copy()
    hole[1, 2] = np.nan
    answer = client.infer(MODEL, row(hole, binary=False)).as_numpy("y")
    assert np.array_equal(answer[0], expected[0]) and not np.isfinite(answer[1].astype(float)).all(), answer

    # The best classes.
    wanted = [triton.InferRequestedOutput("y", class_count=2)]
    classes = client.infer(MODEL, row(x), outputs=wanted).as_numpy("y")
    assert classes.shape == (2, 2), classes
    score, index, label = classes[0][0].decode().split(":")
    assert int(index) == expected[0].argmax() and label in ("low", "fine", "high"), classes
    assert abs(float(score) - expected[0].max()) < 1e-5

    # Many at once.
    waiting = [client.async_infer(MODEL, row(x)) for _ in range(16)]
    for one in waiting:
        assert np.array_equal(one.get_result().as_numpy("y"), expected)

    # Counts.
    stats = client.get_inference_statistics(MODEL)["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] == 31, stats
    assert client.get_inference_statistics()["model_stats"][0]["name"] == MODEL

    # Refusals, in this endpoint's words.
    refused('tensor "x": has shape [1, 3]', 400, client.infer, MODEL, row(x[:1, :3].copy()))
    wrong = triton.InferInput("x", [1, 4], "FP64")
    wrong.set_data_from_numpy(x[:1].astype(np.float64))
    refused("has datatype FP64; FP32 is expected", 400, client.infer, MODEL, [wrong])
    unknown = [triton.InferRequestedOutput("z")]
    refused('output "z" does not exist', 400, client.infer, MODEL, row(x), outputs=unknown)
    refused("at most 64", 400, client.infer, MODEL, row(np.zeros((65, 4), dtype=np.float32)))
    refused('model "nobody" is not served here', 404, client.infer, "nobody", row(x))
    refused("served in version 1.0.0", 404, client.infer, MODEL, row(x), model_version="9")
    refused("signed bundles", 403, client.load_model, MODEL)
    refused("signed bundles", 403, client.unload_model, MODEL)
    refused("shared memory is not offered", 403, client.get_system_shared_memory_status)
    refused("traces are not offered", 403, client.get_trace_settings)
    refused("`log` in the settings", 403, client.get_log_settings)
    client.close()
    print("triton's client has nothing to complain of")


main(sys.argv[1])
