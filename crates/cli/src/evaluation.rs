//! What features are worth while a run goes on: its checkpoints, judged by `mcl-rank eval` beside the coordinator.
//!
//! Invariants: training never waits for it, and one evaluation is under way at a time, at low priority; `evaluations.jsonl`
//! is written whole, so that a row is there or not; whoever stops while an evaluation is under way does it again at the
//! next start, if its checkpoint is still there. Left out: what features are judged by (`mcl-rank`).

mod agenda;

use crate::rank_program::RankProgram;
use agenda::{Agenda, Task};
use anyhow::{Context, Result, bail};
use mcl_checkpoint::CheckpointClient;
use mcl_config::{Evaluation as Section, Job, Judged, Probes};
use mcl_coordinator::{Adopted, Coordinator, Observation, Observed};
use mcl_history::{Accuracy, EVALUATIONS, Evaluation, Happening, What, evaluations};
use mcl_job::Evaluations;
use mcl_transport::Identity;
use mcl_types::{RunId, Tier};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::process::Command;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::JoinHandle;

/// Threads of an evaluation.
const THREADS: u32 = 2;
/// Results that one who looks on may be behind.
const BEHIND: usize = 64;

/// Where checkpoints are fetched from, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    pub(crate) url: String,
    /// Folder of the certificate that is shown there.
    pub(crate) identity: Option<PathBuf>,
}

/// What is done in the background, beside a coordinator.
pub(crate) struct Evaluator {
    results: broadcast::Sender<Happening>,
    working: JoinHandle<()>,
}

impl Evaluator {
    /// Before the coordinator begins, so that no checkpoint is missed.
    pub(crate) fn start(coordinator: &Coordinator, checkpoints: Checkpoints) -> Self {
        let results = broadcast::Sender::new(BEHIND);
        let desk =
            Desk { checkpoints, runs: BTreeMap::new(), agenda: Agenda::default(), results: results.clone() };
        let working = tokio::spawn(desk.work(coordinator.observe()));
        Self { results, working }
    }

    /// What is found from now on.
    pub(crate) fn results(&self) -> broadcast::Receiver<Happening> {
        self.results.subscribe()
    }

    /// The coordinator is gone: ends at once, or where `finish` asks for it after what is under way and what waits, unless
    /// `stop` comes before.
    pub(crate) async fn end(mut self, finish: bool, stop: impl Future<Output = ()>) {
        if !finish {
            return self.working.abort();
        }
        tokio::select! {
            done = &mut self.working => {
                if let Err(error) = done {
                    tracing::error!(%error, "evaluating broke down");
                }
            }
            () = stop => {
                tracing::warn!("told to leave: the last checkpoints are not evaluated");
                self.working.abort();
            }
        }
    }
}

/// A run whose features are judged.
#[derive(Debug, Clone)]
struct Run {
    id: RunId,
    dir: PathBuf,
    section: Section,
}

impl Run {
    fn rows(&self) -> PathBuf {
        self.dir.join(EVALUATIONS)
    }
}

type Working = Pin<Box<dyn Future<Output = Result<Evaluation>> + Send>>;

/// The checkpoints that a run has already.
type Listing = (RunId, Pin<Box<dyn Future<Output = Result<Vec<u64>>> + Send>>);

/// What is known and what is to be done.
struct Desk {
    checkpoints: Checkpoints,
    runs: BTreeMap<RunId, Run>,
    agenda: Agenda,
    results: broadcast::Sender<Happening>,
}

impl Desk {
    async fn work(mut self, mut observations: broadcast::Receiver<Observation>) {
        let mut under_way: Option<(Task, Working)> = None;
        let mut listing: Option<Listing> = None;
        let mut open = true;
        loop {
            if under_way.is_none() {
                under_way = self.next();
            }
            if under_way.is_none() && listing.is_none() && !open {
                return;
            }
            tokio::select! {
                observed = observations.recv(), if open => match observed {
                    Ok(Observation { what, .. }) => {
                        if let Observed::Adopted(adopted) = &what {
                            listing = self.adopted(adopted, under_way.as_ref().map(|(task, _)| task));
                        }
                        self.hear(what, &mut under_way);
                    }
                    // A checkpoint that was missed is made up for by the next one.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => open = false,
                },
                (run, found) = listed(&mut listing) => {
                    listing = None;
                    match found {
                        Ok(steps) if self.agenda.is_current(&run) => self.agenda.checkpoints(steps),
                        Ok(_) => {}
                        Err(error) => tracing::warn!(%run, "checkpoints are evaluated from the next one on: {error:#}"),
                    }
                }
                (task, found) = finished(&mut under_way) => {
                    under_way = None;
                    self.finish(&task, found);
                }
            }
        }
    }

