//! Where checkpoints or pictures are kept: a path, or a place in an object store.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What begins the address of an object store: S3, Google Cloud Storage, Azure.
const SCHEMES: [&str; 7] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss"];
const FILE: &str = "file://";

/// A folder (`runs/store`, `file:///srv/store`) or a place in an object store (`s3://bucket/prefix`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoreLocation {
    /// A folder of this machine.
    Folder(PathBuf),
    /// Scheme, bucket and prefix; without a `/` at the end.
    Object(String),
}

/// An address of no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreLocationError {
    /// Nothing at all.
    #[error("an empty place, expected a folder or s3://bucket/prefix")]
    Empty,
    /// A store that is not known.
    #[error(
        "`{found}` begins with {scheme}://, expected a folder, or one of file, s3, gs, az, abfs before ://"
    )]
    Scheme {
        /// The address.
        found: String,
        /// How it begins.
        scheme: String,
    },
    /// A password in an address: addresses are in job files, logs and statuses.
    #[error("`{found}`: expected no password in an address; credentials come from the environment")]
    Secret {
        /// The address without it.
        found: String,
    },
    /// An address without a bucket, or with more than a path after it.
    #[error(
        "`{found}`: expected {scheme}://bucket or {scheme}://bucket/prefix, without `?`, `#`, empty or dotted parts"
    )]
    Bucket {
        /// The address.
        found: String,
        /// How it begins.
        scheme: &'static str,
    },
}

impl StoreLocation {
    /// A place inside this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::Folder(folder) => Self::Folder(folder.join(name)),
            Self::Object(url) => Self::Object(format!("{url}/{name}")),
        }
    }

    /// The folder, where it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Object(_) => None,
        }
    }
}

impl FromStr for StoreLocation {
    type Err = StoreLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(StoreLocationError::Empty);
        }
        if let Some(path) = text.strip_prefix(FILE) {
            return Ok(Self::Folder(PathBuf::from(path)));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Folder(PathBuf::from(text)));
        };
        let Some(scheme) = SCHEMES.into_iter().find(|known| *known == scheme) else {
            let (found, scheme) = (text.to_owned(), scheme.to_owned());
            return Err(StoreLocationError::Scheme { found, scheme });
        };
        let rest = rest.trim_end_matches('/');
        let host = rest.split('/').next().unwrap_or_default();
        if host.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            return Err(StoreLocationError::Secret { found: shown(scheme, rest) });
        }
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['?', '#', '\\']);
        if !rest.split('/').all(plain) {
            return Err(StoreLocationError::Bucket { found: shown(scheme, rest), scheme });
        }
        Ok(Self::Object(format!("{scheme}://{rest}")))
    }
}

/// An address as an error may repeat it: without a password, and without a query, where signatures stand.
fn shown(scheme: &str, rest: &str) -> String {
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (path, more) = rest.split_at(end);
    let public = match path.rsplit_once('@').and_then(|(user, place)| Some((user.split_once(':')?.0, place)))
    {
        Some((user, place)) => format!("{user}:...@{place}"),
        None => path.to_owned(),
    };
    let cut = more.chars().next().map_or_else(String::new, |c| format!("{c}..."));
    format!("{scheme}://{public}{cut}").escape_debug().to_string()
}

impl TryFrom<String> for StoreLocation {
    type Error = StoreLocationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StoreLocation> for String {
    fn from(location: StoreLocation) -> Self {
        location.to_string()
    }
}

impl From<PathBuf> for StoreLocation {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

impl From<&Path> for StoreLocation {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Object(url) => f.write_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<StoreLocation, StoreLocationError> {
        text.parse()
    }

    #[test]
    fn folders_and_stores_are_told_apart() {
        let object = |url: &str| Ok(StoreLocation::Object(url.to_owned()));
        assert_eq!(parse("runs/a"), Ok(StoreLocation::Folder("runs/a".into())));
        assert_eq!(parse("file:///srv/a"), Ok(StoreLocation::Folder("/srv/a".into())));
        assert_eq!(parse("s3://bucket"), object("s3://bucket"));
        assert_eq!(parse("gs://bucket/a/b/"), object("gs://bucket/a/b"));
        assert_eq!(parse("az://container@account/a"), object("az://container@account/a"));
        let inside = parse("s3://bucket/a").unwrap().join("run").to_string();
        assert_eq!(inside, "s3://bucket/a/run");
        assert_eq!(parse("a").unwrap().join("b"), StoreLocation::Folder("a/b".into()));
    }

    #[test]
    fn secrets_in_addresses_are_refused_and_not_repeated() {
        for bad in ["s3://AKIA:hunter2@bucket/a", "s3://b/a?X-Amz-Signature=hunter2", "az://c@a/b#hunter2"] {
            let said = parse(bad).unwrap_err().to_string();
            assert!(!said.contains("hunter2") && said.contains("..."), "{said}");
        }
        assert!(parse("az://container@account/a:b").is_ok());
    }

    #[test]
    fn what_is_no_store_is_an_error() {
        assert_eq!(parse(""), Err(StoreLocationError::Empty));
        assert!(matches!(parse("ftp://a/b"), Err(StoreLocationError::Scheme { .. })));
        for bad in ["s3://", "s3:///a", "s3://b//a", "s3://b/../c", "s3://b/a?x=1", "gs://b/.", "s3://b/a#c"]
        {
            assert!(matches!(parse(bad), Err(StoreLocationError::Bucket { .. })), "{bad}");
        }
    }
}
