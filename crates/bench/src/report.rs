//! What was measured, for people and for programs.

use crate::options::{Load, Options};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Slowest answer, at the 99th percentile, with which a coordinator still counts as holding.
const SLOWEST_P99_MS: f64 = 1000.0;
/// A thread or machine this busy has nothing left.
const BUSY: f64 = 0.9;

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Cores of the machine; generator and coordinator share them.
    pub cores: u32,
    /// Files that a process may have open here, which bounds its connections.
    pub file_limit: u64,
    /// One measurement each.
    pub points: Vec<Point>,
    /// Why no more agents were tried, with a curve.
    pub stopped: Option<String>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Point {
    /// Worker daemons played.
    pub agents: u32,
    /// Their rank processes.
    pub ranks: u32,
    /// TCP connections.
    pub connections: u32,
    /// Heartbeats of one agent in a second, as asked.
    pub heartbeats_per_second: f64,
    /// Steps that every rank reports in a second, as asked; none without a job.
    pub steps_per_second: Option<f64>,
    /// Length of the measurement, seconds.
    pub seconds: f64,
    /// Agents that were welcomed.
    pub welcomed: u32,
    /// Seconds from the first connection until all were.
    pub welcomed_seconds: Option<f64>,
    /// Ranks of the last generation that was started whole.
    pub formed_ranks: u32,
    /// Seconds from the first connection until all ranks were started.
    pub formed_seconds: Option<f64>,
    /// Generations that were started whole, at joining and later.
    pub generations: u32,
    /// Agents connected when the measurement ended.
    pub connected: u32,
    /// Heartbeats that were due in the measurement.
    pub due: u64,
    /// Heartbeats sent, urgent ones included.
    pub sent: u64,
    /// ... and answered.
    pub answered: u64,
    /// ... or not, even some seconds later.
    pub missed: u64,
    /// From a heartbeat to its answer.
    pub latency: Latency,
    /// How late the generator itself was.
    pub lateness: Latency,
    /// Steps that the coordinator committed during the measurement.
    pub committed_steps: Option<u64>,
    /// Heartbeats without a step that was due, since its epoch was not granted yet.
    pub waited_for_grants: u64,
    /// Cores that the generator used.
    pub generator_cores: f64,
    /// Cores that the coordinator used.
    pub coordinator_cores: Option<f64>,
    /// The coordinator's busiest thread and its share of a core.
    pub busiest_thread: Option<(String, f64)>,
    /// Cores that other processes used meanwhile.
    pub other_cores: f64,
    /// The coordinator's memory.
    pub memory: Option<Memory>,
    /// Files that the generator had open.
    pub generator_files: Option<u64>,
    /// Files that the coordinator had open.
    pub coordinator_files: Option<u64>,
    /// What went wrong, by kind, joining included.
    pub errors: Errors,
    /// What kept it from holding; none where it held.
    pub limit: Option<Limit>,
}

/// Times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Latency {
    /// Half of them are below.
    pub p50_ms: f64,
    /// Nine in ten.
    pub p90_ms: f64,
    /// 99 in a hundred.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// Resident memory of the coordinator, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// Before anything.
    pub idle_kib: u64,
    /// With the job, before anybody joined.
    pub with_job_kib: u64,
    /// With all agents.
    pub joined_kib: u64,
    /// At the end of the measurement.
    pub end_kib: u64,
    /// What one agent with its ranks added by joining.
    pub per_agent_kib: f64,
}

/// Counted by kind, each with its first example.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Errors(BTreeMap<String, (u64, String)>);

/// What a coordinator, or the measurement of it, came up against.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "limit", rename_all = "snake_case")]
pub enum Limit {
    /// The generator has no more to give: the coordinator may hold more.
    GeneratorCpu,
    /// One thread of the coordinator is busy all the time.
    CoordinatorThread {
        /// Its name.
        name: String,
    },
    /// No core is left on this machine.
    MachineCpu,
    /// Not all agents were welcomed in time.
    Joins,
    /// Not all ranks were started in time.
    Generation,
    /// Connections broke.
    Connections,
    /// Answers did not come.
    Unanswered,
    /// Answers came late.
    Latency,
}

impl Errors {
    pub(crate) fn add(&mut self, kind: &str, example: &str) {
        match self.0.get_mut(kind) {
            Some((count, _)) => *count += 1,
            None => {
                self.0.insert(kind.to_owned(), (1, example.to_owned()));
            }
        }
    }

    /// Kinds, counts and an example each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.0.iter().map(|(kind, (count, example))| (kind.as_str(), *count, example.as_str()))
    }
}

impl Point {
    /// What kept it from holding, the cause before its consequences; needs all else.
    pub(crate) fn judge(&self, cores: u32) -> Option<Limit> {
        let joined = self.welcomed == self.agents;
        let formed = self.steps_per_second.is_none() || self.formed_seconds.is_some();
        let held = joined
            && formed
            && self.connected == self.agents
            && self.missed == 0
            && self.latency.p99_ms <= SLOWEST_P99_MS;
        if held {
            return None;
        }
        let used = self.generator_cores + self.coordinator_cores.unwrap_or(0.0) + self.other_cores;
        let limit = if self.generator_cores >= BUSY {
            Limit::GeneratorCpu
        } else if let Some((name, share)) = &self.busiest_thread
            && *share >= BUSY
        {
            Limit::CoordinatorThread { name: name.clone() }
        } else if used >= f64::from(cores) * BUSY {
            Limit::MachineCpu
        } else if !joined {
            Limit::Joins
        } else if !formed {
            Limit::Generation
        } else if self.connected < self.agents {
            Limit::Connections
        } else if self.missed > 0 {
            Limit::Unanswered
        } else {
            Limit::Latency
        };
        Some(limit)
    }

