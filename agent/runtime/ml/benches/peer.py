#!/usr/bin/env python3
"""Writes the models of the bench `trees` into a folder and measures onnxruntime with them, in process.

    python3 -m venv venv && venv/bin/pip install -r tests/requirements.txt && venv/bin/python benches/peer.py FOLDER

Prints `name value unit`: the median of a run, with one thread and with two.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from skl2onnx import to_onnx
from sklearn.datasets import make_classification
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
x, y = make_classification(4000, 20, n_informative=10, random_state=0)
x = x.astype(np.float32)
for name, model in {
    "random_forest_100": RandomForestClassifier(100, random_state=0),
    "gradient_boosting_200": GradientBoostingClassifier(n_estimators=200, random_state=0),
}.items():
    path = folder / f"{name}.onnx"
    if not path.exists():
        path.write_bytes(to_onnx(model.fit(x, y), x[:1], options={"zipmap": False}).SerializeToString())
    for threads in (1, 2):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(path), options)
        for rows in (1, 64):
            at = np.arange(rows * 20)
            data = (((at * 7919) % 6007) / 1001 - 3).astype(np.float32).reshape(rows, 20)
            times, begin = [], time.perf_counter()
            while time.perf_counter() - begin < 1.5:
                start = time.perf_counter()
                session.run(None, {"X": data})
                times.append(time.perf_counter() - start)
            print(f"onnxruntime_{name}_rows_{rows}_threads_{threads} {statistics.median(times[20:]) * 1e6:.2f} us")
