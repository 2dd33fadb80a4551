//! Lists, names in braces, plain tars: what else can be named as a source, and what is said where it cannot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(unix)]

use mcl_data::dataset::{index_as, side_file};
use mcl_data::pack::{PackSpec, pack};
use mcl_data::{Dataset, DatasetError, ReadError, RemoteSpec};
use mcl_types::{SampleIndex, SourceKind, StoreLocation};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

const JPEG: &[u8] = b"\xff\xd8\xff as far as anybody looks";

fn put(root: &Path, name: &[u8], bytes: &[u8]) {
    let path = root.join(OsStr::from_bytes(name));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn samples(d: &Dataset) -> Vec<(String, Option<u32>)> {
    let sample = |i| (d.id(i).unwrap().into_owned(), d.label(i));
    (0..d.len()).map(SampleIndex::new).map(sample).collect()
}

fn ids(d: &Dataset) -> Vec<String> {
    samples(d).into_iter().map(|(id, _)| id).collect()
}

fn spec(cache: &Path) -> RemoteSpec {
    RemoteSpec { cache_dir: cache.to_owned(), ..RemoteSpec::default() }
}

fn open_as(source: &Path, kind: SourceKind) -> Result<Dataset, DatasetError> {
    let cache = tempfile::tempdir().unwrap();
    Dataset::open_as(&source.into(), Some(kind), &spec(cache.path()))
}

/// Expects a source not to open, for a reason with these words.
fn refused(source: &Path, words: &[&str]) {
    let said = Dataset::open(source).unwrap_err().to_string();
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

fn tar(path: &Path, entries: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // As written: the library refuses names that leave the folder.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.finish().unwrap();
}

#[test]
fn a_list_is_in_its_own_order_with_its_labels() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    put(elsewhere.path(), b"far.jpg", b"far");
    for (name, bytes) in [("b/one, two.jpg", "12"), ("a.png", "3"), ("raw", "4567")] {
        put(dir.path(), name.as_bytes(), bytes.as_bytes());
    }
    let far = elsewhere.path().join("far.jpg");
    let text = format!("path,label\n\"b/one, two.jpg\",dog\n./a.png,cat\nraw,\n{},dog\n", far.display());
    put(dir.path(), b"list.csv", text.as_bytes());
    let d = Dataset::open(&dir.path().join("list.csv")).unwrap();
    let far_id = far.display().to_string();
    let expected =
        [("b/one, two.jpg", Some(1)), ("a.png", Some(0)), ("raw", None), (far_id.as_str(), Some(1))];
    assert_eq!(samples(&d), expected.map(|(id, label)| (id.to_owned(), label)));
    assert_eq!(d.classes(), ["cat", "dog"]);
    let lengths: Vec<_> = (0..4).map(|i| d.byte_len(SampleIndex::new(i)).unwrap()).collect();
    assert_eq!(lengths, [2, 1, 4, 3]);
    assert_eq!(&d.read(SampleIndex::new(3)).unwrap()[..], b"far");
    // The same pictures in another order are another data set; under another name of the list they are the same.
    put(dir.path(), b"other.txt", b"a.png\nb/one, two.jpg\n");
    put(dir.path(), b"same.txt", b"a.png\nb/one, two.jpg\n");
    put(dir.path(), b"turned.txt", b"b/one, two.jpg\na.png\n");
    let digest = |name: &str| Dataset::open(&dir.path().join(name)).unwrap().digest();
    assert_eq!(digest("other.txt"), digest("same.txt"));
    assert_ne!(digest("other.txt"), digest("turned.txt"));
    // Without an extension that tells.
    fs::rename(dir.path().join("same.txt"), dir.path().join("same")).unwrap();
    assert!(matches!(Dataset::open(&dir.path().join("same")), Err(DatasetError::NotASource { .. })));
    assert_eq!(open_as(&dir.path().join("same"), SourceKind::List).unwrap().digest(), digest("other.txt"));
}

#[test]
fn what_a_list_names_and_is_not_there_is_skipped_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), b"a.jpg", JPEG);
    put(dir.path(), b"empty.jpg", b"");
    fs::create_dir(dir.path().join("folder.jpg")).unwrap();
    symlink("loop.jpg", dir.path().join("loop.jpg")).unwrap();
    put(dir.path(), b"list.txt", b"gone.jpg\na.jpg\nfolder.jpg\nloop.jpg\nempty.jpg\na.jpg/below.jpg\n");
    let list = dir.path().join("list.txt");
    let d = Dataset::open(&list).unwrap();
    assert_eq!(d.len(), 6);
    for i in [0, 2, 3, 5].map(SampleIndex::new) {
        assert!(d.read(i).unwrap_err().is_undecodable(), "{:?}", d.id(i));
        assert_eq!(d.byte_len(i), Some(0));
    }
    let out = tempfile::tempdir().unwrap();
    let report = pack(&list, out.path(), PackSpec::default()).unwrap();
    assert_eq!((report.samples, report.skipped_count), (1, 5));
    let left: Vec<&str> = report.skipped.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(left, ["gone.jpg", "folder.jpg", "loop.jpg", "empty.jpg", "a.jpg/below.jpg"]);
    assert!(report.skipped[3].1.contains("no bytes"), "{:?}", report.skipped[3]);
}

