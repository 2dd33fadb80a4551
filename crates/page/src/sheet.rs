//! The newest montage sheet: drawn when somebody asks, one at a time, and not too often.
//!
//! The decision is pure ([`Desk::ask`]); drawing is the cluster's. A sheet costs reading and augmenting a lane's
//! pictures, beside a coordinator that has other things to do.

use bytes::Bytes;
use serde::Serialize;

/// Seconds between two drawings at least.
pub const EVERY: f64 = 30.0;

/// What viewers are told of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SheetState {
    /// The step that the newest sheet shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// One is being drawn.
    pub drawing: bool,
    /// Why the last one was not drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What to do for someone who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Draw this step.
    Draw(u64),
    /// Show what is there, if anything.
    Keep,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Desk {
    /// The run and step that are shown.
    sheet: Option<(String, u64, Bytes)>,
    drawing: bool,
    failed: Option<String>,
    last: Option<f64>,
}

impl Desk {
    /// Somebody asks for the sheet of `run` at time `now`, whose newest step is `newest`.
    pub fn ask(&mut self, run: &str, newest: Option<u64>, now: f64) -> Ask {
        if self.sheet.as_ref().is_some_and(|(of, _, _)| of != run) {
            (self.sheet, self.last, self.failed) = (None, None, None);
        }
        let rested = self.last.is_none_or(|last| now - last >= EVERY);
        let shown = self.sheet.as_ref().map(|(_, step, _)| *step);
        match newest.filter(|step| !self.drawing && rested && shown != Some(*step)) {
            Some(step) => {
                self.drawing = true;
                Ask::Draw(step)
            }
            None => Ask::Keep,
        }
    }

    /// What came of drawing `step` of `run`.
    pub fn drawn(&mut self, run: &str, step: u64, sheet: Result<Vec<u8>, String>, now: f64) {
        self.drawing = false;
        self.last = Some(now);
        match sheet {
            Ok(png) => {
                self.failed = None;
                self.sheet = Some((run.to_owned(), step, png.into()));
            }
            Err(reason) => self.failed = Some(reason),
        }
    }

    /// The sheet, with its step.
    pub fn sheet(&self, run: &str) -> Option<(u64, Bytes)> {
        self.sheet.as_ref().filter(|(of, _, _)| of == run).map(|(_, step, png)| (*step, png.clone()))
    }

    /// For viewers.
    pub fn state(&self, run: Option<&str>) -> SheetState {
        let step =
            self.sheet.as_ref().filter(|(of, _, _)| Some(of.as_str()) == run).map(|(_, step, _)| *step);
        SheetState { step, drawing: self.drawing, failed: self.failed.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sheet_at_a_time_and_not_too_often() {
        let mut desk = Desk::default();
        assert_eq!(desk.ask("r", None, 0.0), Ask::Keep, "no step yet");
        assert_eq!(desk.ask("r", Some(5), 0.0), Ask::Draw(5));
        assert_eq!(desk.ask("r", Some(6), 100.0), Ask::Keep, "one is being drawn");
        assert!(desk.sheet("r").is_none() && desk.state(Some("r")).drawing);
        desk.drawn("r", 5, Ok(vec![1]), 101.0);
        assert_eq!(desk.sheet("r"), Some((5, Bytes::from_static(&[1]))));
        assert_eq!(desk.ask("r", Some(7), 101.0 + EVERY - 1.0), Ask::Keep, "too soon");
        assert_eq!(desk.ask("r", Some(5), 500.0), Ask::Keep, "nothing new");
        assert_eq!(desk.ask("r", Some(7), 500.0), Ask::Draw(7));
        desk.drawn("r", 7, Err("no pictures".to_owned()), 501.0);
        let state = desk.state(Some("r"));
        assert_eq!((state.step, state.failed.as_deref()), (Some(5), Some("no pictures")));
        assert_eq!(desk.ask("r", Some(8), 502.0), Ask::Keep, "a failure is no reason to hurry");
    }

    #[test]
    fn another_runs_sheet_is_not_shown() {
        let mut desk = Desk::default();
        assert_eq!(desk.ask("r", Some(1), 0.0), Ask::Draw(1));
        desk.drawn("r", 1, Ok(vec![1]), 0.0);
        assert!(desk.sheet("s").is_none());
        assert_eq!(desk.state(Some("s")).step, None);
        assert_eq!(desk.ask("s", Some(1), 1.0), Ask::Draw(1));
    }
}
