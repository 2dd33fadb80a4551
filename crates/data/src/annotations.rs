//! Boxes and classes in COCO's layout: what the generator writes and the evaluation reads.
//!
//! Read is what boxes need; polygons, licences and whatever else a COCO file holds are passed over.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotatedImage {
    /// Its id.
    pub id: u64,
    /// Its file, relative to the folder of pictures.
    pub file_name: String,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotation {
    /// Its id.
    pub id: u64,
    /// The picture it is on.
    pub image_id: u64,
    /// Its class.
    pub category_id: u64,
    /// Left, top, width, height in pixels.
    pub bbox: [f32; 4],
    /// Area in pixels.
    #[serde(default)]
    pub area: f64,
    /// 1 for a region of many objects.
    #[serde(default)]
    pub iscrowd: u8,
}

/// A class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// A file of annotations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Annotations {
    /// The pictures.
    pub images: Vec<AnnotatedImage>,
    /// Their objects.
    pub annotations: Vec<Annotation>,
    /// The classes.
    pub categories: Vec<Category>,
}

/// Annotations that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationsError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not COCO's layout.
    #[error("{} is not a COCO annotation file: {source}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An object of nowhere.
    #[error("{}: annotation {annotation} names {what} {id}, which is not listed", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The annotation's id.
        annotation: u64,
        /// `image` or `category`.
        what: &'static str,
        /// The id that is missing.
        id: u64,
    },
    /// A picture's file that is not below the folder of pictures.
    #[error(
        "{}: image {image} names the file `{}`, expected a path below the folder of pictures, without `..` and `\\`",
        path.display(), file_name.escape_debug()
    )]
    Outside {
        /// The file.
        path: PathBuf,
        /// The picture's id.
        image: u64,
        /// Its file, as named.
        file_name: String,
    },
}

/// Whether a name of a file leads nowhere but below the folder that it is joined to.
fn is_below(name: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    name.len() <= LONGEST_NAME && !name.contains(['\0', '\\']) && name.split('/').all(plain)
}

/// As long as Linux lets a path be.
const LONGEST_NAME: usize = 4096;

impl Annotations {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has another layout, a picture's file is not below its folder, or an object names an
    /// unknown picture or class.
    pub fn load(path: &Path) -> Result<Self, AnnotationsError> {
        let io = |source| AnnotationsError::Io { path: path.to_owned(), source };
        let text = fs::read(path).map_err(io)?;
        let layout = |source| AnnotationsError::Layout { path: path.to_owned(), source };
        let loaded: Self = serde_json::from_slice(&text).map_err(layout)?;
        if let Some(image) = loaded.images.iter().find(|image| !is_below(&image.file_name)) {
            let (image, file_name) = (image.id, image.file_name.clone());
            return Err(AnnotationsError::Outside { path: path.to_owned(), image, file_name });
        }
        let images: std::collections::BTreeSet<u64> = loaded.images.iter().map(|i| i.id).collect();
        let categories = loaded.category_indices();
        for a in &loaded.annotations {
            let missing = if images.contains(&a.image_id) {
                (!categories.contains_key(&a.category_id)).then_some(("category", a.category_id))
            } else {
                Some(("image", a.image_id))
            };
            if let Some((what, id)) = missing {
                return Err(AnnotationsError::Unknown { path: path.to_owned(), annotation: a.id, what, id });
            }
        }
        Ok(loaded)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), AnnotationsError> {
        let io = |source| AnnotationsError::Io { path: path.to_owned(), source };
        let mut text = serde_json::to_vec(self).map_err(|e| io(e.into()))?;
        text.push(b'\n');
        fs::write(path, text).map_err(io)
    }

    /// Classes numbered 0.. in the order of their ids.
    pub fn category_indices(&self) -> BTreeMap<u64, usize> {
        let mut ids: Vec<u64> = self.categories.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().zip(0..).collect()
    }

