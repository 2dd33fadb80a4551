//! The thread that writes.

use crate::board::Board;
use crate::sheets::{self, DrawSheet, Painter, Sheet};
use mcl_history::{METRICS, Row, rows_below};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// How long the thread may take to write down the rest.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// What a keeper is told of a run.
pub enum Told {
    /// Another run is the one that is run from now on.
    Began {
        /// Its directory.
        run_dir: PathBuf,
        /// Steps that stand: their rows are in its file.
        committed: u64,
        /// Draws its sheets; none: there are none.
        draw: Option<DrawSheet>,
    },
    /// A step was committed; its row is in the file.
    Committed(Box<Row>),
    /// Steps from here on no longer stand.
    RolledBack {
        /// Steps that stand.
        to: u64,
    },
    /// More happened than could be told: the file has it.
    Missed,
}

/// What its thread hears.
pub(crate) enum Heard {
    Told(Told),
    /// Of the run of this number.
    Drawn {
        run: u64,
        step: u64,
        sheet: Result<Sheet, String>,
    },
    End,
}

/// See the module. Dropping it writes down the rest, within a bounded time.
pub struct Keeper {
    // Without a bound: who tells must not wait. Rows are small, and what holds this thread up for long, a disk that does
    // not answer, holds up who commits them too.
    tell: mpsc::Sender<Heard>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts it.
    pub fn start() -> Self {
        let (tell, heard) = mpsc::channel();
        let desk = Desk { answers: tell.clone(), open: None, runs: 0 };
        let thread = std::thread::spawn(move || desk.work(&heard));
        Self { tell, thread }
    }

    /// Tells it; what it does comes later.
    pub fn tell(&self, told: Told) {
        self.say(Heard::Told(told));
    }

    fn say(&self, heard: Heard) {
        // Where the thread is gone nothing is written any more; the run goes on.
        let _ = self.tell.send(heard);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.say(Heard::End);
        let begun = Instant::now();
        while !self.thread.is_finished() && begun.elapsed() < FAREWELL {
            std::thread::sleep(LOOK);
        }
    }
}

/// The run that is open.
struct Open {
    number: u64,
    metrics: PathBuf,
    board: Board,
    painter: Option<Painter>,
    /// Rows were missed: they are to come from the file.
    behind: bool,
}

struct Desk {
    /// Where drawn sheets go.
    answers: mpsc::Sender<Heard>,
    open: Option<Open>,
    /// Counts runs, so that a sheet is not taken for one of another run.
    runs: u64,
}

impl Desk {
    fn work(mut self, heard: &mpsc::Receiver<Heard>) {
        loop {
            // Readers see what was appended once nothing more waits.
            let next = match heard.try_recv() {
                Ok(next) => next,
                Err(_) => {
                    self.flush();
                    let Ok(next) = heard.recv() else { return };
                    next
                }
            };
            match (next, &mut self.open) {
                (Heard::End, _) => return self.flush(),
                (Heard::Told(Told::Began { run_dir, committed, draw }), _) => {
                    self.begin(run_dir, committed, draw);
                }
                (_, None) => {}
                (Heard::Told(Told::Committed(row)), Some(open)) => open.committed(&row),
                (Heard::Told(Told::RolledBack { to }), Some(open)) => open.board.roll_back(to, now()),
                (Heard::Told(Told::Missed), Some(open)) => open.behind = true,
                (Heard::Drawn { run, step, sheet }, Some(open)) if run == open.number => {
                    open.drawn(step, sheet)
                }
                (Heard::Drawn { .. }, _) => {}
            }
        }
    }

    fn flush(&mut self) {
        if let Some(open) = &mut self.open {
            open.board.flush();
        }
    }

    fn begin(&mut self, run_dir: PathBuf, committed: u64, draw: Option<DrawSheet>) {
        self.flush();
        self.runs += 1;
        let painter = draw.map(|draw| Painter::start(self.runs, draw, self.answers.clone()));
        let (metrics, board) = (run_dir.join(METRICS), Board::open(&run_dir));
        let mut open = Open { number: self.runs, metrics, board, painter, behind: false };
        open.settle(committed, now());
        open.want_sheet(committed);
        self.open = Some(open);
    }
}

