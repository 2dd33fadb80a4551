//! Sources as other tools write them: WebDataset's writer, `datasets`, pyarrow, Python's tarfile. The files in
//! `tests/foreign` are theirs, made by `make.py` there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use bytes::Bytes;
use mcl_data::pack::{PackError, PackReport, PackSpec, pack_intake};
use mcl_data::rows::{Rows, RowsError};
use mcl_data::{Dataset, DatasetError, Intake, RemoteSpec};
use mcl_types::{Digest, SampleIndex, SourceKind};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What the sources hold.
#[derive(Deserialize)]
struct Expected {
    classes: Vec<String>,
    /// Class, and the BLAKE3 hash of the bytes.
    pictures: Vec<(u32, String)>,
}

fn foreign(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(foreign("expected.json")).unwrap()).unwrap()
}

fn spec(cache: &Path) -> RemoteSpec {
    RemoteSpec { cache_dir: cache.to_owned(), ..RemoteSpec::default() }
}

/// Packs, and opens what was packed.
fn packed(
    source: &Path,
    kind: Option<SourceKind>,
    column: Option<&str>,
) -> Result<(Dataset, PackReport, tempfile::TempDir), String> {
    let (out, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = spec(cache.path());
    let intake = Intake::open(&source.into(), kind, column, &remote).map_err(|e| e.to_string())?;
    let pack = PackSpec { samples_per_shard: 4, shrink: None, threads: 2 };
    let report =
        pack_intake(&intake, &out.path().into(), pack, &remote, &|_| ()).map_err(|e| e.to_string())?;
    Ok((Dataset::open(out.path()).unwrap(), report, out))
}

fn assert_holds(dataset: &Dataset, pictures: &[(u32, String)]) {
    assert_eq!(dataset.len(), pictures.len() as u64);
    for (i, (label, hash)) in (0..).map(SampleIndex::new).zip(pictures) {
        let bytes = dataset.read(i).unwrap();
        assert_eq!(Digest::of(&bytes).to_string(), *hash, "{:?}", dataset.id(i));
        assert_eq!(dataset.label(i), Some(*label), "{:?}", dataset.id(i));
    }
}

#[test]
fn shards_of_webdatasets_own_writer_are_trained_from_and_packed() {
    let Expected { pictures, .. } = expected();
    let cache = tempfile::tempdir().unwrap();
    let names = foreign("wds-{000000..000001}.tar");
    let direct = Dataset::open_at(&names.as_path().into(), &spec(cache.path())).unwrap();
    assert_holds(&direct, &pictures);
    assert_eq!(direct.id(SampleIndex::new(7)).unwrap(), "wds-000001.tar/sample/0007.jpg");
    let (packed, report, _out) = packed(&names, None, None).unwrap();
    assert_holds(&packed, &pictures);
    assert_eq!((report.skipped_count, report.shards.len()), (0, 3));
}

#[test]
fn a_plain_tar_is_read_as_one_where_it_is_said() {
    let Expected { classes, pictures } = expected();
    let said = packed(&foreign("plain.tar"), None, None).err().unwrap();
    assert!(said.contains("in two ways") && said.contains("--kind tar"), "{said}");
    let (packed, _, _out) = packed(&foreign("plain.tar"), Some(SourceKind::Tar), None).unwrap();
    assert_holds(&packed, &pictures);
    assert_eq!(packed.classes(), classes);
    assert_eq!(packed.id(SampleIndex::new(1)).unwrap(), "shard-000000.tar/dog/picture_1.jpg");
}

#[test]
fn parquet_of_datasets_is_packed_with_its_classes() {
    let Expected { classes, pictures } = expected();
    let names = foreign("train-{00000..00001}-of-00002.parquet");
    let (whole, report, out) = packed(&names, None, None).unwrap();
    assert_holds(&whole, &pictures);
    assert_eq!(whole.classes(), classes);
    assert_eq!(report.shards.len(), 3);
    let id = whole.id(SampleIndex::new(8)).unwrap().into_owned();
    assert_eq!(id, "shard-000002.tar/train-00001-of-00002/00000002.png");
    // One thread or four, whole shards or parts of row groups: the same bytes for the same shards.
    let read = |n: u32| fs::read(out.path().join(format!("shard-00000{n}.tar"))).unwrap();
    let (_, _, again) = packed(&names, None, Some("image")).unwrap();
    assert!((0..3).all(|n| fs::read(again.path().join(format!("shard-00000{n}.tar"))).unwrap() == read(n)));
    // And it is said what to do where it cannot be trained from.
    let error = Dataset::open(&names).unwrap_err();
    assert!(matches!(error, DatasetError::PackFirst { .. }), "{error}");
    assert!(error.to_string().contains("mcl data pack"), "{error}");
}

#[test]
fn parquet_of_other_writers_and_rows_without_pictures() {
    let Expected { pictures, .. } = expected();
    let (zstd, _, _out) = packed(&foreign("zstd.parquet"), None, None).unwrap();
    assert_holds(&zstd, &pictures[..6]);
    let (holes, report, _out) = packed(&foreign("holes.parquet"), None, None).unwrap();
    assert_holds(&holes, &pictures[..1]);
    assert_eq!(report.skipped_count, 2);
    assert!(report.skipped[0].1.contains("no bytes of a picture"), "{:?}", report.skipped);
    assert!(report.skipped[1].0.contains("row 2") && report.skipped[1].1.contains("elsewhere.jpg"));
}

#[test]
fn parquet_that_is_not_to_be_had_says_why() {
    let refused = |source: &Path, column: Option<&str>, words: &[&str]| {
        let said = packed(source, None, column).err().unwrap();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    let train = foreign("train-00000-of-00002.parquet");
    refused(&train, Some("caption"), &["train-00000", "no column `caption`", "image.bytes", "label"]);
    refused(&foreign("wds-000000.tar"), Some("image"), &["no columns", "--column image"]);
    let dir = tempfile::tempdir().unwrap();
    fs::copy(&train, dir.path().join("a-00000-of-00001.parquet")).unwrap();
    fs::copy(&train, dir.path().join("b-00000-of-00001.parquet")).unwrap();
    refused(dir.path(), None, &["several splits", "a-00000-of-00001.parquet", "b-00000-of-00001.parquet"]);
    let (both, ..) = packed(dir.path(), Some(SourceKind::Parquet), None).unwrap();
    assert_eq!(both.len(), 12);
}

/// Reads all of it.
fn rows(bytes: &[u8]) -> Result<u64, RowsError> {
    let rows = Rows::of_bytes("x.parquet", Bytes::copy_from_slice(bytes))?;
    let mut count = 0;
    rows.read::<RowsError>(0..rows.len(), |_, _| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

#[test]
fn parquet_that_is_cut_off_or_damaged_is_an_error_with_its_name() {
    let whole = fs::read(foreign("zstd.parquet")).unwrap();
    assert_eq!(rows(&whole).unwrap(), 6);
    for cut in (0..whole.len()).step_by(7) {
        let said = rows(&whole[..cut]).unwrap_err().to_string();
        assert!(said.contains("x.parquet"), "{said}");
    }
    // The end is there and what it tells of is not.
    for gone in [1, 100, whole.len() / 2] {
        let said = rows(&whole[gone..]).unwrap_err().to_string();
        assert!(said.contains("x.parquet"), "{said}");
    }
    let mut claims = whole.clone();
    let at = claims.len() - 8;
    claims[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(rows(&claims).unwrap_err().to_string().contains("claims 4294967295 bytes of metadata"));
}

#[test]
fn a_file_that_breaks_in_the_middle_stops_the_pack_and_what_is_done_stays() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("x.parquet");
    let whole = fs::read(foreign("train-00000-of-00002.parquet")).unwrap();
    let about = SerializedFileReader::new(Bytes::from(whole.clone())).unwrap();
    let (second, _) = about.metadata().row_group(1).column(0).byte_range();
    let mut broken = whole.clone();
    broken[second as usize..][..8].fill(0xff);
    fs::write(&source, &broken).unwrap();
    let (out, remote) = (dir.path().join("out"), spec(&dir.path().join("cache")));
    let pack = || {
        let intake = Intake::open(&source.as_path().into(), None, None, &remote).unwrap();
        let pack = PackSpec { samples_per_shard: 1, shrink: None, threads: 1 };
        pack_intake(&intake, &out.as_path().into(), pack, &remote, &|_| ())
    };
    let error = pack().unwrap_err();
    assert!(matches!(error, PackError::Intake(_)) && error.to_string().contains("x.parquet"), "{error}");
    assert!(matches!(Dataset::open(&out), Err(DatasetError::Unfinished { .. })));
    assert!(out.join("shard-000000.tar").is_file(), "nothing was done at all");
    // Mended it is another source: what was read of the broken one may have been wrong too.
    fs::write(&source, &whole).unwrap();
    let said = pack().unwrap_err().to_string();
    assert!(said.contains("one that has changed") && said.contains("or remove it"), "{said}");
    fs::remove_dir_all(&out).unwrap();
    assert_eq!(pack().unwrap().samples, 6);
}
