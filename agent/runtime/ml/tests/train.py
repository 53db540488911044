#!/usr/bin/env python3
"""Trains small scikit-learn models, exports them as skl2onnx does, and keeps what onnxruntime answers.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python train.py

Writes models/<case>/model.onnx and models/<case>/test_data_set_0/{input,output}_K.pb, the layout of ONNX's own test
cases. Two kinds of case: exports of whole estimators, in which scikit-learn is asked too and must agree with
onnxruntime, and single operators (op_*) with the attributes that exports seldom use, so that each branch of our
kernels has a number from outside. An output that is a sequence of maps (ZipMap) is kept as the matrix it was made of.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import (
    AdaBoostClassifier, ExtraTreesRegressor, GradientBoostingClassifier, GradientBoostingRegressor,
    HistGradientBoostingClassifier, HistGradientBoostingRegressor, IsolationForest, RandomForestClassifier,
    RandomForestRegressor, VotingClassifier,
)
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer, KBinsDiscretizer, MaxAbsScaler, MinMaxScaler, Normalizer, OneHotEncoder, OrdinalEncoder,
    PolynomialFeatures, RobustScaler, StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

HERE = Path(__file__).resolve().parent
OUT = HERE / "models"
OPSET = {"": 17, "ai.onnx.ml": 3}
ROWS = 24
LARGEST = 50_000
rng = np.random.default_rng(1876)

_make_attribute = helper.make_attribute


def make_attribute(key, value, *rest, **named):
    """skl2onnx 1.20 hands numpy's own types to onnx 1.23, which takes Python's."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        value = [v.item() if isinstance(v, np.generic) else v for v in value]
        value = [int(v) if isinstance(v, bool) else v for v in value]
    return _make_attribute(key, value, *rest, **named)


helper.make_attribute = make_attribute


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options)


def matrix(answer):
    """A list of maps as the matrix it was made of."""
    if isinstance(answer, list):
        return np.array([list(row.values()) for row in answer], dtype=np.float32)
    return answer


def keep(name, model, inputs):
    folder = OUT / name
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    answers = [matrix(a) for a in session(model).run(None, inputs)]
    raw = model.SerializeToString()
    assert len(raw) < LARGEST, f"{name} has {len(raw)} bytes"
    (folder / "model.onnx").write_bytes(raw)
    for kind, tensors in (("input", [inputs[i.name] for i in model.graph.input]), ("output", answers)):
        for at, tensor in enumerate(tensors):
            proto = numpy_helper.from_array(np.asarray(tensor))
            (data / f"{kind}_{at}.pb").write_bytes(proto.SerializeToString())
    return answers


