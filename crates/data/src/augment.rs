//! From one picture to its 2L views.
//!
//! View v in 0..L is the q side of level v, views L..2L are the k side. Every view is planar u8
//! `[3, S/r, S/r]` with r the level's ratio. Each stage is bit-equal to Pillow's and torchvision's on
//! PIL pictures, given the same input; only the resize may differ by one level (`fast_image_resize`).
//!
//! Invariant: a view is a pure function of (picture, spec, size, levels, mode, seed, epoch, sample, view).
//! Left out: normalisation (done in float on the device) and the assembly of montages.

mod blur;
mod colour;
mod crop_box;
mod hue;
mod kernel;
mod params;
#[cfg(test)]
mod pillow_tests;
mod spec;

pub use blur::LARGEST_SIGMA;
pub use crop_box::CropBox;
pub use params::{JitterPart, Side, ViewParams};
pub use spec::{AugmentError, AugmentSpec, Jitter, ViewMode};

use crate::crop::{ResizeError, resize_into};
use crate::picture::Picture;
use blur::Blur;
use mcl_types::{Epoch, Purpose, SampleIndex, Seed};

/// Solarisation inverts values of this and more, as the official recipe does.
const SOLARIZE_THRESHOLD: u8 = 128;

/// Largest edge of a view.
const LARGEST_SIZE: u32 = 4096;

/// Makes views: a validated spec with its sizes and its seed.
#[derive(Debug, Clone)]
pub struct Augmenter {
    spec: AugmentSpec,
    size: u32,
    levels: Vec<u32>,
    mode: ViewMode,
    seed: Seed,
}

/// The 2L views of one picture; view v is planar `[3, S/r, S/r]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Views {
    /// One buffer a view.
    pub buffers: Vec<Vec<u8>>,
}

/// Memory of one thread, kept between pictures.
#[derive(Default)]
pub struct Scratch {
    resizer: fast_image_resize::Resizer,
    rgb: Vec<u8>,
    full: Vec<u8>,
    swap: Vec<u8>,
    blur: Blur,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

impl Augmenter {
    /// `levels` are the ratios r of the montage levels, `[1, 2, 4, 8]` in the paper; `size` is S.
    ///
    /// # Errors
    /// When the spec is out of range or a ratio does not divide the size.
    pub fn new(
        spec: AugmentSpec,
        size: u32,
        levels: &[u32],
        mode: ViewMode,
        seed: Seed,
    ) -> Result<Self, AugmentError> {
        spec.validate()?;
        if levels.is_empty() {
            return Err(AugmentError::Size { size, ratio: 0 });
        }
        for &ratio in levels {
            if !(1..=LARGEST_SIZE).contains(&size) || ratio == 0 || !size.is_multiple_of(ratio) {
                return Err(AugmentError::Size { size, ratio });
            }
        }
        Ok(Self { spec, size, levels: levels.to_vec(), mode, seed })
    }

    /// 2L.
    pub fn view_count(&self) -> usize {
        2 * self.levels.len()
    }

    /// Edge of view `view` in pixels, S/r; 0 beyond the last view.
    pub fn view_edge(&self, view: usize) -> u32 {
        self.ratio(view).map_or(0, |ratio| self.size / ratio)
    }

    /// Bytes of view `view`.
    pub fn view_len(&self, view: usize) -> usize {
        let edge = self.view_edge(view) as usize;
        3 * edge * edge
    }

    fn ratio(&self, view: usize) -> Option<u32> {
        if view >= self.view_count() {
            return None;
        }
        self.levels.get(view % self.levels.len()).copied()
    }

    /// The random choices of one view of a `width` x `height` picture.
    pub fn params(
        &self,
        width: u32,
        height: u32,
        epoch: Epoch,
        sample: SampleIndex,
        view: usize,
    ) -> ViewParams {
        let numbers = [epoch.get(), sample.get(), view as u64];
        let mut random = self.seed.stream(Purpose::View, &numbers);
        let side = if view < self.levels.len() { Side::Q } else { Side::K };
        ViewParams::draw(&mut random, &self.spec, side, width, height)
    }

