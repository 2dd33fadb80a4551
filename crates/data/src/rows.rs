//! Pictures in parquet files, as Hugging Face's data sets are kept: rows, read in their order.
//!
//! Role: one numbered list of rows over all files, and their pictures. A range of rows may be read by any thread; pages before
//! it are passed over, and one page of each column is in memory at a time.
//!
//! Invariants: what a page claims is compared with what is stored before memory is taken (`page`); a file that is not as it
//! says is an error with its name and row, never a panic (one inside the format's library becomes an error).
//!
//! Left out: reading rows in any order, which costs a page a picture.

mod blob;
mod columns;
mod page;

pub use page::PageError;

use crate::dataset::{EXTENSIONS, RowBytes, RowFile, escape};
use crate::decode::panic_message;
use crate::remote::RemoteError;
use blob::Blob;
use columns::Columns;
use mcl_types::Digest;
use parquet::basic::Compression;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::Length as _;
use parquet::file::serialized_reader::SerializedPageReader;
use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes at the end of every file: the length of its metadata, and the format's name.
const TAIL: u64 = 8;
/// Bytes of metadata at most: those of a file of some hundred thousand row groups.
const LARGEST_METADATA: u64 = 256 << 20;

/// A parquet file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// It is not what it should be.
    #[error("{file}{}: {source}", at_row(*row))]
    Parquet {
        /// The file.
        file: String,
        /// Where, in rows of the file.
        row: Option<u64>,
        /// What is wrong.
        source: ParquetError,
    },
    /// A page of it is not.
    #[error("{file}: {source}")]
    Page {
        /// The file.
        file: String,
        /// What is wrong.
        source: PageError,
    },
    /// Something else is wrong with it.
    #[error("{file}{}: {what}", at_row(*row))]
    Broken {
        /// The file.
        file: String,
        /// Where.
        row: Option<u64>,
        /// What was found and what was expected.
        what: String,
    },
    /// The object store does not give it.
    #[error("{file}: {source}")]
    Remote {
        /// The file.
        file: String,
        /// What is wrong.
        source: RemoteError,
    },
    /// No column holds pictures.
    #[error(
        "{file}: no column {wanted}: expected a struct of `bytes` and `path`, or a binary column; it has {}",
        columns.join(", ")
    )]
    NoColumn {
        /// The file.
        file: String,
        /// What was looked for.
        wanted: String,
        /// The columns.
        columns: Vec<String>,
    },
    /// Several do.
    #[error("{file} has several columns of pictures: say which with {}", columns.iter().map(|c| format!("`--column {c}`")).collect::<Vec<_>>().join(" or "))]
    SeveralColumns {
        /// The file.
        file: String,
        /// Their names.
        columns: Vec<String>,
    },
}

fn at_row(row: Option<u64>) -> String {
    row.map(|row| format!(", row {row}")).unwrap_or_default()
}

/// Parquet files as one list of rows.
#[derive(Debug)]
pub struct Rows {
    files: Vec<FileRows>,
    len: u64,
    digest: Digest,
    classes: Vec<Vec<u8>>,
}

/// One file.
#[derive(Debug)]
struct FileRows {
    name: String,
    first: u64,
    blob: Arc<Blob>,
    modified: i64,
    about: ParquetMetaData,
    columns: Columns,
    /// Where the columns begin whose pages were looked at.
    sound: Mutex<BTreeSet<u64>>,
}

/// A row that has a picture.
#[derive(Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The picture's encoded bytes.
    pub bytes: &'a [u8],
    /// A name for it, which no other row has.
    pub path: String,
    /// Its class.
    pub label: Option<u32>,
}

