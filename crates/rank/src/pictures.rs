//! Pictures with classes, to judge features by: the boxes of a COCO-style `annotations.json`, else any data set with
//! labels, of which every whole picture is one object.
//!
//! A picture is decoded when it is opened and forgotten afterwards, so that a large folder takes no more memory than a
//! small one.

use anyhow::{Context, Result, bail};
use mcl_data::{Annotations, Dataset, Limits, Picture, crop, decode};
use mcl_model::Normalization;
use mcl_types::{Purpose, SampleIndex, Seed};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Pixels that the network's coarsest cell covers.
const STRIDE: u32 = 32;
/// A picture that is scaled stays below this.
const LARGEST_SCALED: u32 = 16_384;
/// Classes that a message names at most.
const NAMED: usize = 5;

/// One object of a picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boxed {
    /// x, y, width, height in pixels; none where it is the whole picture.
    frame: Option<[f32; 4]>,
    /// Place of its class among the folder's names.
    class: usize,
}

/// Where a picture's bytes are.
#[derive(Debug, Clone)]
enum Origin {
    File(PathBuf),
    Sample(Arc<Dataset>, SampleIndex),
}

/// A picture and its objects, not decoded.
#[derive(Debug, Clone)]
pub(crate) struct BoxedPicture {
    origin: Origin,
    pub(crate) boxes: Vec<Boxed>,
}

/// The same, decoded.
#[derive(Debug)]
pub(crate) struct OpenPicture<'a> {
    of: &'a BoxedPicture,
    picture: Picture,
}

/// All pictures of a folder that have objects, and the names of their classes.
#[derive(Debug)]
pub(crate) struct Boxes {
    pictures: Vec<BoxedPicture>,
    names: Vec<String>,
}

impl Boxes {
    /// Boxes where `annotations.json` tells them, in order of the pictures' numbers; else whole pictures with labels.
    pub(crate) fn load(source: &Path) -> Result<Self> {
        if source.join("annotations.json").is_file() {
            Self::annotated(source)
        } else {
            Self::labelled(source)
        }
    }

    /// The boxes of a folder that must have some.
    pub(crate) fn annotated(folder: &Path) -> Result<Self> {
        let annotations = folder.join("annotations.json");
        let file = Annotations::load(&annotations)?;
        let places = file.category_indices();
        let mut boxes: BTreeMap<u64, Vec<Boxed>> = BTreeMap::new();
        for b in &file.annotations {
            let class = *places.get(&b.category_id).context("a class that is not listed")?;
            boxes.entry(b.image_id).or_default().push(Boxed { frame: Some(b.bbox), class });
        }
        let names = category_names(&file);
        let mut images = file.images;
        images.sort_by_key(|i| i.id);
        let mut pictures = Vec::with_capacity(images.len());
        for image in images {
            let Some(boxes) = boxes.remove(&image.id) else { continue };
            let origin = Origin::File(Annotations::image_path(&annotations, &image));
            pictures.push(BoxedPicture { origin, boxes });
        }
        Ok(Self { pictures, names })
    }

    /// Every picture of a data set as one object, the classes mixed: they often lie in order of their classes, and
    /// batches that form statistics must not.
    fn labelled(source: &Path) -> Result<Self> {
        let dataset = Arc::new(Dataset::open(source)?);
        let all = (0..dataset.len()).map(SampleIndex::new);
        let without: Vec<SampleIndex> = all.clone().filter(|s| dataset.label(*s).is_none()).collect();
        if let Some(first) = without.first() {
            bail!(
                "{}: {} of {} pictures have no label, {} being the first; expected annotations.json with boxes, pictures in at least two folders that are their classes, or shards or a list with labels",
                source.display(),
                without.len(),
                dataset.len(),
                dataset.id(*first).unwrap_or_default()
            );
        }
        let mut pictures = Vec::new();
        let mut names = dataset.classes();
        for sample in all {
            let class = usize::try_from(dataset.label(sample).unwrap_or_default())?;
            let origin = Origin::Sample(Arc::clone(&dataset), sample);
            pictures.push(BoxedPicture { origin, boxes: vec![Boxed { frame: None, class }] });
        }
        let numbers: BTreeMap<usize, usize> = unnamed(&pictures, &mut names);
        for boxed in pictures.iter_mut().flat_map(|p| &mut p.boxes) {
            boxed.class = numbers.get(&boxed.class).copied().unwrap_or(boxed.class);
        }
        shuffle(&mut pictures);
        Ok(Self { pictures, names })
    }

