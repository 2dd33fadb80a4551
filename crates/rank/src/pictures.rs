//! Pictures with boxes and classes, from a folder with COCO-style `annotations.json`.

use anyhow::{Context, Result};
use mcl_data::{Annotations, Limits, Picture, crop, decode};
use mcl_model::Normalization;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Pixels that the network's coarsest cell covers.
const STRIDE: u32 = 32;

/// One annotated box.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boxed {
    /// x, y, width, height in pixels.
    frame: [f32; 4],
    pub(crate) class: i64,
}

/// A decoded picture and its boxes.
#[derive(Debug, Clone)]
pub(crate) struct BoxedPicture {
    path: PathBuf,
    picture: Picture,
    pub(crate) boxes: Vec<Boxed>,
}

/// All annotated pictures of a folder, in order of their numbers.
#[derive(Debug)]
pub(crate) struct Boxes(Vec<BoxedPicture>);

impl Boxes {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let annotations = folder.join("annotations.json");
        let file = Annotations::load(&annotations)?;
        let mut boxes: BTreeMap<u64, Vec<Boxed>> = BTreeMap::new();
        for b in &file.annotations {
            let class = i64::try_from(b.category_id)?;
            boxes.entry(b.image_id).or_default().push(Boxed { frame: b.bbox, class });
        }
        let mut images = file.images;
        images.sort_by_key(|i| i.id);
        let mut pictures = Vec::with_capacity(images.len());
        for image in images {
            let Some(boxes) = boxes.remove(&image.id) else { continue };
            let path = Annotations::image_path(&annotations, &image);
            let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let picture = decode(&bytes, Limits::default()).with_context(|| path.display().to_string())?;
            pictures.push(BoxedPicture { path, picture, boxes });
        }
        Ok(Self(pictures))
    }

    pub(crate) fn pictures(&self) -> &[BoxedPicture] {
        &self.0
    }
}

impl BoxedPicture {
    fn cut(&self, index: usize) -> Result<Picture> {
        let boxed = self.boxes.get(index).context("box number")?;
        crop::crop(&self.picture, boxed.frame)
            .with_context(|| format!("{}: box {:?} lies outside", self.path.display(), boxed.frame))
    }

    /// A box's pixels at `size` x `size`: planar, 3 channels.
    pub(crate) fn crop(&self, index: usize, size: u32) -> Result<Vec<u8>> {
        Ok(crop::resize_rgb(&self.cut(index)?, size, size)?)
    }

    /// A box's grey thumbnail.
    pub(crate) fn thumbnail(&self, index: usize, size: u32) -> Result<Vec<f32>> {
        Ok(crop::grey_thumbnail(&self.cut(index)?, size)?)
    }

    /// The whole picture, see [`network_input`].
    pub(crate) fn whole(&self) -> Result<(Tensor, u32, u32)> {
        network_input(&self.picture)
    }

    /// A box as (x0, y0, x1, y1) in a copy of `width` x `height`.
    pub(crate) fn scaled_box(&self, index: usize, width: u32, height: u32) -> [f64; 4] {
        let [x, y, w, h] = self.boxes.get(index).map_or([0.0; 4], |b| b.frame).map(f64::from);
        let sx = f64::from(width) / f64::from(self.picture.width().max(1));
        let sy = f64::from(height) / f64::from(self.picture.height().max(1));
        [x * sx, y * sy, (x + w) * sx, (y + h) * sy]
    }
}

/// A picture with sides rounded up to the network's stride, normalised: [1, 3, H, W], W, H.
pub(crate) fn network_input(picture: &Picture) -> Result<(Tensor, u32, u32)> {
    let round = |side: u32| side.div_ceil(STRIDE).max(1) * STRIDE;
    let (width, height) = (round(picture.width()), round(picture.height()));
    let pixels = crop::resize_rgb(picture, width, height)?;
    let shaped = Tensor::f_from_slice(&pixels)?.f_reshape([1, 3, i64::from(height), i64::from(width)])?;
    Ok((Normalization::new(Kind::Float, Device::Cpu)?.apply(&shaped)?, width, height))
}
