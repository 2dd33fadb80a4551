//! What is told of a run besides metrics and ledger: its course in memory, `chronicle.jsonl`, and TensorBoard's `events/`.
//!
//! Role: one thread that hears of committed steps and of what happened, after they stand, and keeps those three. All of it
//! can be made again from `metrics.jsonl`, but for the chronicle. Invariants: the coordinator's loop never waits for this
//! thread, and nothing that fails here stops a run; what is in `events/` are committed steps, each once as TensorBoard
//! counts (see `board`). Left out: drawing sheets (the caller's [`DrawSheet`]).

mod board;
mod reasons;
mod sheets;

use crate::clock::since_1970;
use board::Board;
use mcl_coordinator_core::StepMetrics;
use mcl_history::{CHRONICLE, Chronicle, Course, Entry, Happening, Lines, METRICS, Row};
use sheets::Painter;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

pub(crate) use reasons::Reasons;
pub use sheets::{DrawSheet, Sheet};

/// Lines that are read at once.
const BATCH: usize = 10_000;
/// How long the thread may take to write down the rest when the coordinator ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is kept in memory of the run that is run, or was last.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) run_id: String,
    pub(crate) course: Course,
    pub(crate) chronicle: Chronicle,
}

/// Memory that others look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Memory>>);

impl Shared {
    pub(crate) fn look(&self) -> MutexGuard<'_, Memory> {
        // What is kept is a row longer or not: never half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread hears.
enum Told {
    /// Another job is run from now on, of which so many steps stand.
    Begin { run: Run, committed: u64 },
    Committed(Box<Row>),
    RolledBack { to: u64 },
    Happened(Entry),
    /// Of the run of this number.
    Drawn { run: u64, step: u64, sheet: Result<Sheet, String> },
    End,
}

/// A run, as far as it matters here.
struct Run {
    root: PathBuf,
    run_id: String,
    job_toml: String,
}

/// The way to the thread.
pub(crate) struct Scribe {
    // Without a bound: the loop must not wait. Rows are small, and what holds this thread up for long, a disk that does
    // not answer, holds the loop up too.
    tell: mpsc::Sender<Told>,
    ended: mpsc::Receiver<()>,
}

impl Scribe {
    pub(crate) fn start(memory: Shared, draw: Option<DrawSheet>) -> Self {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let painter = draw.map(|draw| Painter::start(draw, tell.clone()));
        std::thread::spawn(move || {
            Desk { memory, painter, open: None, runs: 0 }.work(&told);
            drop(end);
        });
        Self { tell, ended }
    }

    pub(crate) fn begin(&self, root: &Path, run_id: &str, job_toml: &str, committed: u64) {
        let run = Run { root: root.to_owned(), run_id: run_id.to_owned(), job_toml: job_toml.to_owned() };
        self.say(Told::Begin { run, committed });
    }

    pub(crate) fn committed(&self, metrics: StepMetrics, time: f64) {
        self.say(Told::Committed(Box::new(row(metrics, time))));
    }

    pub(crate) fn rolled_back(&self, to: u64) {
        self.say(Told::RolledBack { to });
    }

    pub(crate) fn happened(&self, what: Happening) {
        self.say(Told::Happened(Entry { time: since_1970().as_secs_f64(), what }));
    }

