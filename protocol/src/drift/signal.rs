//! The few numbers by which an image, an embedding or a vector of class scores is measured.
//!
//! Pixels one by one say nothing: a meter read one pixel further left is the same meter. What a camera's trouble
//! does show is brightness, contrast, sharpness (a blurred lens), and, for anything else, sixteen projections onto
//! fixed random directions. Pure and deterministic: packer and device compute the same numbers.

use super::baseline::ImageStatistic;
use super::bins::Cell;

/// Random directions an image is projected onto. A shift that none of 16 sees must be nearly orthogonal to all.
pub const PROJECTIONS: u8 = 16;
/// Seed of the directions: the first 64 bits of the fraction of the square root of 2. Part of the format: another
/// seed is another feature.
const PROJECTION_SEED: u64 = 0x6a09_e667_f3bc_c908;

/// All pseudo-features of an image, in the order in which a baseline lists them, with their names.
pub const IMAGE_STATISTICS: [(ImageStatistic, &str); 4] = [
    (ImageStatistic::Mean, "brightness"),
    (ImageStatistic::Contrast, "contrast"),
    (ImageStatistic::Norm, "norm"),
    (ImageStatistic::Sharpness, "sharpness"),
];

/// The pseudo-features of one image: the four statistics, then the projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageSignal {
    /// Mean of the pixels.
    pub mean: f32,
    /// Their standard deviation.
    pub contrast: f32,
    /// Their root mean square.
    pub norm: f32,
    /// Variance of the Laplacian, over all planes.
    pub sharpness: f32,
    /// On fixed random directions of entries +1 and -1, divided by the root of the number of pixels, so that the
    /// scale does not depend on the size.
    pub projections: [f32; PROJECTIONS as usize],
}

impl ImageSignal {
    /// Measures planes of `height` x `width` pixels that lie one after the other (channels of one image). `None`
    /// when the pixels do not fill whole planes. NaN pixels give NaN, which is counted as a fault.
    pub fn of(pixels: &[f32], height: usize, width: usize) -> Option<Self> {
        let plane = height.checked_mul(width).filter(|p| *p > 0)?;
        if pixels.is_empty() || !pixels.len().is_multiple_of(plane) {
            return None;
        }
        let n = pixels.len() as f64;
        let (mut sum, mut squares) = (0.0f64, 0.0f64);
        for x in pixels {
            sum += f64::from(*x);
            squares += f64::from(*x) * f64::from(*x);
        }
        let mean = sum / n;
        Some(Self {
            mean: mean as f32,
            contrast: (squares / n - mean * mean).max(0.0).sqrt() as f32,
            norm: (squares / n).sqrt() as f32,
            sharpness: sharpness(pixels, plane, width) as f32,
            projections: project(pixels),
        })
    }

    /// One of them.
    pub fn get(&self, statistic: ImageStatistic) -> Cell {
        match statistic {
            ImageStatistic::Mean => self.mean.into(),
            ImageStatistic::Contrast => self.contrast.into(),
            ImageStatistic::Norm => self.norm.into(),
            ImageStatistic::Sharpness => self.sharpness.into(),
            ImageStatistic::Projection(k) => {
                self.projections.get(usize::from(k)).map_or(Cell::Missing, |x| Cell::Number(*x))
            }
        }
    }
}

/// Variance of the four-neighbour Laplacian over the inner pixels of every plane; 0 for planes without an inside.
fn sharpness(pixels: &[f32], plane: usize, width: usize) -> f64 {
    let (mut n, mut sum, mut squares) = (0.0f64, 0.0f64, 0.0f64);
    for plane in pixels.chunks_exact(plane) {
        let rows: Vec<&[f32]> = plane.chunks_exact(width).collect();
        for three in rows.windows(3) {
            let [above, row, below] = three else { continue };
            let inner = row.windows(3).zip(above.iter().skip(1)).zip(below.iter().skip(1));
            for ((across, up), down) in inner {
                let [left, centre, right] = across else { continue };
                let l = f64::from(left + right + up + down - 4.0 * centre);
                n += 1.0;
                sum += l;
                squares += l * l;
            }
        }
    }
    if n == 0.0 { 0.0 } else { squares / n - (sum / n).powi(2) }
}

/// One random word a pixel gives the signs of all sixteen directions.
fn project(pixels: &[f32]) -> [f32; PROJECTIONS as usize] {
    let mut sums = [0.0f32; PROJECTIONS as usize];
    let mut state = PROJECTION_SEED;
    for x in pixels {
        let word = split_mix(&mut state);
        for (k, sum) in sums.iter_mut().enumerate() {
            *sum += if word >> k & 1 == 0 { *x } else { -*x };
        }
    }
    let scale = (pixels.len() as f32).sqrt();
    sums.map(|s| s / scale)
}

/// SplitMix64 (Steele, Lea and Flood 2014): a counter, stirred; four lines that every platform computes alike.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Euclidean length of an embedding.
pub fn norm(vector: &[f32]) -> f32 {
    vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32
}

/// What a vector of class scores says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassSignal {
    /// Class with the highest score; the first of equals.
    pub class: u32,
    /// Its probability.
    pub confidence: f32,
    /// Entropy of the probabilities over its maximum, 0 (sure) to 1 (knows nothing).
    pub entropy: f32,
}

