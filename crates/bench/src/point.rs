//! One measurement, from a fresh coordinator to its end.

use crate::BenchError;
use crate::agent::Agent;
use crate::control::Control;
use crate::daemons::Daemons;
use crate::job;
use crate::machine::{self, CpuReading};
use crate::options::{Load, Options, Target, authority};
use crate::report::{Memory, Point};
use crate::session::{Setup, Workloads, live};
use crate::stream::Trunk;
use crate::tally::{Shared, Window};
use crate::workload::Workload;
use mcl_transport::Identity;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Between the last start and the measurement: what joining left behind is done by then.
const SETTLE: Duration = Duration::from_secs(1);
/// For answers after the measurement.
const GRACE: Duration = Duration::from_secs(5);
/// For agents to end their streams.
const PARTING: Duration = Duration::from_secs(5);
/// The name of our own job's run.
const RUN: &str = "bench";

/// The coordinator under test.
struct Subject {
    url: String,
    identity: Option<Identity>,
    pid: Option<u32>,
    daemons: Option<Daemons>,
    control: Control,
    /// Beneath everything that is written; removed with this.
    folder: TempDir,
}

impl Subject {
    async fn find(target: &Target, tls: Option<&Path>) -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("mcl-bench-").tempdir();
        let folder = folder.map_err(BenchError::file("create", std::env::temp_dir()))?;
        let (url, identity, pid, daemons) = match target {
            Target::Own { program } => {
                let daemons = Daemons::start(program, folder.path()).await?;
                (daemons.url.clone(), None, daemons.pid(), Some(daemons))
            }
            Target::Running { url, pid } => {
                authority(url)?;
                (url.clone(), tls.map(Identity::open).transpose()?, *pid, None)
            }
        };
        let control = Control::connect(&url, identity.as_ref()).await?;
        Ok(Self { url, identity, pid, daemons, control, folder })
    }

    fn resident(&self) -> u64 {
        self.pid.and_then(machine::resident_kib).unwrap_or(0)
    }

    /// Submits a job for so many agents, where there is none yet; with what its ranks will report, and the
    /// world that counts as formed.
    async fn submit(
        &mut self,
        options: &Options,
        agents: u32,
        interval: Option<Duration>,
    ) -> Result<(Workloads, u32), BenchError> {
        let nothing = (Workloads::default(), 1);
        if options.load == Load::Heartbeats || !self.control.status().await?.run_id.is_empty() {
            return Ok(nothing);
        }
        let ranks = options.ranks(agents);
        let pictures = self.folder.path().join("pictures");
        let job_toml = job::make(&pictures, agents, ranks, interval)?;
        let (configure, workload) = Workload::ahead(RUN.to_owned(), &job_toml)?;
        self.control.submit(RUN.to_owned(), job_toml).await?;
        Ok((Workloads::ahead(configure, workload), job::lanes(ranks)))
    }

    async fn committed(&mut self, options: &Options) -> Option<u64> {
        options.steps_per_second()?;
        // A coordinator too busy to answer shows in everything else.
        self.control.status().await.ok().map(|s| s.committed_steps)
    }
}

/// Measures `agents` agents at this rate.
pub(crate) async fn measure(
    options: &Options,
    agents: u32,
    heartbeats_per_second: Option<f64>,
    cores: u32,
) -> Result<Point, BenchError> {
    machine::allow_files(options.connections(agents))?;
    let mut subject = Subject::find(&options.target, options.tls.as_deref()).await?;
    let interval = heartbeats_per_second.map(|hz| Duration::from_secs_f64(1.0 / hz));
    let idle = subject.resident();
    let (workloads, world) = subject.submit(options, agents, interval).await?;
    let with_job = subject.resident();
    let steps_per_second = options.steps_per_second();
    let shared = Shared::new(agents, world, steps_per_second.unwrap_or(0.0))
        .ok_or_else(|| BenchError::Thread("no histogram".to_owned()))?;
    let (leave, leaving) = watch::channel(false);
    let mut tasks = crowd(options, agents, &subject, &shared, Arc::new(workloads), interval, leaving).await?;
    shared.until(options.patience, |t| t.all_welcomed.is_some()).await;
    if steps_per_second.is_some() {
        shared.until(options.patience, |t| t.formed.is_some()).await;
    }
    tokio::time::sleep(SETTLE).await;
    let joined = subject.resident();
    let before = subject.committed(options).await;
    let mut point = window(options.measure, &subject, &shared).await;
    let after = subject.committed(options).await;
    shared.until(GRACE, |t| t.answered == t.sent).await;
    leave.send_replace(true);
    part(&mut tasks).await;
    let end = subject.resident();
    point.agents = agents;
    point.ranks = options.ranks(agents);
    point.connections = options.connections(agents);
    point.steps_per_second = steps_per_second;
    point.memory = subject.pid.map(|_| Memory::new(idle, with_job, joined, end, agents));
    point.committed_steps = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    finish(&mut point, &shared, heartbeats_per_second, cores);
    if let Some(daemons) = &mut subject.daemons
        && let Some(ended) = daemons.coordinator_ended()
    {
        point.errors.add("coordinator ended", &ended);
    }
    if let Some(daemons) = subject.daemons.take() {
        daemons.stop().await;
    }
    Ok(point)
}

