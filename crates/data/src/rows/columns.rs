//! Which columns of a parquet file hold pictures, their names and their classes.
//!
//! A picture is a struct of `bytes` and `path`, as Hugging Face's `datasets` writes it, or bytes alone. What `datasets` notes of
//! its columns decides where there are several, and has the names of the classes. Names are as short as they can be:
//! whoever has to say a column says `image`, not `image.bytes`.

use super::RowsError;
use parquet::basic::{LogicalType, Type};
use parquet::file::metadata::FileMetaData;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::Value;

/// Columns that hold labels, where nothing else tells.
const LABELS: [&str; 5] = ["label", "labels", "class", "category", "target"];
/// What `datasets` calls its note in a file's metadata.
const NOTE: &str = "huggingface";

/// The columns that are read, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) bytes: usize,
    pub(super) path: Option<usize>,
    pub(super) label: Option<usize>,
    /// Names of the classes.
    pub(super) classes: Vec<String>,
}

impl Columns {
    /// Finds them; `wanted` is what was said of the pictures' one.
    pub(super) fn find(about: &FileMetaData, file: &str, wanted: Option<&str>) -> Result<Self, RowsError> {
        let schema = about.schema_descr();
        let features = features(about);
        let found = pictures(schema);
        let names = |list: &[(String, usize)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let all: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let nothing = |wanted: &str| RowsError::NoColumn {
            file: file.to_owned(),
            wanted: wanted.to_owned(),
            columns: all.clone(),
        };
        let (name, bytes) = match wanted {
            Some(wanted) => {
                let one = found.into_iter().find(|(name, _)| name == wanted);
                one.ok_or_else(|| nothing(&format!("`{wanted}` as one of pictures")))?
            }
            None => {
                let noted: Vec<_> =
                    found.iter().filter(|(name, _)| is_image(&features, name)).cloned().collect();
                let structs: Vec<_> =
                    found.iter().filter(|(name, at)| all.get(*at) != Some(name)).cloned().collect();
                let candidates = [noted, structs, found].into_iter().find(|list| !list.is_empty());
                let candidates = candidates.ok_or_else(|| nothing("one of pictures"))?;
                match <[_; 1]>::try_from(candidates) {
                    Ok([one]) => one,
                    Err(several) => {
                        let columns = names(&several);
                        return Err(RowsError::SeveralColumns { file: file.to_owned(), columns });
                    }
                }
            }
        };
        let path = text(schema, &format!("{name}.path"));
        let (label, classes) = labels(schema, &features);
        Ok(Self { bytes, path, label, classes })
    }
}

/// A column of one value a row.
fn flat<'a>(schema: &'a SchemaDescriptor, path: &str) -> Option<(usize, &'a ColumnDescriptor)> {
    let columns = schema.columns().iter().enumerate();
    let found =
        columns.map(|(at, column)| (at, &**column)).find(|(_, column)| column.path().string() == path);
    found.filter(|(_, column)| column.max_rep_level() == 0)
}

fn text(schema: &SchemaDescriptor, path: &str) -> Option<usize> {
    flat(schema, path).filter(|(_, column)| column.physical_type() == Type::BYTE_ARRAY).map(|(at, _)| at)
}

/// All columns that may hold pictures, by the name that is said of each.
fn pictures(schema: &SchemaDescriptor) -> Vec<(String, usize)> {
    let may = |(at, column): (usize, &ColumnDescriptor)| {
        let parts = column.path().parts();
        let is_text = matches!(column.logical_type_ref(), Some(LogicalType::String));
        if column.physical_type() != Type::BYTE_ARRAY || column.max_rep_level() != 0 || is_text {
            return None;
        }
        match parts {
            [name] => Some((name.clone(), at)),
            [name, bytes] if bytes == "bytes" => Some((name.clone(), at)),
            _ => None,
        }
    };
    schema.columns().iter().map(|column| &**column).enumerate().filter_map(may).collect()
}

/// What `datasets` noted of the columns.
fn features(about: &FileMetaData) -> Value {
    let notes = about.key_value_metadata().into_iter().flatten();
    let note = notes.filter(|note| note.key == NOTE).find_map(|note| note.value.as_deref());
    let note: Option<Value> = note.and_then(|text| serde_json::from_str(text).ok());
    note.and_then(|note| note.pointer("/info/features").cloned()).unwrap_or_default()
}

fn is_image(features: &Value, column: &str) -> bool {
    features.get(column).and_then(|feature| feature.get("_type")).and_then(Value::as_str) == Some("Image")
}

/// The column of labels and the names of the classes: what is noted as classes, else what is called so.
fn labels(schema: &SchemaDescriptor, features: &Value) -> (Option<usize>, Vec<String>) {
    let number = |name: &str| {
        let whole = |column: &ColumnDescriptor| matches!(column.physical_type(), Type::INT32 | Type::INT64);
        flat(schema, name).filter(|(_, column)| whole(column)).map(|(at, _)| at)
    };
    let noted = features
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, feature)| feature.get("_type").and_then(Value::as_str) == Some("ClassLabel"));
    let mut noted: Vec<(usize, &String, &Value)> =
        noted.filter_map(|(name, feature)| Some((number(name)?, name, feature))).collect();
    // One of several is taken only where its name says that it is the one.
    if noted.len() > 1 {
        noted.retain(|(_, name, _)| LABELS.contains(&name.as_str()));
    }
    if let [(at, _, feature)] = noted[..] {
        let names = feature.get("names").and_then(Value::as_array).into_iter().flatten();
        let names = names.map(|name| name.as_str().unwrap_or_default().to_owned());
        return (Some(at), names.collect());
    }
    (LABELS.iter().find_map(|name| number(name)), Vec::new())
}
