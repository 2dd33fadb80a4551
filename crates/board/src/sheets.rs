//! Sheets of montages: when one is due, and the thread that has it drawn.
//!
//! Drawing decodes and augments a lane's pictures, which takes seconds: it is done by a thread of its own, one sheet at a
//! time. Who asks while one is drawn is passed over: the next one is due later anyway.

use crate::keeper::Heard;
use std::sync::{Arc, mpsc};

/// The first step of which a sheet is drawn besides step 0.
const FIRST: u64 = 16;

/// A drawn sheet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// A JPEG or PNG file.
    pub file: Vec<u8>,
}

/// Draws the montages of a step; or says why it cannot.
pub type DrawSheet = Arc<dyn Fn(u64) -> Result<Sheet, String> + Send + Sync>;

/// Whether a sheet of this step is drawn: of the first one, and of powers of two, so that there are few however long the
/// run is. Pictures do not change with training.
pub(crate) const fn is_due(step: u64) -> bool {
    step == 0 || (step >= FIRST && step.is_power_of_two())
}

/// The newest step below `committed` of which a sheet is drawn.
pub(crate) const fn newest_due(committed: u64) -> Option<u64> {
    match committed.checked_sub(1) {
        None => None,
        Some(last) if last < FIRST => Some(0),
        Some(last) => Some(1 << last.ilog2()),
    }
}

/// The way to the drawing thread.
pub(crate) struct Painter {
    ask: mpsc::SyncSender<u64>,
    busy: bool,
    warned: bool,
}

impl Painter {
    /// Of the run of a number.
    pub(crate) fn start(run: u64, draw: DrawSheet, answers: mpsc::Sender<Heard>) -> Self {
        let (ask, asked) = mpsc::sync_channel::<u64>(1);
        std::thread::spawn(move || {
            for step in asked {
                let sheet = draw(step);
                if answers.send(Heard::Drawn { run, step, sheet }).is_err() {
                    return;
                }
            }
        });
        Self { ask, busy: false, warned: false }
    }

    pub(crate) fn ask(&mut self, step: u64) {
        if !self.busy {
            self.busy = self.ask.try_send(step).is_ok();
        }
    }

    /// It has answered; with an error, perhaps.
    pub(crate) fn is_free(&mut self, error: Option<&str>) {
        self.busy = false;
        if let Some(error) = error
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!(error, "no sheet of montages for TensorBoard; the run goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheets_are_few_and_the_newest_is_found() {
        let due: Vec<u64> = (0..1_000_000).filter(|s| is_due(*s)).collect();
        assert_eq!((due[0], due[1], due[2], due.len()), (0, 16, 32, 17));
        assert_eq!(newest_due(0), None);
        for committed in [1_u64, 5, 16, 17, 31, 32, 33, 1000, 999_999] {
            let expected = due.iter().rev().find(|d| **d < committed).copied();
            assert_eq!(newest_due(committed), expected, "{committed}");
        }
    }
}
