//! `mcl run`: coordinator, checkpoint service and workers as child processes, one progress bar.

use crate::arguments::RunArguments;
use crate::client::{Coordinator, load_job, runtime};
use crate::exit::{INTERRUPTED, Usage};
use crate::page::PAGE;
use crate::private::Private;
use crate::progress::Progress;
use crate::rank_program::{RankProgram, parse_devices};
use crate::run_dir;
use crate::spawn::{DONE, Daemon, Show};
use anyhow::{Context, Result, bail};
use mcl_config::Job;
use mcl_terminal::say;
use mcl_transport::Role;
use mcl_types::StoreLocation;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the run's status is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// A worker that dies before the job is over is started again so many times.
const WORKER_RESTARTS: u32 = 5;

pub(crate) fn run(a: &RunArguments) -> Result<ExitCode> {
    let job = load_job(&a.job, &a.overrides)?;
    if a.workers == 0 || a.workers > job.batch().lanes {
        bail!(Usage(format!(
            "--workers {}: expected 1 to [batch] lanes = {}, since each rank carries at least one lane",
            a.workers,
            job.batch().lanes
        )));
    }
    let program = RankProgram::find(job.train().threads_per_rank)?;
    let devices = parse_devices(&a.devices, &program)?;
    let dataset = mcl_job::open_dataset(&job)?;
    mcl_job::schedule(&job, &mcl_job::plan_spec(&job, &dataset))?;
    mcl_job::classes(&job, &dataset)?;
    mcl_job::check_evaluation(&job)?;
    drop(dataset);
    let folder = a.run_dir.clone().unwrap_or_else(|| run_dir::default_for(&a.job));
    let folder = std::path::absolute(folder)?;
    mcl_checkpoint_core::create_folder(&folder)
        .with_context(|| format!("creating the run directory {}", folder.display()))?;
    runtime()?.block_on(async {
        let mut progress = Progress::new();
        let mut fleet = Fleet { evaluates: job.evaluation().is_on(), ..Fleet::default() };
        let outcome = fleet.carry_out(a, &job, &folder, &devices, &mut progress).await;
        progress.finish();
        fleet.stop().await;
        summarize(a, &job, &folder, outcome?).await
    })
}

/// Folder of checkpoints in a run directory.
const CHECKPOINTS: &str = "checkpoints";
/// Name of the coordinator's process and log.
const COORDINATOR: &str = "coordinator";

/// How a run that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
}

/// What interrupts asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Drain,
    Leave,
}

/// Everything that was started.
#[derive(Default)]
struct Fleet {
    /// The coordinator may have features to judge when the job is over; and that this was said.
    evaluates: bool,
    told: bool,
    private: Private,
    services: Vec<Daemon>,
    workers: Vec<(Daemon, Vec<OsString>, u32)>,
}

impl Fleet {
    async fn carry_out(
        &mut self,
        a: &RunArguments,
        job: &Job,
        folder: &Path,
        devices: &[String],
        progress: &mut Progress,
    ) -> Result<Outcome> {
        let show = progress.printer();
        if a.private {
            self.private = Private::make(folder)?;
        }
        let url = self.start_services(a, job, folder, &show).await?;
        let mut coordinator = Coordinator::connect(&url, self.private.operator()?).await?;
        let network = job.network();
        let advertise =
            crate::address::advertised(network.advertise.as_deref(), network.interface.as_deref(), None)?;
        let run_id = run_dir::run_id(folder)?;
        let initial = coordinator.store_initial(a.from.as_ref(), &run_id, job, None).await?;
        let done = coordinator.submit(&run_id, job, initial).await?.committed_steps;
        if done > 0 {
            show(&format!("resuming {} after {done} committed steps", folder.display()));
        }
        for (index, devices) in deal(devices, a.workers).into_iter().enumerate() {
            let mut arguments = worker_arguments(index, &url, &devices, folder, &advertise);
            arguments.extend(self.private.arguments(Role::Worker));
            let daemon =
                Daemon::start(&format!("worker-{index}"), &arguments, &folder.join("logs"), show.clone())?;
            self.workers.push((daemon, arguments, 0));
        }
        self.watch(&mut coordinator, folder, progress, &show).await
    }

