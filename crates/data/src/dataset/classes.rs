//! Classes that folders tell, and their names beside shards.

use super::sample_id::{escape, unescape};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file beside shards that names their classes: one a line, escaped, the first being class 0.
pub(crate) const FILE: &str = "classes.txt";
/// Bytes of it that are read at most.
pub(crate) const LARGEST: u64 = 64 << 20;

/// A label for each path, which is its top folder's place among the top folders in byte order, and their names. `None`
/// where not every picture lies in a folder, or all lie in one: such folders tell no classes.
pub(super) fn by_folder<P: AsRef<[u8]>>(
    paths: impl Iterator<Item = P> + Clone,
) -> Option<(Vec<u32>, Vec<Vec<u8>>)> {
    let mut classes: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for path in paths.clone() {
        let top = top_of(path.as_ref())?;
        if !classes.contains_key(top) {
            classes.insert(top.to_vec(), 0);
        }
    }
    if classes.len() < 2 {
        return None;
    }
    for (label, (_, slot)) in (0..).zip(classes.iter_mut()) {
        *slot = label;
    }
    let label = |path: P| top_of(path.as_ref()).and_then(|top| classes.get(top).copied());
    let labels: Option<Vec<u32>> = paths.map(label).collect();
    Some((labels?, classes.into_keys().collect()))
}

fn top_of(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().position(|b| *b == b'/')?;
    Some(&path[..slash]).filter(|top| !top.is_empty())
}

/// Where the names of the classes lie, of shards that are in `folder`.
pub(crate) fn file_in(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// As they stand in the file.
pub(crate) fn to_text(classes: &[Vec<u8>]) -> Vec<u8> {
    classes.iter().flat_map(|class| [escape(class).as_bytes(), b"\n"].concat()).collect()
}

/// The names in `text`; labels without a name stay numbers.
pub(crate) fn of_text(text: &[u8]) -> Vec<Vec<u8>> {
    String::from_utf8_lossy(text).lines().map(unescape).collect()
}

/// The names beside shards of this machine; none where there is no such file.
pub(super) fn beside(folder: &Path) -> Vec<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    let read =
        std::fs::File::open(file_in(folder)).and_then(|file| file.take(LARGEST).read_to_end(&mut text));
    read.map_or_else(|_| Vec::new(), |_| of_text(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_folders_are_classes_where_they_divide_the_pictures() {
        let of = |paths: &[&str]| by_folder(paths.iter());
        let (labels, names) = of(&["b/1.jpg", "a/x/2.jpg", "b/3.jpg"]).unwrap();
        assert_eq!((labels, names), (vec![1, 0, 1], vec![b"a".to_vec(), b"b".to_vec()]));
        assert_eq!(of(&["a/1.jpg", "a/2.jpg"]), None);
        assert_eq!(of(&["a/1.jpg", "b/2.jpg", "3.jpg"]), None);
        assert_eq!(of(&["/a/1.jpg", "/b/2.jpg"]), None);
    }

    #[test]
    fn names_survive_their_file() {
        let names = vec![b"cat".to_vec(), b"two\nlines".to_vec(), b"raw\xff%".to_vec()];
        assert_eq!(of_text(&to_text(&names)), names);
    }
}
