//! Frozen features against random weights and raw pixels: k nearest neighbours on object crops and scene boxes.
//!
//! Never accept learning on the loss alone: colour or texture shortcuts make it fall while features stay near
//! random. So three rows are always printed side by side: the checkpoint's weights, random weights (with their
//! norms' statistics formed on the same pictures), and normalised grey pixels.

use crate::engine;
use crate::features::{self, FeaturesArguments};
use crate::frozen::{self, FrozenArguments, Which};
use crate::pictures::{BoxedPicture, Boxes};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mcl_model::{Encoder, FrozenBatchNorm, LocalBatchNorm, Model, Normalization, Pass};
use mcl_terminal::say;
use serde::Serialize;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor, no_grad};

/// Pictures a forward pass.
const BATCH: usize = 64;
/// Temperature of a neighbour's vote, as usual since Wu et al. 2018.
const VOTE_TEMPERATURE: f64 = 0.07;
/// Side of a grey thumbnail.
const THUMBNAIL: u32 = 16;
/// Passes that form the norms' statistics of random weights.
const WARM_UP: usize = 30;

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    #[command(subcommand)]
    command: EvalCommand,
}

#[derive(Debug, Subcommand)]
enum EvalCommand {
    /// k nearest neighbours.
    Knn(KnnArguments),
    /// Feature maps of one picture, as a file.
    Features(FeaturesArguments),
}

#[derive(Debug, Args)]
struct KnnArguments {
    #[command(flatten)]
    weights: FrozenArguments,
    /// Folder of objects to look for neighbours among.
    #[arg(long)]
    train: PathBuf,
    /// Folder of objects to classify.
    #[arg(long)]
    test: PathBuf,
    /// Folder of scenes: even pictures are looked up among, odd ones classified, box by box.
    #[arg(long)]
    scenes: Option<PathBuf>,
    /// Neighbours.
    #[arg(long, default_value_t = 20)]
    k: i64,
    /// Answer as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Accuracy of the three rows, 0..1.
#[derive(Debug, Clone, Copy, Serialize)]
struct Accuracy {
    trained: f64,
    random: f64,
    pixels: f64,
}

pub(crate) fn run(a: &EvalArguments) -> Result<()> {
    engine::set_threads(2);
    match &a.command {
        EvalCommand::Knn(a) => neighbours(a),
        EvalCommand::Features(a) => features::run(a),
    }
}

fn neighbours(a: &KnnArguments) -> Result<()> {
    let (job, trained) = frozen::load(&a.weights)?;
    let mut random = Model::new(trained.spec().clone(), Kind::Float, Device::Cpu)?;
    random.initialize(job.seed())?;
    let size = job.model().image_size;
    let train = Boxes::load(&a.train)?;
    let test = Boxes::load(&a.test)?;
    let judge = Judge { which: a.weights.encoder, k: a.k, size, bar: bar() };
    warm_up(&mut random, &judge, &train)?;
    let objects = judge.objects(&trained, &random, &train, &test)?;
    let scenes = match &a.scenes {
        Some(folder) => Some(judge.scenes(&trained, &random, &Boxes::load(folder)?)?),
        None => None,
    };
    judge.bar.finish_and_clear();
    if a.json {
        say!("{}", serde_json::json!({ "k": a.k, "objects": objects, "scenes": scenes }))?;
    } else {
        say!("kNN (k = {})            trained  random  pixels", a.k)?;
        say!(
            "  object crops, C5      {:>7.3} {:>7.3} {:>7.3}",
            objects.trained,
            objects.random,
            objects.pixels
        )?;
        if let Some(s) = scenes {
            say!("  scene boxes, C3-C5    {:>7.3} {:>7.3} {:>7.3}", s.trained, s.random, s.pixels)?;
        }
    }
    Ok(())
}

/// A bar that counts forward passes, where it can be drawn.
fn bar() -> ProgressBar {
    if !mcl_terminal::has_bars() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} passes  ETA {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Random weights deserve norms that know the pictures: else they are judged by an accident of scale.
fn warm_up(model: &mut Model, judge: &Judge, pictures: &Boxes) -> Result<()> {
    let buffers = model.stage_buffers()?;
    judge.bar.inc_length(WARM_UP as u64);
    for chunk in pictures.pictures().chunks(BATCH).cycle().take(WARM_UP) {
        judge.bar.inc(1);
        let batch = judge.crops(chunk)?;
        let pass = Pass::new(&LocalBatchNorm, &buffers);
        let _ = no_grad(|| judge.encoder(model).backbone().forward(&[batch], &pass))?;
    }
    Ok(model.commit_buffers(buffers)?)
}

/// How features are made and compared.
struct Judge {
    which: Which,
    k: i64,
    size: u32,
    bar: ProgressBar,
}

impl Judge {
    const fn encoder<'a>(&self, model: &'a Model) -> &'a Encoder {
        self.which.of(model)
    }