impl Rows {
    /// Opens files; `column` says which one holds the pictures, where they do not.
    pub(crate) fn open(files: Vec<RowFile>, column: Option<&str>) -> Result<Self, RowsError> {
        let mut hasher = blake3::Hasher::new_derive_key("mcl parquet rows 1");
        let mut rows = Self { files: Vec::new(), len: 0, digest: Digest::of(&[]), classes: Vec::new() };
        for RowFile { name, bytes, modified } in files {
            let blob = Blob(bytes);
            let (about, footer) = guarded(&name, || metadata(&name, &blob))?;
            for part in
                [name.as_bytes(), &blob.len().to_le_bytes(), &footer, column.unwrap_or_default().as_bytes()]
            {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            let columns = Columns::find(about.file_metadata(), &name, column)?;
            let classes: Vec<_> = columns.classes.iter().map(|class| class.clone().into_bytes()).collect();
            if rows.files.is_empty() {
                rows.classes = classes;
            } else if rows.classes != classes {
                let first = rows.files.first().map(|file| file.name.as_str()).unwrap_or_default();
                let (found, expected) = (classes.len(), rows.classes.len());
                let what =
                    format!("its {found} classes are not the {expected} of {first}: pack each by itself");
                return Err(RowsError::Broken { file: name, row: None, what });
            }
            let file = FileRows {
                name,
                first: rows.len,
                blob: Arc::new(blob),
                modified,
                about,
                columns,
                sound: Mutex::default(),
            };
            rows.len =
                rows.len.checked_add(file.check()?).ok_or_else(|| file.broken(None, "too many rows"))?;
            rows.files.push(file);
        }
        rows.digest = Digest::from_bytes(*hasher.finalize().as_bytes());
        Ok(rows)
    }

    /// Opens one file in memory.
    ///
    /// # Errors
    /// When it is no such file.
    pub fn of_bytes(name: &str, bytes: bytes::Bytes) -> Result<Self, RowsError> {
        Self::open(vec![RowFile { name: name.to_owned(), bytes: RowBytes::Here(bytes), modified: 0 }], None)
    }

    /// Number of rows.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of files.
    pub(crate) const fn files(&self) -> u64 {
        self.files.len() as u64
    }

    /// Tells the state of the files: times of writing, or what an object store calls a version.
    pub(crate) fn stamp(&self, hasher: &mut blake3::Hasher) {
        for FileRows { blob, modified, .. } in &self.files {
            hasher.update(&modified.to_le_bytes());
            if let RowBytes::Away(remote, object) = &blob.0 {
                hasher.update(remote.version(*object).as_bytes());
            }
        }
    }

    /// Digest of the files' metadata.
    pub(crate) const fn digest(&self) -> Digest {
        self.digest
    }

    /// Class names by label.
    pub(crate) fn classes(&self) -> &[Vec<u8>] {
        &self.classes
    }

    /// Reads a range in order: `take` gets an id and the row, or the reason why it has no picture, and may end it.
    ///
    /// # Errors
    /// When a file is not as its metadata says, or `take` ends it.
    pub fn read<E: From<RowsError>>(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(&str, Result<Row<'_>, String>) -> Result<(), E>,
    ) -> Result<(), E> {
        for file in &self.files {
            let mut first = 0;
            for group in file.about.row_groups() {
                let count = u64::try_from(group.num_rows()).unwrap_or(0);
                let from = range.start.max(file.first + first);
                let to = range.end.min(file.first + first + count);
                if from < to {
                    let rows = from - file.first - first..to - file.first - first;
                    file.read_group(group, first, rows, &mut take)?;
                }
                first += count;
            }
        }
        Ok(())
    }
}

/// The metadata, and the bytes that it was read from.
fn metadata(name: &str, blob: &Blob) -> Result<(ParquetMetaData, bytes::Bytes), RowsError> {
    let broken = |what: String| RowsError::Broken { file: name.to_owned(), row: None, what };
    let fault = |e| fault(name, None, e);
    let len = blob.len();
    if len < 2 * TAIL {
        return Err(broken(format!("{len} bytes, expected a parquet file")));
    }
    let tail = blob.range(len - TAIL..len).map_err(fault)?;
    let Some((length, b"PAR1")) = tail.split_first_chunk::<4>() else {
        return Err(broken(
            "it does not end as a parquet file does: it is cut off, or another file".to_owned(),
        ));
    };
    let length = u64::from(u32::from_le_bytes(*length));
    if length > LARGEST_METADATA || length + TAIL > len {
        return Err(broken(format!("it claims {length} bytes of metadata, and has {len} in all")));
    }
    let footer = blob.range(len - TAIL - length..len).map_err(fault)?;
    let about = ParquetMetaDataReader::decode_metadata(&footer.slice(..footer.len() - TAIL as usize));
    Ok((about.map_err(fault)?, footer))
}

/// What the library says, or the failure of the object store behind it.
fn fault(file: &str, row: Option<u64>, source: ParquetError) -> RowsError {
    let file = file.to_owned();
    let mut next: Option<&(dyn std::error::Error + 'static)> = match &source {
        ParquetError::External(inner) => Some(&**inner),
        _ => None,
    };
    while let Some(error) = next {
        if let Some(remote) = error.downcast_ref::<RemoteError>() {
            return RowsError::Remote { file, source: remote.clone() };
        }
        next = error.source();
    }
    RowsError::Parquet { file, row, source }
}

/// A panic in the format's library is an error of the file.
fn guarded<T>(file: &str, work: impl FnOnce() -> Result<T, RowsError>) -> Result<T, RowsError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let what = format!("the reader of parquet failed on it: {}", panic_message(&*panic));
        Err(RowsError::Broken { file: file.to_owned(), row: None, what })
    })
}

