//! A record that is kept current, for all who look on.
//!
//! Invariants: rows of steps before it began to follow are read from their file, without holding up what happens; so are
//! those that it missed. It is locked for the time of a look or of one part of the file.

use crate::evaluation::{EVALUATIONS, evaluations};
use crate::happening::{Happening, Told, What};
use crate::record::Record;
use crate::row::{Row, rows_below};
use futures::{Stream, StreamExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// See the module. Cheap to clone: clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Chronicle(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    record: Mutex<Record>,
    reading: AtomicBool,
}

impl Chronicle {
    /// What is known now; nothing is taken in while it is looked at.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether rows are being read from their file: what is known is not all there is.
    pub fn is_reading(&self) -> bool {
        self.0.reading.load(Ordering::SeqCst)
    }

    /// Takes in what happens, until it ends; each happening is told to `hear` before it is taken in, but for rows that
    /// are read from their file.
    pub async fn follow(
        &self,
        told: impl Stream<Item = Told> + Send,
        mut hear: impl FnMut(&Happening) + Send,
    ) {
        let mut told = std::pin::pin!(told);
        let mut metrics = None;
        let mut missed = false;
        while let Some(told) = told.next().await {
            let Told::Happening(happening) = told else {
                missed = true;
                continue;
            };
            if let (true, What::Committed(row)) = (missed, &happening.what) {
                missed = false;
                self.record().forget_rows();
                self.read(metrics.clone(), row.step).await;
            }
            let began = match &happening.what {
                What::Began { metrics, committed, .. } => Some((metrics.clone(), *committed)),
                _ => None,
            };
            hear(&happening);
            self.record().take(happening);
            if let Some((path, committed)) = began {
                self.recall(&path);
                metrics = Some(path);
                self.read(metrics.clone(), committed).await;
            }
        }
    }

    /// Reads the evaluations of the run that began, whose rows are at `metrics`. They are few.
    fn recall(&self, metrics: &Path) {
        let path = metrics.with_file_name(EVALUATIONS);
        let mut record = self.record();
        let Some(run) = record.run.as_ref().map(|run| run.name.clone()) else { return };
        match evaluations(&path) {
            Ok((rows, strange)) => {
                if strange > 0 {
                    tracing::warn!(file = %path.display(), lines = strange, "lines that are no evaluations");
                }
                for evaluation in rows {
                    let (time, run) = (evaluation.time, run.clone());
                    let what = What::Evaluated { run, evaluation: Box::new(evaluation) };
                    record.take(Happening { time, what });
                }
            }
            Err(error) => tracing::warn!(%error, "earlier evaluations are not shown: they cannot be read"),
        }
    }

    /// Reads rows of steps below `below`, where that holds nobody up.
    async fn read(&self, path: Option<PathBuf>, below: u64) {
        let Some(path) = path.filter(|_| below > 0) else { return };
        self.0.reading.store(true, Ordering::SeqCst);
        let own = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            match rows_below(&path, below, |rows| own.take_rows(rows)) {
                Ok(0) => tracing::debug!(below, seconds = begun.elapsed().as_secs_f64(), "rows read"),
                Ok(lines) => tracing::warn!(file = %path.display(), lines, "lines that are no rows"),
                Err(error) => tracing::warn!(%error, "charts begin now: rows cannot be read"),
            }
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "reading rows broke down");
        }
        self.0.reading.store(false, Ordering::SeqCst);
    }

    fn take_rows(&self, rows: Vec<Row>) {
        let mut record = self.record();
        for row in rows {
            record.take(Happening { time: row.time, what: What::Committed(Box::new(row)) });
        }
        record.revision += 1;
    }
}
