//! What is between the world and a camera's pixels.
//!
//! A lens that went out of focus mixes every pixel with its neighbours, and stray light lifts the dark and takes from
//! the bright. The model still answers, and its operator sees nothing: that is what drift is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use plimsoll_tests::Image;

/// Images are so wide and high.
const SIDE: usize = 8;
/// Of the contrast of a sharp image, so much is left …
const CONTRAST_LEFT: f32 = 0.7;
/// … and so much light is everywhere; together at most 0.8, so that no pixel is clipped.
const VEIL: f32 = 0.1;

/// The lens of one camera, which somebody may knock.
#[derive(Debug, Clone, Default)]
pub struct Lens(Arc<AtomicBool>);

impl Lens {
    /// From now on it blurs.
    pub fn blur(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// From now on it is sharp.
    pub fn wipe(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// What the camera delivers.
    pub fn see(&self, image: &Image) -> Vec<f32> {
        if self.0.load(Ordering::Relaxed) { blurred(&image.pixels) } else { image.pixels.clone() }
    }
}

/// Out of focus: a 3x3 box twice, which is about a Gaussian of 1.2 pixels, and a veil of stray light.
fn blurred(pixels: &[f32]) -> Vec<f32> {
    box_blur(&box_blur(pixels)).iter().map(|p| VEIL + CONTRAST_LEFT * p).collect()
}

/// Each pixel becomes the mean of itself and the neighbours that it has.
fn box_blur(pixels: &[f32]) -> Vec<f32> {
    let near = |at: usize| at.saturating_sub(1)..=(at + 1).min(SIDE - 1);
    let mean = |y: usize, x: usize| {
        let around: Vec<f32> =
            near(y).flat_map(|y| near(x).filter_map(move |x| pixels.get(y * SIDE + x).copied())).collect();
        around.iter().sum::<f32>() / around.len().max(1) as f32
    };
    (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))).map(|(y, x)| mean(y, x)).collect()
}

#[cfg(test)]
mod tests;
