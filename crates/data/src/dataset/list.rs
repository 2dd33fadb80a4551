//! A file that lists pictures: a path a line, and where there is one a label.
//!
//! `.txt`: the whole line is the path, or what stands before a tab. `.tsv` and `.csv`: columns; two without a header, or
//! those that a header names. Relative paths count from the list's folder. Numbers are labels as they are; where one label
//! is no number, all are names, numbered in byte order.
//!
//! Left out: whether the files are there (`dataset`).

use std::collections::HashMap;
use std::path::Path;

/// Bytes of a list at most: that of some ten million pictures.
pub(crate) const LARGEST: u64 = 1 << 30;
/// Lines of a list at most: each takes some hundred bytes of memory.
const MOST: usize = 30_000_000;

/// Headers of the column of paths, in lower case.
const PATHS: [&str; 9] =
    ["path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"];
/// Headers of the column of labels.
const LABELS: [&str; 6] = ["label", "labels", "class", "category", "target", "class_name"];

/// How the columns of a list are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// A path a line; a label after a tab.
    Lines,
    /// Columns between tabs, nothing quoted.
    Tabs,
    /// Columns between commas, quoted where needed.
    Commas,
}

impl ListFormat {
    /// What the extension of `name` says.
    pub fn of(name: &Path) -> Option<Self> {
        let extension = name.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "txt" | "lst" | "list" => Some(Self::Lines),
            "tsv" => Some(Self::Tabs),
            "csv" => Some(Self::Commas),
            _ => None,
        }
    }
}

/// A picture that is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As raw bytes; below the list's folder unless it begins with a slash.
    pub path: Vec<u8>,
    /// Its class.
    pub label: Option<u32>,
}

/// A list that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PictureList {
    /// In the list's order.
    pub pictures: Vec<Listed>,
    /// Names by label, where labels are names.
    pub classes: Vec<Vec<u8>>,
}

/// What is wrong with a list, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ListError {
    /// Counted from 1.
    pub line: u64,
    /// What was found and what was expected.
    pub what: String,
}

impl PictureList {
    /// Reads a list.
    ///
    /// # Errors
    /// When a line is not of the format, or names what no list may name.
    pub fn parse(bytes: &[u8], format: ListFormat) -> Result<Self, ListError> {
        let mut rows = match format {
            ListFormat::Lines => lines(bytes)?,
            ListFormat::Tabs | ListFormat::Commas => columns(bytes, format)?,
        };
        let mut seen: HashMap<Vec<u8>, u64> = HashMap::new();
        for row in &mut rows {
            let fail = |what| Err(ListError { line: row.line, what });
            match clean(&row.path) {
                Ok(path) => row.path = path,
                Err(what) => return fail(what),
            }
            if let Some(before) = seen.insert(row.path.clone(), row.line) {
                return fail(format!("`{}` is listed again, first in line {before}", shown(&row.path)));
            }
        }
        drop(seen);
        Ok(labelled(rows))
    }
}

struct Row {
    line: u64,
    path: Vec<u8>,
    label: Vec<u8>,
}

fn shown(path: &[u8]) -> std::borrow::Cow<'_, str> {
    super::escape(path)
}

fn lines(bytes: &[u8]) -> Result<Vec<Row>, ListError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let all = bytes.iter().filter(|b| **b == b'\n').count();
    enough_for(all)?;
    let row = |(line, text): (u64, &[u8])| {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let tab = text.iter().position(|b| *b == b'\t');
        let (path, label) = tab.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
        (!text.is_empty()).then(|| Row { line, path: path.to_vec(), label: label.trim_ascii().to_vec() })
    };
    Ok((1..).zip(bytes.split(|b| *b == b'\n')).filter_map(row).collect())
}

/// Refuses more lines than there is memory for.
fn enough_for(lines: usize) -> Result<(), ListError> {
    if lines <= MOST {
        return Ok(());
    }
    let what = format!("more than {MOST} lines: make several lists, and pack each (`mcl data pack`)");
    Err(ListError { line: MOST as u64 + 1, what })
}

fn columns(bytes: &[u8], format: ListFormat) -> Result<Vec<Row>, ListError> {
    let tabs = format == ListFormat::Tabs;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .quoting(!tabs)
        .has_headers(false)
        .flexible(true)
        .from_reader(bytes);
    let mut rows = Vec::new();
    let mut record = csv::ByteRecord::new();
    let mut wanted: Option<(usize, Option<usize>)> = None;
    let bad =
        |e: &csv::Error| ListError { line: e.position().map_or(0, csv::Position::line), what: e.to_string() };
    while reader.read_byte_record(&mut record).map_err(|e| bad(&e))? {
        let line = record.position().map_or(0, csv::Position::line);
        if wanted.is_none() {
            wanted = header(&record);
            if wanted.is_some() {
                continue;
            }
            if record.len() > 2 {
                let what = format!(
                    "{} columns and no header, expected a path and a label, or a first line that names the columns `path` and `label`",
                    record.len()
                );
                return Err(ListError { line, what });
            }
            wanted = Some((0, Some(1)));
        }
        let (path, label) = wanted.unwrap_or((0, Some(1)));
        let Some(path) = record.get(path) else {
            return Err(ListError {
                line,
                what: format!("{} columns, and none of them the path", record.len()),
            });
        };
        let label = label.and_then(|at| record.get(at)).unwrap_or_default().trim_ascii();
        rows.push(Row { line, path: path.to_vec(), label: label.to_vec() });
        enough_for(rows.len())?;
    }
    Ok(rows)
}