    async fn start_services(
        &mut self,
        a: &RunArguments,
        job: &Job,
        folder: &Path,
        show: &Show,
    ) -> Result<String> {
        let logs = folder.join("logs");
        let store = job.checkpoint().store.clone().unwrap_or_else(|| folder.join(CHECKPOINTS).into());
        let mut arguments: Vec<OsString> =
            ["checkpoint-server", "--stop-with-stdin", "--root"].map(OsString::from).to_vec();
        arguments.push(match store {
            StoreLocation::Folder(folder) => folder.into(),
            StoreLocation::Object(url) => url.into(),
        });
        if job.checkpoint().store.is_none() {
            arguments.push("--flat".into());
        }
        let fixed = FixedPort("checkpoint_port", job.network().checkpoint_port);
        arguments.extend(fixed.listen());
        arguments.extend(self.private.arguments(Role::Service));
        let mut checkpoint = Daemon::start("checkpoint", &arguments, &logs, show.clone())?;
        let checkpoint_url = checkpoint.url().await.map_err(|e| fixed.named_in(e))?;
        self.services.push(checkpoint);
        let mut arguments: Vec<OsString> =
            ["coordinator", "--stop-with-stdin", "--run-dir"].map(OsString::from).to_vec();
        arguments.push(folder.into());
        arguments.extend(["--checkpoint", &checkpoint_url, "--expected-workers"].map(OsString::from));
        arguments.push(a.workers.to_string().into());
        let fixed = FixedPort("coordinator_port", job.network().coordinator_port);
        arguments.extend(fixed.listen());
        arguments.extend(self.private.arguments(Role::Service));
        arguments.extend(page_arguments(a));
        let mut coordinator = Daemon::start(COORDINATOR, &arguments, &logs, show.clone())?;
        let url = coordinator.url().await.map_err(|e| fixed.named_in(e))?;
        if a.page.address(a.private).is_some()
            && let Some(page) = coordinator.says(PAGE).await
        {
            show(&format!("page: {page}"));
        }
        self.services.push(coordinator);
        Ok(url)
    }

