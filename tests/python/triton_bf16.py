"""Triton's own client with bfloat16: x BF16 [-1, 4] -> y BF16 [-1, 3].

    triton_bf16.py HOST:PORT
"""

import sys

import ml_dtypes
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
meta = client.get_model_metadata("meter")
assert [t["datatype"] for t in meta["inputs"] + meta["outputs"]] == ["BF16", "BF16"], meta
x = triton.InferInput("x", [2, 4], "BF16")
x.set_data_from_numpy(np.array([[0.5, -1.0, 2.0, 0.25], [0, 0, 0, 0]], dtype=ml_dtypes.bfloat16))
y = client.infer("meter", [x]).as_numpy("y")
assert y.shape == (2, 3), y
assert np.allclose(y.astype(np.float64).sum(axis=1), 1.0, atol=0.02), y
print("bfloat16 goes in and comes out")
