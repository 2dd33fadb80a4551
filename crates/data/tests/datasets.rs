//! Folders and tar shards as datasets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(unix)]

use mcl_data::dataset::{index, side_file};
use mcl_data::generate::{GenerateSpec, PictureFormat, generate};
use mcl_data::pack::{PackSpec, Shrink, pack};
use mcl_data::{Dataset, DatasetError, Limits, decode};
use mcl_types::{SampleIndex, Seed};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn odd(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/odd-inputs").join(name)).unwrap()
}

fn put(root: &Path, name: &[u8], bytes: &[u8]) {
    let path = root.join(OsStr::from_bytes(name));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn ids(d: &Dataset) -> Vec<String> {
    (0..d.len()).map(|i| d.id(SampleIndex::new(i)).unwrap().into_owned()).collect()
}

/// Shards of so many pictures.
fn at_a_time(samples_per_shard: u64) -> PackSpec {
    PackSpec { samples_per_shard, ..PackSpec::default() }
}

/// A small labelled folder with awkward names.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let jpeg = odd("ok_odd_size.jpg");
    put(dir.path(), b"cats/deep/er/a.JPG", &jpeg);
    put(dir.path(), b"cats/b.two.dots.jpg", &jpeg);
    put(dir.path(), b"cats/b.png", &odd("1x1.png"));
    put(dir.path(), b"cats/b.jpg", &jpeg);
    put(dir.path(), b"dogs/new\nline.jpeg", &jpeg);
    put(dir.path(), b"dogs/raw\xff.jpg", &odd("1x1.jpg"));
    put(dir.path(), b"dogs/100%.gif", &odd("animated.gif"));
    put(dir.path(), b"dogs/notes.txt", b"not a picture");
    dir
}

#[test]
fn a_folder_is_listed_in_byte_order_with_classes() {
    let dir = folder();
    symlink(dir.path(), dir.path().join("dogs/loop")).unwrap();
    symlink("nowhere", dir.path().join("dogs/zz.jpg")).unwrap();
    fs::create_dir(dir.path().join("dogs/folder.jpg")).unwrap();
    let d = Dataset::open(dir.path()).unwrap();
    let wanted = [
        "cats/b.jpg",
        "cats/b.png",
        "cats/b.two.dots.jpg",
        "cats/deep/er/a.JPG",
        "dogs/100%25.gif",
        "dogs/new%0Aline.jpeg",
        "dogs/raw%FF.jpg",
        "dogs/zz.jpg",
    ];
    assert_eq!(ids(&d), wanted);
    let labels: Vec<_> = (0..d.len()).map(|i| d.label(SampleIndex::new(i)).unwrap()).collect();
    assert_eq!(labels, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(d.classes(), ["cats", "dogs"]);
    assert_eq!(&d.read(SampleIndex::new(1)).unwrap()[..], odd("1x1.png"));
    assert!(d.read(SampleIndex::new(7)).unwrap_err().is_undecodable());
    assert!(!d.read(SampleIndex::new(8)).unwrap_err().is_undecodable());
    assert_eq!(d.id(SampleIndex::new(8)), None);
}

#[test]
fn the_digest_follows_names_and_lengths() {
    let dir = folder();
    let before = Dataset::open(dir.path()).unwrap().digest();
    assert_eq!(Dataset::open(dir.path()).unwrap().digest(), before);
    fs::write(dir.path().join("cats/b.jpg"), b"other length").unwrap();
    let changed = Dataset::open(dir.path()).unwrap().digest();
    assert_ne!(changed, before);
    fs::rename(dir.path().join("cats/b.jpg"), dir.path().join("cats/c.jpg")).unwrap();
    assert_ne!(Dataset::open(dir.path()).unwrap().digest(), changed);
}

#[test]
fn a_long_list_is_cut_into_slices() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..1500 {
        fs::write(dir.path().join(format!("{i:05}.jpg")), b"x").unwrap();
    }
    let d = Dataset::open(dir.path()).unwrap();
    let cuts: Vec<_> = d.shards().iter().map(|s| (s.first, s.len)).collect();
    assert_eq!(cuts, [(0, 1024), (1024, 476)]);
    assert_eq!(d.label(SampleIndex::new(0)), None);
}