def export(name, estimator, x, y=None, *, zipmap=False, rows=None, types=None, options=None):
    """One estimator; scikit-learn must agree with onnxruntime."""
    estimator.fit(x, y)
    rows = x[:: max(1, len(x) // ROWS)][:ROWS] if rows is None else rows
    settings = dict(options or {})
    final = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    if hasattr(final, "predict_proba"):
        settings["zipmap"] = zipmap
    kwargs = {"initial_types": types} if types else {"X": x[:1]}
    opts = {id(final): settings} if settings else None
    model = to_onnx(estimator, target_opset=OPSET, options=opts, **kwargs)
    if types:
        inputs = {n: rows[:, [k]] if len(types) > 1 else rows for k, (n, _) in enumerate(types)}
        wanted = {"FloatTensorType": np.float32, "Int64TensorType": np.int64, "StringTensorType": object}
        inputs = {n: v.astype(wanted[type(t).__name__]) for (n, t), v in zip(types, inputs.values())}
    else:
        inputs = {"X": rows}
    answers = keep(name, model, inputs)
    if hasattr(final, "predict"):
        expected = estimator.predict(rows)
        got = np.asarray(answers[0]).reshape(expected.shape)
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4, err_msg=name)
        else:
            assert (got == expected).all(), name
    elif hasattr(estimator, "transform"):
        expected = estimator.transform(rows)
        expected = expected.toarray() if hasattr(expected, "toarray") else np.asarray(expected)
        np.testing.assert_allclose(np.asarray(answers[0], dtype=np.float64), expected.astype(np.float64),
                                   rtol=1e-4, atol=1e-4, err_msg=name)


def estimators():
    ix, iy = load_iris(return_X_y=True)
    ix = ix.astype(np.float32)
    names = np.array(["setosa", "versicolor", "virginica"])[iy]
    bx, by = load_breast_cancer(return_X_y=True)
    bx = bx[:, :8].astype(np.float32)
    dx, dy = load_diabetes(return_X_y=True)
    dx = dx.astype(np.float32)
    holes = ix.copy()
    holes[rng.random(holes.shape) < 0.2] = np.nan
    seed = {"random_state": 0}

    for name, step in {
        "standard_scaler": StandardScaler(), "minmax_scaler": MinMaxScaler(), "robust_scaler": RobustScaler(),
        "maxabs_scaler": MaxAbsScaler(), "normalizer_l2": Normalizer(), "normalizer_l1": Normalizer("l1"),
        "normalizer_max": Normalizer("max"), "binarizer": Binarizer(threshold=2.5), "pca": PCA(2),
        "polynomial_features": PolynomialFeatures(2),
        "kbins": KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf"),
    }.items():
        export(name, step, ix)
    for strategy in ("mean", "median", "most_frequent"):
        export(f"imputer_{strategy}", SimpleImputer(strategy=strategy), holes)

    words = np.array([[a, b] for a in ("red", "green", "blue") for b in ("s", "m", "l")], dtype=object)
    strings = [("colour", StringTensorType([None, 1])), ("size", StringTensorType([None, 1]))]
    numbers = np.array([[a, b] for a in (1, 5, 9) for b in (2, 4)], dtype=np.int64)
    export("onehot_strings", OneHotEncoder(sparse_output=False), words, types=strings)
    unknown = np.vstack([words, np.array([["mauve", "xl"]], dtype=object)])
    export("onehot_ignores_unknown", OneHotEncoder(handle_unknown="ignore", sparse_output=False), words,
           rows=unknown, types=strings)
    export("onehot_ints", OneHotEncoder(sparse_output=False), numbers, types=[("X", Int64TensorType([None, 2]))])
    export("ordinal_strings", OrdinalEncoder(), words, types=strings)
    export("ordinal_ints", OrdinalEncoder(), numbers, types=[("X", Int64TensorType([None, 2]))])

    # A table as factories keep it: texts, numbers with holes, one classifier.
    n = 60
    table = np.empty((n, 3), dtype=object)
    table[:, 0] = rng.choice(["press", "mill", "lathe"], n)
    table[:, 1] = rng.normal(60, 10, n).astype(np.float32)
    table[:, 2] = rng.normal(3, 1, n).astype(np.float32)
    fault = (table[:, 1].astype(float) + 10 * (table[:, 0] == "mill") > 65).astype(int)
    columns = ColumnTransformer([
        ("machine", OneHotEncoder(handle_unknown="ignore"), [0]),
        ("sensors", make_pipeline(SimpleImputer(), StandardScaler()), [1, 2]),
    ])
    export("pipeline_mixed_table", make_pipeline(columns, LogisticRegression()), table, fault, zipmap=True,
           types=[("machine", StringTensorType([None, 1])), ("heat", FloatTensorType([None, 1])),
                  ("shake", FloatTensorType([None, 1]))])
    export("pipeline_select_forest", make_pipeline(SelectKBest(k=5), RandomForestClassifier(8, max_depth=4, **seed)),
           bx, by)

    for name, model in {
        "logistic": LogisticRegression(max_iter=1000), "sgd_log": make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", **seed)),
        "svc_rbf_probability": SVC(probability=True, **seed), "svc_linear": SVC(kernel="linear"),
        "svc_poly": SVC(kernel="poly", coef0=1.0), "svc_sigmoid": SVC(kernel="sigmoid", gamma=0.01),
        "nusvc": NuSVC(probability=True, **seed), "linear_svc": LinearSVC(**seed),
        "decision_tree": DecisionTreeClassifier(max_depth=4, **seed),
        "random_forest": RandomForestClassifier(10, max_depth=4, **seed),
        "gradient_boosting": GradientBoostingClassifier(n_estimators=10, max_depth=2, **seed),
        "hist_gradient_boosting": HistGradientBoostingClassifier(max_iter=8, max_leaf_nodes=6),
        "ada_boost": AdaBoostClassifier(n_estimators=4, **seed),
        "mlp": MLPClassifier(hidden_layer_sizes=(8,), max_iter=400, **seed), "gaussian_nb": GaussianNB(), "bernoulli_nb": BernoulliNB(),
        "kneighbors": KNeighborsClassifier(3),
    }.items():
        x, few = (bx / 100, 120) if "mlp" not in name else (bx / 100, 400)
        few_x, many_x = x[:few], ix[::2]
        if name.startswith("svc_"):
            # Unscaled, decisions are small differences of large sums, and onnxruntime's 32 bits tell 4 digits.
            few_x, many_x = (StandardScaler().fit_transform(v).astype(np.float32) for v in (few_x, many_x))
        export(f"{name}_binary", model, few_x, by[:few])
        export(f"{name}_multiclass", model, many_x, iy[::2])
    export("logistic_zipmap_strings", LogisticRegression(max_iter=1000), ix, names, zipmap=True)
    export("random_forest_zipmap_ints", RandomForestClassifier(6, max_depth=3, **seed), ix, iy, zipmap=True)
    export("random_forest_strings", RandomForestClassifier(6, max_depth=3, **seed), ix, names)
    export("hist_gradient_boosting_missing", HistGradientBoostingClassifier(max_iter=6, max_leaf_nodes=6), holes, iy)
    export("voting", VotingClassifier([("a", LogisticRegression(max_iter=1000)), ("b", GaussianNB())], voting="soft",
                                      flatten_transform=False),
           ix, iy)
    export("kneighbors_cdist", KNeighborsClassifier(3), bx[:120], by[:120], options={"optim": "cdist"})

    for name, model in {
        "linear_regression": LinearRegression(), "ridge": Ridge(), "lasso": Lasso(0.01), "svr_rbf": SVR(),
        "svr_linear": SVR(kernel="linear", C=100), "svr_poly": SVR(kernel="poly", degree=2, C=100),
        "svr_sigmoid": SVR(kernel="sigmoid"), "decision_tree_regressor": DecisionTreeRegressor(max_depth=5, **seed),
        "random_forest_regressor": RandomForestRegressor(10, max_depth=4, **seed),
        "extra_trees_regressor": ExtraTreesRegressor(10, max_depth=4, **seed),
        "gradient_boosting_regressor": GradientBoostingRegressor(n_estimators=12, max_depth=2, **seed),
        "hist_gradient_boosting_regressor": HistGradientBoostingRegressor(max_iter=8, max_leaf_nodes=8),
        "mlp_regressor": MLPRegressor(hidden_layer_sizes=(8,), max_iter=500, **seed), "kneighbors_regressor": KNeighborsRegressor(4),
    }.items():
        export(name, model, dx[:200], dy[:200])
    two = np.stack([dy, dy[::-1]], axis=1)
    export("random_forest_two_targets", RandomForestRegressor(6, max_depth=3, **seed), dx, two)
    export("linear_regression_two_targets", LinearRegression(), dx, two)
    export("isolation_forest", IsolationForest(n_estimators=10, max_samples=24, **seed), ix)
    export("one_class_svm", OneClassSVM(nu=0.2), ix)
    export("kmeans", KMeans(3, n_init=1, **seed), ix)
    export("pipeline_scaled_svc", make_pipeline(StandardScaler(), SVC(probability=True, **seed)), ix, iy, zipmap=True)


# --- single operators -------------------------------------------------------------------------------------------

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64,
         "int32": TensorProto.INT32, "object": TensorProto.STRING, "bool": TensorProto.BOOL}


