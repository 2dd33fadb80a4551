//! This rank's slice of the state, to the checkpoint service and back.
//!
//! Uploads run in the background, one at a time, and may take as long as the service is away: training must not wait
//! for that. Yet a checkpoint needs the slices of all ranks, so no rank may skip one by itself. Hence in three places:
//!
//! 1. Before each step a rank asks [`Snapshots::still_uploading`]. Where a snapshot is due after the step, this waits
//!    for an upload that is still young, so that with a service that answers nothing is ever skipped; an upload holds
//!    training up once, and no longer than half a collective's patience, so that no peer gives this rank up.
//! 2. What it answers goes into the step's one agreement, and comes out as "some rank is still uploading".
//! 3. After the step all decide alike on that ([`crate::saving`]): if nobody was, all take the snapshot, and none of
//!    them finds an upload in its way. Otherwise all skip it.
//!
//! The state where training stops is never skipped: [`Snapshots::stage`] waits for the upload before it, and
//! [`Snapshots::finish_or_fail`] for its own.

use crate::generation::Member;
use crate::orders::Orders;
use crate::slice_buffer::SliceBuffer;
use crate::upload::Upload;
use crate::weights;
use anyhow::Result;
use mcl_checkpoint::CheckpointClient;
use mcl_checkpoint_core::SliceView;
use mcl_collective::Lifeline;
use mcl_proto::v1;
use mcl_types::{RunId, Step, Tier};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::Tensor;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// How often a wait for the service looks whether its generation is over.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// The generation ended while the checkpoint service was waited for.
#[derive(Debug)]
pub(crate) struct Left;

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("told to leave while waiting for the checkpoint service")
    }
}

impl std::error::Error for Left {}

/// `work`, given up once `lifeline` is aborted.
pub(crate) async fn unless_left<T>(lifeline: &Lifeline, work: impl Future<Output = T>) -> Result<T> {
    let left = async {
        while !lifeline.is_aborted() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        done = work => Ok(done),
        () = left => Err(Left.into()),
    }
}