    fn say(&self, told: Told) {
        // Where the thread is gone nothing is written down any more; the run goes on.
        let _ = self.tell.send(told);
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.say(Told::End);
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

fn row(m: StepMetrics, time: f64) -> Row {
    Row {
        step: m.step,
        epoch: m.epoch,
        generation: m.generation,
        loss: m.loss,
        loss_per_level: m.loss_per_level,
        lr: m.lr,
        momentum: m.momentum,
        grad_norm: m.grad_norm,
        images_per_s: m.images_per_s,
        workers: m.workers,
        data_wait_s: m.data_wait_s,
        step_s: m.step_s,
        skipped: m.skipped,
        time,
    }
}

/// The run that is open.
struct Open {
    run: Run,
    number: u64,
    board: Board,
    /// None where it could not be written.
    chronicle: Option<File>,
}

struct Desk {
    memory: Shared,
    painter: Option<Painter>,
    open: Option<Open>,
    /// Counts them, so that a sheet is not taken for one of another run.
    runs: u64,
}

impl Desk {
    fn work(mut self, told: &mpsc::Receiver<Told>) {
        loop {
            // Readers see what was appended once nothing more waits.
            let next = match told.try_recv() {
                Ok(next) => next,
                Err(_) => {
                    self.flush();
                    let Ok(next) = told.recv() else { return };
                    next
                }
            };
            match next {
                Told::Begin { run, committed } => self.begin(run, committed),
                Told::Committed(row) => self.committed(*row),
                Told::RolledBack { to } => self.rolled_back(to),
                Told::Happened(entry) => self.happened(entry),
                Told::Drawn { run, step, sheet } => self.drawn(run, step, sheet),
                Told::End => return self.flush(),
            }
        }
    }

    fn flush(&mut self) {
        if let Some(open) = &mut self.open {
            open.board.flush();
        }
    }

    fn begin(&mut self, run: Run, committed: u64) {
        let known = chronicle_of(&run.root);
        *self.memory.look() =
            Memory { run_id: run.run_id.clone(), chronicle: known, course: Course::default() };
        let chronicle = open_chronicle(&run.root.join(CHRONICLE));
        let mut board = Board::open(&run.root);
        read_rows(&run.root, committed, |rows| {
            board.settle(&rows);
            self.remember(rows);
        });
        board.settled(committed, since_1970().as_secs_f64());
        self.runs += 1;
        let number = self.runs;
        self.open = Some(Open { run, number, board, chronicle });
        self.want_sheet(committed);
    }

    fn remember(&self, rows: Vec<Row>) {
        let mut memory = self.memory.look();
        rows.into_iter().for_each(|row| memory.course.push(row));
    }

    fn committed(&mut self, row: Row) {
        let Some(open) = &mut self.open else { return };
        if open.board.wants_again() {
            // What was not written while it failed comes from the file.
            open.board.open_again();
            read_rows(&open.run.root, row.step, |rows| open.board.settle(&rows));
            open.board.settled(row.step, row.time);
        }
        open.board.append(&row);
        let committed = row.step + 1;
        self.remember(vec![row]);
        if sheets::is_due(committed - 1) {
            self.want_sheet(committed);
        }
    }

    fn rolled_back(&mut self, to: u64) {
        let Some(open) = &mut self.open else { return };
        open.board.roll_back(to, since_1970().as_secs_f64());
        let root = open.run.root.clone();
        self.memory.look().course = Course::default();
        read_rows(&root, to, |rows| self.remember(rows));
    }

    fn happened(&mut self, entry: Entry) {
        if let Some(Open { chronicle: slot @ Some(_), run, .. }) = &mut self.open
            && let (Some(file), Ok(mut line)) = (slot.as_mut(), serde_json::to_vec(&entry))
        {
            line.push(b'\n');
            if let Err(error) = file.write_all(&line) {
                let file = run.root.join(CHRONICLE);
                tracing::warn!(file = %file.display(), %error, "no more is written to the chronicle of this run");
                *slot = None;
            }
        }
        self.memory.look().chronicle.push(entry);
    }

    /// Has the newest sheet drawn that is due and not there.
    fn want_sheet(&mut self, committed: u64) {
        let (Some(open), Some(painter)) = (&self.open, &mut self.painter) else { return };
        if let Some(step) = sheets::newest_due(committed).filter(|s| !open.board.has_sheet(*s)) {
            painter.ask(open.number, step, &open.run.job_toml);
        }
    }

    fn drawn(&mut self, run: u64, step: u64, sheet: Result<Sheet, String>) {
        if let Some(painter) = &mut self.painter {
            painter.is_free(sheet.as_ref().err().map(String::as_str));
        }
        let Some(open) = self.open.as_mut().filter(|o| o.number == run) else { return };
        if let Ok(sheet) = sheet {
            open.board.sheet(step, sheet, since_1970().as_secs_f64());
            // Another one may have come due meanwhile.
            let committed = open.board.steps();
            self.want_sheet(committed);
        }
    }
}

/// The rows of the first `below` steps, in parts.
fn read_rows(root: &Path, below: u64, mut take: impl FnMut(Vec<Row>)) {
    let mut lines = Lines::<Row>::new(root.join(METRICS));
    loop {
        let mut news = match lines.look(BATCH) {
            Ok(news) => news,
            Err(error) => return tracing::warn!(%error, "the rows of earlier steps are not shown"),
        };
        let all = news.lines.len();
        news.lines.retain(|row| row.step < below);
        let stands = news.lines.len() == all;
        take(news.lines);
        if !news.more || !stands {
            return;
        }
    }
}

fn chronicle_of(root: &Path) -> Chronicle {
    let mut chronicle = Chronicle::default();
    let mut lines = Lines::<Entry>::new(root.join(CHRONICLE));
    loop {
        match lines.look(BATCH) {
            Ok(news) => {
                news.lines.into_iter().for_each(|entry| chronicle.push(entry));
                if !news.more {
                    return chronicle;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "what happened earlier is not shown");
                return chronicle;
            }
        }
    }
}

/// Opens it for appending; a line that a crash tore is ended, so that the next one is whole.
fn open_chronicle(path: &Path) -> Option<File> {
    let attempt = || -> std::io::Result<File> {
        let mut file = File::options().create(true).append(true).read(true).open(path)?;
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
        Ok(file)
    };
    match attempt() {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "what happens to this run is not written down");
            None
        }
    }
}