impl Open {
    /// Brings the files to what the rows say of the first `committed` steps.
    fn settle(&mut self, committed: u64, time: f64) {
        match rows_below(&self.metrics, committed, |rows| self.board.settle(&rows)) {
            Ok(_) => self.board.settled(committed, time),
            Err(error) => tracing::warn!(%error, "TensorBoard's files lack the steps before"),
        }
    }

    fn committed(&mut self, row: &Row) {
        if self.behind || self.board.wants_again() {
            self.behind = false;
            self.board.open_again();
            self.settle(row.step, row.time);
        }
        self.board.append(row);
        if sheets::is_due(row.step) {
            self.want_sheet(row.step + 1);
        }
    }

    /// Has the newest sheet drawn that is due and not there.
    fn want_sheet(&mut self, committed: u64) {
        let Some(painter) = &mut self.painter else { return };
        if let Some(step) = sheets::newest_due(committed).filter(|s| !self.board.has_sheet(*s)) {
            painter.ask(step);
        }
    }

    fn drawn(&mut self, step: u64, sheet: Result<Sheet, String>) {
        if let Some(painter) = &mut self.painter {
            painter.is_free(sheet.as_ref().err().map(String::as_str));
        }
        let Ok(sheet) = sheet else { return };
        self.board.sheet(step, sheet, now());
        // Another one may have come due meanwhile. One that was not taken is not asked for again and again.
        if self.board.has_sheet(step) {
            self.want_sheet(self.board.steps());
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::{kept, row, rows};
    use std::io::Write;
    use std::path::Path;
    use std::sync::Arc;

    fn write(run_dir: &Path, rows: &[Row]) {
        let mut file =
            std::fs::File::options().create(true).append(true).open(run_dir.join(METRICS)).unwrap();
        rows.iter().for_each(|row| writeln!(file, "{}", serde_json::to_string(row).unwrap()).unwrap());
    }

    fn tell(keeper: &Keeper, rows: &[Row]) {
        rows.iter().for_each(|row| keeper.tell(Told::Committed(Box::new(row.clone()))));
    }

    #[test]
    fn steps_before_and_steps_that_were_missed_come_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let finite = |row: Row| Row { loss_per_level: vec![0.25; row.loss_per_level.len()], ..row };
        let all: Vec<Row> = rows(0..40, 100.0).into_iter().map(finite).collect();
        write(dir.path(), &all);
        let keeper = Keeper::start();
        tell(&keeper, &all[..3]);
        keeper.tell(Told::Began { run_dir: dir.path().to_owned(), committed: 10, draw: None });
        tell(&keeper, &all[10..20]);
        keeper.tell(Told::Missed);
        tell(&keeper, &all[35..]);
        drop(keeper);
        let stands: Vec<(u64, f64)> = all.iter().map(|r| (r.step, r.time)).collect();
        assert_eq!(kept(dir.path()).0, stands);
    }

    #[test]
    fn sheets_are_drawn_beside_and_those_of_another_run_are_dropped() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let keeper = Keeper::start();
        let (go, gone) = mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let slow: DrawSheet = Arc::new(move |_| {
            let _ = gone.lock().unwrap().recv();
            Ok(Sheet { width: 1, height: 1, file: vec![9] })
        });
        keeper.tell(Told::Began { run_dir: first.path().to_owned(), committed: 0, draw: Some(slow) });
        tell(&keeper, &[row(0, 1.0)]);
        let quick: DrawSheet = Arc::new(|step| {
            if step == 0 { Ok(Sheet { width: 2, height: 1, file: vec![1] }) } else { Err("no".to_owned()) }
        });
        keeper.tell(Told::Began { run_dir: second.path().to_owned(), committed: 0, draw: Some(quick) });
        tell(&keeper, &rows(0..20, 1.0));
        go.send(()).unwrap();
        let begun = Instant::now();
        while kept(second.path()).1.is_empty() && begun.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(keeper);
        // Step 16 was due too, and could not be drawn.
        assert_eq!((kept(first.path()).1, kept(second.path()).1), (vec![], vec![0]));
    }
}
