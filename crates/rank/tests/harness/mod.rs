//! Rank processes over their pipes, with the test in the place of worker, coordinator and checkpoint store.

use mcl_checkpoint::{CheckpointClient, Draft, Layout, ServeConfig, serve};
use mcl_data::Dataset;
use mcl_data::generate::{GenerateSpec, generate};
use mcl_proto::v1::{self, rank_command::Command, rank_event::Event, start::Origin};
use mcl_types::{Digest, FencingToken, Generation, RunId, Seed, Step, Term, Tier};
use prost::Message;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps of the job.
pub const TOTAL: u64 = 6;

const JOB: &str = r#"
[data]
source = "SOURCE"
[model]
depth = 18
width = 8
image_size = 32
fpn_channels = 16
projector_convs = 1
projector_hidden = 32
embedding = 16
predictor_hidden = 32
[method]
compute = "exact"
temperature = 0.2
levels = [1, 2, 4]
level_weights = [0.5, 0.25, 0.25]
base_momentum = 0.9
[batch]
lanes = LANES
images_per_lane = 8
[train]
steps = 6
threads_per_rank = 1
[optimizer]
kind = "lars"
lr = 0.5
min_lr = 0.0
warmup_steps = 2
[checkpoint]
every_steps = 3
"#;

/// A dataset, a checkpoint service (or its listener, where nobody serves yet) and the number of the last generation.
pub struct World {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    checkpoints: CheckpointClient,
    unserved: Option<TcpListener>,
    job: String,
    dataset: (String, u64),
    generation: u64,
}

/// A rank process.
pub struct Rank {
    child: Child,
    input: ChildStdin,
    events: Receiver<v1::RankEvent>,
    /// Reports since the last Join.
    pub reports: Vec<v1::StepReport>,
    /// Steps of the slices that it has staged.
    pub staged: Vec<u64>,
    token: v1::FencingToken,
}

impl World {
    pub fn new(lanes: u32) -> Self {
        let mut world = Self::without_checkpoints(lanes, &[]);
        world.serve_checkpoints();
        world
    }

    /// Whose checkpoint service takes connections and does not answer, until it is served. Of the job's lines some
    /// are others.
    pub fn without_checkpoints(lanes: u32, lines: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        generate(&folder.path().join("objects"), &GenerateSpec::objects(64, Seed::new(5)), &mut |_, _| {})
            .unwrap();
        let dataset = Dataset::open(&folder.path().join("objects")).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let checkpoints = {
            let _inside = runtime.enter();
            CheckpointClient::lazy(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap()
        };
        let mut job = JOB.replace("LANES", &lanes.to_string());
        for (line, other) in lines {
            assert!(job.contains(line), "{line}");
            job = job.replace(line, other);
        }
        let dataset = (dataset.digest().to_string(), dataset.len());
        let unserved = Some(listener);
        Self { folder, runtime, checkpoints, unserved, job, dataset, generation: 0 }
    }

    pub fn serve_checkpoints(&mut self) {
        let config = ServeConfig::new(self.folder.path().join("checkpoints"), Layout::Flat);
        let listener = self.unserved.take().unwrap();
        listener.set_nonblocking(true).unwrap();
        self.runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tokio::spawn(serve(listener, config, std::future::pending()));
            CheckpointClient::connect(self.checkpoints.url(), None, PATIENCE).await.unwrap();
        });
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.folder.path(), name).display().to_string()
    }

    /// A process that is not prepared yet.
    pub fn start(&self, run: &str, failpoint: Option<&str>) -> Rank {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mcl-rank"));
        command.arg("train").stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in [
            ("OMP_NUM_THREADS", "1"),
            ("OMP_WAIT_POLICY", "PASSIVE"),
            ("MKL_DYNAMIC", "FALSE"),
            ("OMP_DYNAMIC", "FALSE"),
            ("RUST_LOG", "warn"),
            ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ] {
            command.env(name, value);
        }
        if let Some(failpoint) = failpoint {
            command.env("MCL_FAILPOINT", failpoint);
        }
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            let mut output = std::io::BufReader::new(output);
            while let Some(event) = read_event(&mut output) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let mut rank = Rank {
            child,
            input,
            events,
            reports: Vec::new(),
            staged: Vec::new(),
            token: v1::FencingToken::default(),
        };
        rank.send(Command::Configure(v1::Configure {
            run_id: run.to_owned(),
            job_toml: self.job.replace("SOURCE", &self.path("objects")),
            dataset_digest: self.dataset.0.clone(),
            dataset_len: self.dataset.1,
            checkpoint_url: self.checkpoints.url().to_owned(),
            advertise: "127.0.0.1".to_owned(),
            device: "cpu:1".to_owned(),
            lost_after_ms: 1000,
        }));
        rank
    }

    pub fn token(&self) -> v1::FencingToken {
        v1::FencingToken { term: 1, generation: self.generation }
    }

    /// The next generation of these processes, in rank order: Join to all, and what they answer.
    pub fn join(&mut self, ranks: &mut [&mut Rank]) -> Vec<v1::Ready> {
        self.generation += 1;
        let world_size = u32::try_from(ranks.len()).unwrap();
        for (rank, number) in ranks.iter_mut().zip(0..) {
            rank.reports.clear();
            rank.staged.clear();
            rank.token = self.token();
            rank.send(Command::Join(v1::Join {
                token: Some(self.token()),
                rank: number,
                world_size,
                committed: 0,
            }));
        }
        ranks.iter_mut().map(|rank| rank.ready()).collect()
    }

    /// All ready: they meet and train.
    pub fn begin(&self, ranks: &mut [&mut Rank], ready: &[v1::Ready], first_step: u64, origin: Origin) {
        for rank in ranks {
            rank.send(Command::Start(v1::Start {
                token: Some(self.token()),
                store_address: ready[0].store_address.clone(),
                first_step,
                origin: Some(origin),
            }));
        }
    }

    /// From Join to the first step's report, with a state from `source`.
    pub fn regroup(&mut self, ranks: &mut [&mut Rank], source: u32) -> (u64, Duration) {
        let started = Instant::now();
        let ready = self.join(ranks);
        let first = ready[usize::try_from(source).unwrap()].applied.unwrap();
        self.begin(ranks, &ready, first, Origin::SourceRank(source));
        ranks[0].step(first);
        (first, started.elapsed())
    }

    /// As [`World::regroup`], with a state from the seed.
    pub fn regroup_from_seed(&mut self, ranks: &mut [&mut Rank]) -> (u64, Duration) {
        let started = Instant::now();
        let ready = self.join(ranks);
        self.begin(ranks, &ready, 0, Origin::FromSeed(true));
        ranks[0].step(0);
        (0, started.elapsed())
    }

    /// Makes the staged checkpoint visible; its digest.
    pub fn commit(&self, run: &str, step: u64, slices: u32) -> Digest {
        let token = FencingToken { term: Term::new(1), generation: Generation::new(self.generation) };
        let run = RunId::new(run).unwrap();
        let draft = Draft { token, run: &run, step: Step::new(step), slices, tier: Tier::Durable };
        self.runtime.block_on(self.checkpoints.commit(draft, "{}", mcl_types::Retention::ALL)).unwrap()
    }
}