/// Starts all agents at once.
async fn crowd(
    options: &Options,
    agents: u32,
    subject: &Subject,
    shared: &Shared,
    workloads: Arc<Workloads>,
    interval: Option<Duration>,
    leaving: watch::Receiver<bool>,
) -> Result<JoinSet<()>, BenchError> {
    let authority = authority(&subject.url)?;
    let unknown =
        |reason: String| BenchError::Coordinator { what: "no address", url: authority.clone(), reason };
    let mut addresses = tokio::net::lookup_host(&authority).await.map_err(|e| unknown(e.to_string()))?;
    let address = addresses.next().ok_or_else(|| unknown("no such host".to_owned()))?;
    let trunk = || Arc::new(Trunk::new(address, authority.clone(), subject.identity.clone()));
    let trunks: Vec<_> = (0..options.connections(agents)).map(|_| trunk()).collect();
    let origin = Instant::now();
    let mut tasks = JoinSet::new();
    for (trunk, number) in trunks.iter().cycle().zip(0..agents) {
        let setup = Setup {
            shared: shared.clone(),
            trunk: Arc::clone(trunk),
            workloads: Arc::clone(&workloads),
            interval,
            phase: f64::from(number) / f64::from(agents),
            origin,
            leaving: leaving.clone(),
        };
        tasks.spawn(live(Agent::new(format!("bench-{number:05}"), options.ranks_per_agent), setup));
    }
    Ok(tasks)
}

/// Lets agents end their streams; those that cannot are dropped.
async fn part(tasks: &mut JoinSet<()>) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(PARTING, ended).await;
    tasks.abort_all();
}

/// The measurement itself.
async fn window(length: Duration, subject: &Subject, shared: &Shared) -> Point {
    let own = std::process::id();
    let pids: Vec<u32> = [Some(own), subject.pid].into_iter().flatten().collect();
    let from = Instant::now();
    shared.with(|t| t.measure(Window { from, until: from + length }));
    let before = CpuReading::now(&pids);
    tokio::time::sleep_until(from + length).await;
    let after = CpuReading::now(&pids);
    let generator_cores = after.cores(&before, own).unwrap_or(0.0);
    let coordinator_cores = subject.pid.and_then(|pid| after.cores(&before, pid));
    let all = after.machine(&before);
    Point {
        seconds: length.as_secs_f64(),
        connected: shared.with(|t| t.connected),
        generator_cores,
        coordinator_cores,
        busiest_thread: subject.pid.and_then(|pid| after.busiest(&before, pid)),
        other_cores: (all - generator_cores - coordinator_cores.unwrap_or(0.0)).max(0.0),
        generator_files: machine::open_files(own),
        coordinator_files: subject.pid.and_then(machine::open_files),
        ..Point::default()
    }
}

/// What the agents counted, and what it amounts to.
fn finish(point: &mut Point, shared: &Shared, heartbeats_per_second: Option<f64>, cores: u32) {
    shared.with(|t| {
        let told = t.interval.map_or(0.0, |i| 1.0 / i.as_secs_f64());
        point.heartbeats_per_second = heartbeats_per_second.unwrap_or(told);
        point.due = Point::due(point.agents, point.heartbeats_per_second, point.seconds);
        point.welcomed = t.welcomed;
        point.welcomed_seconds = t.all_welcomed.map(|d| d.as_secs_f64());
        point.formed_ranks = t.formed_ranks;
        point.formed_seconds = t.formed.map(|d| d.as_secs_f64());
        point.generations = t.generations;
        point.sent = t.sent;
        point.answered = t.answered;
        point.missed = t.sent.saturating_sub(t.answered);
        point.latency = t.latency();
        point.lateness = t.lateness();
        point.waited_for_grants = t.waited_for_grants;
        point.errors = t.errors.clone();
    });
    point.limit = point.judge(cores);
}