    /// Crops of every box of some pictures, normalised: [n, 3, S, S].
    fn crops(&self, pictures: &[BoxedPicture]) -> Result<Tensor> {
        let mut bytes = Vec::new();
        let mut count = 0;
        for picture in pictures {
            for index in 0..picture.boxes.len() {
                bytes.extend(picture.crop(index, self.size)?);
                count += 1;
            }
        }
        let side = i64::from(self.size);
        let batch = Tensor::f_from_slice(&bytes)?.f_reshape([count, 3, side, side])?;
        Ok(Normalization::new(Kind::Float, Device::Cpu)?.apply(&batch)?)
    }

    /// Mean of C5 over each crop, length 1: [boxes, D].
    fn crop_features(&self, model: &Model, pictures: &[BoxedPicture]) -> Result<Tensor> {
        let mut rows = Vec::new();
        self.bar.inc_length(pictures.len().div_ceil(BATCH) as u64);
        for chunk in pictures.chunks(BATCH) {
            self.bar.inc(1);
            let batch = self.crops(chunk)?;
            let pass = Pass::new(&FrozenBatchNorm, model.buffers());
            let [_, _, _, [c5]] = no_grad(|| self.encoder(model).backbone().forward(&[batch], &pass))?;
            rows.push(c5.f_mean_dim([2_i64, 3].as_slice(), false, None)?);
        }
        Ok(mcl_model::l2_normalized(&Tensor::f_cat(&rows, 0)?)?)
    }

    /// Means of C3, C4 and C5 inside each box of whole scenes, each of length 1, side by side: [boxes, D].
    fn box_features(&self, model: &Model, pictures: &[BoxedPicture]) -> Result<Tensor> {
        let mut rows = Vec::new();
        self.bar.inc_length(pictures.len() as u64);
        for picture in pictures {
            self.bar.inc(1);
            let (one, width, height) = picture.whole()?;
            let pass = Pass::new(&FrozenBatchNorm, model.buffers());
            let [_, [c3], [c4], [c5]] = no_grad(|| self.encoder(model).backbone().forward(&[one], &pass))?;
            for index in 0..picture.boxes.len() {
                let frame = picture.scaled_box(index, width, height);
                let parts: Vec<Tensor> = [(&c3, 8.0), (&c4, 16.0), (&c5, 32.0)]
                    .into_iter()
                    .map(|(map, stride)| pooled(map, frame, stride))
                    .collect::<Result<_>>()?;
                rows.push(Tensor::f_cat(&parts, 1)?);
            }
        }
        Ok(mcl_model::l2_normalized(&Tensor::f_cat(&rows, 0)?)?)
    }

    fn objects(&self, trained: &Model, random: &Model, train: &Boxes, test: &Boxes) -> Result<Accuracy> {
        let (train, test) = (train.pictures(), test.pictures());
        let row = |model: &Model| -> Result<f64> {
            let (a, b) = (self.crop_features(model, train)?, self.crop_features(model, test)?);
            self.knn(&a, &labels(train), &b, &labels(test))
        };
        Ok(Accuracy { trained: row(trained)?, random: row(random)?, pixels: self.pixels(train, test)? })
    }

    fn scenes(&self, trained: &Model, random: &Model, scenes: &Boxes) -> Result<Accuracy> {
        let (train, test): (Vec<_>, Vec<_>) =
            scenes.pictures().iter().cloned().enumerate().partition(|(n, _)| n % 2 == 0);
        let strip = |side: Vec<(usize, BoxedPicture)>| side.into_iter().map(|(_, p)| p).collect::<Vec<_>>();
        let (train, test) = (strip(train), strip(test));
        let row = |model: &Model| -> Result<f64> {
            let (a, b) = (self.box_features(model, &train)?, self.box_features(model, &test)?);
            self.knn(&a, &labels(&train), &b, &labels(&test))
        };
        Ok(Accuracy { trained: row(trained)?, random: row(random)?, pixels: self.pixels(&train, &test)? })
    }