#[test]
fn a_list_of_nothing_or_of_what_may_not_be_named_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let list = |text: &[u8]| {
        put(dir.path(), b"list.txt", text);
        dir.path().join("list.txt")
    };
    refused(&list(b"cats/a.jpg 3\ncats/b.jpg 4\n"), &["none of the 2", "cats/a.jpg 3", "after a tab"]);
    refused(&list(b"a.jpg\n../b.jpg\n"), &["list.txt, line 2", "../b.jpg", "leaves the list's folder"]);
    refused(&list(b"s3://b/a.jpg\n"), &["list.txt, line 1", "address"]);
    refused(&list(b"a.jpg\na.jpg\n"), &["line 2", "again, first in line 1"]);
    refused(&list(b"\n"), &["no pictures in"]);
    let said = open_as(dir.path(), SourceKind::List).unwrap_err().to_string();
    assert!(said.contains("is no file"), "{said}");
    // Far too large to be one.
    let huge = dir.path().join("huge.txt");
    fs::File::create(&huge).unwrap().set_len(2 << 30).unwrap();
    refused(&huge, &["huge.txt has 2147483648 bytes"]);
}

#[test]
fn names_in_braces_are_the_shards_in_the_order_of_the_names() {
    let dir = tempfile::tempdir().unwrap();
    for shard in 0..3 {
        tar(&dir.path().join(format!("s-{shard:03}.tar")), &[("a.jpg", b"1"), ("a.cls", b"7")]);
    }
    let open = |names: &str| Dataset::open(&dir.path().join(names));
    let all = open("s-{000..002}.tar").unwrap();
    assert_eq!(ids(&all), ["s-000.tar/a.jpg", "s-001.tar/a.jpg", "s-002.tar/a.jpg"]);
    assert_eq!(all.digest(), Dataset::open(dir.path()).unwrap().digest(), "as the folder of them");
    assert_eq!(ids(&open("s-{002,000}.tar").unwrap()), ["s-002.tar/a.jpg", "s-000.tar/a.jpg"]);
    // In different folders.
    for folder in ["x", "y"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        tar(&dir.path().join(folder).join("0.tar"), &[("a.jpg", b"1")]);
    }
    assert_eq!(ids(&open("{y,x}/0.tar").unwrap()), ["y/0.tar/a.jpg", "x/0.tar/a.jpg"]);
    // A file that is really called so.
    tar(&dir.path().join("{1..2}.tar"), &[("b.jpg", b"1")]);
    assert_eq!(ids(&open("{1..2}.tar").unwrap()), ["{1..2}.tar/b.jpg"]);
    let names = |names: &str| dir.path().join(names);
    refused(&names("s-{000..004}.tar"), &["5 names", "2 of them are not there, such as s-003.tar"]);
    put(dir.path(), b"a.dat", b"");
    put(dir.path(), b"b.dat", b"");
    refused(&names("{a,b}.dat"), &["2 names", "end in .tar"]);
    refused(&names("s-{2..1}.tar"), &["`{2..1}` is neither a range"]);
    refused(&names("s-{0..99999999}.tar"), &["more than 1000000"]);
}

#[test]
fn a_plain_tar_keeps_every_picture_and_its_folders_as_classes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain.tar");
    let names = ["dogs/v1.2.jpg", "dogs/v1.3.jpg", "dogs/v1.4.jpg", "cats/a.png"];
    tar(&path, &names.map(|name| (name, JPEG)));
    refused(&path, &["in two ways", "dogs/v1.2.jpg", "2 pictures", "--kind tar", "[data] kind"]);
    let plain = open_as(&path, SourceKind::Tar).unwrap();
    let expected = [1, 1, 1, 0].map(Some);
    assert_eq!(ids(&plain), names.map(|name| format!("plain.tar/{name}")));
    assert_eq!(samples(&plain).iter().map(|(_, label)| *label).collect::<Vec<_>>(), expected);
    assert_eq!(plain.classes(), ["cats", "dogs"]);
    assert_eq!(open_as(&path, SourceKind::WebDataset).unwrap().len(), 2);
    // A side index says how it was made, and is used for that alone.
    index_as(&path, Some(SourceKind::Tar)).unwrap();
    let indexed = Dataset::open(&path).unwrap();
    assert_eq!((ids(&indexed), indexed.digest()), (ids(&plain), plain.digest()));
    assert!(indexed.recorded_hash(SampleIndex::new(3)).is_some());
    assert_eq!(open_as(&path, SourceKind::WebDataset).unwrap().len(), 2);
    // Where nothing is ambiguous, folders are classes too, and samples are what they always were.
    let clear = dir.path().join("clear.tar");
    tar(&clear, &[("dogs/b.jpg", JPEG), ("cats/a.png", JPEG)]);
    let clear = Dataset::open(&clear).unwrap();
    let expected =
        [("clear.tar/dogs/b.jpg".to_owned(), Some(1)), ("clear.tar/cats/a.png".to_owned(), Some(0))];
    assert_eq!(samples(&clear), expected);
}

