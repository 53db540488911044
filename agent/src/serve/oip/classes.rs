//! The classification extension: the best classes of an output of scores, as texts.

use plimsoll_runtime::{Data, Tensor};

/// The `count` largest scores of each row as `score:index` or `score:index:label`, the largest first: BYTES of shape
/// `[rows, count]`, or `[count]` for an output without rows. NaN is never among the best.
pub fn best(scores: &Tensor, labels: &[String], count: usize) -> Tensor {
    let rows = if scores.shape().len() > 1 { scores.rows().max(1) } else { 1 };
    let width = scores.len() / rows;
    let count = count.min(width);
    let mut texts = Vec::with_capacity(rows * count);
    for row in 0..rows {
        let mut order: Vec<(usize, f64)> = (0..width).map(|at| (at, scores.at(row * width + at))).collect();
        // Equal scores keep their order, so that the answer is always the same.
        let rank = |score: f64| if score.is_nan() { f64::NEG_INFINITY } else { score };
        order.sort_by(|a, b| rank(b.1).total_cmp(&rank(a.1)));
        texts.extend(order.iter().take(count).map(|(at, score)| {
            let label = labels.get(*at).map_or_else(String::new, |label| format!(":{label}"));
            format!("{score:.6}:{at}{label}").into_bytes()
        }));
    }
    let shape = if scores.shape().len() > 1 { vec![rows, count] } else { vec![count] };
    Tensor::new(shape, Data::Bytes(texts)).unwrap_or_else(|_| scores.clone()) // rows x count texts were made above
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tensor: &Tensor) -> Vec<String> {
        let Data::Bytes(all) = tensor.data() else { panic!("{tensor:?}") };
        all.iter().map(|t| String::from_utf8(t.clone()).unwrap()).collect()
    }

    #[test]
    fn each_row_has_its_own_best_and_labels_where_there_are_any() {
        let scores = Tensor::new(vec![2, 3], Data::Fp32(vec![0.25, 0.5, 0.25, f32::NAN, 0.0, 2.0])).unwrap();
        let labels: Vec<String> = ["cat", "dog"].map(String::from).into();
        let answer = best(&scores, &labels, 2);
        assert_eq!(answer.shape(), [2, 2]);
        assert_eq!(texts(&answer), ["0.500000:1:dog", "0.250000:0:cat", "2.000000:2", "0.000000:1:dog"]);
        let vector = Tensor::new(vec![3], Data::Uint8(vec![3, 9, 9])).unwrap();
        let answer = best(&vector, &[], 10);
        assert_eq!((answer.shape(), texts(&answer)[0].as_str()), (&[3][..], "9.000000:1"));
    }
}
