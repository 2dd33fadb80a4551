//! From what is at a place to how it is read: pure, for folders and buckets alike.

use super::DatasetError;
use mcl_types::SourceKind;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is at a place; of each kind an example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) pictures: Option<String>,
    pub(crate) tars: Option<String>,
    pub(crate) parquets: Option<String>,
    pub(crate) arrows: Option<String>,
}

/// How a place is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Pictures,
    Shards,
    Rows,
}

impl Reading {
    const ALL: [Self; 3] = [Self::Pictures, Self::Shards, Self::Rows];

    const fn kind(self) -> SourceKind {
        match self {
            Self::Pictures => SourceKind::Folder,
            Self::Shards => SourceKind::WebDataset,
            Self::Rows => SourceKind::Parquet,
        }
    }
}

/// One of the ways in which a place can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What would say so.
    pub kind: SourceKind,
    /// A file that speaks for it.
    pub example: String,
}

impl Sight {
    fn of(&self, reading: Reading) -> Option<&String> {
        match reading {
            Reading::Pictures => self.pictures.as_ref(),
            Reading::Shards => self.tars.as_ref(),
            Reading::Rows => self.parquets.as_ref(),
        }
    }

    /// How `place` is read, where it is a folder or a prefix. Tables beside shards tell about these, and what cannot be
    /// trained from is no choice for training: rows count where nothing else is there, or are meant to be packed.
    ///
    /// # Errors
    /// When nothing is there that can be read, or more than one kind and none is `wanted`.
    pub(crate) fn decide(
        &self,
        wanted: Option<SourceKind>,
        packing: bool,
        place: &str,
    ) -> Result<Reading, DatasetError> {
        let empty = || match &self.arrows {
            Some(example) => DatasetError::Arrow { path: place.into(), example: example.clone() },
            None => DatasetError::Empty { path: place.into() },
        };
        let wanted = wanted.map(|kind| match kind {
            SourceKind::Folder => Ok(Reading::Pictures),
            SourceKind::WebDataset | SourceKind::Tar => Ok(Reading::Shards),
            SourceKind::Parquet => Ok(Reading::Rows),
            SourceKind::List => Err(DatasetError::NotAList { path: place.into() }),
        });
        if let Some(wanted) = wanted.transpose()? {
            return self.of(wanted).map(|_| wanted).ok_or_else(empty);
        }
        let rows_count = self.tars.is_none() && (packing || self.pictures.is_none());
        let counts = |r: &Reading| self.of(*r).is_some() && (*r != Reading::Rows || rows_count);
        let seen: Vec<Reading> = Reading::ALL.into_iter().filter(counts).collect();
        match seen[..] {
            [] => Err(empty()),
            [one] => Ok(one),
            _ => {
                let choice =
                    |r: Reading| Choice { kind: r.kind(), example: self.of(r).cloned().unwrap_or_default() };
                let choices = seen.iter().map(|r| choice(*r)).collect();
                Err(DatasetError::Mixed { path: place.into(), choices })
            }
        }
    }
}

/// The splits that parquet files are of, as names that stand for each: `train-00000-of-00002.parquet` is of `train`, and
/// files in different folders are of different ones.
pub(crate) fn splits<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut splits: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for name in names {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let stem = file.strip_suffix(".parquet").unwrap_or(file);
        // What does not number its parts is a split of its own only beside ones that do.
        let split = numbered(stem).map_or("", |(split, _, _)| split);
        splits.entry((folder, split)).or_default().push(name);
    }
    splits.into_values().map(|names| in_braces(&names)).collect()
}

/// Of `train-00000-of-00002`: `train`, `00000`, `-of-00002`.
fn numbered(stem: &str) -> Option<(&str, &str, &str)> {
    let (before, _) = stem.split_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| (split, number, &stem[before.len()..]))
}

/// One name that stands for all of a split's, or the names with commas between.
fn in_braces(names: &[&str]) -> String {
    let (Some(first), Some(last)) = (names.first(), names.last()) else { return String::new() };
    if names.len() == 1 {
        return (*first).to_owned();
    }
    match (numbered(first), numbered(last)) {
        (Some((split, from, rest)), Some((other, to, end))) if (split, rest) == (other, end) => {
            let count = from
                .parse::<usize>()
                .ok()
                .zip(to.parse::<usize>().ok())
                .map(|(a, b)| b.saturating_sub(a) + 1);
            if count == Some(names.len()) {
                return format!("{split}-{{{from}..{to}}}{rest}");
            }
            format!("{{{}}}", names.join(","))
        }
        _ => format!("{{{}}}", names.join(",")),
    }
}

