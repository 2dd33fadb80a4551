//! A run as the files of its directory tell it, where no coordinator does.

use crate::{chronicle, run_dir};
use anyhow::Result;
use mcl_coordinator::PLAN_FILE;
use mcl_history::{Happening, Lines, METRICS, Record, Row, What};
use mcl_plan::PlanSpec;
use mcl_proto::v1::{GetHistoryResponse, GetStatusResponse};
use mcl_watch::{Link, Snapshot};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Lines that are read at once.
const BATCH: usize = 10_000;
/// The phase of a run that nobody has, of one whose coordinator does not answer, and of one that waits for its turn.
pub(super) const UNATTENDED: &str = "unattended";
pub(super) const UNREACHABLE: &str = "unreachable";
const QUEUED: &str = "queued";
/// Why nothing happens.
pub(super) const NOBODY: &str =
    "no coordinator has this run now: `mcl run`, or `mcl coordinator` on this directory, goes on with it";

/// See the module.
pub(super) struct Files {
    folder: PathBuf,
    run_id: String,
    rows: Lines<Row>,
    record: Record,
    /// Steps of the run and of an epoch, and of which job file.
    steps: Option<(SystemTime, u64, u64)>,
}

impl Files {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            run_id: run_dir::run_id(folder)?.to_string(),
            rows: Lines::new(folder.join(METRICS)),
            record: Record::default(),
            steps: None,
        })
    }

    pub(super) fn look(&mut self, phase: &str, reason: &str) -> Result<Snapshot> {
        loop {
            let news = self.rows.look(BATCH)?;
            if news.again {
                self.record = Record::default();
            }
            for row in news.lines {
                self.record.take(Happening { time: row.time, what: What::Committed(Box::new(row)) });
            }
            if !news.more {
                break;
            }
        }
        self.read_steps();
        let history = GetHistoryResponse {
            run_id: self.run_id.clone(),
            ..chronicle::response(&self.record, super::POINTS as usize)
        };
        Ok(Snapshot {
            status: self.status(phase, reason),
            history,
            link: Link::Files(self.folder.display().to_string()),
        })
    }

    /// How many steps there are, from job and plan, where they can be read.
    fn read_steps(&mut self) {
        let changed = std::fs::metadata(self.folder.join(run_dir::JOB)).and_then(|m| m.modified());
        let Ok(changed) = changed else { return };
        if self.steps.is_some_and(|(at, _, _)| at == changed) {
            return;
        }
        let steps = || -> Result<(u64, u64)> {
            let plan: PlanSpec = serde_json::from_slice(&std::fs::read(self.folder.join(PLAN_FILE))?)?;
            let schedule = mcl_job::schedule(&run_dir::job_of(&self.folder)?, &plan)?;
            Ok((schedule.total_steps(), schedule.steps_per_epoch()))
        };
        match steps() {
            Ok((total, per_epoch)) => self.steps = Some((changed, total, per_epoch)),
            Err(error) => tracing::debug!(%error, "how many steps there are is not known"),
        }
    }

    fn status(&self, phase: &str, reason: &str) -> GetStatusResponse {
        let history = &self.record.history;
        let last = history.last();
        let (_, total_steps, steps_per_epoch) = self.steps.unwrap_or((SystemTime::UNIX_EPOCH, 0, 0));
        let waits = history.recent().filter(|r| r.step_s > 0.0).map(|r| r.data_wait_s / r.step_s);
        let (count, sum) = waits.fold((0.0, 0.0), |(n, sum), share| (n + 1.0, sum + share));
        GetStatusResponse {
            run_id: self.run_id.clone(),
            phase: phase.to_owned(),
            reason: reason.to_owned(),
            generation: last.map_or(0, |r| r.generation),
            committed_steps: last.map_or(0, |r| r.step + 1),
            total_steps,
            steps_per_epoch,
            loss: last.and_then(|r| r.loss).unwrap_or(f64::NAN),
            images_per_second: last.map_or(0.0, |r| r.images_per_s),
            data_wait_share: if count > 0.0 { sum / count } else { 0.0 },
            ..GetStatusResponse::default()
        }
    }
}

/// Phase and reason of a run that its coordinator does not run now: one that waits, or one of before.
pub(super) fn elsewhere(status: &GetStatusResponse, run: &str) -> Option<(String, String)> {
    if let Some(place) = status.queue.iter().position(|q| q.run_id == run) {
        let now = if status.run_id.is_empty() { "none" } else { &status.run_id };
        let reason = format!("place {} of {} in the queue; run now: {now}", place + 1, status.queue.len());
        return Some((QUEUED.to_owned(), reason));
    }
    let past = status.past_runs.iter().rev().find(|p| p.run_id == run && !p.phase.is_empty())?;
    Some((past.phase.clone(), past.outcome.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_proto::v1::{PastRun, QueuedJob};

    const ROW: &str = r#"{"step":STEP,"epoch":0,"generation":2,"loss":1.5,"loss_per_level":[1.0,0.5],"lr":0.1,
        "momentum":0.9,"grad_norm":2.0,"images_per_s":64.0,"workers":1,"data_wait_s":0.1,"step_s":0.4,"skipped":false,
        "time":10.0}"#;

    fn row(step: u64) -> String {
        ROW.replace("STEP", &step.to_string()).replace('\n', " ") + "\n"
    }

    #[test]
    fn files_tell_how_far_a_run_is_and_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("first");
        std::fs::create_dir(&folder).unwrap();
        let mut files = Files::new(&folder).unwrap();
        let empty = files.look(UNATTENDED, NOBODY).unwrap();
        assert_eq!((empty.status.run_id.as_str(), empty.status.phase.as_str()), ("first", UNATTENDED));
        std::fs::write(folder.join(METRICS), row(0) + &row(1)).unwrap();
        let seen = files.look("interrupted", "drained").unwrap();
        let status = &seen.status;
        assert_eq!((status.committed_steps, status.generation, status.reason.as_str()), (2, 2, "drained"));
        assert_eq!((status.phase.as_str(), status.loss, status.data_wait_share), ("interrupted", 1.5, 0.25));
        assert_eq!((seen.history.points.len(), seen.history.generations[0].steps), (2, 2));
        // Rolled back: the file is another one.
        std::fs::write(folder.join("new"), row(0)).unwrap();
        std::fs::rename(folder.join("new"), folder.join(METRICS)).unwrap();
        assert_eq!(files.look(UNATTENDED, NOBODY).unwrap().status.committed_steps, 1);
    }

    #[test]
    fn a_run_that_waits_says_where_and_one_of_before_how_it_ended() {
        let past = |run_id: &str, phase: &str| PastRun {
            run_id: run_id.to_owned(),
            outcome: format!("{phase}!"),
            until: 1,
            phase: phase.to_owned(),
        };
        let queued = |run_id: &str| QueuedJob { run_id: run_id.to_owned(), since: 1 };
        let status = GetStatusResponse {
            run_id: "now".to_owned(),
            queue: vec![queued("x"), queued("next")],
            past_runs: vec![past("next", "interrupted"), past("old", "failed"), past("left", "")],
            ..GetStatusResponse::default()
        };
        let told = |run| elsewhere(&status, run);
        assert_eq!(told("next"), Some(("queued".into(), "place 2 of 2 in the queue; run now: now".into())));
        assert_eq!(told("old"), Some(("failed".into(), "failed!".into())));
        assert_eq!((told("left"), told("never")), (None, None));
    }
}
