//! The three daemons: coordinator, checkpoint service, worker.

use crate::arguments::{CheckpointServerArguments, CoordinatorArguments, Listen, WorkerArguments};
use crate::board;
use crate::client::{load_job, runtime};
use crate::evaluation::{Checkpoints, Evaluator};
use crate::exit::{INTERRUPTED, Usage};
use crate::page::{self, PAGE};
use crate::rank_program::{RankProgram, parse_devices};
use crate::spawn::{DONE, LISTENING};
use crate::{chronicle, run_dir, whereabouts};
use anyhow::{Context, Result, bail};
use mcl_checkpoint::{Layout, ServeConfig};
use mcl_config::Job;
use mcl_coordinator::{Coordinator, CoordinatorConfig, CoordinatorHandle, JobFacts, JobOutcome, TellHistory};
use mcl_history::{Chronicle, Told};
use mcl_terminal::say;
use mcl_traces::Traces;
use mcl_transport::Gate;
use mcl_worker::{Farewell, WorkerConfig, WorkerOutcome};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;

/// How often a standby looks whether the run directory is free: a successor has to serve within a second.
const STANDBY_LOOK: Duration = Duration::from_millis(100);
/// How long TensorBoard's files may take to be closed.
const LAST_ROWS: Duration = Duration::from_secs(5);
/// What a standby prints while it waits.
const STANDING_BY: &str = "standing by for ";
/// Connections that may wait to be accepted: a whole cluster comes at once after an outage, and each one that finds
/// no room waits a second before it tries again.
const BACKLOG: u32 = 4096;
/// How often workers speak when nothing is urgent.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Says each time that somebody wants this process to go: a signal asks it to leave in order, a second one or
/// (where that was asked for) the end of standard input at once.
fn farewells(stop_with_stdin: bool) -> Result<mpsc::Receiver<Farewell>> {
    let (say, said) = mpsc::channel(4);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    if stop_with_stdin {
        let say = say.clone();
        // A plain thread: the runtime would wait for a blocking read when the process wants to end.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = say.blocking_send(Farewell::Now);
        });
    }
    tokio::spawn(async move {
        let mut farewell = Farewell::Drain;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if say.send(farewell).await.is_err() {
                return;
            }
            farewell = Farewell::Now;
        }
    });
    Ok(said)
}

/// Ends with the first farewell.
async fn asked_to_stop(stop_with_stdin: bool) {
    match farewells(stop_with_stdin) {
        Ok(mut farewells) => drop(farewells.recv().await),
        Err(error) => {
            tracing::warn!(%error, "signals cannot be heard");
            std::future::pending().await
        }
    }
}

fn bind(listen: &Listen) -> Result<(TcpListener, SocketAddr)> {
    let attempt = || -> std::io::Result<TcpListener> {
        let socket = if listen.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen.listen)?;
        socket.listen(BACKLOG)
    };
    let listener = attempt()
        .with_context(|| format!("listening at {}: choose a free port, or 0 for any", listen.listen))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn scheme(gate: &Gate) -> &'static str {
    if gate.identity().is_some() { "https" } else { "http" }
}

fn announce(address: SocketAddr, gate: &Gate) {
    let scheme = scheme(gate);
    announce_line(&format!("{LISTENING}{scheme}://{address}"));
}

/// What whoever started this may wait for; a daemon does not end because it cannot be said.
fn announce_line(line: &str) {
    if let Err(error) = say!("{line}") {
        tracing::warn!(%error, line, "standard output cannot be written");
    }
}