def operator(name, op, inputs, outputs, version=3, shapes=None, **attributes):
    names = [f"x{k}" for k in range(len(inputs))]
    node = helper.make_node(op, names, [f"y{k}" for k in range(len(outputs))], domain="ai.onnx.ml", name=op.lower(),
                            **attributes)
    wide = [["n", *a.shape[1:]] if a.ndim else [] for a in inputs] if shapes is None else shapes
    graph = helper.make_graph(
        [node], name,
        [helper.make_tensor_value_info(n, TYPES[a.dtype.name], s) for n, a, s in zip(names, inputs, wide)],
        [helper.make_tensor_value_info(f"y{k}", kind, None) for k, kind in enumerate(outputs)])
    model = helper.make_model(graph, ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", version)])
    keep(f"op_{name}", model, dict(zip(names, inputs)))


F, D, I, S = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.STRING
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def floats(*shape, kind=np.float32):
    return rng.normal(size=shape).astype(kind)


def forest(trees, depth, features, modes, missing=False):
    """Attributes of full random trees; returns them and (tree, node) of each leaf."""
    a = {k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
                         "missing_value_tracks_true")}
    leaves = []
    for tree in range(trees):
        last = 2 ** (depth + 1) - 1
        for node in range(last):
            leaf = 2 * node + 1 >= last
            a["treeids"].append(tree)
            a["nodeids"].append(node)
            a["featureids"].append(0 if leaf else int(rng.integers(features)))
            a["values"].append(0.0 if leaf else float(np.float32(rng.integers(-2, 3) / 2)))
            a["modes"].append("LEAF" if leaf else str(rng.choice(modes)))
            a["truenodeids"].append(0 if leaf else 2 * node + 1)
            a["falsenodeids"].append(0 if leaf else 2 * node + 2)
            a["missing_value_tracks_true"].append(int(missing and not leaf and rng.random() < 0.5))
            if leaf:
                leaves.append((tree, node))
    return {f"nodes_{k}": v for k, v in a.items()}, leaves


