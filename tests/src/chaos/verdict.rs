//! What came of a campaign: numbers, and which promises were broken.

use super::campaign::Settings;
use super::family::{EVERY_STEPS, Family};
use super::ongoing::Record;
use super::recovery::{self, Recovery};
use super::resources::Resources;
use crate::watch::{MetricsWatch, Row};
use crate::{Sandbox, tensor_errors};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The one kind of fault after which committed steps may be rolled back.
const ALL_KILLED: &str = "all workers killed at once";

/// A run under faults, as far as it came.
#[derive(Debug)]
pub(super) struct Disturbed {
    /// Where its files lie now.
    pub(super) run_dir: PathBuf,
    /// Its checkpoints.
    pub(super) store: PathBuf,
    /// The first checkpoint.
    pub(super) early: Option<PathBuf>,
    /// What was done to it.
    pub(super) records: Vec<Record>,
    /// Its committed steps as they were seen.
    pub(super) watch: MetricsWatch,
    /// What its processes held.
    pub(super) resources: Resources,
    /// Promises that were seen broken on the way.
    pub(super) broken: Vec<String>,
    /// How long it took.
    pub(super) seconds: f64,
    /// Steps that survivors began and had to begin again, as their logs say.
    pub(super) steps_redone: usize,
    /// Whether machines had networks of their own.
    pub(super) network: bool,
    /// Whether disks could be filled.
    pub(super) disks: bool,
}

/// The same run without faults.
#[derive(Debug)]
pub(super) struct Undisturbed {
    /// Its checkpoints.
    pub(super) store: PathBuf,
    /// The first checkpoint.
    pub(super) early: Option<PathBuf>,
    /// Its committed steps.
    pub(super) rows: Vec<Row>,
}

/// One JSON object, and whether all is well.
#[derive(Debug)]
pub struct Summary {
    fields: Map<String, Value>,
    broken: Vec<String>,
}