    pub(crate) fn pictures(&self) -> &[BoxedPicture] {
        &self.pictures
    }

    /// Names of the classes that some object has.
    fn used(&self) -> BTreeSet<&str> {
        let places: BTreeSet<usize> = self.pictures.iter().flat_map(|p| &p.boxes).map(|b| b.class).collect();
        places.into_iter().filter_map(|place| self.names.get(place)).map(String::as_str).collect()
    }

    /// The class of every object as its place among `classes`.
    pub(crate) fn labels(&self, pictures: &[BoxedPicture], classes: &Classes) -> Result<Vec<i64>> {
        let places: Vec<Option<i64>> =
            self.names.iter().map(|name| classes.0.get(name.as_str()).copied()).collect();
        let label = |b: &Boxed| places.get(b.class).copied().flatten().context("a class without a number");
        pictures.iter().flat_map(|p| &p.boxes).map(label).collect()
    }
}

/// Names of categories in order of their ids; their ids where names are missing or not told apart.
fn category_names(file: &Annotations) -> Vec<String> {
    let by_id: BTreeMap<u64, &str> = file.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
    let distinct: BTreeSet<&str> = by_id.values().copied().collect();
    if distinct.len() == by_id.len() && !distinct.contains("") {
        by_id.into_values().map(str::to_owned).collect()
    } else {
        by_id.into_keys().map(|id| id.to_string()).collect()
    }
}

/// Labels beyond the list of names get a place at its end and their number as a name; they may be any 32 bits.
fn unnamed(pictures: &[BoxedPicture], names: &mut Vec<String>) -> BTreeMap<usize, usize> {
    let told = names.len();
    let beyond: BTreeSet<usize> =
        pictures.iter().flat_map(|p| &p.boxes).map(|b| b.class).filter(|class| *class >= told).collect();
    names.extend(beyond.iter().map(ToString::to_string));
    beyond.into_iter().zip(told..).collect()
}

/// Always the same order for the same number of pictures.
fn shuffle(pictures: &mut [BoxedPicture]) {
    Seed::new(0).stream(Purpose::Evaluate, &[]).shuffle(pictures);
}

/// The classes of all folders of a comparison, matched by name and numbered.
#[derive(Debug)]
pub(crate) struct Classes(BTreeMap<String, i64>);

impl Classes {
    /// Those of both sides, and what is to be said where one has classes that the other lacks.
    pub(crate) fn of(train: &Boxes, test: &Boxes) -> Result<(Self, Option<String>)> {
        let (known, asked) = (train.used(), test.used());
        let strange: Vec<&str> = asked.difference(&known).copied().collect();
        if !known.is_empty() && !asked.is_empty() && strange.len() == asked.len() {
            bail!(
                "no class of the pictures to classify ({}) is among those to learn from ({}): classes are matched by name",
                some(&strange),
                some(&known.into_iter().collect::<Vec<_>>())
            );
        }
        let warning = (!strange.is_empty()).then(|| {
            format!(
                "{} of {} classes to tell are not among those to learn from, and count as wrong: {}",
                strange.len(),
                asked.len(),
                some(&strange)
            )
        });
        let all: BTreeSet<&str> = known.union(&asked).copied().collect();
        Ok((Self(all.into_iter().map(str::to_owned).zip(0..).collect()), warning))
    }

    pub(crate) fn count(&self) -> i64 {
        i64::try_from(self.0.len()).unwrap_or(i64::MAX)
    }
}

fn some(names: &[&str]) -> String {
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{first}, ...") } else { first }
}

impl BoxedPicture {
    fn name(&self) -> String {
        match &self.origin {
            Origin::File(path) => path.display().to_string(),
            Origin::Sample(dataset, sample) => dataset.id(*sample).unwrap_or_default().into_owned(),
        }
    }