def weighted(leaves, ids, prefix, positive=False):
    pairs = [(t, n, i) for t, n in leaves for i in ids]
    values = rng.random(len(pairs)) if positive else rng.normal(size=len(pairs))
    return {f"{prefix}_treeids": [p[0] for p in pairs], f"{prefix}_nodeids": [p[1] for p in pairs],
            f"{prefix}_ids": [p[2] for p in pairs], f"{prefix}_weights": [float(np.float32(v / 4)) for v in values]}


def trees():
    modes = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
    x = (rng.integers(-4, 5, size=(30, 4)) / 2).astype(np.float32)
    with_nan = x.copy()
    with_nan[::3, 1] = np.nan
    for mode in modes:
        nodes, leaves = forest(3, 3, 4, [mode])
        operator(f"tree_regressor_{mode.lower()}", "TreeEnsembleRegressor", [x], [F], n_targets=1, **nodes,
                 **weighted(leaves, [0], "target"))
    nodes, leaves = forest(4, 3, 4, modes, missing=True)
    operator("tree_regressor_missing", "TreeEnsembleRegressor", [with_nan], [F], n_targets=1, **nodes,
             **weighted(leaves, [0], "target"))
    for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
        for targets in (1, 3):
            operator(f"tree_regressor_{aggregate.lower()}_{targets}", "TreeEnsembleRegressor", [x], [F],
                     n_targets=targets, aggregate_function=aggregate, base_values=[0.5] * targets, **nodes,
                     **weighted(leaves, range(targets), "target"))
    for transform in TRANSFORMS:
        lower = transform.lower()
        operator(f"tree_regressor_{lower}_3", "TreeEnsembleRegressor", [x], [F], n_targets=3,
                 aggregate_function="AVERAGE", post_transform=transform, **nodes,
                 **weighted(leaves, range(3), "target", positive=True))
        operator(f"tree_regressor_{lower}_1", "TreeEnsembleRegressor", [x], [F], n_targets=1,
                 post_transform=transform, **nodes, **weighted(leaves, [0], "target", positive=True))
        operator(f"tree_classifier_{lower}_3", "TreeEnsembleClassifier", [x], [I, F], classlabels_int64s=[7, 8, 9],
                 post_transform=transform, base_values=[0.1, 0.2, 0.3], **nodes,
                 **weighted(leaves, range(3), "class", positive=transform == "PROBIT"))
        for ids in ([0], [1], [0, 1]):
            for positive in (True, False):
                for base in ([], [0.25], [0.25, 0.25]):
                    if transform in ("SOFTMAX_ZERO", "PROBIT", "SOFTMAX") and (ids == [1] or len(base) == 1):
                        continue
                    if transform == "PROBIT":
                        continue  # of two classes: onnxruntime leaves the second score unwritten
                    kind = f"{lower}_{''.join(map(str, ids))}_{'pos' if positive else 'mixed'}_base{len(base)}"
                    extra = {"base_values": base} if base else {}
                    operator(f"tree_classifier_{kind}", "TreeEnsembleClassifier", [x], [S, F],
                             classlabels_strings=["no", "yes"], post_transform=transform, **extra, **nodes,
                             **weighted(leaves, ids, "class", positive))
    doubles, leaves = forest(4, 3, 4, ["BRANCH_LEQ"])
    weights = weighted(leaves, [0], "target")
    for attributes, name in ((doubles, "nodes_values"), (weights, "target_weights")):
        attributes[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(attributes.pop(name), dtype=np.float64))
    operator("tree_regressor_double", "TreeEnsembleRegressor", [x.astype(np.float64)], [F], n_targets=1, **doubles,
             **weights)
    nodes, leaves = forest(3, 2, 4, ["BRANCH_LEQ"])
    operator("tree_classifier_int_input", "TreeEnsembleClassifier", [x.astype(np.int64)], [I, F], **nodes,
             classlabels_int64s=[0, 1, 2], **weighted(leaves, [0, 1, 2], "class"))
    tensor = numpy_helper.from_array
    for aggregate, name in enumerate(("average", "sum", "min", "max")):
        operator(f"tree_ensemble_{name}", "TreeEnsemble", [x], [F], version=5, n_targets=2, aggregate_function=aggregate,
                 post_transform=0, tree_roots=[0, 2], nodes_featureids=[0, 1, 2], nodes_truenodeids=[0, 2, 1],
                 nodes_falsenodeids=[1, 3, 3], nodes_trueleafs=[1, 1, 1], nodes_falseleafs=[0, 1, 1],
                 nodes_modes=tensor(np.array([0, 1, 2], dtype=np.uint8)),
                 nodes_splits=tensor(np.array([0.5, -0.5, 1.0], dtype=np.float32)),
                 leaf_targetids=[0, 1, 0, 1], leaf_weights=tensor(np.array([1.0, -2.0, 3.5, 0.25], dtype=np.float32)))