    /// Grey thumbnails with mean 0 and length 1.
    fn pixels(&self, train: &[BoxedPicture], test: &[BoxedPicture]) -> Result<f64> {
        let rows = |pictures: &[BoxedPicture]| -> Result<Tensor> {
            let mut values = Vec::new();
            for picture in pictures {
                for index in 0..picture.boxes.len() {
                    values.extend(picture.thumbnail(index, THUMBNAIL)?);
                }
            }
            let flat = Tensor::f_from_slice(&values)?.f_reshape([-1, i64::from(THUMBNAIL * THUMBNAIL)])?;
            let centred = flat.f_sub(&flat.f_mean_dim([1_i64].as_slice(), true, None)?)?;
            Ok(mcl_model::l2_normalized(&centred)?)
        };
        self.knn(&rows(train)?, &labels(train), &rows(test)?, &labels(test))
    }

    /// Share of `test` rows whose class wins the vote of their k nearest `train` rows by cosine.
    fn knn(&self, train: &Tensor, train_labels: &[i64], test: &Tensor, test_labels: &[i64]) -> Result<f64> {
        if train_labels.is_empty() || test_labels.is_empty() {
            bail!("no boxes to compare: expected some on both sides");
        }
        let classes = train_labels.iter().chain(test_labels).max().map_or(1, |c| c + 1);
        let k = self.k.clamp(1, i64::try_from(train_labels.len())?);
        let (similar, index) = test.f_matmul(&train.f_transpose(0, 1)?)?.f_topk(k, 1, true, true)?;
        let neighbours = Tensor::f_from_slice(train_labels)?.f_take(&index)?;
        let votes = Tensor::f_zeros([test.size()[0], classes], (Kind::Float, Device::Cpu))?;
        let weight = similar.f_div_scalar(VOTE_TEMPERATURE)?.f_exp()?;
        let winner = votes.f_scatter_add(1, &neighbours, &weight)?.f_argmax(1, false)?;
        let right = winner.f_eq_tensor(&Tensor::f_from_slice(test_labels)?)?;
        Ok(right.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?.f_double_value(&[])?)
    }
}

fn labels(pictures: &[BoxedPicture]) -> Vec<i64> {
    pictures.iter().flat_map(|p| p.boxes.iter().map(|b| b.class)).collect()
}

/// Mean of a map's cells under a box (x0, y0, x1, y1 in pixels), at least one cell, length 1: [1, C].
fn pooled(map: &Tensor, frame: [f64; 4], stride: f64) -> Result<Tensor> {
    let size = map.size();
    #[expect(clippy::cast_possible_truncation, reason = "pixels of a picture")]
    let span = |low: f64, high: f64, cells: i64| {
        let first = ((low / stride).floor() as i64).clamp(0, cells - 1);
        let end = ((high / stride).ceil() as i64).clamp(first + 1, cells);
        (first, end - first)
    };
    let (x, width) = span(frame[0], frame[2], size[3]);
    let (y, height) = span(frame[1], frame[3], size[2]);
    let inside = map.f_narrow(2, y, height)?.f_narrow(3, x, width)?;
    Ok(mcl_model::l2_normalized(&inside.f_mean_dim([2_i64, 3].as_slice(), false, None)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_vote_by_similarity() {
        let judge = Judge { which: Which::Momentum, k: 2, size: 32, bar: ProgressBar::hidden() };
        let train = Tensor::from_slice(&[1.0_f32, 0.0, 0.8, 0.6, 0.0, 1.0]).view([3, 2]);
        let test = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0]).view([2, 2]);
        assert!((judge.knn(&train, &[0, 1, 1], &test, &[0, 1]).unwrap() - 1.0).abs() < 1e-9);
        assert!((judge.knn(&train, &[0, 1, 1], &test, &[1, 1]).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_box_smaller_than_a_cell_still_has_one() {
        let map = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 1, 4, 4]) + 1.0;
        for frame in [[0.0, 0.0, 1.0, 1.0], [127.0, 127.0, 128.0, 128.0], [500.0, 500.0, 600.0, 600.0]] {
            assert_eq!(pooled(&map, frame, 32.0).unwrap().size(), [1, 1]);
        }
    }
}