    fn hear(&mut self, what: Observed, under_way: &mut Option<(Task, Working)>) {
        match what {
            Observed::Checkpoint { step } => self.agenda.checkpoints([step]),
            Observed::CheckpointsFound { steps } => self.agenda.checkpoints(steps),
            Observed::RolledBack { to } => {
                self.agenda.roll_back(to);
                // Of another run's step this says nothing; it is judged again only if it is this run's.
                under_way.take_if(|(task, _)| self.agenda.is_current(&task.run) && task.step > to);
            }
            _ => {}
        }
    }

    /// What is to be listed of a run that is run from now on, where it wants evaluations.
    fn adopted(&mut self, adopted: &Adopted, under_way: Option<&Task>) -> Option<Listing> {
        match self.adopt(adopted, under_way) {
            Ok(true) => {
                let list = list(self.checkpoints.clone(), adopted.run_id.clone());
                Some((adopted.run_id.clone(), Box::pin(list)))
            }
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(run = %adopted.run_id, "features are not evaluated: {error:#}");
                self.agenda.begin(adopted.run_id.clone(), None, BTreeSet::new());
                None
            }
        }
    }

    /// Whether it wants evaluations.
    fn adopt(&mut self, adopted: &Adopted, under_way: Option<&Task>) -> Result<bool> {
        let job = Job::parse(&adopted.facts.job_toml, "the run's job")?;
        let run = Run {
            id: adopted.run_id.clone(),
            dir: adopted.run_dir.clone(),
            section: job.evaluation().clone(),
        };
        let due = Evaluations::of(&job, adopted.facts.schedule);
        if due.is_some() {
            RankProgram::find(THREADS)?;
            mcl_job::check_evaluation(&job)?;
        }
        let (known, _) = evaluations(&run.rows())?;
        let being = under_way.filter(|task| task.run == run.id).map(|task| task.step);
        let judged = known.iter().map(|e| e.step).chain(being);
        let judged = judged.filter(|step| *step <= adopted.committed).collect();
        self.agenda.begin(run.id.clone(), due, judged);
        self.runs.insert(run.id.clone(), run);
        Ok(due.is_some())
    }

    fn next(&mut self) -> Option<(Task, Working)> {
        let task = self.agenda.next()?;
        let run = self.runs.get(&task.run)?.clone();
        tracing::info!(run = %task.run, step = task.step, "evaluating");
        let working = judge(self.checkpoints.clone(), run, task.step);
        Some((task, Box::pin(working)))
    }

    fn finish(&self, task: &Task, found: Result<Evaluation>) {
        let kept = found.and_then(|found| {
            let run = self.runs.get(&task.run).context("its run is not known")?;
            keep(&run.rows(), &found)?;
            Ok(found)
        });
        match kept {
            Ok(found) => {
                tracing::info!(run = %task.run, step = task.step, seconds = found.seconds, "evaluated");
                let what = What::Evaluated { run: task.run.to_string(), evaluation: Box::new(found.clone()) };
                // An error says that nobody looks on.
                let _ = self.results.send(Happening { time: found.time, what });
            }
            Err(error) => tracing::warn!(run = %task.run, step = task.step, "not evaluated: {error:#}"),
        }
    }
}

/// The end of what is under way; never, where nothing is.
async fn finished(under_way: &mut Option<(Task, Working)>) -> (Task, Result<Evaluation>) {
    match under_way {
        Some((task, working)) => {
            let found = working.await;
            (task.clone(), found)
        }
        None => std::future::pending().await,
    }
}

/// The end of a listing; never, where there is none.
async fn listed(listing: &mut Option<Listing>) -> (RunId, Result<Vec<u64>>) {
    match listing {
        Some((run, found)) => {
            let found = found.await;
            (run.clone(), found)
        }
        None => std::future::pending().await,
    }
}

/// Durable checkpoints that the service has of a run: a generation that goes on under a new coordinator asks for none.
async fn list(checkpoints: Checkpoints, run: RunId) -> Result<Vec<u64>> {
    let identity = checkpoints.identity.as_deref().map(Identity::open).transpose()?;
    let client = CheckpointClient::lazy(&checkpoints.url, identity.as_ref())?;
    let list = client.list(&run).await?;
    Ok(list.visible.iter().filter(|c| c.tier == Tier::Durable).map(|c| c.step.get()).collect())
}

/// Has a checkpoint judged by a process, which ends with this future.
async fn judge(checkpoints: Checkpoints, run: Run, step: u64) -> Result<Evaluation> {
    let begun = Instant::now();
    let program = RankProgram::find(THREADS)?;
    let mut command = Command::new(&program.path);
    command.arg("eval").args(arguments(&checkpoints, &run, step)).envs(program.environment);
    if let Some(folder) = &checkpoints.identity {
        command.env(mcl_transport::VARIABLE, folder);
    }
    // It ends when its input does, so none outlives us.
    let child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = child.spawn().with_context(|| format!("starting {}", program.path.display()))?;
    let input = child.stdin.take();
    let output = child.wait_with_output().await?;
    drop(input);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "mcl-rank eval ended ({}): {}",
            output.status,
            said.trim().lines().last().unwrap_or("without a word")
        );
    }
    let told: Value = serde_json::from_slice(&output.stdout).context("what mcl-rank eval answered")?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok(Evaluation {
        step,
        encoder: encoder(run.section.encoder).to_owned(),
        accuracies: accuracies(&told, run.section.probes)?,
        seconds: begun.elapsed().as_secs_f64(),
        time,
    })
}

