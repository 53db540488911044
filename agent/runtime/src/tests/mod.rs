//! Whole models through the public face.

mod bundle;
mod face;
mod hostile;
mod models;
mod tabular;

use crate::{Data, Tensor};

fn f32s(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::new(shape.to_vec(), Data::Fp32(values)).unwrap()
}

/// Asserts that an error says `expect`.
fn says<T, E: std::fmt::Display>(result: Result<T, E>, expect: &str) {
    let error = result.err().unwrap_or_else(|| panic!("nothing refused {expect:?}")).to_string();
    assert!(error.contains(expect), "{error:?} does not say {expect:?}");
}