def linear_and_svm():
    x = floats(20, 4)
    for transform in TRANSFORMS:
        lower = transform.lower()
        if transform != "PROBIT":
            operator(f"linear_classifier_{lower}_3", "LinearClassifier", [x], [I, F], classlabels_ints=[3, 5, 7],
                     coefficients=floats(12).tolist(), intercepts=floats(3).tolist(), post_transform=transform)
        if transform in ("NONE", "LOGISTIC", "SOFTMAX"):
            operator(f"linear_classifier_{lower}_1", "LinearClassifier", [x], [S, F], classlabels_strings=["n", "y"],
                     coefficients=floats(4).tolist(), intercepts=[0.1], post_transform=transform)
        if transform != "PROBIT":
            operator(f"linear_regressor_{lower}", "LinearRegressor", [x], [F], coefficients=floats(8).tolist(),
                     intercepts=[0.1, -0.2], targets=2, post_transform=transform)
    operator("linear_classifier_int_input", "LinearClassifier", [x.round().astype(np.int64)], [I, F],
             classlabels_ints=[0, 1], coefficients=floats(8).tolist(), intercepts=[0.1, -0.2])
    for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID"):
        lower = kernel.lower()
        common = {"kernel_type": kernel, "kernel_params": [0.3, 0.5, 3.0]}
        operator(f"svm_regressor_{lower}", "SVMRegressor", [x], [F], n_supports=5, coefficients=floats(5).tolist(),
                 support_vectors=floats(20).tolist(), rho=[0.2], **common)
        operator(f"svm_classifier_{lower}_2", "SVMClassifier", [x], [I, F], classlabels_ints=[4, 6],
                 vectors_per_class=[3, 2], coefficients=floats(5).tolist(), support_vectors=floats(20).tolist(),
                 rho=[0.2], **common)
        operator(f"svm_classifier_{lower}_3", "SVMClassifier", [x], [S, F], classlabels_strings=["a", "b", "c"],
                 vectors_per_class=[2, 2, 1], coefficients=floats(10).tolist(), support_vectors=floats(20).tolist(),
                 rho=[0.2, -0.1, 0.3], **common)
        operator(f"svm_classifier_{lower}_3_platt", "SVMClassifier", [x], [I, F], classlabels_ints=[0, 1, 2],
                 vectors_per_class=[2, 2, 1], coefficients=floats(10).tolist(), support_vectors=floats(20).tolist(),
                 rho=[0.2, -0.1, 0.3], prob_a=[-1.5, -2.0, -1.1], prob_b=[0.1, -0.1, 0.2], **common)
    operator("svm_classifier_2_platt", "SVMClassifier", [x], [I, F], classlabels_ints=[0, 1], vectors_per_class=[3, 2],
             coefficients=floats(5).tolist(), support_vectors=floats(20).tolist(), rho=[0.2], kernel_type="RBF",
             kernel_params=[0.3, 0.0, 3.0], prob_a=[-1.5], prob_b=[0.1])
    for transform in ("LOGISTIC", "SOFTMAX"):
        operator(f"svm_classifier_2_{transform.lower()}", "SVMClassifier", [x], [I, F], classlabels_ints=[0, 1],
                 vectors_per_class=[3, 2], coefficients=floats(5).tolist(), support_vectors=floats(20).tolist(),
                 rho=[0.2], kernel_type="RBF", kernel_params=[0.3, 0.0, 3.0], post_transform=transform)
    operator("svm_classifier_linear_mode", "SVMClassifier", [x], [I, F], classlabels_ints=[0, 1, 2],
             coefficients=floats(12).tolist(), rho=[0.2], kernel_type="LINEAR", kernel_params=[0.0, 0.0, 3.0])
    operator("svm_regressor_linear_mode", "SVMRegressor", [x], [F], coefficients=floats(4).tolist(), rho=[0.2],
             kernel_type="LINEAR", kernel_params=[0.0, 0.0, 3.0], n_supports=0)
    operator("svm_regressor_one_class", "SVMRegressor", [x], [F], n_supports=5, coefficients=floats(5).tolist(),
             support_vectors=floats(20).tolist(), rho=[-0.2], one_class=1, kernel_type="RBF",
             kernel_params=[0.3, 0.0, 3.0])


