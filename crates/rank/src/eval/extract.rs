//! Features of objects: of the trained weights, of random ones and of raw pixels, all from one look at each picture.

use super::judge::Rows;
use super::level::Level;
use crate::frozen::Which;
use crate::pictures::{BoxedPicture, OpenPicture};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use mcl_data::crop;
use mcl_model::{FrozenBatchNorm, LocalBatchNorm, Model, Normalization, Pass};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, no_grad};

/// Crops a forward pass.
const BATCH: usize = 64;
/// Side of a grey thumbnail.
const THUMBNAIL: u32 = 16;
/// Points of a box that are looked at, a side: 7 bins with 2 each.
const POINTS: u32 = 14;
/// Passes that form the norms' statistics of random weights.
const WARM_UP: usize = 30;

/// Whose features.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    Trained,
    Random,
}

impl Whose {
    const ALL: [Self; 2] = [Self::Trained, Self::Random];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Trained => "trained weights",
            Self::Random => "random weights",
        }
    }
}

/// Features of the objects of some pictures, one row each.
#[derive(Debug)]
pub(super) struct Features {
    /// By whose and level: [n, D], rows of length 1.
    maps: [BTreeMap<Level, Tensor>; 2],
    /// [n, pixels], rows of mean 0 and length 1.
    pixels: Tensor,
    labels: Vec<i64>,
    /// The picture that each row is of.
    pictures: Vec<usize>,
}

impl Features {
    /// Some levels side by side.
    pub(super) fn rows(&self, whose: Whose, levels: &[Level]) -> Result<Rows<'_>> {
        let maps = &self.maps[whose as usize];
        let parts: Vec<&Tensor> =
            levels.iter().map(|l| maps.get(l).with_context(|| l.name())).collect::<Result<_>>()?;
        let features = match parts[..] {
            [one] => one.shallow_clone(),
            _ => mcl_model::l2_normalized(&Tensor::f_cat(&parts, 1)?)?,
        };
        Ok(Rows { features, labels: &self.labels, pictures: &self.pictures })
    }

    pub(super) fn pixels(&self) -> Rows<'_> {
        Rows { features: self.pixels.shallow_clone(), labels: &self.labels, pictures: &self.pictures }
    }
}

/// Features as they come.
#[derive(Default)]
struct Gathered {
    maps: [BTreeMap<Level, Vec<Tensor>>; 2],
    pixels: Vec<f32>,
}

impl Gathered {
    fn push(&mut self, whose: Whose, level: Level, rows: &Tensor) -> Result<()> {
        let rows = mcl_model::l2_normalized(rows)?;
        self.maps[whose as usize].entry(level).or_default().push(rows);
        Ok(())
    }

    fn finish(self, pictures: &[BoxedPicture], labels: Vec<i64>) -> Result<Features> {
        let mut maps = [BTreeMap::new(), BTreeMap::new()];
        for (done, parts) in maps.iter_mut().zip(self.maps) {
            for (level, parts) in parts {
                done.insert(level, Tensor::f_cat(&parts, 0)?);
            }
        }
        let flat = Tensor::f_from_slice(&self.pixels)?.f_reshape([-1, i64::from(THUMBNAIL * THUMBNAIL)])?;
        let centred = flat.f_sub(&flat.f_mean_dim([1_i64].as_slice(), true, None)?)?;
        let pixels = mcl_model::l2_normalized(&centred)?;
        let pictures = places(pictures).into_iter().map(|(picture, _)| picture).collect();
        Ok(Features { maps, pixels, labels, pictures })
    }
}

/// How features are made.
pub(super) struct Extractor<'a> {
    /// Trained and random ones.
    pub(super) models: [&'a Model; 2],
    pub(super) look: Look<'a>,
}

/// How pictures are looked at, whatever the weights.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) which: Which,
    /// Side of a crop.
    pub(super) size: u32,
    /// Shorter side that whole pictures are scaled to; `None` leaves them as they are.
    pub(super) short_side: Option<u32>,
    pub(super) bar: &'a ProgressBar,
}