impl FileRows {
    fn broken(&self, row: Option<u64>, what: impl Into<String>) -> RowsError {
        RowsError::Broken { file: self.name.clone(), row, what: what.into() }
    }

    /// Compares the metadata with itself and with the file; its rows.
    fn check(&self) -> Result<u64, RowsError> {
        let mut all = 0_u64;
        let most = self.blob.len();
        for group in self.about.row_groups() {
            let rows = u64::try_from(group.num_rows())
                .map_err(|_| self.broken(None, "a negative number of rows"))?;
            for at in [Some(self.columns.bytes), self.columns.path, self.columns.label].into_iter().flatten()
            {
                let column =
                    group.columns().get(at).ok_or_else(|| self.broken(None, "a row group lacks columns"))?;
                if column.num_values() != group.num_rows() {
                    let (found, expected) = (column.num_values(), group.num_rows());
                    return Err(self.broken(None, format!("a column of {found} values in {expected} rows")));
                }
                if !matches!(
                    column.compression(),
                    Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_)
                ) {
                    let said = format!(
                        "it is compressed with {}, expected snappy, zstd or nothing: write it again, in Python `pyarrow.parquet.write_table(table, file)`",
                        column.compression()
                    );
                    return Err(self.broken(None, said));
                }
                let (start, length) = guarded(&self.name, || Ok(column.byte_range()))?;
                if start.checked_add(length).is_none_or(|end| end > self.blob.len()) {
                    return Err(self.broken(None, "a column lies outside the file: it is cut off"));
                }
            }
            all = all.checked_add(rows).filter(|all| *all <= most).ok_or_else(|| {
                self.broken(None, format!("it claims more rows than it has bytes, which are {most}"))
            })?;
        }
        Ok(all)
    }

    /// Reads rows of a group, which begins with row `first` of the file.
    fn read_group<E: From<RowsError>>(
        &self,
        group: &RowGroupMetaData,
        first: u64,
        rows: Range<u64>,
        take: &mut impl FnMut(&str, Result<Row<'_>, String>) -> Result<(), E>,
    ) -> Result<(), E> {
        let skip = usize::try_from(rows.start).unwrap_or(usize::MAX);
        let mut group = guarded(&self.name, || Group::open(self, group, first, skip))?;
        for row in rows {
            let row = first + row;
            let Cells { bytes, path, label } = guarded(&self.name, || group.next(self, row))?;
            let id = format!("{} row {row}", self.name);
            let picture = bytes.as_ref().map(ByteArray::data).filter(|bytes| !bytes.is_empty());
            let Some(bytes) = picture else {
                let elsewhere = path
                    .map(|path| format!(", only the path {}", escape(path.as_bytes())))
                    .unwrap_or_default();
                take(&id, Err(format!("the row has no bytes of a picture{elsewhere}")))?;
                continue;
            };
            let label = label.and_then(|label| u32::try_from(label).ok());
            take(&id, Ok(Row { bytes, path: self.path_of(row, path.as_deref()), label }))?;
        }
        Ok(())
    }

    /// The name of the file, the number of the row, and the extension of the name that the row has for its picture.
    fn path_of(&self, row: u64, path: Option<&str>) -> String {
        let stem = self.name.strip_suffix(".parquet").unwrap_or(&self.name);
        let extension = path.and_then(|path| Path::new(path).extension()).and_then(std::ffi::OsStr::to_str);
        let extension = extension.filter(|e| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(e)));
        let extension = extension.map(|extension| format!(".{extension}")).unwrap_or_default();
        format!("{stem}/{row:08}{extension}")
    }
}

/// What a row has.
struct Cells {
    bytes: Option<ByteArray>,
    path: Option<String>,
    label: Option<i64>,
}

/// A row group that is read on.
struct Group {
    bytes: Column<ByteArrayType>,
    path: Option<Column<ByteArrayType>>,
    label: Option<Label>,
}

enum Label {
    Narrow(Column<Int32Type>),
    Wide(Column<Int64Type>),
}

