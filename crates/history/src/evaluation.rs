//! A row of `evaluations.jsonl`: what frozen features were worth after some steps.

use crate::lines::{Lines, LinesError};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in a run directory.
pub const EVALUATIONS: &str = "evaluations.jsonl";
/// Rows that are read at most: more than any run has.
const MOST: usize = 1 << 16;

/// An evaluation of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Of the state after so many steps.
    pub step: u64,
    /// Whose features: `momentum` or `online`.
    pub encoder: String,
    /// Shares of objects that were told right, one a probe and place.
    pub accuracies: Vec<Accuracy>,
    /// What it took, seconds.
    pub seconds: f64,
    /// Seconds since 1970 at which it was done.
    pub time: f64,
}

/// What one probe found in one place; shares are 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// `knn` or `linear`.
    pub probe: String,
    /// `objects` or `scenes`.
    pub on: String,
    /// By the features of the trained weights.
    pub trained: f64,
    /// By those of random weights.
    pub random: f64,
    /// By raw pixels.
    pub pixels: f64,
}

/// The rows of a file, in its order, and how many lines were none. A file that is not there has none.
///
/// # Errors
/// When it cannot be read.
pub fn evaluations(path: &Path) -> Result<(Vec<Evaluation>, u64), LinesError> {
    let news = Lines::<Evaluation>::new(path).look(MOST)?;
    Ok((news.lines, news.unreadable))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn evaluation(step: u64, trained: f64) -> Evaluation {
        let accuracy = |on: &str| Accuracy {
            probe: "knn".to_owned(),
            on: on.to_owned(),
            trained,
            random: 0.25,
            pixels: 0.5,
        };
        Evaluation {
            step,
            encoder: "online".to_owned(),
            accuracies: vec![accuracy("objects"), accuracy("scenes")],
            seconds: 2.0,
            time: 7.0,
        }
    }

    #[test]
    fn rows_are_read_as_they_were_written_and_other_lines_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EVALUATIONS);
        assert_eq!(evaluations(&path).unwrap(), (Vec::new(), 0));
        let rows = vec![evaluation(4, 0.5), evaluation(8, 0.625)];
        let text: String = rows.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
        std::fs::write(&path, format!("nonsense\n{text}{{\"step\": 9")).unwrap();
        assert_eq!(evaluations(&path).unwrap(), (rows, 1));
    }
}