fn arguments(checkpoints: &Checkpoints, run: &Run, step: u64) -> Vec<OsString> {
    let section = &run.section;
    let mut arguments: Vec<OsString> =
        vec![probes(section.probes).into(), "--json".into(), "--background".into()];
    let mut pair = |key: &str, value: OsString| arguments.extend([key.into(), value]);
    pair("--service", (&checkpoints.url).into());
    pair("--run-id", run.id.as_str().into());
    pair("--step", step.to_string().into());
    pair("--job", run.dir.join("job.toml").into());
    pair("--encoder", encoder(section.encoder).into());
    for (key, path) in [("--train", &section.train), ("--test", &section.test), ("--scenes", &section.scenes)]
    {
        if let Some(path) = path {
            pair(key, path.into());
        }
    }
    if let Some(short_side) = section.short_side {
        pair("--short-side", short_side.to_string().into());
    }
    arguments
}

const fn encoder(which: Judged) -> &'static str {
    match which {
        Judged::Momentum => "momentum",
        Judged::Online => "online",
    }
}

const fn probes(which: Probes) -> &'static str {
    match which {
        Probes::Knn => "knn",
        Probes::Linear => "linear",
        Probes::Both => "both",
    }
}

/// What `mcl-rank eval --json` answered.
fn accuracies(told: &Value, which: Probes) -> Result<Vec<Accuracy>> {
    let by: Vec<(&str, &Value)> = match which {
        Probes::Knn | Probes::Linear => vec![(probes(which), told)],
        Probes::Both => ["knn", "linear"].into_iter().filter_map(|p| Some((p, told.get(p)?))).collect(),
    };
    let mut found = Vec::new();
    for (probe, told) in by {
        for on in ["objects", "scenes"] {
            let Some(shares) = told.get(on).filter(|shares| !shares.is_null()) else { continue };
            let share = |of: &str| {
                let share = shares.get(of).and_then(Value::as_f64);
                share.with_context(|| format!("no number `{on}.{of}` in what mcl-rank eval answered"))
            };
            found.push(Accuracy {
                probe: probe.to_owned(),
                on: on.to_owned(),
                trained: share("trained")?,
                random: share("random")?,
                pixels: share("pixels")?,
            });
        }
    }
    Ok(found)
}

/// Writes the rows anew with this one, in the order of steps; one of the same step makes room.
fn keep(path: &Path, found: &Evaluation) -> Result<()> {
    let (mut rows, _) = evaluations(path)?;
    rows.retain(|row| row.step != found.step);
    rows.push(found.clone());
    rows.sort_by_key(|row| row.step);
    let writing = || -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        for row in &rows {
            serde_json::to_writer(&mut file, row)?;
            file.write_all(b"\n")?;
        }
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    writing().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_of_one_probe_and_of_both_are_read() {
        let knn = json!({ "k": 20, "objects": { "trained": 0.5, "random": 0.25, "pixels": 0.125 }, "scenes": null });
        let one = accuracies(&knn, Probes::Knn).unwrap();
        assert_eq!(
            (one.len(), one[0].on.as_str(), one[0].trained, one[0].pixels),
            (1, "objects", 0.5, 0.125)
        );
        let mut linear = knn.clone();
        linear["scenes"] = linear["objects"].clone();
        let both = accuracies(&json!({ "knn": knn, "linear": linear }), Probes::Both).unwrap();
        let named: Vec<_> = both.iter().map(|a| (a.probe.as_str(), a.on.as_str())).collect();
        assert_eq!(named, [("knn", "objects"), ("linear", "objects"), ("linear", "scenes")]);
        linear["objects"] = json!({ "trained": 0.5 });
        let said = accuracies(&linear, Probes::Linear).unwrap_err().to_string();
        assert!(said.contains("objects.random"), "{said}");
    }

    #[test]
    fn rows_are_kept_in_order_and_once_a_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EVALUATIONS);
        let row = |step, seconds| Evaluation {
            step,
            encoder: "online".to_owned(),
            accuracies: Vec::new(),
            seconds,
            time: 1.0,
        };
        for (step, seconds) in [(20, 1.0), (10, 2.0), (20, 3.0)] {
            keep(&path, &row(step, seconds)).unwrap();
        }
        assert_eq!(evaluations(&path).unwrap(), (vec![row(10, 2.0), row(20, 3.0)], 0));
        // A line that a crash of somebody else's tore does not cost the others.
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"{\"step\": 3");
        std::fs::write(&path, torn).unwrap();
        keep(&path, &row(30, 4.0)).unwrap();
        assert_eq!(evaluations(&path).unwrap().0.len(), 3);
    }
}