    /// Makes all views of `picture`.
    ///
    /// # Errors
    /// When the picture has no pixels.
    pub fn views(
        &self,
        picture: &Picture,
        epoch: Epoch,
        sample: SampleIndex,
        out: &mut Views,
        scratch: &mut Scratch,
    ) -> Result<(), ResizeError> {
        out.buffers.resize_with(self.view_count(), Vec::new);
        for (view, buffer) in out.buffers.iter_mut().enumerate() {
            let params = self.params(picture.width(), picture.height(), epoch, sample, view);
            buffer.resize(self.view_len(view), 0);
            let ratio = self.ratio(view).unwrap_or(1);
            match self.mode {
                ViewMode::Exact => scratch.exact(picture, &params, self.size, ratio, buffer)?,
                ViewMode::Level => scratch.direct(picture, &params, self.size / ratio, ratio, buffer)?,
            }
        }
        Ok(())
    }
}

impl Scratch {
    /// Augments at `size` x `size` and keeps the top-left pixel of every `ratio` x `ratio` block.
    ///
    /// Pixel-wise stages commute with the decimation, so they run after it wherever the result is the
    /// same: without blur everything behind the contrast (which needs the mean of the whole view).
    fn exact(
        &mut self,
        picture: &Picture,
        params: &ViewParams,
        size: u32,
        ratio: u32,
        out: &mut [u8],
    ) -> Result<(), ResizeError> {
        if ratio == 1 {
            return self.direct(picture, params, size, 1, out);
        }
        let (width, keep) = (size as usize, ratio as usize);
        let mut full = std::mem::take(&mut self.full);
        full.resize(3 * width * width, 0);
        let filled = self.fill(picture, params, size, &mut full);
        let area = width * width;
        let small = out.len() / 3;
        if let Some(sigma) = params.blur {
            jitter(&mut full, &params.jitter);
            self.recolour(&mut full, params);
            let planes = full.chunks_exact(area).zip(out.chunks_exact_mut(small));
            for (from, to) in planes.take(if params.grey { 1 } else { 3 }) {
                self.blur.decimated(from, width, single(sigma), keep, to);
            }
            if params.grey {
                spread_first(out);
            }
        } else {
            let contrast = params.jitter.iter().position(|part| matches!(part, JitterPart::Contrast(_)));
            let (before, after) = params.jitter.split_at(contrast.map_or(0, |at| at + 1));
            jitter(&mut full, before);
            for (from, to) in full.chunks_exact(area).zip(out.chunks_exact_mut(small)) {
                blur::decimate(from, width, keep, to);
            }
            jitter(out, after);
            self.recolour(out, params);
        }
        if params.solarize {
            colour::solarise(out, SOLARIZE_THRESHOLD);
        }
        self.full = full;
        filled
    }

    /// Augments at `size` x `size` straight into `out`; the blur radius is divided by `ratio`.
    fn direct(
        &mut self,
        picture: &Picture,
        params: &ViewParams,
        size: u32,
        ratio: u32,
        out: &mut [u8],
    ) -> Result<(), ResizeError> {
        self.fill(picture, params, size, out)?;
        jitter(out, &params.jitter);
        self.recolour(out, params);
        if let Some(sigma) = params.blur {
            let sigma = single(sigma / f64::from(ratio));
            let planes = out.chunks_exact_mut((size * size) as usize);
            for plane in planes.take(if params.grey { 1 } else { 3 }) {
                self.blur.whole(plane, size as usize, sigma);
            }
            if params.grey {
                spread_first(out);
            }
        }
        if params.solarize {
            colour::solarise(out, SOLARIZE_THRESHOLD);
        }
        Ok(())
    }

    /// Crop, resize to `size` x `size`, planes, flip, quarter turns.
    fn fill(
        &mut self,
        picture: &Picture,
        params: &ViewParams,
        size: u32,
        out: &mut [u8],
    ) -> Result<(), ResizeError> {
        resize_into(&mut self.resizer, picture, params.crop, (size, size), &mut self.rgb)?;
        let [r, g, b] = split(out);
        colour::planes(&self.rgb, r, g, b);
        if params.flip {
            colour::mirror(out, size as usize);
        }
        if params.quarter_turns > 0 {
            let edge = size as usize;
            self.swap.clear();
            self.swap.extend_from_slice(out);
            for (to, from) in out.chunks_exact_mut(edge * edge).zip(self.swap.chunks_exact(edge * edge)) {
                colour::turn(from, edge, params.quarter_turns, to);
            }
        }
        Ok(())
    }

    /// Channel permutation, inversion, grey.
    fn recolour(&mut self, planes: &mut [u8], params: &ViewParams) {
        if params.channels != [0, 1, 2] {
            self.swap.clear();
            self.swap.extend_from_slice(planes);
            let area = planes.len() / 3;
            for (to, &from) in planes.chunks_exact_mut(area).zip(&params.channels) {
                to.copy_from_slice(&self.swap[from * area..(from + 1) * area]);
            }
        }
        if params.invert {
            colour::invert(planes);
        }
        if params.grey {
            let [r, g, b] = split(planes);
            colour::grey(r, g, b);
        }
    }
}

/// Applies the jitter's parts in the order drawn.
fn jitter(planes: &mut [u8], parts: &[JitterPart]) {
    for part in parts {
        match *part {
            JitterPart::Brightness(factor) => colour::blend_constant(planes, 0.0, single(factor)),
            JitterPart::Contrast(factor) => {
                let [r, g, b] = split(planes);
                let mean = colour::mean_grey(r, g, b);
                colour::blend_constant(planes, mean, single(factor));
            }
            JitterPart::Saturation(factor) => {
                let [r, g, b] = split(planes);
                colour::blend_grey(r, g, b, single(factor));
            }
            JitterPart::Hue(factor) => {
                let [r, g, b] = split(planes);
                hue::rotate(r, g, b, hue::shift_of(factor));
            }
        }
    }
}

/// Pillow takes factors and radii as single precision.
#[expect(clippy::cast_possible_truncation, reason = "Pillow rounds here too")]
const fn single(value: f64) -> f32 {
    value as f32
}

/// The three planes.
fn split(planes: &mut [u8]) -> [&mut [u8]; 3] {
    let area = planes.len() / 3;
    let (r, rest) = planes.split_at_mut(area);
    let (g, b) = rest.split_at_mut(area);
    [r, g, b]
}

/// Copies the first plane over the other two.
fn spread_first(planes: &mut [u8]) {
    let area = planes.len() / 3;
    planes.copy_within(..area, area);
    planes.copy_within(..area, 2 * area);
}
