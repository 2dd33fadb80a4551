//! Parquet files that no tool of the field writes by itself, and that somebody may have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use bytes::Bytes;
use mcl_data::inspect::inspect;
use mcl_data::rows::{Rows, RowsError};
use mcl_data::{Intake, Limits, RemoteSpec};
use mcl_types::SourceKind;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::Path;
use std::sync::Arc;

const JPEG: &[u8] = b"\xff\xd8\xff as far as anybody looks";

/// A file of a column `image` that may be null, a column `label`, and `datasets`' note of the names of the classes.
fn file(pictures: &[Option<&[u8]>], labels: &[i64], classes: &[&str]) -> Vec<u8> {
    let schema = "message m { optional binary image; required int64 label; }";
    let note = serde_json::json!({ "info": { "features": {
        "image": { "_type": "Image" }, "label": { "_type": "ClassLabel", "names": classes },
    } } });
    let note = KeyValue::new("huggingface".to_owned(), note.to_string());
    let properties = WriterProperties::builder().set_key_value_metadata(Some(vec![note])).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let there: Vec<ByteArray> = pictures.iter().flatten().map(|bytes| bytes.to_vec().into()).collect();
    let levels: Vec<i16> = pictures.iter().map(|picture| i16::from(picture.is_some())).collect();
    column.typed::<ByteArrayType>().write_batch(&there, Some(&levels), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

fn open(file: Vec<u8>) -> Result<Rows, RowsError> {
    Rows::of_bytes("x.parquet", Bytes::from(file))
}

#[test]
fn bytes_alone_are_pictures_and_labels_that_are_none_are_left_out() {
    let rows = open(file(&[Some(JPEG), None, Some(b"x")], &[2, 0, -1], &["a", "b", "c"])).unwrap();
    let mut found = Vec::new();
    let mut take = |id: &str, row: Result<mcl_data::rows::Row<'_>, String>| {
        found.push((id.to_owned(), row.map(|row| (row.bytes.len(), row.path, row.label)).ok()));
        Ok::<_, RowsError>(())
    };
    rows.read(0..rows.len(), &mut take).unwrap();
    let expected = [
        ("x.parquet row 0".to_owned(), Some((JPEG.len(), "x/00000000".to_owned(), Some(2)))),
        ("x.parquet row 1".to_owned(), None),
        ("x.parquet row 2".to_owned(), Some((1, "x/00000002".to_owned(), None))),
    ];
    assert_eq!(found, expected);
}

#[test]
fn rows_without_end_in_a_small_file_are_refused() {
    let many = 200_000;
    let small = file(&vec![None; many], &vec![0; many], &["a"]);
    assert!(small.len() < many / 10, "{} bytes", small.len());
    let said = open(small).unwrap_err().to_string();
    assert!(said.contains("x.parquet") && said.contains("claims more rows than it has bytes"), "{said}");
}

#[test]
fn files_whose_labels_mean_different_classes_are_not_one_source() {
    let dir = tempfile::tempdir().unwrap();
    let intake = || {
        let remote = RemoteSpec { cache_dir: dir.path().join("cache"), ..RemoteSpec::default() };
        Intake::open(&dir.path().into(), Some(SourceKind::Parquet), None, &remote)
    };
    let put = |name: &str, classes: &[&str]| {
        std::fs::write(dir.path().join(name), file(&[Some(JPEG), None], &[1, 0], classes)).unwrap();
    };
    put("a.parquet", &["cat", "dog"]);
    put("b.parquet", &["cat", "dog"]);
    assert_eq!(intake().unwrap().len(), 4);
    put("b.parquet", &["cat", "cow", "dog"]);
    let said = intake().unwrap_err().to_string();
    assert!(said.contains("b.parquet") && said.contains("3 classes are not the 2 of a.parquet"), "{said}");
}

#[test]
fn an_inspection_counts_rows_as_it_counts_files() {
    let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign");
    let look = |name: &str, threads| {
        let source = foreign.join(name);
        let intake = Intake::open(&source.as_path().into(), None, None, &RemoteSpec::default()).unwrap();
        inspect(&intake, Limits::default(), threads, &|_, _| ()).unwrap()
    };
    let all = look("train-{00000..00001}-of-00002.parquet", 1);
    assert_eq!(all, look("train-{00000..00001}-of-00002.parquet", 4));
    assert_eq!((all.count, all.shards, all.classes, all.undecodable_count), (10, 2, 3, 0));
    let formats: Vec<_> = all.formats.values().copied().collect();
    assert_eq!(formats.iter().sum::<u64>(), 10);
    let holes = look("holes.parquet", 2);
    assert_eq!((holes.count, holes.undecodable_count), (3, 2));
    assert_eq!(holes.undecodable[0].id, "holes.parquet row 1");
}
