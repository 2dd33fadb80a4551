//! TensorBoard's event files of a run, kept as `metrics.jsonl` has it.
//!
//! Invariants: a row is written at most once for as long as it stands; where what is written does not stand, a record says
//! from which step on (TensorBoard then forgets it), and the rows follow that stand. So what TensorBoard shows is what
//! `metrics.jsonl` holds, after a crash and a roll back too. Whatever fails is warned of once and tried again later, from
//! the rows in the file. Files are not made durable: they can be made again.

use crate::sheets::Sheet;
use mcl_history::Row;
use mcl_tensorboard::{Event, EventFile, Image, Records, ValueKind, event_files};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The folder in a run directory.
const FOLDER: &str = "events";
/// Name of the sheets.
const SHEETS: &str = "montages";
/// Pause after the first failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    folder: PathBuf,
    /// Seconds in the name of the newest file.
    newest: Option<u64>,
    file: Option<EventFile>,
    written: Written,
    /// Rows of steps below this one stand in the files.
    next: u64,
    failed: Option<Failed>,
    /// It failed before it was opened this time: the pause then, and nobody needs to be told again.
    again: Option<Duration>,
}

/// What is in the files.
#[derive(Debug, Default)]
struct Written {
    /// When each step was committed, in step order.
    times: Vec<(u64, f64)>,
    sheets: BTreeSet<u64>,
}

#[derive(Debug)]
struct Failed {
    at: Instant,
    pause: Duration,
}

impl Board {
    /// Looks what is there. Nothing is written yet.
    pub(crate) fn open(root: &Path) -> Self {
        Self::look(root.join(FOLDER), None)
    }

    /// Looks again after it failed.
    pub(crate) fn open_again(&mut self) {
        let again = self.failed.as_ref().map(|f| f.pause);
        *self = Self::look(std::mem::take(&mut self.folder), again);
    }

    fn look(folder: PathBuf, again: Option<Duration>) -> Self {
        let files = event_files(&folder);
        let written = Written::default();
        let mut board = Self { folder, newest: None, file: None, written, next: 0, failed: None, again };
        match files {
            Ok(files) => {
                board.newest = files.last().map(|(seconds, _)| *seconds);
                files.iter().for_each(|(_, path)| board.written.read(path));
            }
            Err(error) => board.fail(&error),
        }
        board
    }

    /// Takes rows that stand, in step order from the first: those that are written are passed over, the rest follows.
    pub(crate) fn settle(&mut self, rows: &[Row]) {
        for row in rows {
            if self.file.is_none() && self.written.is(row) {
                self.next = row.step + 1;
            } else {
                self.append(row);
            }
        }
    }

    /// All rows that stand were given, those of so many steps.
    pub(crate) fn settled(&mut self, committed: u64, time: f64) {
        let too_much = |step: Option<&u64>| step.is_some_and(|s| *s >= committed);
        let last = self.written.times.last().map(|(step, _)| step);
        if self.file.is_none() && (too_much(last) || too_much(self.written.sheets.last())) {
            self.attempt(|board| board.file(time).map(drop));
        }
        drop(self.written.sheets.split_off(&committed));
        self.written.times = Vec::new();
    }

    /// Appends a row; one that is written already is passed over.
    pub(crate) fn append(&mut self, row: &Row) {
        if row.step < self.next || self.failed.is_some() {
            return;
        }
        let step = row.step;
        self.attempt(|board| {
            board.next = board.next.max(step);
            board.file(row.time)?.append(&event(row))
        });
        if self.failed.is_none() {
            self.next = step + 1;
        }
    }

    /// Steps from `to` on no longer stand.
    pub(crate) fn roll_back(&mut self, to: u64, time: f64) {
        self.next = self.next.min(to);
        drop(self.written.sheets.split_off(&to));
        if self.failed.is_none() {
            self.attempt(|board| board.file(time)?.append(&Event::start(time, to)));
        }
    }