    /// Shows progress until the job is over; the first interrupt drains, the second gives up.
    async fn watch(
        &mut self,
        coordinator: &mut Coordinator,
        folder: &Path,
        progress: &mut Progress,
        show: &Show,
    ) -> Result<Outcome> {
        let mut interrupts = Interrupts::new()?;
        let mut asked = Asked::Nothing;
        loop {
            tokio::select! {
                () = interrupts.next() => {
                    asked = self.interrupted(asked, coordinator, show).await?;
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Some(outcome) = self.outcome().await? {
                return Ok(outcome);
            }
            self.look_after(folder, show).await?;
            match coordinator.status().await {
                Ok(status) => progress.show(&status),
                // It may just have ended: then its exit says how. Or it is evaluating.
                Err(error) => {
                    tracing::debug!(%error, "status");
                    if self.evaluates && !std::mem::replace(&mut self.told, true) {
                        show("waiting for the last features to be judged (an interrupt gives that up)");
                    }
                }
            }
        }
    }

    async fn interrupted(
        &mut self,
        asked: Asked,
        coordinator: &mut Coordinator,
        show: &Show,
    ) -> Result<Asked> {
        match (asked, coordinator.drain().await) {
            (Asked::Nothing, Ok(())) => {
                show("draining: finishing the step in flight and its checkpoint (again to give up)");
                Ok(Asked::Drain)
            }
            // It serves no more and is still there.
            (Asked::Nothing | Asked::Drain, Err(error)) if self.evaluates => {
                show(&format!(
                    "the coordinator is asked to leave at once, since it does not answer ({error:#})"
                ));
                self.services.iter_mut().filter(|d| d.name() == COORDINATOR).for_each(Daemon::let_go);
                Ok(Asked::Leave)
            }
            (Asked::Nothing, Err(error)) => Err(error),
            (Asked::Drain | Asked::Leave, _) => bail!("interrupted again: stopped without a checkpoint"),
        }
    }

    /// How the run ended: the coordinator leaves when its job is over, and its exit code says how.
    async fn outcome(&mut self) -> Result<Option<Outcome>> {
        let Some(coordinator) = self.services.iter_mut().find(|d| d.name() == COORDINATOR) else {
            bail!("no coordinator was started");
        };
        let Some(status) = coordinator.ended()? else { return Ok(None) };
        match status.code() {
            Some(0) if coordinator.said(DONE).await => Ok(Some(Outcome::Done)),
            Some(0) => bail!("the coordinator was stopped before the job was done: run again to resume"),
            Some(code) if code == i32::from(INTERRUPTED) => Ok(Some(Outcome::Interrupted)),
            _ => bail!("{}", coordinator.last_error().await),
        }
    }

    /// Starts workers again that died.
    async fn look_after(&mut self, folder: &Path, show: &Show) -> Result<()> {
        for daemon in &mut self.services {
            if let Some(status) = daemon.ended()? {
                let error = daemon.last_error().await;
                bail!("{} ended ({status}): {error}", daemon.name());
            }
        }
        for (daemon, arguments, restarts) in &mut self.workers {
            // One that was dismissed left because the job is over.
            let Some(status) = daemon.ended()? else { continue };
            if status.success() {
                continue;
            }
            if *restarts >= WORKER_RESTARTS {
                let error = daemon.last_error().await;
                bail!("{} ended {restarts} times, last ({status}): {error}", daemon.name());
            }
            *restarts += 1;
            let name = daemon.name().to_owned();
            show(&format!("{name} ended ({status}): starting it again"));
            *daemon = Daemon::start(&name, arguments, &folder.join("logs"), show.clone())?;
        }
        Ok(())
    }

    async fn stop(self) {
        for (daemon, _, _) in self.workers {
            daemon.stop().await;
        }
        for daemon in self.services.into_iter().rev() {
            daemon.stop().await;
        }
    }
}

struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A key of `[network]` and the port that the job wants a service to listen at.
#[derive(Debug, Clone, Copy)]
struct FixedPort(&'static str, Option<u16>);

impl FixedPort {
    /// None where any will do.
    fn port(self) -> Option<u16> {
        self.1.filter(|port| *port != 0)
    }

    fn listen(self) -> Vec<OsString> {
        let listen = |port| ["--listen".into(), format!("127.0.0.1:{port}").into()].to_vec();
        self.port().map_or_else(Vec::new, listen)
    }

    /// A service that did not come up may have failed because of its port.
    fn named_in(self, error: anyhow::Error) -> anyhow::Error {
        match self.port() {
            Some(port) => error.context(format!("with [network] {} = {port}", self.0)),
            None => error,
        }
    }
}

/// Devices dealt to workers in turn; each gets at least one, CPU slots as many as needed.
fn deal(devices: &[String], workers: u32) -> Vec<Vec<String>> {
    let workers = usize::try_from(workers).unwrap_or(1);
    let mut dealt = vec![Vec::new(); workers];
    for index in 0..devices.len().max(workers) {
        if let (Some(device), Some(worker)) =
            (devices.get(index % devices.len().max(1)), dealt.get_mut(index % workers))
        {
            worker.push(device.clone());
        }
    }
    dealt
}

/// What the coordinator is told of its page.
fn page_arguments(a: &RunArguments) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    if a.page.no_page {
        arguments.push("--no-page".into());
    }
    if let Some(address) = a.page.page {
        arguments.extend(["--page".into(), address.to_string().into()]);
    }
    if let Some(file) = &a.page.page_token_file {
        arguments.extend(["--page-token-file".into(), file.into()]);
    }
    if a.page.page_insecure {
        arguments.push("--page-insecure".into());
    }
    arguments
}

fn worker_arguments(
    index: usize,
    url: &str,
    devices: &[String],
    folder: &Path,
    advertise: &str,
) -> Vec<OsString> {
    let state: PathBuf = folder.join("workers").join(index.to_string());
    let mut arguments: Vec<OsString> = vec!["worker".into(), "--stop-with-stdin".into()];
    let mut pair = |key: &str, value: OsString| arguments.extend([key.into(), value]);
    pair("--coordinator", url.into());
    pair("--name", format!("worker-{index}").into());
    pair("--devices", devices.join(",").into());
    pair("--advertise", advertise.into());
    pair("--state-dir", state.into());
    arguments
}

/// Where the run's checkpoints lie: in a store of several runs under the run's name.
fn checkpoints(job: &Job, folder: &Path) -> StoreLocation {
    match (&job.checkpoint().store, run_dir::run_id(folder)) {
        (Some(store), Ok(run)) => store.join(run.as_str()),
        _ => folder.join(CHECKPOINTS).into(),
    }
}

async fn summarize(a: &RunArguments, job: &Job, folder: &Path, outcome: Outcome) -> Result<ExitCode> {
    let (phase, code) = match outcome {
        Outcome::Done => ("done", ExitCode::SUCCESS),
        Outcome::Interrupted => ("interrupted", ExitCode::from(INTERRUPTED)),
    };
    let metrics = run_dir::metrics(folder)?;
    let tail = metrics.get(metrics.len().saturating_sub(20)..).unwrap_or_default();
    let loss = run_dir::typical(tail.iter().filter_map(|m| m.loss).collect());
    let images = run_dir::typical(metrics.iter().map(|m| m.images_per_s).collect());
    let bounds = run_dir::loss_bounds(job);
    let closed = bounds.map(|b| (b.chance - loss) / (b.chance - b.floor));
    let steps = metrics.last().map_or(0, |m| m.step + 1);
    let store = mcl_checkpoint_core::CheckpointDir::at(&checkpoints(job, folder)).await?;
    let newest = store.newest().await?;
    let digest = match newest {
        Some(step) => Some(store.verify(step).await?.0.state_digest.to_string()),
        None => None,
    };
    if a.json {
        say!(
            "{}",
            serde_json::json!({
                "phase": phase, "run_dir": folder, "steps": steps, "loss": loss,
                "chance_loss": bounds.map(|b| b.chance), "floor_loss": bounds.map(|b| b.floor),
                "gap_closed": closed, "images_per_s": images,
                "checkpoint_step": newest.map(mcl_types::Step::get), "digest": digest,
            })
        )?;
        return Ok(code);
    }
    say!("{phase}: {steps} steps, {images:.0} images/s")?;
    match (bounds, closed) {
        (Some(run_dir::Bounds { chance, floor }), Some(closed)) => say!(
            "  loss        {loss:.4} (chance {chance:.4}, floor {floor:.4}): {:.0} % of the gap closed",
            100.0 * closed
        )?,
        _ => say!("  loss        {loss:.4}")?,
    }
    if let (Some(step), Some(digest)) = (newest, digest) {
        say!("  checkpoint  after {} steps, digest {digest}", step.get())?;
    }
    say!("  run         {}", folder.display())?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_dealt_in_turn_and_cpu_slots_repeat() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(deal(&names(&["cpu"]), 3), vec![names(&["cpu"]); 3]);
        assert_eq!(
            deal(&names(&["cuda:0", "cuda:1", "cuda:2"]), 2),
            [names(&["cuda:0", "cuda:2"]), names(&["cuda:1"])]
        );
    }
}