#[test]
fn sources_without_pictures_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let said = Dataset::open(dir.path()).unwrap_err().to_string();
    assert!(said.contains(dir.path().to_str().unwrap()) && said.contains("jpeg"), "{said}");
    assert!(Dataset::open(&dir.path().join("missing")).is_err());
    for (name, words) in [
        ("one.dat", "neither a folder, nor a .tar"),
        ("one.tar.gz", "unpack it first"),
        ("one.jpg", "name its folder"),
        ("one.arrow", "to_parquet"),
    ] {
        let other = tempfile::tempdir().unwrap();
        put(other.path(), name.as_bytes(), b"x");
        let said = Dataset::open(&other.path().join(name)).unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    }
    put(
        dir.path(),
        b"bad.tar",
        b"this is not a tar, but it is long enough to be taken for one. ".repeat(20).as_slice(),
    );
    assert!(matches!(Dataset::open(dir.path()), Err(DatasetError::BadTar { .. })));
    put(dir.path(), b"loose.jpg", b"x");
    let said = Dataset::open(dir.path()).unwrap_err().to_string();
    let readings = ["as folder (it holds loose.jpg)", "as webdataset (it holds bad.tar)", "--kind"];
    assert!(readings.iter().all(|reading| said.contains(reading)), "{said}");
}

/// What the sources that were there first are called and numbered: their digests were computed by another program, from
/// ids and lengths alone. Runs and ledgers name samples by them.
#[test]
fn ids_and_digests_stay_what_they_are() {
    let dir = folder();
    let pinned = |source: &Path, digest: &str| {
        assert_eq!(
            Dataset::open(source).unwrap().digest().to_string(),
            digest,
            "{:?}",
            ids(&Dataset::open(source).unwrap())
        );
    };
    pinned(dir.path(), "d738020bebe0bddcb835241fbb73d79c8e708e2cf50a385d2896218be3dac4f6");
    let out = tempfile::tempdir().unwrap();
    pack(dir.path(), out.path(), at_a_time(3)).unwrap();
    pinned(out.path(), "0fd7e8dd8a2ba6b79641fc93e85759a38c0750a7a46d7dab55970ef395528efc");
    for shard in 0..3 {
        fs::remove_file(side_file(&out.path().join(format!("shard-00000{shard}.tar")))).unwrap();
    }
    pinned(out.path(), "0fd7e8dd8a2ba6b79641fc93e85759a38c0750a7a46d7dab55970ef395528efc");
    let foreign = foreign_tar(out.path());
    pinned(&foreign, "3a3c8adc723c03f5e5024ade8b43cd48a6e6b5fffffe5fb82117027d3c67418b");
}

#[test]
fn packing_keeps_every_picture_its_bytes_and_its_label() {
    let dir = folder();
    symlink("nowhere", dir.path().join("dogs/zz.jpg")).unwrap();
    let loose = Dataset::open(dir.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let report = pack(dir.path(), out.path(), at_a_time(3)).unwrap();
    assert_eq!((report.samples, report.shards.len(), report.skipped.len()), (7, 3, 1));
    assert!(report.skipped[0].0.contains("zz.jpg"));
    let packed = Dataset::open(out.path()).unwrap();
    assert_eq!(packed.len(), 7);
    for i in (0..7).map(SampleIndex::new) {
        assert_eq!(&packed.read(i).unwrap()[..], &loose.read(i).unwrap()[..], "{:?}", packed.id(i));
        assert_eq!(packed.label(i), loose.label(i));
        assert!(packed.recorded_hash(i).is_some());
    }
    let names: std::collections::BTreeSet<String> = ids(&packed).into_iter().collect();
    assert_eq!(names.len(), 7, "{names:?}");
    let shards: Vec<_> = packed.shards().iter().map(|s| (s.name.as_str(), s.first, s.len)).collect();
    assert_eq!(shards, [("shard-000000.tar", 0, 3), ("shard-000001.tar", 3, 3), ("shard-000002.tar", 6, 1)]);
}

#[test]
fn packing_shrinks_what_is_large_and_leaves_the_rest_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let spec = GenerateSpec { size: (90, 60), diameter: (8, 20), ..GenerateSpec::scenes(3, Seed::new(1)) };
    generate(dir.path(), &GenerateSpec { format: PictureFormat::Png, ..spec }, &mut |_, _| ()).unwrap();
    fs::remove_file(dir.path().join("annotations.json")).unwrap();
    put(dir.path(), b"images/broken.jpg", b"no picture");
    let loose = Dataset::open(dir.path()).unwrap();
    let pack_at = |short_side| {
        let out = tempfile::tempdir().unwrap();
        let shrink = Some(Shrink { short_side, quality: 90 });
        let report = pack(dir.path(), out.path(), PackSpec { shrink, ..at_a_time(9) });
        (out, report)
    };
    let (out, report) = pack_at(30);
    assert_eq!(report.map(|r| (r.samples, r.shrunk)).unwrap(), (4, 3));
    let packed = Dataset::open(out.path()).unwrap();
    for i in (0..4).map(SampleIndex::new) {
        let (id, bytes) = (packed.id(i).unwrap().into_owned(), packed.read(i).unwrap());
        if id.contains("broken") {
            assert_eq!(&bytes[..], b"no picture");
            continue;
        }
        assert!(id.ends_with(".jpg"), "{id}");
        let picture = decode(&bytes, Limits::default()).unwrap();
        assert_eq!((picture.width(), picture.height()), (45, 30));
    }
    let (out, report) = pack_at(60);
    assert_eq!(report.map(|r| r.shrunk).unwrap(), 0);
    let packed = Dataset::open(out.path()).unwrap();
    assert_eq!(packed.read(SampleIndex::new(1)).unwrap()[..], loose.read(SampleIndex::new(1)).unwrap()[..]);
    assert!(pack_at(0).1.unwrap_err().to_string().contains("shorter side is 0"));
}