impl Extractor<'_> {
    /// Means of some levels over a crop of every object.
    pub(super) fn crops(
        &self,
        pictures: &[BoxedPicture],
        labels: Vec<i64>,
        levels: &[Level],
    ) -> Result<Features> {
        let mut gathered = Gathered::default();
        let places = places(pictures);
        self.look.bar.inc_length(places.len().div_ceil(BATCH) as u64);
        for chunk in places.chunks(BATCH) {
            let batch = self.look.crops(pictures, chunk, Some(&mut gathered.pixels))?;
            for (whose, model) in Whose::ALL.into_iter().zip(self.models) {
                for (level, map) in self.look.maps(model, &batch, levels)? {
                    let means = map.f_mean_dim([2_i64, 3].as_slice(), false, None)?;
                    gathered.push(whose, level, &means)?;
                }
            }
            self.look.bar.inc(1);
        }
        gathered.finish(pictures, labels)
    }

    /// Means of some levels inside each box of whole pictures.
    pub(super) fn boxes(
        &self,
        pictures: &[BoxedPicture],
        labels: Vec<i64>,
        levels: &[Level],
    ) -> Result<Features> {
        let mut gathered = Gathered::default();
        self.look.bar.inc_length(pictures.len() as u64);
        for picture in pictures {
            let open = picture.open()?;
            let (whole, width, height) = open.whole(self.look.short_side)?;
            let frames: Vec<_> =
                (0..picture.boxes.len()).map(|index| open.scaled_box(index, width, height)).collect();
            for (whose, model) in Whose::ALL.into_iter().zip(self.models) {
                for (level, map) in self.look.maps(model, &whole, levels)? {
                    for frame in &frames {
                        gathered.push(whose, level, &pooled(&map, *frame, level.stride())?)?;
                    }
                }
            }
            for index in 0..frames.len() {
                gathered.pixels.extend(crop::grey_thumbnail(&*open.cut(index)?, THUMBNAIL)?);
            }
            self.look.bar.inc(1);
        }
        gathered.finish(pictures, labels)
    }
}

impl Look<'_> {
    /// Random weights deserve norms that know the pictures: else they are judged by an accident of scale.
    pub(super) fn warm_up(
        self,
        model: &mut Model,
        pictures: &[BoxedPicture],
        finest: Option<usize>,
    ) -> Result<()> {
        let buffers = model.stage_buffers()?;
        let places = places(pictures);
        // One crop has no variance where a map is one cell.
        let chunks: Vec<_> =
            places.chunks(BATCH).filter(|chunk| places.len() == 1 || chunk.len() > 1).collect();
        self.bar.inc_length(WARM_UP as u64);
        for chunk in chunks.into_iter().cycle().take(WARM_UP) {
            let batch = self.crops(pictures, chunk, None)?;
            let pass = Pass::new(&LocalBatchNorm, &buffers);
            no_grad(|| {
                let encoder = self.which.of(model);
                let stages = encoder.backbone().forward(&[batch], &pass)?;
                if let Some(finest) = finest {
                    encoder.fpn()?.forward(&stages, finest, &pass)?;
                }
                anyhow::Ok(())
            })
            .context("forming the norms' statistics of random weights on the pictures to learn from")?;
            self.bar.inc(1);
        }
        Ok(model.commit_buffers(buffers)?)
    }

    /// Crops of some objects, in order, normalised: [n, 3, S, S]; and their grey thumbnails where these are wanted.
    fn crops(
        self,
        pictures: &[BoxedPicture],
        places: &[(usize, usize)],
        mut thumbnails: Option<&mut Vec<f32>>,
    ) -> Result<Tensor> {
        let mut bytes = Vec::new();
        let mut open: Option<(usize, OpenPicture<'_>)> = None;
        for (number, index) in places {
            let current = match open.take() {
                Some((last, picture)) if last == *number => picture,
                _ => pictures.get(*number).context("picture number")?.open()?,
            };
            let cut = current.cut(*index)?;
            bytes.extend(crop::resize_rgb(&cut, self.size, self.size)?);
            if let Some(thumbnails) = &mut thumbnails {
                thumbnails.extend(crop::grey_thumbnail(&cut, THUMBNAIL)?);
            }
            drop(cut);
            open = Some((*number, current));
        }
        let (count, side) = (i64::try_from(places.len())?, i64::from(self.size));
        let batch = Tensor::f_from_slice(&bytes)?.f_reshape([count, 3, side, side])?;
        Ok(Normalization::new(Kind::Float, Device::Cpu)?.apply(&batch)?)
    }

    /// Some maps of a batch.
    fn maps(self, model: &Model, batch: &Tensor, levels: &[Level]) -> Result<Vec<(Level, Tensor)>> {
        let encoder = self.which.of(model);
        let pass = Pass::new(&FrozenBatchNorm, model.buffers());
        let (stages, outputs) = no_grad(|| {
            let stages = encoder.backbone().forward(&[batch.shallow_clone()], &pass)?;
            let outputs = match levels.iter().filter_map(|l| l.output()).min() {
                Some(finest) => encoder.fpn()?.forward(&stages, finest, &pass)?,
                None => [None, None, None, None],
            };
            anyhow::Ok((stages, outputs))
        })?;
        let stages = Level::STAGES.into_iter().zip(stages).map(|(level, [map])| (level, map));
        let outputs = Level::OUTPUTS.into_iter().zip(outputs).filter_map(|(level, map)| Some((level, map?)));
        let outputs = outputs.map(|(level, [map])| (level, map));
        Ok(stages.chain(outputs).filter(|(level, _)| levels.contains(level)).collect())
    }
}