#[test]
fn what_a_walk_of_a_tar_found_is_kept_until_the_tar_changes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    tar(&path, &[("a.jpg", JPEG), ("b.jpg", JPEG)]);
    let open = || Dataset::open_at(&StoreLocation::from(path.as_path()), &spec(cache.path())).unwrap();
    let kept = || {
        let files = walkdir::WalkDir::new(cache.path()).min_depth(2).into_iter().flatten();
        files.filter(|f| f.file_type().is_file()).map(walkdir::DirEntry::into_path).collect::<Vec<_>>()
    };
    assert_eq!(ids(&open()), ["a.tar/a.jpg", "a.tar/b.jpg"]);
    let [first] = &kept()[..] else { panic!("{:?}", kept()) };
    // That it is read, and that what is damaged is not.
    let written = fs::metadata(first).unwrap().modified().unwrap();
    assert_eq!(ids(&open()).len(), 2);
    assert_eq!(fs::metadata(first).unwrap().modified().unwrap(), written, "not written again");
    let mut bytes = fs::read(first).unwrap();
    bytes[10] ^= 1;
    fs::write(first, bytes).unwrap();
    assert_eq!(ids(&open()).len(), 2);
    tar(&path, &[("a.jpg", JPEG), ("b.jpg", JPEG), ("c.jpg", JPEG)]);
    assert_eq!(ids(&open()).len(), 3, "another tar under the same name");
    assert_eq!(kept().len(), 2);
    // With a side index nothing is kept.
    mcl_data::dataset::index(&path).unwrap();
    assert!(side_file(&path).is_file());
    assert_eq!((ids(&open()).len(), kept().len()), (3, 2));
}

#[test]
fn kinds_that_lie_together_have_to_be_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), b"cats/a.jpg", JPEG);
    tar(&dir.path().join("b.tar"), &[("x.jpg", JPEG)]);
    refused(dir.path(), &["as folder (it holds cats/a.jpg)", "as webdataset (it holds b.tar)", "--kind"]);
    assert_eq!(ids(&open_as(dir.path(), SourceKind::Folder).unwrap()), ["cats/a.jpg"]);
    assert_eq!(ids(&open_as(dir.path(), SourceKind::WebDataset).unwrap()), ["b.tar/x.jpg"]);
    // A table is a choice where something is to be packed.
    let tables = tempfile::tempdir().unwrap();
    put(tables.path(), b"a.jpg", JPEG);
    put(tables.path(), b"c.parquet", b"");
    let said = pack(tables.path(), &dir.path().join("out"), PackSpec::default()).unwrap_err().to_string();
    assert!(said.contains("as parquet (it holds c.parquet)"), "{said}");
    // Deeper down it is no reading of the folder.
    let deep = tempfile::tempdir().unwrap();
    put(deep.path(), b"cats/a.jpg", JPEG);
    put(deep.path(), b"cats/c.parquet", b"");
    assert_eq!(ids(&Dataset::open(deep.path()).unwrap()), ["cats/a.jpg"]);
}

#[test]
fn what_cannot_be_trained_from_says_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), b"data/train-00000-of-00001.parquet", b"PAR1");
    let command = format!("mcl data pack {} --out SHARDS", dir.path().display());
    refused(dir.path(), &[&command]);
    put(dir.path(), b"data/test-00000-of-00001.parquet", b"PAR1");
    let choice = format!("{}/data/test-00000-of-00001.parquet", dir.path().display());
    refused(dir.path(), &["several splits", &choice, "--kind parquet"]);
    let arrow = tempfile::tempdir().unwrap();
    put(arrow.path(), b"data-00000-of-00001.arrow", b"");
    refused(arrow.path(), &["Arrow files", "to_parquet", "mcl data pack"]);
}

#[test]
fn a_device_in_a_list_is_no_picture_and_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), b"a.jpg", JPEG);
    fs::write(dir.path().join("list.txt"), "a.jpg\n/dev/zero\n").unwrap();
    let listed = Dataset::open(&dir.path().join("list.txt")).unwrap();
    assert_eq!(listed.len(), 2);
    let read = |at| listed.read(SampleIndex::new(at));
    assert!(read(0).is_ok() && matches!(read(1), Err(ReadError::Unavailable { .. })));
}

#[test]
fn tables_beside_shards_or_pictures_do_not_keep_these_from_being_read() {
    let dir = tempfile::tempdir().unwrap();
    tar(&dir.path().join("00000.tar"), &[("a.jpg", JPEG)]);
    put(dir.path(), b"00000.parquet", b"about the shard");
    assert_eq!(ids(&Dataset::open(dir.path()).unwrap()), ["00000.tar/a.jpg"]);
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), b"a.jpg", JPEG);
    put(dir.path(), b"metadata.parquet", b"about the pictures");
    assert_eq!(ids(&Dataset::open(dir.path()).unwrap()), ["a.jpg"]);
}