    /// Reads and decodes it.
    pub(crate) fn open(&self) -> Result<OpenPicture<'_>> {
        let decoded = |bytes: &[u8]| decode(bytes, Limits::default()).with_context(|| self.name());
        let picture = match &self.origin {
            Origin::File(path) => {
                decoded(&std::fs::read(path).with_context(|| format!("reading {}", path.display()))?)?
            }
            Origin::Sample(dataset, sample) => {
                decoded(&dataset.read(*sample).with_context(|| format!("reading {}", self.name()))?)?
            }
        };
        Ok(OpenPicture { of: self, picture })
    }
}

impl OpenPicture<'_> {
    /// The pixels of an object.
    pub(crate) fn cut(&self, index: usize) -> Result<Cow<'_, Picture>> {
        let Some(frame) = self.of.boxes.get(index).context("box number")?.frame else {
            return Ok(Cow::Borrowed(&self.picture));
        };
        let cut = crop::crop(&self.picture, frame);
        let cut = cut.with_context(|| format!("{}: box {frame:?} lies outside", self.of.name()))?;
        Ok(Cow::Owned(cut))
    }

    /// The whole picture, see [`network_input`].
    pub(crate) fn whole(&self, short_side: Option<u32>) -> Result<(Tensor, u32, u32)> {
        network_input(&self.picture, short_side)
    }

    /// An object's box as (x0, y0, x1, y1) in a copy of `width` x `height`.
    pub(crate) fn scaled_box(&self, index: usize, width: u32, height: u32) -> [f64; 4] {
        let Some([x, y, w, h]) = self.of.boxes.get(index).and_then(|b| b.frame).map(|f| f.map(f64::from))
        else {
            return [0.0, 0.0, f64::from(width), f64::from(height)];
        };
        let sx = f64::from(width) / f64::from(self.picture.width().max(1));
        let sy = f64::from(height) / f64::from(self.picture.height().max(1));
        [x * sx, y * sy, (x + w) * sx, (y + h) * sy]
    }
}

/// Width and height of [`network_input`].
fn input_size(width: u32, height: u32, short_side: Option<u32>) -> Result<(u32, u32)> {
    let (scaled, least_refused) = match short_side {
        Some(short_side) => (crop::with_short_side(width, height, short_side), LARGEST_SCALED),
        None => ((width, height), u32::MAX),
    };
    let round = |side: u32| side.div_ceil(STRIDE).max(1).saturating_mul(STRIDE);
    let (wide, high) = (round(scaled.0), round(scaled.1));
    if wide.max(high) >= least_refused {
        bail!(
            "a picture of {width}x{height} pixels would be {wide}x{high} for the network, expected less than {least_refused} a \
             side: leave pictures of such proportions out, or choose a smaller --short-side"
        );
    }
    Ok((wide, high))
}