/// The columns of path and label, where the first line is a header.
fn header(record: &csv::ByteRecord) -> Option<(usize, Option<usize>)> {
    let find = |names: &[&str]| {
        let is_one =
            |field: &[u8]| names.iter().any(|name| field.trim_ascii().eq_ignore_ascii_case(name.as_bytes()));
        record.iter().position(is_one)
    };
    find(&PATHS).map(|path| (path, find(&LABELS)))
}

/// The path without what says nothing; or why it may not be listed.
fn clean(path: &[u8]) -> Result<Vec<u8>, String> {
    let found = || format!("`{}`", shown(path));
    if path.windows(3).any(|w| w == b"://") {
        return Err(format!(
            "{} is an address, expected a path: relative ones count from the list's folder",
            found()
        ));
    }
    if path.contains(&0) {
        return Err(format!("{} has a zero byte in it, which no file name has", found()));
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")) {
        if part == b".." {
            return Err(format!(
                "{} leaves the list's folder: write the whole path, from /, or move the list",
                found()
            ));
        }
        if !clean.is_empty() || path.starts_with(b"/") {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    if clean.is_empty() {
        return Err("no path".to_owned());
    }
    Ok(clean)
}

fn labelled(rows: Vec<Row>) -> PictureList {
    let number = |label: &[u8]| std::str::from_utf8(label).ok()?.parse::<u32>().ok();
    let told = || rows.iter().map(|row| row.label.as_slice()).filter(|label| !label.is_empty());
    if told().all(|label| number(label).is_some()) {
        let pictures = rows.into_iter().map(|row| Listed { label: number(&row.label), path: row.path });
        return PictureList { pictures: pictures.collect(), classes: Vec::new() };
    }
    let names: std::collections::BTreeSet<&[u8]> = told().collect();
    let classes: Vec<Vec<u8>> = names.into_iter().map(<[u8]>::to_vec).collect();
    let of = |label: &[u8]| classes.binary_search_by(|class| class.as_slice().cmp(label)).ok();
    let pictures = rows.into_iter().map(|row| {
        let label = of(&row.label).and_then(|at| u32::try_from(at).ok());
        Listed { path: row.path, label }
    });
    PictureList { pictures: pictures.collect(), classes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8], format: ListFormat) -> Vec<(String, Option<u32>)> {
        let list = PictureList::parse(bytes, format).unwrap();
        list.pictures.into_iter().map(|p| (shown(&p.path).into_owned(), p.label)).collect()
    }

    fn refused(bytes: &[u8], format: ListFormat, words: &[&str]) {
        let said = PictureList::parse(bytes, format).unwrap_err().to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }

    fn pairs(expected: &[(&str, Option<u32>)]) -> Vec<(String, Option<u32>)> {
        expected.iter().map(|(path, label)| ((*path).to_owned(), *label)).collect()
    }

    #[test]
    fn lines_are_paths_whatever_is_in_them() {
        let text = b"\xef\xbb\xbf./b 1, \"x\".jpg\r\n\n a.jpg\nraw\xff//c.png\t7\n/abs/d.gif";
        let expected =
            [("b 1, \"x\".jpg", None), (" a.jpg", None), ("raw%FF/c.png", Some(7)), ("/abs/d.gif", None)];
        assert_eq!(parse(text, ListFormat::Lines), pairs(&expected));
    }

    #[test]
    fn columns_are_two_or_those_that_a_header_names() {
        let plain = pairs(&[("a b.jpg", Some(3)), ("c,d.jpg", None)]);
        assert_eq!(parse(b"a b.jpg,3\r\n\"c,d.jpg\"\r\n", ListFormat::Commas), plain);
        assert_eq!(parse(b"a b.jpg\t3\nc,d.jpg\t\n", ListFormat::Tabs), plain);
        let headed = b"id,Label,split,FileName\n1,3,train,a b.jpg\n2,,val,\"c,d.jpg\"\n";
        assert_eq!(parse(headed, ListFormat::Commas), plain);
        refused(b"1,a.jpg,x\n", ListFormat::Commas, &["line 1", "3 columns", "`path` and `label`"]);
        refused(b"label,path\n3\n", ListFormat::Commas, &["line 2", "none of them the path"]);
    }

    #[test]
    fn labels_that_are_names_are_numbered_in_byte_order() {
        let list = PictureList::parse(b"a\tdog\nb\tcat\nc\t\nd\t10\n", ListFormat::Tabs).unwrap();
        assert_eq!(list.classes, [b"10".to_vec(), b"cat".to_vec(), b"dog".to_vec()]);
        assert_eq!(
            list.pictures.iter().map(|p| p.label).collect::<Vec<_>>(),
            [Some(2), Some(1), None, Some(0)]
        );
    }

    #[test]
    fn what_no_list_may_name_is_refused_with_its_line() {
        use ListFormat::{Commas, Lines};
        refused(b"a.jpg\nx/../../b.jpg", Lines, &["line 2", "x/../../b.jpg", "leaves the list's folder"]);
        refused(b"s3://bucket/a.jpg", Lines, &["line 1", "is an address"]);
        refused(b"a\0.jpg", Lines, &["line 1", "zero byte"]);
        refused(b"b.jpg\na.jpg\n./a.jpg\n", Lines, &["line 3", "`a.jpg` is listed again, first in line 2"]);
        refused(b"a.jpg,1\n,2\n", Commas, &["line 2", "no path"]);
    }
}
