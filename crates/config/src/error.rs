//! What can be wrong with a job file, as a person needs to hear it.

use std::path::PathBuf;

/// A job that cannot be run; names the file, the key and, where the key stands in the file, the line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the job file: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a value of another type than the key's.
    #[error("{origin}:{line}: {message}")]
    Syntax {
        /// File name.
        origin: String,
        /// 1-based line.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that no job has.
    #[error("{origin}:{line}: unknown key `{key}`{}", nearest(.suggestion.as_deref()))]
    UnknownKey {
        /// File name.
        origin: String,
        /// 1-based line.
        line: usize,
        /// The key as found.
        key: String,
        /// The known key nearest to it.
        suggestion: Option<String>,
    },
    /// A value out of its range.
    #[error("{}: `{key}`: {message}", place(.origin, *.line))]
    Invalid {
        /// File name.
        origin: String,
        /// 1-based line, where the key stands in the file; absent for defaults and overrides.
        line: Option<usize>,
        /// `section.key`.
        key: &'static str,
        /// What was found and what is expected.
        message: String,
    },
    /// An environment variable or flag that does not fit.
    #[error("override of a job key: {message}")]
    Override {
        /// What does not fit.
        message: String,
    },
}

fn nearest(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |s| format!("; did you mean `{s}`?"))
}

fn place(origin: &str, line: Option<usize>) -> String {
    line.map_or_else(|| origin.to_owned(), |line| format!("{origin}:{line}"))
}