/// An upload under way, or one whose end nobody has looked at yet.
struct Pending {
    step: Step,
    since: Instant,
    /// A try has failed.
    troubled: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

/// How an upload ended, where a later one makes up for it. It has said itself how it failed.
fn made_up_for(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.is::<Left>() => Err(error),
        Err(error) => {
            tracing::debug!("an earlier upload failed: {error:#}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// The state of a visible checkpoint, every byte verified.
pub(crate) async fn fetch(
    client: &CheckpointClient,
    run: &RunId,
    step: Step,
) -> Result<BTreeMap<String, Tensor>> {
    let manifest = client.manifest(run, step).await?;
    let mut state = BTreeMap::new();
    for (slice, entry) in (0_u32..).zip(&manifest.slices) {
        let bytes = client.get_slice(run, step, slice, entry).await?;
        let view = SliceView::parse(&bytes)?;
        for (name, t) in view.tensors() {
            state.insert(name.to_owned(), weights::tensor(name, t.dtype, &t.shape, t.bytes)?);
        }
    }
    Ok(state)
}

/// Uploads slices in the background, one at a time.
pub(crate) struct Snapshots {
    runtime: Runtime,
    client: CheckpointClient,
    run: RunId,
    orders: Arc<Orders>,
    buffer: SliceBuffer,
    pending: Option<Pending>,
}

impl Snapshots {
    pub(crate) fn new(configure: &v1::Configure, orders: Arc<Orders>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // The worker names it, where it has one itself.
        let identity = mcl_transport::Identity::from_environment()?;
        let client = {
            let _inside = runtime.enter();
            CheckpointClient::lazy(&configure.checkpoint_url, identity.as_ref())?
        };
        let (run, buffer) = (mcl_proto::run_id(&configure.run_id)?, SliceBuffer::default());
        Ok(Self { runtime, client, run, orders, buffer, pending: None })
    }

    /// The state of a visible checkpoint, every byte verified.
    pub(crate) fn load(&self, lifeline: &Lifeline, step: Step) -> Result<BTreeMap<String, Tensor>> {
        self.runtime.block_on(unless_left(lifeline, fetch(&self.client, &self.run, step)))?
    }

    /// Has the memory for this rank's slice ready before the first snapshot needs it.
    pub(crate) fn prepare(&mut self, member: &Member, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let (slice, slices) = (member.rank.get(), member.layout.world());
        if let Some(work) = self.buffer.prepare(state, slice, slices)? {
            self.runtime.spawn_blocking(work);
        }
        Ok(())
    }

    /// Whether an upload is under way: one that is younger than `patience` is waited for until it is that old.
    pub(crate) fn still_uploading(&mut self, lifeline: &Lifeline, patience: Duration) -> Result<bool> {
        let Some(pending) = &mut self.pending else { return Ok(false) };
        let left = patience.saturating_sub(pending.since.elapsed());
        let done = async { tokio::time::timeout(left, &mut pending.task).await };
        let Ok(outcome) = self.runtime.block_on(unless_left(lifeline, done))? else { return Ok(true) };
        self.pending = None;
        made_up_for(outcome.map_err(Into::into).flatten())?;
        Ok(false)
    }

    /// Says that the snapshot after so many steps is not taken.
    pub(crate) fn skip(&self, step: Step) {
        match &self.pending {
            Some(Pending { step: earlier, since, .. }) => {
                let seconds = since.elapsed().as_secs_f64();
                tracing::warn!(
                    step = step.get(),
                    uploading = earlier.get(),
                    seconds,
                    "snapshot skipped: an earlier upload is still under way"
                );
            }
            None => tracing::warn!(step = step.get(), "snapshot skipped: another rank is still uploading"),
        }
    }

    /// Copies this rank's slice of `state` (after `step` steps) and uploads it in the background; Staged is
    /// reported when it is stored. Waits for the upload before it, so that two never pile up; that one's failure is
    /// not the end of training, since this one makes up for it.
    pub(crate) fn stage(
        &mut self,
        member: &Member,
        step: Step,
        tier: Tier,
        state: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        made_up_for(self.await_pending(&member.lifeline))?;
        let (slice, slices) = (member.rank.get(), member.layout.world());
        let bytes = self.buffer.copy(state, slice, slices)?;
        let troubled = Arc::new(AtomicBool::new(false));
        let upload = Upload {
            client: self.client.clone(),
            orders: Arc::clone(&self.orders),
            lifeline: member.lifeline.clone(),
            reporter: member.reporter.clone(),
            run: self.run.clone(),
            generation: member.token.generation,
            step,
            tier,
            slice,
            slices,
            bytes,
            troubled: Arc::clone(&troubled),
        };
        let task = self.runtime.spawn(upload.run());
        self.pending = Some(Pending { step, since: Instant::now(), troubled, task });
        Ok(())
    }

    /// Waits for the upload under way, where the checkpoint must not be missed: at a drain and at the end.
    pub(crate) fn finish_or_fail(&mut self, lifeline: &Lifeline) -> Result<()> {
        self.await_pending(lifeline)
    }

    fn await_pending(&mut self, lifeline: &Lifeline) -> Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let outcome = self.runtime.block_on(unless_left(lifeline, &mut pending.task));
        if !outcome.as_ref().is_err_and(anyhow::Error::is::<Left>) {
            self.pending = None;
        }
        outcome??
    }

    /// Gives up what an older generation was still uploading: nobody waits for it.
    pub(crate) fn give_up(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        // One that has ended by itself has said how.
        if pending.task.is_finished() {
            return;
        }
        pending.task.abort();
        let (step, seconds) = (pending.step.get(), pending.since.elapsed().as_secs_f64());
        if pending.troubled.load(Ordering::Relaxed) {
            tracing::warn!(step, seconds, "upload that kept failing given up: its generation is over");
        } else {
            tracing::info!(step, seconds, "upload under way given up: its generation is over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Reporter;
    use mcl_checkpoint::{ClientError, Draft, Layout, ServeConfig, serve};
    use mcl_proto::v1::rank_command::Command;
    use mcl_types::{FencingToken, Generation, LaneLayout, Rank, Retention, Term};
    use std::io::Write;
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::sync::{LazyLock, Mutex};
    use tch::{Device, Kind};

    /// How long anything here may take at most.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// What this process's threads log. Steps tell tests apart.
    static LOG: LazyLock<Log> = LazyLock::new(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        log
    });

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        /// Waits for so many lines that hold both.
        fn says(&self, what: &str, of: &str, times: usize) {
            let until = Instant::now() + PATIENCE;
            loop {
                let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
                let found = text.lines().filter(|l| l.contains(what) && l.contains(of)).count();
                if found >= times {
                    return;
                }
                assert!(
                    Instant::now() < until,
                    "{found} times `{what}` of `{of}`, expected {times}:\n{text}"
                );
                std::thread::sleep(LOOK);
            }
        }
    }

    /// A rank of one, and a place where a checkpoint service listens once it is served.
    struct World {
        folder: tempfile::TempDir,
        listener: Option<TcpListener>,
        service: Runtime,
        client: CheckpointClient,
        run: RunId,
        member: Member,
        snapshots: Snapshots,
    }

    const TOKEN: v1::FencingToken = v1::FencingToken { term: 1, generation: 1 };

    impl World {
        fn new() -> Self {
            LazyLock::force(&LOG);
            let folder = tempfile::tempdir().unwrap();
            // Bound and not served: the kernel takes connections, nobody answers on them.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let checkpoint_url = format!("http://127.0.0.1:{port}");
            let service =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let client = {
                let _inside = service.enter();
                CheckpointClient::lazy(&checkpoint_url, None).unwrap()
            };
            let orders = Arc::new(Orders::default());
            orders.hear(Command::Join(v1::Join {
                token: Some(TOKEN),
                rank: 0,
                world_size: 1,
                ..v1::Join::default()
            }));
            let member = Member {
                token: TOKEN.into(),
                rank: Rank::new(0),
                layout: LaneLayout::new(1, 1).unwrap(),
                reporter: Reporter::new(tempfile::tempfile().unwrap()),
                lifeline: Lifeline::new(&[port]).unwrap(),
            };
            let configure =
                v1::Configure { run_id: "run".to_owned(), checkpoint_url, ..v1::Configure::default() };
            let snapshots = Snapshots::new(&configure, orders).unwrap();
            let run = RunId::new("run").unwrap();
            Self { folder, listener: Some(listener), service, client, run, member, snapshots }
        }

        fn root(&self) -> PathBuf {
            self.folder.path().join("checkpoints")
        }

        fn serve(&mut self) {
            let config = ServeConfig::new(self.root(), Layout::Flat);
            let listener = self.listener.take().unwrap();
            listener.set_nonblocking(true).unwrap();
            self.service.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::spawn(serve(listener, config, std::future::pending()));
                CheckpointClient::connect(self.client.url(), None, PATIENCE).await.unwrap();
            });
        }

        fn stage(&mut self, step: u64, value: f64, tier: Tier) {
            let tensor = Tensor::full([8], value, (Kind::Float, Device::Cpu));
            let state = BTreeMap::from([("a".to_owned(), tensor)]);
            self.snapshots.stage(&self.member, Step::new(step), tier, &state).unwrap();
        }

        fn finish(&mut self) -> Result<()> {
            self.snapshots.finish_or_fail(&self.member.lifeline)
        }

        fn commit(&self, step: u64) -> Result<(), ClientError> {
            let token = FencingToken { term: Term::new(1), generation: Generation::new(1) };
            let (step, tier) = (Step::new(step), Tier::Durable);
            let draft = Draft { token, run: &self.run, step, slices: 1, tier };
            self.service.block_on(self.client.commit(draft, "{}", Retention::ALL)).map(drop)
        }

        /// Nothing can be written any more: where the store's folder was, there is a file.
        fn break_store(&self) {
            std::fs::rename(self.root(), self.folder.path().join("aside")).unwrap();
            std::fs::write(self.root(), "in the way").unwrap();
        }

        fn mend_store(&self) {
            std::fs::remove_file(self.root()).unwrap();
            std::fs::rename(self.folder.path().join("aside"), self.root()).unwrap();
        }
    }

    #[test]
    fn a_store_that_fails_costs_no_state_once_it_is_mended_the_slice_is_there() {
        let mut world = World::new();
        world.serve();
        world.break_store();
        world.stage(11, 1.0, Tier::Durable);
        LOG.says("upload failed, is tried again", "step=11 ", 3);
        world.mend_store();
        world.finish().unwrap();
        world.commit(11).unwrap();
    }

    #[test]
    fn what_no_repetition_can_change_is_said_once_and_handed_on() {
        let mut world = World::new();
        world.serve();
        world.stage(21, 1.0, Tier::Durable);
        world.finish().unwrap();
        world.commit(21).unwrap();
        world.stage(21, 2.0, Tier::Durable);
        LOG.says("there will be no checkpoint of this step", "step=21 ", 1);
        let error = world.finish().unwrap_err();
        let conflict = error.chain().any(|e| matches!(e.downcast_ref(), Some(ClientError::Conflict { .. })));
        assert!(conflict, "{error:#}");
    }

    #[test]
    fn a_snapshot_in_memory_is_not_tried_again_and_does_not_hold_up_a_durable_one() {
        let mut world = World::new();
        world.serve();
        world.break_store();
        world.stage(31, 1.0, Tier::Memory);
        LOG.says("there will be no checkpoint of this step", "step=31 ", 1);
        assert!(!world.snapshots.still_uploading(&world.member.lifeline, PATIENCE).unwrap());
        world.mend_store();
        world.stage(32, 1.0, Tier::Durable);
        world.finish().unwrap();
        world.commit(32).unwrap();
    }

    #[test]
    fn an_upload_holds_training_up_once_and_not_for_long() {
        let mut world = World::new();
        let lifeline = world.member.lifeline.clone();
        let patience = Duration::from_millis(300);
        assert!(!world.snapshots.still_uploading(&lifeline, patience).unwrap(), "nothing is under way");
        world.stage(41, 1.0, Tier::Durable);
        assert!(world.snapshots.still_uploading(&lifeline, Duration::ZERO).unwrap());
        let started = Instant::now();
        assert!(world.snapshots.still_uploading(&lifeline, patience).unwrap());
        assert!(started.elapsed() >= patience / 2, "it was not waited for");
        let started = Instant::now();
        for _ in 0..10 {
            assert!(world.snapshots.still_uploading(&lifeline, patience).unwrap());
        }
        assert!(started.elapsed() < 5 * patience, "an old upload was waited for again and again");
        world.snapshots.skip(Step::new(42));
        LOG.says("snapshot skipped: an earlier upload is still under way", "step=42 uploading=41 ", 1);

        world.serve();
        let started = Instant::now();
        assert!(!world.snapshots.still_uploading(&lifeline, PATIENCE).unwrap());
        assert!(started.elapsed() < PATIENCE / 2);
        world.commit(41).unwrap();
    }

    #[test]
    fn the_end_of_a_generation_ends_its_uploads_and_says_which() {
        let mut world = World::new();
        world.stage(51, 1.0, Tier::Durable);
        world.snapshots.give_up();
        LOG.says("INFO", "upload under way given up: its generation is over step=51 ", 1);

        world.serve();
        world.break_store();
        world.stage(52, 1.0, Tier::Durable);
        LOG.says("upload failed, is tried again", "step=52 ", 1);
        world.snapshots.give_up();
        LOG.says("WARN", "upload that kept failing given up: its generation is over step=52 ", 1);

        // Whose generation is broken off before another begins.
        world.stage(53, 1.0, Tier::Durable);
        LOG.says("upload failed, is tried again", "step=53 ", 1);
        world.member.lifeline.abort();
        let until = Instant::now() + PATIENCE;
        while !world.snapshots.pending.as_ref().unwrap().task.is_finished() {
            assert!(Instant::now() < until, "it is tried for ever");
            std::thread::sleep(LOOK);
        }
        world.member.lifeline.close();
        assert!(world.finish().unwrap_err().is::<Left>());
    }
}