/// A picture, its shorter side scaled to `short_side` pixels where that is said, with sides rounded up to the network's
/// stride, normalised: [1, 3, H, W], W, H.
pub(crate) fn network_input(picture: &Picture, short_side: Option<u32>) -> Result<(Tensor, u32, u32)> {
    let (width, height) = input_size(picture.width(), picture.height(), short_side)?;
    let pixels = crop::resize_rgb(picture, width, height)?;
    let shaped = Tensor::f_from_slice(&pixels)?.f_reshape([1, 3, i64::from(height), i64::from(width)])?;
    Ok((Normalization::new(Kind::Float, Device::Cpu)?.apply(&shaped)?, width, height))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_data::annotations::{AnnotatedImage, Annotation, Category};

    fn boxes(names: &[&str], classes: &[usize]) -> Boxes {
        let picture = |class: &usize| BoxedPicture {
            origin: Origin::File(PathBuf::new()),
            boxes: vec![Boxed { frame: None, class: *class }],
        };
        Boxes {
            pictures: classes.iter().map(picture).collect(),
            names: names.iter().map(|&n| n.to_owned()).collect(),
        }
    }

    #[test]
    fn pictures_are_scaled_by_their_shorter_side_and_fill_whole_cells() {
        let size = |width, height, short| input_size(width, height, short).unwrap();
        assert_eq!(size(128, 128, None), (128, 128));
        assert_eq!(size(130, 97, None), (160, 128));
        assert_eq!(size(128, 128, Some(256)), (256, 256));
        assert_eq!(size(640, 480, Some(240)), (320, 256));
        assert_eq!(size(100, 300, Some(64)), (64, 192));
        assert_eq!(size(1, 1, Some(64)), (64, 64));
        let said = input_size(2, 60_000, Some(64)).unwrap_err().to_string();
        assert!(said.contains("2x60000") && said.contains("--short-side"), "{said}");
    }

    #[test]
    fn classes_are_matched_by_name() {
        let (train, test) = (boxes(&["a", "b", "c"], &[0, 2]), boxes(&["c", "d"], &[0, 1]));
        let (classes, warning) = Classes::of(&train, &test).unwrap();
        assert_eq!(classes.count(), 3);
        assert_eq!(train.labels(train.pictures(), &classes).unwrap(), [0, 1]);
        assert_eq!(test.labels(test.pictures(), &classes).unwrap(), [1, 2]);
        let said = warning.unwrap();
        assert!(said.starts_with("1 of 2 classes") && said.ends_with(": d"), "{said}");
        let said = Classes::of(&train, &boxes(&["x"], &[0])).unwrap_err().to_string();
        assert!(said.contains("(x)") && said.contains("(a, c)"), "{said}");
    }

    #[test]
    fn labels_of_any_size_get_a_place() {
        let far = u32::MAX as usize;
        let mut names = vec!["a".to_owned()];
        let numbers = unnamed(&boxes(&[], &[0, far, 7, far]).pictures, &mut names);
        assert_eq!(names, ["a", "7", "4294967295"]);
        assert_eq!(numbers, BTreeMap::from([(7, 1), (far, 2)]));
    }

    #[test]
    fn categories_without_names_of_their_own_go_by_number() {
        let named = |names: [&str; 2]| {
            let category = |(id, name): (u64, &str)| Category { id, name: name.to_owned() };
            let categories = [(90, names[0]), (u64::MAX, names[1])].map(category).to_vec();
            category_names(&Annotations { categories, ..Annotations::default() })
        };
        assert_eq!(named(["cat", "dog"]), ["cat", "dog"]);
        for unclear in [["cat", "cat"], ["", "dog"]] {
            assert_eq!(named(unclear), ["90", "18446744073709551615"]);
        }
    }

    #[test]
    fn whole_pictures_of_folders_are_objects_and_pictures_without_labels_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let said = Boxes::load(&dir.path().join("none")).unwrap_err().to_string();
        assert!(said.contains("none"), "{said}");
        for name in ["a/1.png", "a/2.png", "b/3.png"] {
            std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(name), b"no picture").unwrap();
        }
        let loaded = Boxes::load(dir.path()).unwrap();
        assert_eq!(loaded.names, ["a", "b"]);
        let mut classes: Vec<usize> =
            loaded.pictures.iter().flat_map(|p| &p.boxes).map(|b| b.class).collect();
        classes.sort_unstable();
        assert_eq!(classes, [0, 0, 1]);
        let said = format!("{:#}", loaded.pictures[0].open().unwrap_err());
        assert!(said.contains(".png"), "{said}");
        std::fs::write(dir.path().join("loose.png"), b"no picture").unwrap();
        let said = Boxes::load(dir.path()).unwrap_err().to_string();
        assert!(
            said.contains("4 of 4 pictures have no label") && said.contains("annotations.json"),
            "{said}"
        );
    }

    #[test]
    fn boxes_of_a_file_that_is_gone_are_said_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let image = AnnotatedImage { id: 1, file_name: "x.jpg".to_owned(), width: 8, height: 8 };
        let bbox = [0.0, 0.0, 4.0, 4.0];
        let annotation = Annotation { id: 1, image_id: 1, category_id: 44, bbox, area: 16.0, iscrowd: 0 };
        let category = Category { id: 44, name: "a".to_owned() };
        let file =
            Annotations { images: vec![image], annotations: vec![annotation], categories: vec![category] };
        file.save(&dir.path().join("annotations.json")).unwrap();
        let loaded = Boxes::load(dir.path()).unwrap();
        let said = format!("{:#}", loaded.pictures[0].open().unwrap_err());
        assert!(said.contains("reading") && said.contains("x.jpg"), "{said}");
    }
}