fn read_event(output: &mut impl Read) -> Option<v1::RankEvent> {
    let (mut size, mut shift) = (0_usize, 0);
    loop {
        let mut byte = [0];
        output.read_exact(&mut byte).ok()?;
        size |= usize::from(byte[0] & 0x7F) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut bytes = vec![0; size];
    output.read_exact(&mut bytes).ok()?;
    Some(v1::RankEvent::decode(bytes.as_slice()).unwrap())
}

impl Rank {
    pub fn send(&mut self, command: Command) {
        let message = v1::RankCommand { command: Some(command) };
        // A process that a failpoint has killed hears nothing.
        let _ = self.input.write_all(&message.encode_length_delimited_to_vec());
        let _ = self.input.flush();
    }

    /// The next event that `pick` wants; reports are kept on the way, others passed over.
    pub fn expect<T>(&mut self, what: &str, pick: impl Fn(&v1::RankEvent) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).unwrap_or_else(|e| panic!("no {what}: {e}"));
            if let Some(Event::Step(report)) = &event.event {
                assert_eq!(event.token, Some(self.token), "a report of another generation");
                self.reports.push(report.clone());
            }
            if let Some(Event::Staged(staged)) = &event.event {
                self.staged.push(staged.step);
            }
            if let Some(found) = pick(&event) {
                return found;
            }
            if let Some(Event::Failed(failed)) = &event.event {
                panic!("expected {what}: {failed:?}");
            }
        }
    }

    pub fn prepared(&mut self) {
        self.expect("Prepared", |e| {
            let Some(Event::Prepared(_)) = &e.event else { return None };
            assert_eq!(e.token, Some(v1::FencingToken::default()));
            Some(())
        });
    }

    fn ready(&mut self) -> v1::Ready {
        let token = self.token;
        self.expect("Ready", |e| match &e.event {
            Some(Event::Ready(ready)) if e.token == Some(token) => Some(ready.clone()),
            _ => None,
        })
    }

    pub fn step(&mut self, step: u64) {
        self.expect("a step", |e| matches!(&e.event, Some(Event::Step(s)) if s.step == step).then_some(()));
    }

    pub fn finished(&mut self) {
        self.expect("Finished", |e| {
            let Some(Event::Finished(finished)) = &e.event else { return None };
            assert_eq!(finished.step, TOTAL);
            Some(())
        });
    }

    /// Broken of the generation that the process was last sent to.
    pub fn broken(&mut self) -> v1::Broken {
        let token = self.token;
        self.expect("Broken", |e| match &e.event {
            Some(Event::Broken(broken)) if e.token == Some(token) => Some(broken.clone()),
            _ => None,
        })
    }

    pub fn recount(&mut self, first_step: u64, end_step: u64) -> Vec<v1::RecountedStep> {
        let token = Some(self.token);
        self.send(Command::Recount(v1::Recount { token, first_step, end_step }));
        self.expect("Recounted", |e| match &e.event {
            Some(Event::Recounted(r)) => Some(r.steps.clone()),
            _ => None,
        })
    }

    /// Waits until a failpoint has killed it.
    pub fn dead(mut self) {
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it lives");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