def features():
    x = floats(6, 3)
    ints = rng.integers(-3, 4, size=(6, 3))
    words = np.array([["a", "b"], ["c", "a"], ["zz", ""]], dtype=object)
    for kind in (np.float32, np.float64, np.int64, np.int32):
        name = np.dtype(kind).name
        operator(f"scaler_{name}", "Scaler", [(x * 4).astype(kind)], [F], offset=[0.5, -1.0, 0.0], scale=[2.0, 0.1, 3.0])
        operator(f"normalizer_{name}", "Normalizer", [(x * 4).astype(kind)], [F], norm="L2")
    operator("scaler_one_for_all", "Scaler", [x], [F], offset=[0.5], scale=[2.0])
    signed = np.array([[0, 0, 0], [-3, 1, 2], [-1, -5, -2]], dtype=np.float32)
    for norm in ("MAX", "L1", "L2"):
        operator(f"normalizer_signed_{norm.lower()}", "Normalizer", [signed], [F], norm=norm)
    operator("binarizer", "Binarizer", [x], [F], threshold=0.25)
    holes = x.copy()
    holes[1, 2] = holes[3, 0] = np.nan
    operator("imputer_nan", "Imputer", [holes], [F], imputed_value_floats=[1.0, 2.0, 3.0],
             replaced_value_float=float("nan"))
    operator("imputer_value", "Imputer", [np.where(np.isnan(holes), -9, holes).astype(np.float32)], [F],
             imputed_value_floats=[5.0], replaced_value_float=-9.0)
    operator("imputer_ints", "Imputer", [ints], [I], imputed_value_int64s=[7, 8, 9], replaced_value_int64=0)
    operator("one_hot_ints", "OneHotEncoder", [ints], [F], cats_int64s=[-1, 0, 1, 2], zeros=1)
    operator("one_hot_floats", "OneHotEncoder", [ints.astype(np.float32)], [F], cats_int64s=[-1, 0, 1, 2], zeros=1)
    operator("one_hot_strings", "OneHotEncoder", [words], [F], cats_strings=["a", "b", "zz"], zeros=1)
    operator("label_int_to_string", "LabelEncoder", [ints], [S], version=2, keys_int64s=[0, 1, 2],
             values_strings=["zero", "one", "two"], default_string="other")
    operator("label_string_to_int", "LabelEncoder", [words], [I], version=2, keys_strings=["a", "b"],
             values_int64s=[10, 20], default_int64=-7)
    operator("label_string_to_float", "LabelEncoder", [words], [F], version=2, keys_strings=["a", "b"],
             values_floats=[1.5, 2.5])
    operator("label_float_to_string", "LabelEncoder", [np.array([1.5, np.nan, 2.0], dtype=np.float32)], [S], version=4,
             keys_floats=[1.5, float("nan")], values_strings=["x", "hole"])
    operator("label_float_to_float", "LabelEncoder", [ints.astype(np.float32)], [F], version=2,
             keys_floats=[0.0, 1.0], values_floats=[5.0, 6.0], default_float=-3.0)
    operator("label_int_to_int", "LabelEncoder", [ints], [I], version=2, keys_int64s=[0, 1], values_int64s=[5, 6])
    operator("label_string_to_string", "LabelEncoder", [words], [S], version=2, keys_strings=["a"],
             values_strings=["first"])
    operator("label_opset1_to_int", "LabelEncoder", [words], [I], version=1, classes_strings=["a", "b", "c"],
             default_int64=-2)
    operator("label_opset1_to_string", "LabelEncoder", [ints], [S], version=1, classes_strings=["a", "b"],
             default_string="?")
    tensor = numpy_helper.from_array
    operator("label_tensors", "LabelEncoder", [ints.astype(np.float64)], [D], version=4,
             keys_tensor=tensor(np.array([0.0, 1.0])), values_tensor=tensor(np.array([2.5, 3.5])),
             default_tensor=tensor(np.array([-1.0])))
    operator("label_tensors_to_strings", "LabelEncoder", [ints], [S], version=4,
             keys_tensor=tensor(np.array([0, 1])), values_tensor=tensor(np.array(["p", "q"], dtype=object)),
             default_tensor=tensor(np.array(["r"], dtype=object)))
    operator("category_strings", "CategoryMapper", [words], [I], cats_int64s=[4, 5], cats_strings=["a", "b"],
             default_int64=-1)
    operator("category_ints", "CategoryMapper", [ints], [S], cats_int64s=[0, 1], cats_strings=["a", "b"],
             default_string="none")
    operator("feature_vectorizer", "FeatureVectorizer", [x, floats(6, 1)], [F], inputdimensions=[3, 1])
    operator("array_feature_extractor", "ArrayFeatureExtractor", [x, np.array([2, 0], dtype=np.int64)], [F],
             shapes=[["n", 3], [2]])
    operator("array_feature_extractor_strings", "ArrayFeatureExtractor", [words, np.array([1], dtype=np.int64)], [S],
             shapes=[["n", 2], [1]])


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    estimators()
    trees()
    linear_and_svm()
    features()
    total = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{len(list(OUT.iterdir()))} cases, {total} bytes")
