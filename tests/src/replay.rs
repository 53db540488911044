//! The replay set: images that no model of the demo was trained on, with the digit that is on them.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Pixels of an image: 8 rows of 8.
pub const PIXELS: usize = 64;

/// One image.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The digit on it.
    pub label: usize,
    /// 0 to 1, row by row.
    pub pixels: Vec<f32>,
}

/// All images, in the file's order.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Never empty.
    pub images: Vec<Image>,
}

impl Replay {
    /// Reads `replay.csv`: a header, then `label,p00,…,p77`.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let images = text
            .lines()
            .skip(1)
            .enumerate()
            .map(|(i, line)| parse(line).with_context(|| format!("{} line {}", path.display(), i + 2)));
        let images: Vec<Image> = images.collect::<Result<_>>()?;
        ensure!(!images.is_empty(), "{} holds no image", path.display());
        Ok(Self { images })
    }
}

fn parse(line: &str) -> Result<Image> {
    let mut fields = line.split(',');
    let label = fields.next().context("an empty line")?.trim().parse().context("the label is not a digit")?;
    let pixels: Vec<f32> =
        fields.map(|f| f.trim().parse().context("a pixel is not a number")).collect::<Result<_>>()?;
    ensure!(pixels.len() == PIXELS, "{} pixels instead of {PIXELS}", pixels.len());
    Ok(Image { label, pixels })
}
