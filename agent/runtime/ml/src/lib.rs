//! The `ai.onnx.ml` operators, for tract: what scikit-learn, XGBoost and LightGBM exports are made of.
//!
//! Edge devices run more tables than pictures, and tract has five of the sixteen operators such models need, so this
//! crate brings all of them and puts its own in the place of tract's. The reference is onnxruntime: where the standard
//! leaves a question open (what a binary classifier with one column of weights answers, what a tie is), the answer is
//! the one that a model's owner saw when he tested his export. Sums run in the order and the precision in which
//! onnxruntime adds on one thread, so that a vote that ties there ties here.
//!
//! An operator is a [`Kernel`](op::Kernel): attributes checked once, then a pure function of its inputs. Nothing here
//! trusts the file: lengths, indices and shapes of trees are checked when the node is built, and a tree is proven to
//! be one (a cycle would never end).
//!
//! `ZipMap`, which turns a matrix of probabilities into one map a row, is passed through: the matrix is what the
//! inference protocol can carry, and the names of its columns are the model's labels (see `plimsoll-runtime`).

mod attributes;
mod distance;
mod encode;
mod extract;
mod linear;
mod numeric;
mod op;
mod scores;
mod svm;
mod trees;
mod values;

use tract_onnx::model::OnnxOpRegister;

pub use op::DataError;

/// Domain of the operators of this crate.
pub const DOMAIN: &str = "ai.onnx.ml";
/// Domain of the one operator that scikit-learn exports take from elsewhere, pairwise distances.
pub const CONTRIB_DOMAIN: &str = "com.microsoft";

/// Every operator here, with the function that builds it.
const BUILDERS: [(&str, &str, op::Builder); 18] = [
    (DOMAIN, "ArrayFeatureExtractor", extract::array_feature_extractor),
    (DOMAIN, "Binarizer", numeric::binarizer),
    (DOMAIN, "CategoryMapper", encode::category_mapper),
    (DOMAIN, "FeatureVectorizer", numeric::feature_vectorizer),
    (DOMAIN, "Imputer", numeric::imputer),
    (DOMAIN, "LabelEncoder", encode::label_encoder),
    (DOMAIN, "LinearClassifier", linear::classifier),
    (DOMAIN, "LinearRegressor", linear::regressor),
    (DOMAIN, "Normalizer", numeric::normalizer),
    (DOMAIN, "OneHotEncoder", encode::one_hot_encoder),
    (DOMAIN, "SVMClassifier", svm::classifier),
    (DOMAIN, "SVMRegressor", svm::regressor),
    (DOMAIN, "Scaler", numeric::scaler),
    (DOMAIN, "TreeEnsemble", trees::ensemble),
    (DOMAIN, "TreeEnsembleClassifier", trees::classifier),
    (DOMAIN, "TreeEnsembleRegressor", trees::regressor),
    (DOMAIN, "ZipMap", extract::zip_map),
    (CONTRIB_DOMAIN, "CDist", distance::cdist),
];

/// Adds the operators to tract's, in the place of those it has. tract looks an operator up by its bare name; no name
/// here is one of the domain `ai.onnx`.
pub fn register(operators: &mut OnnxOpRegister) {
    for (_, name, builder) in BUILDERS {
        operators.insert(name, builder);
    }
}

/// Whether this crate has the operator.
pub fn has(domain: &str, name: &str) -> bool {
    BUILDERS.iter().any(|(d, n, _)| *d == domain && *n == name)
}

/// Names of the operators of a domain, sorted.
pub fn names(domain: &str) -> impl Iterator<Item = &'static str> {
    BUILDERS.into_iter().filter(move |(d, _, _)| *d == domain).map(|(_, name, _)| name)
}
