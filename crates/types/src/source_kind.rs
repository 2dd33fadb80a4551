//! How a source of pictures is to be read, where what is there does not tell.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A way of reading a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SourceKind {
    /// Loose pictures, nested at will; folders are classes.
    Folder,
    /// Tar shards whose entries of one key are one sample.
    WebDataset,
    /// Tars in which every picture is a sample by its path.
    Tar,
    /// A text file of paths and labels.
    List,
    /// Parquet files with a column of pictures.
    Parquet,
}

/// No way of reading a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no kind of source, expected one of {}", SourceKind::ALL.map(SourceKind::name).join(", "))]
pub struct SourceKindError {
    /// What was given.
    pub found: String,
}

impl SourceKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Folder, Self::WebDataset, Self::Tar, Self::List, Self::Parquet];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::WebDataset => "webdataset",
            Self::Tar => "tar",
            Self::List => "list",
            Self::Parquet => "parquet",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SourceKind {
    type Err = SourceKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| SourceKindError { found: text.to_owned() })
    }
}

impl TryFrom<String> for SourceKind {
    type Error = SourceKindError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SourceKind> for String {
    fn from(kind: SourceKind) -> Self {
        kind.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused_with_a_list() {
        for kind in SourceKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let said = "zip".parse::<SourceKind>().unwrap_err().to_string();
        assert!(said.contains("`zip`") && said.contains("folder, webdataset, tar, list, parquet"), "{said}");
    }
}