impl Group {
    fn open(file: &FileRows, group: &RowGroupMetaData, first: u64, skip: usize) -> Result<Self, RowsError> {
        let open = |at: usize| file.column(group, at, first, skip);
        let wrong = || file.broken(Some(first), "a column of another type than the metadata says");
        let text = |at: usize| match open(at)? {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(Column::new(reader)),
            _ => Err(wrong()),
        };
        let label = |at: usize| match open(at)? {
            ColumnReader::Int32ColumnReader(reader) => Ok(Label::Narrow(Column::new(reader))),
            ColumnReader::Int64ColumnReader(reader) => Ok(Label::Wide(Column::new(reader))),
            _ => Err(wrong()),
        };
        let Columns { bytes, path, label: labels, .. } = &file.columns;
        let mut group = Self {
            bytes: text(*bytes)?,
            path: path.map(text).transpose()?,
            label: labels.map(label).transpose()?,
        };
        group.skip(skip).map_err(|e| fault(&file.name, Some(first), e))?;
        Ok(group)
    }

    fn skip(&mut self, rows: usize) -> Result<(), ParquetError> {
        self.bytes.skip(rows)?;
        self.path.as_mut().map_or(Ok(()), |column| column.skip(rows))?;
        match &mut self.label {
            Some(Label::Narrow(column)) => column.skip(rows),
            Some(Label::Wide(column)) => column.skip(rows),
            None => Ok(()),
        }
    }

    fn next(&mut self, file: &FileRows, row: u64) -> Result<Cells, RowsError> {
        let fault = |e| fault(&file.name, Some(row), e);
        let bytes = self.bytes.next().map_err(fault)?;
        let path = self.path.as_mut().map_or(Ok(None), Column::next).map_err(fault)?;
        let label = match &mut self.label {
            Some(Label::Narrow(column)) => column.next().map(|label| label.map(i64::from)),
            Some(Label::Wide(column)) => column.next(),
            None => Ok(None),
        };
        let path = path.map(|path| String::from_utf8_lossy(path.data()).into_owned());
        Ok(Cells { bytes, path, label: label.map_err(fault)? })
    }
}

impl FileRows {
    /// A column of a row group, whose pages were looked at.
    fn column(
        &self,
        group: &RowGroupMetaData,
        at: usize,
        first: u64,
        skip: usize,
    ) -> Result<ColumnReader, RowsError> {
        let about = group.column(at);
        let (start, length) = about.byte_range();
        let chunk = start..start + length;
        if skip == 0 {
            self.blob.want(&chunk);
        }
        /// What goes wrong with a page, or with reading it.
        enum Wrong {
            Page(PageError),
            Read(ParquetError),
        }
        impl From<PageError> for Wrong {
            fn from(error: PageError) -> Self {
                Self::Page(error)
            }
        }
        let is_sound = || self.sound.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_sound().contains(&start) {
            page::check(chunk, |range| self.blob.range(range).map_err(Wrong::Read)).map_err(|wrong| {
                match wrong {
                    Wrong::Page(source) => RowsError::Page { file: self.name.clone(), source },
                    Wrong::Read(e) => fault(&self.name, Some(first), e),
                }
            })?;
            is_sound().insert(start);
        }
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let pages = SerializedPageReader::new(Arc::clone(&self.blob), about, rows, None);
        let pages = pages.map_err(|e| fault(&self.name, Some(first), e))?;
        Ok(get_column_reader(about.column_descr_ptr(), Box::new(pages)))
    }
}

/// A column that is read value by value.
struct Column<T: DataType> {
    reader: ColumnReaderImpl<T>,
    levels: Vec<i16>,
    values: Vec<T::T>,
}

impl<T: DataType> Column<T> {
    const fn new(reader: ColumnReaderImpl<T>) -> Self {
        Self { reader, levels: Vec::new(), values: Vec::new() }
    }

    fn skip(&mut self, rows: usize) -> Result<(), ParquetError> {
        let skipped = self.reader.skip_records(rows)?;
        if skipped == rows { Ok(()) } else { Err(too_few(skipped)) }
    }

    /// The next row's value, where it has one.
    fn next(&mut self) -> Result<Option<T::T>, ParquetError> {
        self.levels.clear();
        self.values.clear();
        let (rows, _, _) = self.reader.read_records(1, Some(&mut self.levels), None, &mut self.values)?;
        if rows == 1 { Ok(self.values.pop()) } else { Err(too_few(0)) }
    }
}

fn too_few(found: usize) -> ParquetError {
    ParquetError::EOF(format!("a column ends after {found} rows more, before its row group does"))
}