pub(crate) fn checkpoint_server(a: &CheckpointServerArguments) -> Result<ExitCode> {
    let gate = a.listen.gate()?;
    raise_file_limit();
    runtime()?.block_on(async {
        let (listener, address) = bind(&a.listen)?;
        announce(address, &gate);
        let layout = if a.flat { Layout::Flat } else { Layout::RunFolders };
        let memory_bytes = a.memory.saturating_mul(1 << 20);
        let config = ServeConfig { memory_bytes, gate, ..ServeConfig::new(a.root.clone(), layout) };
        mcl_checkpoint::serve(listener, config, asked_to_stop(a.listen.stop_with_stdin)).await?;
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn worker(a: &WorkerArguments) -> Result<ExitCode> {
    let program = RankProgram::find(1)?;
    let devices = parse_devices(&a.devices, &program)?;
    let identity = a.tls.identity()?;
    let own = identity.as_ref().and_then(|i| i.certificate().holder.name);
    let name = a.name.clone().or_else(|| own.map(|own| own.to_string())).unwrap_or_else(default_name);
    let (address, interface) = (a.advertise.as_deref(), a.interface.as_deref());
    let advertise = crate::address::advertised(address, interface, Some(&a.coordinator))?;
    tracing::info!(%advertise, "other ranks reach this machine at");
    let mut rank_env = program.environment;
    if let Some(identity) = &identity {
        // Ranks speak to the checkpoint service themselves.
        rank_env.push((mcl_transport::VARIABLE.to_owned(), identity.folder().display().to_string()));
    }
    rank_env.extend(crate::address::nccl_interface(&advertise, interface));
    let config = WorkerConfig {
        name,
        coordinator_url: a.coordinator.clone(),
        identity,
        devices,
        rank_program: program.path,
        rank_env,
        advertise,
        state_dir: a.state_dir.clone(),
        connect_timeout: Duration::from_secs(a.connect_timeout),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: "2.11.0".to_owned(),
    };
    runtime()?.block_on(async {
        match mcl_worker::run(config, farewells(a.stop_with_stdin)?).await? {
            WorkerOutcome::Dismissed(reason) => tracing::info!(reason, "dismissed"),
            WorkerOutcome::Shutdown => tracing::info!("stopped"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn default_name() -> String {
    let host =
        nix::unistd::gethostname().map_or_else(|_| "worker".into(), |h| h.to_string_lossy().into_owned());
    format!("{host}-{}", std::process::id())
}

/// What the coordinator needs to know of a job, from its file and its pictures.
fn interpret(job_toml: &str) -> Result<JobFacts> {
    let job = Job::parse(job_toml, "the submitted job")?;
    let dataset = mcl_job::open_dataset(&job)?;
    let plan = mcl_job::plan_spec(&job, &dataset);
    let schedule = mcl_job::schedule(&job, &plan)?;
    mcl_job::classes(&job, &dataset)?;
    Ok(JobFacts {
        job_digest: job.digest()?,
        job_toml: job.to_toml()?,
        plan,
        schedule,
        shard_names: dataset.shards().iter().map(|s| s.name.clone()).collect(),
        retention: job.checkpoint().retention(),
        min_workers: job.elastic().min_workers,
        max_lanes_per_rank: job.elastic().max_lanes_per_rank,
        lost_after: Some(job.elastic().lost_after),
    })
}

pub(crate) fn coordinator(a: &CoordinatorArguments) -> Result<ExitCode> {
    let gate = a.listen.gate()?;
    mcl_transport::Dial::new(&a.checkpoint, gate.identity())
        .map_err(|e| Usage(format!("--checkpoint {}: {e}", a.checkpoint)))?;
    crate::address::check_shared(&a.checkpoint, a.listen.listen)?;
    let job = a.job.as_deref().map(|path| load_job(path, &a.overrides)).transpose()?;
    let Some(home) = a.home.path() else { bail!(Usage("give --run-dir or --runs".to_owned())) };
    runtime()?.block_on(async {
        std::fs::create_dir_all(home).with_context(|| format!("creating {}", home.display()))?;
        raise_file_limit();
        if a.standby {
            stand_by(home).await?;
        }
        let page = page::bind(&a.page, gate.identity().is_some()).await?;
        // Perhaps set for others on this machine: no reason not to train.
        let traces = Traces::from_environment().unwrap_or_else(|error| {
            let expected = "http://HOST:4317, without TLS";
            tracing::warn!(%error, expected, "no traces: OTEL_EXPORTER_OTLP_ENDPOINT cannot be used");
            None
        });
        let (listener, address) = bind(&a.listen)?;
        let chronicle = Chronicle::default();
        let gate_identity = gate.identity().map(|identity| identity.folder().to_owned());
        let config = coordinator_config(a, (home, gate.clone(), listener), &chronicle);
        let interpret = |toml: &str| interpret(toml).map_err(|e| format!("{e:#}"));
        let coordinator = Coordinator::open(config, Arc::new(interpret)).await?;
        let told = whereabouts::Told::tell(home, scheme(&gate), address);
        announce(address, &gate);
        let checkpoints = Checkpoints { url: a.checkpoint.clone(), identity: gate_identity };
        let evaluator = Evaluator::start(&coordinator, checkpoints);
        let watchers = Watchers::start(&coordinator, &evaluator, page, traces, chronicle);
        let run_id = run_dir::run_id(&run_dir::default_for(a.job.as_deref().unwrap_or(home)))?;
        let handle = coordinator.handle();
        let submit = async {
            if let Some(job) = &job {
                let refused = |e| anyhow::anyhow!("job refused by the coordinator at {address}: {e}");
                handle.submit(run_id, job.to_toml()?).await.map_err(refused)?;
            }
            std::future::pending::<Result<JobOutcome>>().await
        };
        let outcome = tokio::select! {
            outcome = coordinator.serve(asked_to_stop(a.listen.stop_with_stdin)) => outcome?,
            refused = submit => refused?,
        };
        // A job that only waits for its next coordinator is not over.
        if outcome != JobOutcome::Stopped {
            told.end(&handle.subscribe().borrow());
        }
        watchers.over(&handle).await;
        let left = matches!(outcome, JobOutcome::Done { .. });
        evaluator.end(left, asked_to_stop(a.listen.stop_with_stdin)).await;
        watchers.end(&handle).await;
        finish(outcome)
    })
}

fn coordinator_config(
    a: &CoordinatorArguments,
    (home, gate, listener): (&Path, Gate, TcpListener),
    chronicle: &Chronicle,
) -> CoordinatorConfig {
    let mut config = CoordinatorConfig::new(home, &a.checkpoint, listener);
    config.gate = gate;
    config.settings.expected_workers = a.expected_workers;
    config.settings.build = env!("CARGO_PKG_VERSION").to_owned();
    config.heartbeat_interval = HEARTBEAT;
    // A parent that started us for one job has workers that are to end with it.
    config.settings.leave_when_done = a.listen.stop_with_stdin && a.home.runs.is_none();
    config.settings.many_runs = a.home.runs.is_some();
    let remembered = chronicle.clone();
    config.history = TellHistory::new(move |points| {
        chronicle::response(&remembered.record(), usize::try_from(points).unwrap_or(usize::MAX))
    });
    config
}

/// Who looks on at a coordinator from its own process.
struct Watchers {
    page: Option<page::Served>,
    board: JoinHandle<()>,
    traces: Option<JoinHandle<()>>,
}

impl Watchers {
    /// Before the coordinator begins, so that nothing is missed.
    fn start(
        coordinator: &Coordinator,
        evaluator: &Evaluator,
        page: Option<page::Bound>,
        traces: Option<Traces>,
        chronicle: Chronicle,
    ) -> Self {
        let page = match page {
            Some(page) => {
                announce_line(&format!("{PAGE}{}", page.url()));
                Some(page.serve(coordinator, evaluator, chronicle))
            }
            None => {
                let told = chronicle::told(coordinator.observe(), evaluator.results(), |_| {});
                tokio::spawn(async move { chronicle.follow(told, |_| {}).await });
                None
            }
        };
        let traces = traces.map(|traces| {
            let told = chronicle::told(coordinator.observe(), evaluator.results(), |_| {});
            tokio::spawn(trace(traces, told))
        });
        Self { page, board: board::keep(coordinator), traces }
    }

    /// Tells those who look on how the run ended.
    async fn over(&self, handle: &CoordinatorHandle) {
        if let Some(page) = &self.page {
            page.over(handle).await;
        }
    }

    /// They end with the coordinator, which is gone.
    async fn end(self, handle: &CoordinatorHandle) {
        if let Some(page) = self.page {
            page.end(handle).await;
        }
        if !matches!(tokio::time::timeout(LAST_ROWS, self.board).await, Ok(Ok(()))) {
            tracing::warn!("TensorBoard's files may lack the last steps: the next start makes up for them");
        }
        if let Some(traces) = self.traces
            && !matches!(tokio::time::timeout(LAST_ROWS, traces).await, Ok(Ok(())))
        {
            tracing::warn!("the trace may lack its last spans");
        }
    }
}

/// Tells a collector what happens, until the coordinator is gone.
async fn trace(traces: Traces, told: impl Stream<Item = Told> + Send) {
    traces.follow(told).await;
    // It waits for the network.
    if let Err(error) = tokio::task::spawn_blocking(move || traces.end()).await {
        tracing::error!(%error, "the trace lacks its last spans");
    }
}

/// A stream a worker: as many as the machine allows.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// Waits until no other coordinator has the run directory.
async fn stand_by(run_dir: &Path) -> Result<()> {
    let mut told = false;
    while !mcl_coordinator::is_free(run_dir)? {
        if !told {
            announce_line(&format!("{STANDING_BY}{}", run_dir.display()));
            told = true;
        }
        tokio::time::sleep(STANDBY_LOOK).await;
    }
    Ok(())
}

/// The outcome as the process's last word.
fn finish(outcome: JobOutcome) -> Result<ExitCode> {
    match outcome {
        JobOutcome::Failed { reason } => bail!("the run failed: {reason}"),
        JobOutcome::Cancelled { step } => {
            bail!("the run was cancelled; its newest checkpoint is that of step {step}")
        }
        JobOutcome::Interrupted { .. } => Ok(ExitCode::from(INTERRUPTED)),
        JobOutcome::Done { .. } => {
            announce_line(DONE);
            Ok(ExitCode::SUCCESS)
        }
        JobOutcome::Stopped => Ok(ExitCode::SUCCESS),
    }
}