#[test]
fn packing_is_reproducible_and_never_overwrites() {
    let dir = folder();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for out in [&one, &two] {
        pack(dir.path(), out.path(), at_a_time(100)).unwrap();
    }
    let bytes = |d: &tempfile::TempDir| fs::read(d.path().join("shard-000000.tar")).unwrap();
    assert_eq!(bytes(&one), bytes(&two));
    // Once more there is nothing to do, and anything else is refused.
    assert_eq!(pack(dir.path(), one.path(), at_a_time(100)).unwrap().kept, 1);
    assert!(pack(dir.path(), one.path(), at_a_time(7)).is_err());
    assert_eq!(bytes(&one), bytes(&two));
}

#[test]
fn a_tar_without_index_reads_the_same() {
    let dir = folder();
    let out = tempfile::tempdir().unwrap();
    pack(dir.path(), out.path(), at_a_time(100)).unwrap();
    let tar = out.path().join("shard-000000.tar");
    let with = Dataset::open(&tar).unwrap();
    fs::remove_file(side_file(&tar)).unwrap();
    let without = Dataset::open(&tar).unwrap();
    assert_eq!(with.digest(), without.digest());
    assert_eq!(ids(&with), ids(&without));
    assert_eq!(without.recorded_hash(SampleIndex::new(0)), None);
    index(&tar).unwrap();
    assert!(Dataset::open(&tar).unwrap().recorded_hash(SampleIndex::new(0)).is_some());
}

#[test]
fn an_index_of_another_tar_is_refused() {
    let dir = folder();
    let out = tempfile::tempdir().unwrap();
    pack(dir.path(), out.path(), at_a_time(100)).unwrap();
    let tar = out.path().join("shard-000000.tar");
    let good = fs::read_to_string(side_file(&tar)).unwrap();
    let refused = |text: &str, word: &str| {
        fs::write(side_file(&tar), text).unwrap();
        let said = Dataset::open(&tar).unwrap_err().to_string();
        assert!(said.contains(word) && said.contains("mcl data index"), "{said}");
    };
    refused("{", "cannot be read");
    refused(&good.replace("\"version\": 1", "\"version\": 9"), "version 9");
    refused(&good.replacen("\"offset\": 512", "\"offset\": 1024", 1), "another entry");
    refused(&good.replacen("\"offset\": 512", "\"offset\": 99999999", 1), "outside");
    let mut longer = fs::read(&tar).unwrap();
    longer.extend_from_slice(&[0; 1024]);
    fs::write(&tar, longer).unwrap();
    refused(&good, "bytes, the tar has");
}

/// A tar as others make them: long names, several files a sample, classes in two ways.
fn foreign_tar(folder: &Path) -> PathBuf {
    let path = folder.join("foreign.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let long = format!("{}/x", "folder".repeat(40));
    add(&format!("{long}.json"), br#"{"label": 7}"#);
    add(&format!("{long}.jpg"), &odd("1x1.jpg"));
    add(&format!("{long}.seg.png"), &odd("1x1.png"));
    add("./y.cls", b" 3\n");
    add("./y.png", &odd("1x1.png"));
    add("z.txt", b"no picture");
    tar.finish().unwrap();
    path
}

#[test]
fn foreign_tars_with_long_names_and_json_labels_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = foreign_tar(dir.path());
    let d = Dataset::open(&path).unwrap();
    assert_eq!(d.len(), 2);
    assert_eq!((d.label(SampleIndex::new(0)), d.label(SampleIndex::new(1))), (Some(7), Some(3)));
    assert_eq!(&d.read(SampleIndex::new(0)).unwrap()[..], odd("1x1.jpg"));
    assert_eq!(d.id(SampleIndex::new(1)).unwrap(), "foreign.tar/y.png");
    index(&path).unwrap();
    assert_eq!(Dataset::open(&path).unwrap().digest(), d.digest());
}