    /// A sheet of a step, which may no longer stand.
    pub(crate) fn sheet(&mut self, step: u64, sheet: Sheet, time: f64) {
        if step >= self.next || self.has_sheet(step) || self.failed.is_some() {
            return;
        }
        let side = |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX);
        let Sheet { width, height, file } = sheet;
        let image = Image { height: side(height), width: side(width), colorspace: 3, encoded: file };
        self.attempt(|board| board.file(time)?.append(&Event::image(time, step, SHEETS, image)));
        if self.failed.is_none() {
            self.written.sheets.insert(step);
        }
    }

    /// Steps of which rows stand in the files.
    pub(crate) const fn steps(&self) -> u64 {
        self.next
    }

    /// Whether the sheet of a step is there.
    pub(crate) fn has_sheet(&self, step: u64) -> bool {
        self.written.sheets.contains(&step)
    }

    /// Lets readers see what was appended.
    pub(crate) fn flush(&mut self) {
        if self.file.is_some() {
            self.attempt(|board| board.file.as_mut().map_or(Ok(()), EventFile::flush));
            if self.failed.is_none() && self.again.take().is_some() {
                tracing::info!(folder = %self.folder.display(), "TensorBoard's files are written again");
            }
        }
    }

    /// Whether it failed long enough ago to be opened again.
    pub(crate) fn wants_again(&self) -> bool {
        self.failed.as_ref().is_some_and(|f| f.at.elapsed() >= f.pause)
    }

    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = write(self) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        // Its end may be torn: whatever comes goes to another one.
        self.file = None;
        let pause = match self.again.take() {
            Some(before) => (before * 2).min(LONGEST_PAUSE),
            None => {
                let folder = self.folder.display();
                tracing::warn!(
                    %folder, %error,
                    "TensorBoard's files cannot be written: the run goes on, and tries again now and then"
                );
                FIRST_PAUSE
            }
        };
        self.failed = Some(Failed { at: Instant::now(), pause });
    }

    /// The open file. A new one says that what was written of the next step and later ones does not stand.
    fn file(&mut self, time: f64) -> io::Result<&mut EventFile> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut file = EventFile::create(&self.folder, time, self.newest)?;
                file.append(&Event::start(time, self.next))?;
                drop(self.written.sheets.split_off(&self.next));
                file
            }
        };
        Ok(self.file.insert(file))
    }
}

impl Written {
    fn read(&mut self, path: &Path) {
        let records = match Records::open(path) {
            Ok(records) => records,
            Err(error) => return tracing::warn!(%error, "an event file is passed over"),
        };
        for record in records {
            match record {
                Ok(event) => self.take(&event),
                Err(error) => return tracing::debug!(%error, "an event file is read no further"),
            }
        }
    }

    fn take(&mut self, event: &Event) {
        if let Some(step) = event.started_at() {
            self.times.truncate(self.times.partition_point(|(s, _)| *s < step));
            drop(self.sheets.split_off(&step));
        }
        let Ok(step) = u64::try_from(event.step) else { return };
        match event.values().first().and_then(|v| v.kind.as_ref()) {
            Some(ValueKind::Image(_)) => drop(self.sheets.insert(step)),
            Some(ValueKind::Scalar(_)) if self.times.last().is_none_or(|(s, _)| *s < step) => {
                self.times.push((step, event.wall_time));
            }
            _ => {}
        }
    }

    /// Whether this very row is there. One that was rolled back and taken again was committed at another time.
    fn is(&self, row: &Row) -> bool {
        let at = self.times.binary_search_by_key(&row.step, |(step, _)| *step);
        at.ok()
            .and_then(|at| self.times.get(at))
            .is_some_and(|(_, time)| time.to_bits() == row.time.to_bits())
    }
}