impl Summary {
    /// Everything that can be said.
    pub(super) fn of(
        settings: &Settings,
        sandbox: &Sandbox,
        steps: u64,
        mut run: Disturbed,
        reference: Option<&Undisturbed>,
    ) -> Self {
        let broken = std::mem::take(&mut run.broken);
        let mut summary = Self { fields: Map::new(), broken };
        summary.put("seed", settings.seed);
        summary.put("family", settings.family.name());
        summary.put("minutes", settings.minutes);
        summary.put("seconds", run.seconds.round());
        summary.put("network", if run.network { "namespaces" } else { "relay" });
        summary.put("disks", if run.disks { "of their own" } else { "never full" });
        summary.tell_faults(&run.records);
        summary.tell_steps(&run, steps);
        let rolled_back = summary.tell_ledger(sandbox, &run);
        summary.tell_losses(&run.watch, &rolled_back);
        let step = reference.map_or(0.0, |r| recovery::median_step(&r.rows));
        summary.tell_recoveries(&run, step);
        summary.put("processes", run.resources.summary());
        summary.broken.extend(run.resources.leaks());
        if let Some(reference) = reference {
            summary.compare(settings.family, sandbox, steps, &run, reference);
        }
        summary
    }

    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.fields.insert(key.to_owned(), value.into());
    }

    /// Faults by kind.
    fn tell_faults(&mut self, records: &[Record]) {
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for record in records.iter().filter(|r| r.struck.is_some()) {
            *kinds.entry(record.kind).or_default() += 1;
        }
        let missed = records.iter().filter(|r| r.struck.is_none()).map(|r| r.detail.clone());
        self.put("faults", json!(kinds));
        self.put("faults_total", kinds.values().sum::<u64>());
        self.put("faults_overlapping", records.iter().filter(|r| r.overlapping).count());
        self.put("failpoints_not_reached", missed.collect::<Vec<_>>());
    }

    fn tell_steps(&mut self, run: &Disturbed, steps: u64) {
        self.put("steps", steps);
        self.put("steps_committed", run.watch.committed());
        self.put("generations", run.watch.last().map_or(0, |r| r.generation));
        self.put("rows_withdrawn_and_written_again", run.watch.withdrawals());
        if run.watch.committed() != steps {
            self.broken.push(format!("{} of {steps} steps are committed", run.watch.committed()));
        }
        let missing = run.watch.missing();
        if !missing.is_empty() {
            self.broken.push(format!("steps that were seen committed are gone: {missing:?}"));
        }
    }

    /// What `mcl ledger verify` says; the steps that were rolled back with permission.
    fn tell_ledger(&mut self, sandbox: &Sandbox, run: &Disturbed) -> Vec<u64> {
        let path = run.run_dir.display().to_string();
        let output = sandbox.run(&["ledger", "verify", &path, "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        for key in ["missing", "twice", "foreign"] {
            self.put(&format!("samples_{key}"), report[key].clone());
        }
        if report["exact"] != true {
            self.broken.push(format!("the ledger is not exact: {report} {}", crate::error_of(&output)));
        }
        self.put("rolled_back", report["rolled_back"].clone());
        let records = rolled_back(&run.run_dir);
        self.put("roll_backs", json!(records));
        let everybody = run.records.iter().filter(|r| r.kind == ALL_KILLED && r.struck.is_some());
        let killed: Vec<u64> = everybody.map(|r| r.generation).collect();
        // By the first generation after it that came to train; a try or two may have failed before.
        let permitted = |r: &(u64, u64, u64)| killed.iter().any(|g| *g < r.2 && r.2 <= g + 3);
        let (allowed, lost): (Vec<_>, Vec<_>) = records.into_iter().partition(permitted);
        self.put("committed_steps_lost", lost.iter().map(|(from, to, _)| from - to).sum::<u64>());
        if !lost.is_empty() {
            self.broken.push(format!("rolled back though a rank was left (from, to, generation): {lost:?}"));
        }
        allowed.iter().flat_map(|(from, to, _)| *to..*from).collect()
    }

    /// A committed step never changes, unless it was rolled back.
    fn tell_losses(&mut self, watch: &MetricsWatch, rolled_back: &[u64]) {
        let changed: Vec<_> =
            watch.changed().iter().filter(|(step, _)| !rolled_back.contains(step)).collect();
        self.put("committed_steps_changed", changed.len());
        if let Some((step, (old, new))) = changed.first() {
            self.broken
                .push(format!("{} committed steps changed; step {step}: {old}, then {new}", changed.len()));
        }
    }

    fn tell_recoveries(&mut self, run: &Disturbed, step: f64) {
        let mut begun: Vec<_> = run.records.iter().filter_map(|r| r.struck).collect();
        begun.sort_unstable();
        let rows = run.watch.history();
        let all: Vec<(&Record, Recovery)> = run
            .records
            .iter()
            .filter_map(|r| {
                // What is struck at the same time belongs together.
                let next = begun.iter().find(|b| r.over.is_some_and(|over| **b > over)).copied();
                Some((r, recovery::measure(r, next, rows, step)?))
            })
            .collect();
        // Another one that strikes before this one is healed has its share in how long that takes.
        let disturbed = |r: &Record, m: &Recovery| {
            r.overlapping || begun.iter().any(|b| r.struck.is_some_and(|struck| struck < *b && *b < m.back))
        };
        let kind = |r: &Record, m: &Recovery| if disturbed(r, m) { "overlapping" } else { r.kind };
        let from_fault = all.iter().map(|(r, m)| (kind(r, m), m.from_fault));
        let from_repair = all.iter().filter_map(|(r, m)| Some((kind(r, m), m.from_repair?)));
        self.put("step_s", recovery::round(step));
        self.put("recovery_s", recovery::by_kind(from_fault));
        self.put("recovery_after_repair_s", recovery::by_kind(from_repair));
        self.put("steps_redone", run.steps_redone);
        // The step in flight, once for every generation that did not end at a step boundary.
        let broken_off = all.iter().filter(|(r, m)| m.new_generation && r.kind != "worker drained").count();
        self.put("steps_redone_at_most", broken_off);
    }

    fn compare(
        &mut self,
        family: Family,
        sandbox: &Sandbox,
        steps: u64,
        run: &Disturbed,
        reference: &Undisturbed,
    ) {
        let different = different_losses(run.watch.history(), &reference.rows);
        match family {
            Family::Steady => {
                let digest = |store: &Path| {
                    let output = sandbox.run(&["checkpoint", "digest", &store.display().to_string()]);
                    String::from_utf8_lossy(&output.stdout).trim().to_owned()
                };
                let equal = digest(&run.store) == digest(&reference.store);
                self.put("digests_equal", equal);
                self.put("losses_different", different.iter().filter(|d| **d > 0.0).count());
                if !equal || different.iter().any(|d| *d > 0.0) {
                    let step = different.iter().position(|d| *d > 0.0);
                    self.broken.push(format!("other bits than undisturbed; first other loss: {step:?}"));
                }
            }
            Family::Elastic => {
                let most = |n: usize| different.iter().take(n).copied().fold(0.0, f64::max);
                self.put("loss_error", json!({ "3": most(3), "20": most(20), "all": most(usize::MAX) }));
                let early = run.early.as_deref().zip(reference.early.as_deref());
                let early = early.map(|(ours, theirs)| state_error(sandbox, EVERY_STEPS, ours, theirs));
                let late = state_error(sandbox, steps, &run.store, &reference.store);
                self.judge_error("state_error_at_first_checkpoint", early, EVERY_STEPS, family);
                self.judge_error("state_error_at_end", Some(late), steps, family);
            }
        }
    }

    fn judge_error(
        &mut self,
        key: &str,
        error: Option<Result<(f64, String), String>>,
        steps: u64,
        family: Family,
    ) {
        let limit = family.tolerance(steps);
        match error {
            None => self.put(key, Value::Null),
            Some(Err(why)) => self.broken.push(format!("{key}: {why}")),
            Some(Ok((error, tensor))) => {
                self.put(key, json!({ "steps": steps, "error": error, "limit": limit, "tensor": tensor }));
                if error > limit {
                    self.broken.push(format!("{key}: {error:e} in {tensor}, limit {limit:e}"));
                }
            }
        }
    }

    /// Promises that were broken.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// A number or a list of it.
    pub fn field(&self, key: &str) -> &Value {
        self.fields.get(key).unwrap_or(&Value::Null)
    }

    /// As people and programs read it.
    pub fn json(&self) -> String {
        let mut fields = self.fields.clone();
        fields.insert("broken_promises".to_owned(), json!(self.broken));
        serde_json::to_string_pretty(&fields).unwrap()
    }

    /// Prints it and writes it to a file.
    pub(super) fn write(&self, path: &Path) {
        println!("{}", self.json());
        std::fs::write(path, self.json() + "\n").unwrap();
    }
}

