#!/usr/bin/env python3
"""Trains the demo's digit readers and writes everything the demo needs beside this folder.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python train.py

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI, CC BY 4.0), the 1,797 test images
of 8x8 pixels with values 0 to 16 that scikit-learn carries. They are split once, by a fixed seed, into a training
set, a reference set (the drift baseline) and a replay set (what the demo's cameras see; no model trained on it).

Every model takes FP32 pixels [N, 1, 8, 8] between 0 and 1 and gives ten class scores [N, 10]:

    1.0.0  multinomial logistic regression, trained on 120 images: a first version, good but not great
    1.1.0  a multi-layer perceptron, trained on all training images: better
    1.2.0  the same perceptron, trained on pixels that nobody divided by 16. Its golden samples come from the same
           mistaken notebook, so it passes them; in the field, where pixels are between 0 and 1, it is unsure

The golden outputs are scikit-learn's own `predict_proba`: a device that reproduces them answers as the notebook does.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
DATA = HERE.parent / "data"
SEED = 1876  # the year of the Merchant Shipping Act that made Plimsoll's line law
PIXEL_MAX = 16.0


def onnx_of(layers: list[tuple[np.ndarray, np.ndarray]], name: str) -> onnx.ModelProto:
    """Flatten, then Gemm (and Relu between layers), then Softmax: opset 17 of ai.onnx only."""
    nodes = [helper.make_node("Flatten", ["pixels"], ["h0"], name="flatten", axis=1)]
    weights, last = [], "h0"
    for i, (w, b) in enumerate(layers):
        weights += [numpy_helper.from_array(w.astype(np.float32), f"w{i}"), numpy_helper.from_array(b.astype(np.float32), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"g{i}"], name=f"layer{i}"))
        last = f"g{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"], name=f"relu{i}"))
            last = f"r{i}"
    nodes.append(helper.make_node("Softmax", [last], ["scores"], name="softmax", axis=1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="plimsoll-demo")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def write_version(version: str, model, layers, samples: np.ndarray) -> None:
    """model.onnx and one golden sample of four images a time: inputs and scikit-learn's own answers."""
    out = MODELS / version
    for old in sorted(out.glob("golden/*/*")):
        old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx_of(layers, f"meter-reader-{version}"), out / "model.onnx")
    for i, block in enumerate(np.split(samples, len(samples) // 4)):
        folder = out / "golden" / f"test_data_set_{i}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = block.reshape(-1, 1, 8, 8).astype(np.float32)
        scores = model.predict_proba(block).astype(np.float32)
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(pixels, "pixels").SerializeToString())
        (folder / "output_0.pb").write_bytes(numpy_helper.from_array(scores, "scores").SerializeToString())


def write_csv(path: Path, header: list[str], rows) -> None:
    path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")


def mlp(x: np.ndarray, y: np.ndarray) -> MLPClassifier:
    return MLPClassifier((48,), alpha=1e-3, max_iter=600, random_state=SEED).fit(x, y)


def main() -> None:
    raw, labels = load_digits(return_X_y=True)
    field = raw / PIXEL_MAX
    order = np.arange(len(labels))
    train, rest = train_test_split(order, train_size=800, random_state=SEED, stratify=labels)
    reference, replay = train_test_split(rest, train_size=500, random_state=SEED, stratify=labels[rest])
    small = train[:120]

    first = LogisticRegression(max_iter=2000).fit(field[small], labels[small])
    better = mlp(field[train], labels[train])
    mistaken = mlp(raw[train], labels[train])

    golden = reference[:12]
    write_version("1.0.0", first, [(first.coef_.T, first.intercept_)], field[golden])
    write_version("1.1.0", better, list(zip(better.coefs_, better.intercepts_)), field[golden])
    write_version("1.2.0", mistaken, list(zip(mistaken.coefs_, mistaken.intercepts_)), raw[golden])

    DATA.mkdir(exist_ok=True)
    names = [f"p{r}{c}" for r in range(8) for c in range(8)]
    write_csv(DATA / "reference.csv", names, ([f"{v:g}" for v in field[i]] for i in reference))
    write_csv(DATA / "reference-1.2.0.csv", names, ([f"{v:g}" for v in raw[i]] for i in reference))
    write_csv(DATA / "replay.csv", ["label", *names], ([labels[i], *(f"{v:g}" for v in field[i])] for i in replay))

    for name, model in (("1.0.0", first), ("1.1.0", better), ("1.2.0", mistaken)):
        scores = model.predict_proba(field[replay])
        accuracy = (scores.argmax(1) == labels[replay]).mean()
        print(f"{name}: accuracy on the replay set {accuracy:.3f}, mean confidence {scores.max(1).mean():.3f}")


if __name__ == "__main__":
    main()
