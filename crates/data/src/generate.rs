//! Pictures made from nothing, so that the whole system can be tried without a download.
//!
//! Single objects to train on and scenes with several to evaluate on, of twelve classes: four shapes
//! by three textures. Place, size, turn, contrast, polarity and colour are random and tell nothing of the class.
//! The same spec gives the same bytes: drawing uses no library whose results differ between machines.

mod scene;
mod shape;

use crate::annotations::{AnnotatedImage, Annotation, Annotations, AnnotationsError, Category};
use crate::picture::Picture;
use mcl_types::{Purpose, Seed};
use scene::Plan;
pub use scene::{Drawn, DrawnObject};
use serde::{Deserialize, Serialize};
use shape::{SHAPES, TEXTURES};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// What the pictures show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerateKind {
    /// One object each.
    Objects,
    /// Several objects each.
    Scenes,
}

/// How they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// JPEG of this quality, 1 to 100.
    Jpeg(u8),
    /// PNG.
    Png,
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateSpec {
    /// What the pictures show.
    pub kind: GenerateKind,
    /// How many.
    pub count: u64,
    /// Their width and height in pixels.
    pub size: (u32, u32),
    /// Least and largest number of objects on one.
    pub objects: (u32, u32),
    /// Least and largest diameter of an object in pixels.
    pub diameter: (u32, u32),
    /// The seed.
    pub seed: Seed,
    /// How they are stored.
    pub format: PictureFormat,
}

impl GenerateSpec {
    /// `count` single objects of 24 to 48 pixels on 64 x 64.
    pub const fn objects(count: u64, seed: Seed) -> Self {
        Self {
            kind: GenerateKind::Objects,
            count,
            size: (64, 64),
            objects: (1, 1),
            diameter: (24, 48),
            seed,
            format: PictureFormat::Jpeg(92),
        }
    }

    /// `count` scenes of 3 to 6 such objects on 128 x 128.
    pub const fn scenes(count: u64, seed: Seed) -> Self {
        Self { kind: GenerateKind::Scenes, size: (128, 128), objects: (3, 6), ..Self::objects(count, seed) }
    }

    fn validate(&self) -> Result<(), GenerateError> {
        let fits = [self.size.0, self.size.1].iter().all(|edge| (8..=4096).contains(edge));
        let some = self.objects.0 >= 1 && self.objects.0 <= self.objects.1 && self.objects.1 <= 64;
        let sized = self.diameter.0 >= 6
            && self.diameter.0 <= self.diameter.1
            && self.diameter.1 <= self.size.0.min(self.size.1);
        let quality = !matches!(self.format, PictureFormat::Jpeg(q) if !(1..=100).contains(&q));
        if fits && some && sized && quality && self.count > 0 {
            return Ok(());
        }
        Err(GenerateError::Spec { found: Box::new(*self) })
    }
}

/// Generating that stopped.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// An impossible spec.
    #[error(
        "cannot generate {found:?}: expected a count of at least 1, edges of 8 to 4096, 1 to 64 objects, diameters of 6 to the shorter edge, both rising, and a JPEG quality of 1 to 100"
    )]
    Spec {
        /// The spec.
        found: Box<GenerateSpec>,
    },
    /// A file that cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The annotations.
    #[error(transparent)]
    Annotations(#[from] AnnotationsError),
    /// An encoder failed.
    #[error("cannot encode a picture: {0}")]
    Encode(String),
}

/// Names of the twelve classes in the order of their numbers; the category id is the number plus one.
pub fn class_names() -> Vec<String> {
    SHAPES.iter().flat_map(|(_, s)| TEXTURES.iter().map(move |(_, t)| format!("{t} {s}"))).collect()
}

/// Draws picture `index` of `spec`, with the class and box of every object.
///
/// # Errors
/// When the spec is impossible.
pub fn draw(spec: &GenerateSpec, index: u64) -> Result<Drawn, GenerateError> {
    spec.validate()?;
    Ok(draw_checked(spec, index))
}

fn draw_checked(spec: &GenerateSpec, index: u64) -> Drawn {
    let kind = match spec.kind {
        GenerateKind::Objects => 0,
        GenerateKind::Scenes => 1,
    };
    let mut random = spec.seed.stream(Purpose::Generate, &[kind, index]);
    let plan = Plan { size: spec.size, objects: spec.objects, diameter: spec.diameter };
    scene::draw(&mut random, plan)
}

/// Writes `<out>/images/NNNNN.jpg` and `<out>/annotations.json`; `progress` hears (done, in all).
///
/// # Errors
/// When the spec is impossible or a file cannot be written.
pub fn generate(
    out: &Path,
    spec: &GenerateSpec,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Annotations, GenerateError> {
    spec.validate()?;
    let folder = out.join("images");
    let io = |path: &Path| {
        let path = path.to_owned();
        |source| GenerateError::Io { path, source }
    };
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let mut all = Annotations::default();
    for (id, name) in (1..).zip(class_names()) {
        all.categories.push(Category { id, name });
    }
    let extension = match spec.format {
        PictureFormat::Jpeg(_) => "jpg",
        PictureFormat::Png => "png",
    };
    for index in 0..spec.count {
        let Drawn { picture, objects } = draw_checked(spec, index);
        let file_name = format!("{index:05}.{extension}");
        let path = folder.join(&file_name);
        fs::write(&path, encode(&picture, spec.format)?).map_err(io(&path))?;
        all.images.push(AnnotatedImage { id: index, file_name, width: spec.size.0, height: spec.size.1 });
        for DrawnObject { class, bbox } in objects {
            all.annotations.push(Annotation {
                id: all.annotations.len() as u64 + 1,
                image_id: index,
                category_id: class as u64 + 1,
                bbox,
                area: f64::from(bbox[2]) * f64::from(bbox[3]),
                iscrowd: 0,
            });
        }
        progress(index + 1, spec.count);
    }
    all.save(&out.join("annotations.json"))?;
    Ok(all)
}

/// The picture as a file.
///
/// # Errors
/// When the encoder fails, as it does on a picture without pixels.
pub fn encode(picture: &Picture, format: PictureFormat) -> Result<Vec<u8>, GenerateError> {
    let (width, height) = (picture.width(), picture.height());
    match format {
        PictureFormat::Jpeg(quality) => {
            let image = turbojpeg::Image {
                pixels: picture.pixels(),
                width: width as usize,
                pitch: width as usize * 3,
                height: height as usize,
                format: turbojpeg::PixelFormat::RGB,
            };
            turbojpeg::compress(image, i32::from(quality), turbojpeg::Subsamp::Sub2x2)
                .map(|bytes| bytes.to_vec())
                .map_err(|e| GenerateError::Encode(e.to_string()))
        }
        PictureFormat::Png => {
            let mut bytes = Cursor::new(Vec::new());
            image::write_buffer_with_format(
                &mut bytes,
                picture.pixels(),
                width,
                height,
                image::ColorType::Rgb8,
                image::ImageFormat::Png,
            )
            .map_err(|e| GenerateError::Encode(e.to_string()))?;
            Ok(bytes.into_inner())
        }
    }
}