/// Refuses parquet files of several splits.
pub(crate) fn one_split<'a>(
    names: impl Iterator<Item = &'a str>,
    wanted: Option<SourceKind>,
    place: &str,
) -> Result<(), DatasetError> {
    let found = splits(names);
    if wanted.is_some() || found.len() < 2 {
        return Ok(());
    }
    let choices = found.into_iter().map(|names| format!("{}/{names}", place.trim_end_matches('/'))).collect();
    Err(DatasetError::Splits { path: PathBuf::from(place), choices })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(pictures: bool, tars: bool, parquets: bool) -> Sight {
        let some = |is: bool, name: &str| is.then(|| name.to_owned());
        Sight {
            pictures: some(pictures, "a.jpg"),
            tars: some(tars, "b.tar"),
            parquets: some(parquets, "c.parquet"),
            arrows: None,
        }
    }

    #[test]
    fn one_kind_is_read_and_several_are_named() {
        let decide = |p, t, r, wanted| sight(p, t, r).decide(wanted, true, "here");
        assert_eq!(decide(true, false, false, None).unwrap(), Reading::Pictures);
        assert_eq!(decide(false, true, false, None).unwrap(), Reading::Shards);
        assert_eq!(decide(false, false, true, None).unwrap(), Reading::Rows);
        let said = decide(true, true, true, None).unwrap_err().to_string();
        for word in ["here", "a.jpg", "b.tar", "folder", "webdataset", "--kind"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let said = decide(true, false, true, None).unwrap_err().to_string();
        assert!(said.contains("c.parquet") && said.contains("parquet"), "{said}");
        // As img2dataset leaves it, and pictures with a table beside them.
        assert_eq!(decide(false, true, true, None).unwrap(), Reading::Shards);
        let training = sight(true, false, true).decide(None, false, "here");
        assert_eq!(training.unwrap(), Reading::Pictures);
        let kind = |kind| decide(true, true, true, Some(kind)).unwrap();
        assert_eq!(kind(SourceKind::Folder), Reading::Pictures);
        assert_eq!((kind(SourceKind::Tar), kind(SourceKind::WebDataset)), (Reading::Shards, Reading::Shards));
        assert_eq!(kind(SourceKind::Parquet), Reading::Rows);
        assert!(matches!(
            decide(true, true, true, Some(SourceKind::List)),
            Err(DatasetError::NotAList { .. })
        ));
        assert!(matches!(
            decide(false, true, false, Some(SourceKind::Folder)),
            Err(DatasetError::Empty { .. })
        ));
        assert!(matches!(decide(false, false, false, None), Err(DatasetError::Empty { .. })));
        let arrows = Sight { arrows: Some("d.arrow".to_owned()), ..Sight::default() };
        assert!(matches!(arrows.decide(None, true, "here"), Err(DatasetError::Arrow { .. })));
    }

    #[test]
    fn splits_of_parquet_files_are_told_apart_and_named_so_that_they_can_be_typed() {
        let one = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"];
        assert_eq!(splits(one.into_iter()), ["train-{00000..00001}-of-00002.parquet"]);
        assert!(one_split(one.into_iter(), None, "d").is_ok());
        let two = [one[0], one[1], "test-00000-of-00001.parquet"];
        let expected = ["test-00000-of-00001.parquet", "train-{00000..00001}-of-00002.parquet"];
        assert_eq!(splits(two.into_iter()), expected);
        let said = one_split(two.into_iter(), None, "d/").unwrap_err().to_string();
        assert!(expected.iter().all(|name| said.contains(&format!("d/{name}"))), "{said}");
        assert!(one_split(two.into_iter(), Some(SourceKind::Parquet), "d").is_ok());
        let folders =
            ["default/test/0000.parquet", "default/train/0000.parquet", "default/train/0001.parquet"];
        let expected =
            ["default/test/0000.parquet", "{default/train/0000.parquet,default/train/0001.parquet}"];
        assert_eq!(splits(folders.into_iter()), expected);
        assert_eq!(splits(["a.parquet", "b.parquet"].into_iter()).len(), 1);
        // One of three is missing: braces would name it.
        let gap = ["t-00000-of-00003.parquet", "t-00002-of-00003.parquet"];
        assert_eq!(splits(gap.into_iter()), ["{t-00000-of-00003.parquet,t-00002-of-00003.parquet}"]);
    }
}