/// A row as TensorBoard has it. What was not finite is left out.
fn event(row: &Row) -> Event {
    let levels: Vec<String> = (0..row.loss_per_level.len()).map(|l| format!("loss/level_{l}")).collect();
    let known = [
        ("loss", row.loss),
        ("grad_norm", row.grad_norm),
        ("lr", Some(row.lr)),
        ("momentum", Some(row.momentum)),
        ("images_per_s", Some(row.images_per_s)),
        ("data_wait_s", Some(row.data_wait_s)),
        ("step_s", Some(row.step_s)),
        ("workers", Some(f64::from(row.workers))),
    ];
    let known = known.into_iter().filter_map(|(tag, value)| Some((tag, value?)));
    let levels = levels.iter().map(String::as_str).zip(row.loss_per_level.iter().copied());
    Event::scalars(row.time, row.step, known.chain(levels).filter(|(_, v)| v.is_finite()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mcl_tensorboard::Value;
    use std::fs::File;

    pub(crate) fn row(step: u64, time: f64) -> Row {
        Row {
            step,
            epoch: 0,
            generation: 1,
            loss: (step != 3).then_some(0.5),
            loss_per_level: if step == 3 { Vec::new() } else { vec![0.25, f64::NAN] },
            lr: 0.1,
            momentum: 0.99,
            grad_norm: Some(2.0),
            images_per_s: 100.0,
            workers: 2,
            data_wait_s: 0.01,
            step_s: 0.5,
            skipped: step == 3,
            time,
        }
    }

    pub(crate) fn rows(steps: std::ops::Range<u64>, time: f64) -> Vec<Row> {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let at = |step: u64| row(step, time + step as f64);
        steps.map(at).collect()
    }

    fn sheet() -> Sheet {
        Sheet { width: 2, height: 1, file: vec![1, 2, 3] }
    }

    /// What TensorBoard keeps: every record in its order, with a start everything from its step on goes. Steps of rows
    /// with their times, and steps of sheets.
    pub(crate) fn kept(root: &Path) -> (Vec<(u64, f64)>, Vec<u64>) {
        let (mut rows, mut sheets) = (Vec::new(), Vec::new());
        for (_, path) in event_files(&root.join(FOLDER)).unwrap() {
            for event in Records::open(&path).unwrap().filter_map(Result::ok) {
                let step = u64::try_from(event.step).unwrap();
                if let Some(start) = event.started_at() {
                    rows.retain(|(s, _)| *s < start);
                    sheets.retain(|s| *s < start);
                }
                match event.values().first().map(|v| v.tag.as_str()) {
                    Some(SHEETS) => sheets.push(step),
                    Some(_) => rows.push((step, event.wall_time)),
                    None => {}
                }
            }
        }
        (rows, sheets)
    }

    fn expected(rows: &[Row]) -> Vec<(u64, f64)> {
        rows.iter().map(|r| (r.step, r.time)).collect()
    }

    /// Opens, takes what stands, appends the rest.
    fn session(root: &Path, stands: &[Row], then: &[Row]) -> Board {
        let mut board = Board::open(root);
        board.settle(stands);
        board.settled(stands.len() as u64, 1.0);
        then.iter().for_each(|r| board.append(r));
        board.flush();
        board
    }

    #[test]
    fn a_row_is_told_by_name_and_what_is_not_finite_is_left_out() {
        let tags = |row: &Row| event(row).values().iter().map(|v: &Value| v.tag.clone()).collect::<Vec<_>>();
        let rest = ["lr", "momentum", "images_per_s", "data_wait_s", "step_s", "workers"];
        assert_eq!(tags(&row(3, 1.0)), [&["grad_norm"], &rest[..]].concat());
        assert_eq!(tags(&row(4, 1.0)), [&["loss", "grad_norm"], &rest[..], &["loss/level_0"]].concat());
        let bytes =
            prost::Message::encode_to_vec(&event(&Row { loss_per_level: vec![1.0; 4], ..row(4, 1.0) }));
        assert!(bytes.len() < 300, "docs/run-directory.md says how large a step is: {}", bytes.len());
    }

    #[test]
    fn each_row_stands_once_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let all = rows(0..9, 100.0);
        session(dir.path(), &[], &all[..4]);
        session(dir.path(), &all[..4], &all[4..6]);
        // The last rows of the one before were not written when it died.
        session(dir.path(), &all[..8], &all[8..]);
        assert_eq!(kept(dir.path()).0, expected(&all));
        // Nothing new: nothing is written.
        let files = event_files(&dir.path().join(FOLDER)).unwrap().len();
        session(dir.path(), &all, &[]);
        assert_eq!(event_files(&dir.path().join(FOLDER)).unwrap().len(), files);
    }

    #[test]
    fn rows_of_a_run_from_before_there_were_files_are_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let all = rows(0..30, 100.0);
        session(dir.path(), &all[..29], &all[29..]);
        assert_eq!(kept(dir.path()).0, expected(&all));
    }

    #[test]
    fn steps_that_are_rolled_back_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (rows(0..9, 100.0), rows(5..12, 500.0));
        let mut board = session(dir.path(), &[], &old);
        board.sheet(0, sheet(), 1.0);
        board.sheet(8, sheet(), 1.0);
        board.sheet(9, sheet(), 1.0);
        board.roll_back(5, 400.0);
        board.sheet(7, sheet(), 1.0);
        new.iter().for_each(|r| board.append(r));
        board.sheet(8, sheet(), 600.0);
        board.sheet(8, sheet(), 600.0);
        board.flush();
        let stands = [&old[..5], &new].concat();
        assert_eq!(kept(dir.path()), (expected(&stands), vec![0, 8]));
        // Known again by whoever comes next.
        let board = session(dir.path(), &stands, &[]);
        assert!(board.has_sheet(0) && board.has_sheet(8) && !board.has_sheet(7));
        assert_eq!(board.steps(), 12);
    }

    #[test]
    fn a_roll_back_that_nobody_lived_to_write_down_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (rows(0..9, 100.0), rows(3..6, 500.0));
        let mut board = session(dir.path(), &[], &old);
        [2, 4].into_iter().for_each(|step| board.sheet(step, sheet(), 1.0));
        board.flush();
        let stands = [&old[..3], &new].concat();
        let board = session(dir.path(), &stands, &rows(6..7, 500.0));
        assert_eq!(kept(dir.path()), (expected(&[&old[..3], &rows(3..7, 500.0)].concat()), vec![2]));
        assert!(board.has_sheet(2) && !board.has_sheet(4), "it is to be drawn again");
        // Rows that never stood: the ledger did not hold them.
        session(dir.path(), &stands, &[]);
        assert_eq!(kept(dir.path()).0, expected(&stands));
    }

    #[test]
    fn a_torn_end_costs_no_row() {
        let dir = tempfile::tempdir().unwrap();
        let all = rows(0..9, 100.0);
        let board = session(dir.path(), &[], &all[..6]);
        let path = board.file.as_ref().unwrap().path().to_owned();
        let length = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 5).unwrap();
        session(dir.path(), &all[..6], &all[6..]);
        assert_eq!(kept(dir.path()).0, expected(&all));
    }

    #[test]
    fn what_could_not_be_written_is_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let all = rows(0..9, 100.0);
        // A file where the folder should be: nothing can be written, whoever asks.
        std::fs::write(dir.path().join(FOLDER), "in the way").unwrap();
        let mut board = session(dir.path(), &[], &all[..4]);
        let pause = board.failed.as_ref().unwrap().pause;
        assert_eq!((pause, board.wants_again(), board.steps()), (FIRST_PAUSE, false, 0));
        board.open_again();
        board.settle(&all[..4]);
        assert_eq!(board.failed.as_ref().unwrap().pause, 2 * FIRST_PAUSE);
        std::fs::remove_file(dir.path().join(FOLDER)).unwrap();
        board.open_again();
        board.settle(&all[..8]);
        board.settled(8, 1.0);
        board.append(&all[8]);
        board.flush();
        assert!(board.failed.is_none() && board.again.is_none());
        assert_eq!(kept(dir.path()).0, expected(&all));
    }
}