    /// Heartbeats that `agents` owe in the measurement.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count")]
    pub(crate) fn due(agents: u32, heartbeats_per_second: f64, seconds: f64) -> u64 {
        (f64::from(agents) * heartbeats_per_second * seconds).round() as u64
    }
}

impl Memory {
    #[expect(clippy::cast_precision_loss, reason = "memory of one process in KiB")]
    pub(crate) fn new(idle_kib: u64, with_job_kib: u64, joined_kib: u64, end_kib: u64, agents: u32) -> Self {
        let added = joined_kib.saturating_sub(with_job_kib) as f64;
        let per_agent_kib = added / f64::from(agents.max(1));
        Self { idle_kib, with_job_kib, joined_kib, end_kib, per_agent_kib }
    }
}

impl Options {
    pub(crate) const fn steps_per_second(&self) -> Option<f64> {
        match self.load {
            Load::Heartbeats => None,
            Load::Training { steps_per_second } => Some(steps_per_second),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GeneratorCpu => f.write_str("the generator's one core; the coordinator may hold more"),
            Self::CoordinatorThread { name } => {
                write!(f, "the coordinator's thread `{name}` has a core's work")
            }
            Self::MachineCpu => f.write_str("this machine's cores, shared by generator and coordinator"),
            Self::Joins => f.write_str("not all agents were welcomed in time"),
            Self::Generation => f.write_str("not all ranks were started in time"),
            Self::Connections => f.write_str("connections broke"),
            Self::Unanswered => f.write_str("heartbeats were not answered"),
            Self::Latency => f.write_str("answers were late"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cores, at most {} open files a process", self.cores, self.file_limit)?;
        writeln!(
            f,
            "{:>7} {:>7} {:>6} {:>6} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>6} {:>8} {:>8}",
            "agents",
            "ranks",
            "hz",
            "step/s",
            "welcome s",
            "formed s",
            "sent",
            "missed",
            "commits",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "max ms",
            "gen",
            "coord",
            "other",
            "RSS MiB",
            "KiB/agt",
        )?;
        for point in &self.points {
            row(f, point)?;
        }
        for point in &self.points {
            remarks(f, point)?;
        }
        match &self.stopped {
            Some(reason) => writeln!(f, "stopped: {reason}"),
            None => Ok(()),
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, p: &Point) -> fmt::Result {
    let or_dash = |number: Option<f64>, places: usize| {
        number.map_or_else(|| "-".to_owned(), |n| format!("{n:.places$}"))
    };
    #[expect(clippy::cast_precision_loss, reason = "memory of one process in KiB")]
    let rss = p.memory.map(|m| m.joined_kib as f64 / 1024.0);
    writeln!(
        f,
        "{:>7} {:>7} {:>6.2} {:>6} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>6.2} {:>6} {:>6.2} {:>8} {:>8}",
        p.agents,
        p.ranks,
        p.heartbeats_per_second,
        or_dash(p.steps_per_second, 1),
        or_dash(p.welcomed_seconds, 2),
        or_dash(p.formed_seconds, 2),
        p.sent,
        p.missed,
        p.committed_steps.map_or_else(|| "-".to_owned(), |s| s.to_string()),
        p.latency.p50_ms,
        p.latency.p90_ms,
        p.latency.p99_ms,
        p.latency.max_ms,
        p.generator_cores,
        or_dash(p.coordinator_cores, 2),
        p.other_cores,
        or_dash(rss, 1),
        or_dash(p.memory.map(|m| m.per_agent_kib), 1),
    )
}

/// What a person should know of a point besides its row.
fn remarks(f: &mut fmt::Formatter<'_>, p: &Point) -> fmt::Result {
    let who = format!("{} agents at {:.2} Hz", p.agents, p.heartbeats_per_second);
    if let Some(limit) = &p.limit {
        writeln!(f, "{who}: does not hold: {limit}")?;
    }
    if p.welcomed < p.agents || p.connected < p.agents {
        writeln!(f, "{who}: {} welcomed, {} connected at the end", p.welcomed, p.connected)?;
    }
    if p.steps_per_second.is_some() && p.formed_seconds.is_none() {
        writeln!(f, "{who}: no generation of all ranks (largest started whole: {})", p.formed_ranks)?;
    }
    if p.generations > 1 {
        writeln!(f, "{who}: {} generations were started", p.generations)?;
    }
    if p.lateness.p99_ms > 10.0 {
        writeln!(
            f,
            "{who}: the generator sent late: p50 {:.1} ms, p99 {:.1} ms",
            p.lateness.p50_ms, p.lateness.p99_ms
        )?;
    }
    if p.waited_for_grants > 0 {
        writeln!(f, "{who}: {} heartbeats lacked a step for want of a grant", p.waited_for_grants)?;
    }
    if let Some((name, share)) = &p.busiest_thread {
        writeln!(f, "{who}: the coordinator's busiest thread is `{name}`, {share:.2} of a core")?;
    }
    for (kind, count, example) in p.errors.iter() {
        writeln!(f, "{who}: {count} x {kind}, as: {example}")?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