/// Largest error of a tensor, and its name.
fn state_error(sandbox: &Sandbox, step: u64, ours: &Path, theirs: &Path) -> Result<(f64, String), String> {
    for store in [ours, theirs] {
        if !store.join(format!("step-{step:010}/manifest.json")).is_file() {
            return Err(format!("{} has no checkpoint of step {step}", store.display()));
        }
    }
    let tensors = |store: &Path| sandbox.tensors(&store.display().to_string(), step);
    Ok(tensor_errors(&tensors(ours), &tensors(theirs)).into_iter().next().unwrap_or_default())
}

/// How far each step's loss is from the undisturbed one's, relative.
fn different_losses(ours: &[Row], theirs: &[Row]) -> Vec<f64> {
    // Of a step that was seen twice, what stands came last.
    let ours: BTreeMap<u64, &Row> = ours.iter().map(|r| (r.step, r)).collect();
    let number = |row: &Row| row.loss.parse::<f64>().unwrap_or(f64::NAN);
    let difference = |theirs: &Row| {
        let Some(ours) = ours.get(&theirs.step) else { return f64::INFINITY };
        if ours.loss == theirs.loss {
            0.0
        } else {
            (number(ours) - number(theirs)).abs() / number(theirs).abs()
        }
    };
    theirs.iter().map(difference).collect()
}

/// Roll backs in a ledger: from, to, generation.
fn rolled_back(run_dir: &Path) -> Vec<(u64, u64, u64)> {
    let files = std::fs::read_dir(run_dir.join("ledger")).into_iter().flatten().flatten();
    let mut found: Vec<_> = files
        .filter_map(|f| std::fs::read_to_string(f.path()).ok())
        .flat_map(|text| {
            text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect::<Vec<_>>()
        })
        .filter(|r| r["record"] == "rolled_back")
        .filter_map(|r| Some((r["from"].as_u64()?, r["to"].as_u64()?, r["generation"].as_u64()?)))
        .collect();
    found.sort_unstable_by_key(|(_, _, generation)| *generation);
    found
}