impl ClassSignal {
    /// Reads scores as probabilities when they are (none negative, sum 1 within 1 %), and through a softmax
    /// otherwise. `None` for no score or one that is not finite.
    pub fn of(scores: &[f32]) -> Option<Self> {
        if scores.is_empty() || scores.iter().any(|s| !s.is_finite()) {
            return None;
        }
        let (mut class, mut best) = (0u32, f32::NEG_INFINITY);
        for (at, score) in (0u32..).zip(scores) {
            if *score > best {
                (class, best) = (at, *score);
            }
        }
        let sum: f64 = scores.iter().map(|s| f64::from(*s)).sum();
        let are_probabilities = scores.iter().all(|s| *s >= 0.0) && (sum - 1.0).abs() <= 0.01;
        // Weights against the best score, so that the largest exponential is 1 and nothing overflows.
        let weight = |s: &f32| {
            if are_probabilities { f64::from(*s) } else { f64::exp(f64::from(*s) - f64::from(best)) }
        };
        let total: f64 = scores.iter().map(weight).sum();
        let entropy: f64 =
            scores.iter().map(|s| weight(s) / total).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        let most = (scores.len() as f64).ln();
        Some(Self {
            class,
            confidence: (weight(&best) / total).clamp(0.0, 1.0) as f32,
            entropy: if most > 0.0 { (entropy / most).clamp(0.0, 1.0) as f32 } else { 0.0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkerboard_has_the_numbers_done_by_hand() {
        let board: Vec<f32> = (0..16).map(|i| ((i / 4 + i % 4) % 2) as f32).collect();
        let s = ImageSignal::of(&board, 4, 4).unwrap();
        assert_eq!((s.mean, s.contrast), (0.5, 0.5));
        assert!((s.norm - 0.5f32.sqrt()).abs() < 1e-6);
        assert_eq!(s.sharpness, 16.0); // the Laplacian is +4 and -4 in turn
        assert_eq!(ImageSignal::of(&board, 3, 4), None);
        assert_eq!(ImageSignal::of(&[], 0, 0), None);
    }

    #[test]
    fn a_blur_lowers_sharpness_and_keeps_brightness() {
        let image: Vec<f32> = (0..64).map(|i| ((i * 29) % 17) as f32).collect();
        let at = |y: usize, x: usize| image[(y % 8) * 8 + x % 8];
        let blurred: Vec<f32> = (0..64)
            .map(|i| (0..9).map(|k| at(i / 8 + 7 + k / 3, i % 8 + 7 + k % 3)).sum::<f32>() / 9.0)
            .collect();
        let (sharp, blur) =
            (ImageSignal::of(&image, 8, 8).unwrap(), ImageSignal::of(&blurred, 8, 8).unwrap());
        assert!((sharp.mean - blur.mean).abs() < 1e-4);
        assert!(blur.sharpness < sharp.sharpness / 10.0, "{} {}", blur.sharpness, sharp.sharpness);
    }

    #[test]
    fn projections_are_the_same_on_every_machine_and_differ_from_each_other() {
        let s = ImageSignal::of(&[1.0, 2.0, 3.0, 4.0], 2, 2).unwrap();
        // By hand from SplitMix64 with the seed: golden, so that a change of the format is noticed.
        let scaled = s.projections.map(|p| (p * 2.0) as i32);
        assert_eq!(scaled, GOLDEN);
        assert!(scaled.iter().any(|p| *p != scaled[0]));
    }
    const GOLDEN: [i32; 16] = [4, 8, -4, -4, 4, 2, -8, 6, 4, -6, -6, -10, -4, -6, -10, 4];

    #[test]
    fn logits_and_probabilities_of_one_answer_agree() {
        let logits = [1.0f32, 3.0, 0.5];
        let total: f32 = logits.iter().map(|l| l.exp()).sum();
        let p: Vec<f32> = logits.iter().map(|l| l.exp() / total).collect();
        let (a, b) = (ClassSignal::of(&logits).unwrap(), ClassSignal::of(&p).unwrap());
        assert_eq!(a.class, 1);
        assert!((a.confidence - b.confidence).abs() < 1e-6 && (a.entropy - b.entropy).abs() < 1e-6);
        assert!((a.confidence - 0.821_9).abs() < 1e-3, "{}", a.confidence);
    }

    #[test]
    fn certainty_and_ignorance_are_the_ends_of_the_scale() {
        assert_eq!(
            ClassSignal::of(&[0.0, 1.0]).unwrap(),
            ClassSignal { class: 1, confidence: 1.0, entropy: 0.0 }
        );
        let unsure = ClassSignal::of(&[0.25; 4]).unwrap();
        assert_eq!((unsure.class, unsure.confidence), (0, 0.25));
        assert!((unsure.entropy - 1.0).abs() < 1e-6);
        assert_eq!(ClassSignal::of(&[]), None);
        assert_eq!(ClassSignal::of(&[f32::NAN, 1.0]), None);
        assert_eq!(ClassSignal::of(&[1e30, -1e30]).unwrap().confidence, 1.0);
    }
}