    /// The objects of every picture that has any, by picture id.
    pub fn by_image(&self) -> BTreeMap<u64, Vec<&Annotation>> {
        let mut map: BTreeMap<u64, Vec<&Annotation>> = BTreeMap::new();
        for a in &self.annotations {
            map.entry(a.image_id).or_default().push(a);
        }
        map
    }

    /// Where a picture lies: in `images/` beside the annotation file or beside its folder, or right
    /// next to the file. The first that exists, else the first.
    pub fn image_path(annotations_file: &Path, image: &AnnotatedImage) -> PathBuf {
        let folder = annotations_file.parent().unwrap_or(Path::new(""));
        let places = [folder.join("images"), folder.join("..").join("images"), folder.to_owned()];
        let mut paths = places.map(|p| p.join(&image.file_name)).into_iter();
        let first = paths.next().unwrap_or_default();
        if first.exists() { first } else { paths.find(|p| p.exists()).unwrap_or(first) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coco_files_with_more_in_them_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, r#"{"info": {}, "licenses": [], "images": [{"id": 9, "file_name": "x.jpg", "width": 4, "height": 3, "license": 1}],
            "annotations": [{"id": 1, "image_id": 9, "category_id": 44, "bbox": [0.5, 1, 2, 1.5], "segmentation": [[1, 2]], "iscrowd": 0}],
            "categories": [{"id": 90, "name": "b", "supercategory": "s"}, {"id": 44, "name": "a"}]}"#).unwrap();
        let a = Annotations::load(&path).unwrap();
        assert_eq!(a.annotations[0].bbox, [0.5, 1.0, 2.0, 1.5]);
        assert_eq!(a.category_indices(), BTreeMap::from([(44, 0), (90, 1)]));
        assert_eq!(a.by_image()[&9].len(), 1);
        assert_eq!(Annotations::image_path(&path, &a.images[0]), dir.path().join("images/x.jpg"));
        fs::write(dir.path().join("x.jpg"), b"").unwrap();
        assert_eq!(Annotations::image_path(&path, &a.images[0]), dir.path().join("x.jpg"));
    }

    #[test]
    fn files_outside_the_folder_of_pictures_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let load = |name: &str| {
            let image = AnnotatedImage { id: 7, file_name: name.to_owned(), width: 1, height: 1 };
            Annotations { images: vec![image], ..Annotations::default() }.save(&path).unwrap();
            Annotations::load(&path)
        };
        let long = "x".repeat(5000);
        let bad = [
            "",
            "..",
            "../x.jpg",
            "a/../../x.jpg",
            "/etc/passwd",
            "a//b",
            "./x",
            "a\0b",
            "..\\x.jpg",
            "a/",
            &long,
        ];
        for name in bad {
            let said = load(name).unwrap_err().to_string();
            assert!(said.contains("image 7") && said.contains("below the folder"), "{name:?}: {said}");
        }
        // Letters that only look like dots and slashes are letters.
        for name in
            ["x.jpg", "train2017/0001.jpg", "..x", "a/...", "\u{2024}\u{2024}/x", "\u{ff0e}\u{ff0e}\u{2215}x"]
        {
            let loaded = load(name).unwrap();
            let found = Annotations::image_path(&path, &loaded.images[0]);
            assert!(found.starts_with(dir.path().join("images")), "{name:?}: {}", found.display());
            assert!(found.components().all(|c| c != std::path::Component::ParentDir), "{name:?}");
        }
    }

    #[test]
    fn unknown_pictures_and_classes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, r#"{"images": [], "annotations": [{"id": 5, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}], "categories": []}"#).unwrap();
        let said = Annotations::load(&path).unwrap_err().to_string();
        assert!(said.contains("annotation 5 names image 9"), "{said}");
        fs::write(&path, "[]").unwrap();
        assert!(Annotations::load(&path).unwrap_err().to_string().contains("not a COCO"));
    }
}