/// Every object as the numbers of its picture and of its box.
fn places(pictures: &[BoxedPicture]) -> Vec<(usize, usize)> {
    let boxes =
        |(number, picture): (usize, &BoxedPicture)| (0..picture.boxes.len()).map(move |b| (number, b));
    pictures.iter().enumerate().flat_map(boxes).collect()
}

/// Mean over the points of a map under a box (x0, y0, x1, y1 in pixels) that a detector's box head looks at: `RoIAlign` (Mask
/// R-CNN, arXiv 1703.06870, section 3) of 7 x 7 bins with 2 x 2 points each, half a pixel set right. [1, C].
fn pooled(map: &Tensor, frame: [f64; 4], stride: f64) -> Result<Tensor> {
    let size = map.size();
    let down = points(frame[1] / stride, frame[3] / stride, size[2])?.f_reshape([1, 1, -1, 1])?;
    let across = points(frame[0] / stride, frame[2] / stride, size[3])?.f_reshape([1, 1, 1, -1])?;
    let weights = down.f_mul(&across)?.f_to_kind(map.kind())?;
    Ok(map.f_mul(&weights)?.f_sum_dim_intlist([2_i64, 3].as_slice(), false, None)?)
}

/// What each of `cells` cells weighs when points are spread evenly over `low..high`, with their neighbours in proportion.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "cells of a map"
)]
fn points(low: f64, high: f64, cells: i64) -> Result<Tensor> {
    let mut weights = vec![0.0; usize::try_from(cells)?];
    let last = weights.len().checked_sub(1).context("a map without cells")?;
    for point in 0..POINTS {
        let at = low + (high - low) * (f64::from(point) + 0.5) / f64::from(POINTS) - 0.5;
        let at = at.clamp(0.0, last as f64);
        let (cell, behind) = (at as usize, at.fract());
        weights[cell] += (1.0 - behind) / f64::from(POINTS);
        weights[(cell + 1).min(last)] += behind / f64::from(POINTS);
    }
    Ok(Tensor::f_from_slice(&weights)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision 0.26: `roi_align(map, [box], 7, 1 / 32, sampling_ratio=2, aligned=True).mean((2, 3))`.
    #[test]
    fn boxes_are_pooled_as_torchvision_pools_them() {
        let map = Tensor::arange(48, (Kind::Double, Device::Cpu)).pow_tensor_scalar(1.5).view([1, 2, 4, 6]);
        for (frame, wanted) in [
            ([0.0, 0.0, 30.0, 25.0], [0.8601, 120.7001]),
            ([100.0, 60.0, 192.0, 128.0], [79.6791, 275.9871]),
            ([20.5, 33.25, 21.5, 90.0], [27.7532, 188.0804]),
            ([150.0, 90.0, 191.0, 127.0], [100.3188, 307.4359]),
            ([0.0, 0.0, 192.0, 128.0], [44.6031, 214.5438]),
        ] {
            let found = pooled(&map, frame, 32.0).unwrap();
            assert_eq!(found.size(), [1, 2]);
            for (channel, wanted) in (0..).zip(wanted) {
                let found = found.double_value(&[0, channel]);
                assert!((found - wanted).abs() < 1e-3, "{frame:?}: {found} for {wanted}");
            }
        }
    }

    #[test]
    fn a_box_outside_takes_the_nearest_cell() {
        let map = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 1, 4, 4]) + 1.0;
        for (frame, cell) in [([-9.0, -9.0, -1.0, -1.0], 1.0), ([500.0, 500.0, 600.0, 600.0], 16.0)] {
            let found = pooled(&map, frame, 32.0).unwrap();
            assert!((found.double_value(&[0, 0]) - cell).abs() < 1e-6);
        }
    }
}
