//! A fake worker with one rank: speaks the contract, trains at a steady pace, keeps what is not acknowledged.

use super::store::Store;
use mcl_plan::{EpochPlan, Schedule};
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use mcl_proto::v1::rank_command::Command;
use mcl_proto::v1::rank_event::Event;
use mcl_proto::v1::session_response::Message;
use mcl_proto::{PROTOCOL, v1};
use mcl_types::{Digest, Epoch, Lane, LaneLayout, Rank, Slot, Step};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

pub const CHECKPOINT_EVERY: u64 = 5;
pub const PACE: Duration = Duration::from_millis(15);

/// What the ranks of a generation agree on, as their collectives would.
#[derive(Debug, Default)]
pub struct Fabric {
    applied: BTreeMap<u32, u64>,
    broken: bool,
    /// The boundary at which all stop, and whether they stage a checkpoint there.
    stop_at: Option<(u64, bool)>,
}

pub type Fabrics = Arc<Mutex<BTreeMap<u64, Fabric>>>;

#[derive(Debug, Clone)]
pub struct Worker {
    pub name: String,
    pub coordinator: SocketAddr,
    pub store: Store,
    pub fabrics: Fabrics,
    /// Feeds the wrong picture in this step.
    pub wrong_in: Option<u64>,
    /// Ranks fail for good in this step.
    pub fatal_in: Option<u64>,
}

/// The rank process that it runs.
struct Ranked {
    process: u64,
    configure: v1::Configure,
    /// The generation that it joined, 0 for none.
    token: v1::FencingToken,
    rank: u32,
    world: u32,
    started: bool,
    parked: bool,
    granted: u64,
    /// The state that it holds: steps applied, and the generation of the last of them.
    applied: Option<u64>,
    trained_in: u64,
    /// Everything it said in this generation that is not known to be durable.
    kept: Vec<v1::RankEvent>,
    sent: usize,
    /// Said once.
    once: Vec<v1::RankEvent>,
}

/// Numbers of processes.
static PROCESSES: AtomicU64 = AtomicU64::new(1);

/// How a stream ended.
enum End {
    Broken,
    Dismissed,
}

impl Worker {
    pub fn new(name: &str, coordinator: SocketAddr, store: &Store, fabrics: &Fabrics) -> Self {
        let (store, fabrics) = (store.clone(), Arc::clone(fabrics));
        Self { name: name.to_owned(), coordinator, store, fabrics, wrong_in: None, fatal_in: None }
    }

    /// Until it is dismissed; aborting the task kills worker and rank.
    pub async fn live(self) -> String {
        let mut ranked = None;
        let mut highest = v1::FencingToken::default();
        loop {
            match self.stream(&mut ranked, &mut highest).await {
                Ok(End::Dismissed) => return self.name.clone(),
                Ok(End::Broken) | Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    }

    async fn stream(
        &self,
        ranked: &mut Option<Ranked>,
        highest: &mut v1::FencingToken,
    ) -> Result<End, Box<dyn std::error::Error + Send + Sync>> {
        let mut client = CoordinatorServiceClient::connect(format!("http://{}", self.coordinator)).await?;
        let (up, requests) = mpsc::unbounded_channel();
        let hello = v1::Hello {
            worker: self.name.clone(),
            protocol: PROTOCOL,
            build: "test".to_owned(),
            libtorch: "2.11.0".to_owned(),
            devices: vec!["cpu".to_owned()],
            advertise: format!("host-{}", self.name),
            highest: Some(*highest),
            processes: ranked.as_ref().map(Ranked::told).into_iter().collect(),
            leaving: false,
        };
        up.send(v1::SessionRequest { message: Some(v1::session_request::Message::Hello(hello)) })?;
        let mut down = client.session(UnboundedReceiverStream::new(requests)).await?.into_inner();
        if let Some(ranked) = ranked.as_mut() {
            ranked.sent = 0;
        }
        let mut pace = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                message = down.message() => {
                    let Some(message) = message?.and_then(|r| r.message) else { return Ok(End::Broken) };
                    if self.hear(message, ranked, highest) {
                        return Ok(End::Dismissed);
                    }
                }
                _ = pace.tick() => {
                    if let Some(ranked) = ranked.as_mut() {
                        self.act(ranked);
                    }
                    // A stream that takes nothing more may still have something to say.
                    let _ = up.send(beat(ranked.as_mut(), highest.term));
                }
            }
        }
    }

    /// True where it is dismissed.
    fn hear(&self, message: Message, ranked: &mut Option<Ranked>, highest: &mut v1::FencingToken) -> bool {
        match message {
            Message::Welcome(welcome) => highest.term = highest.term.max(welcome.term),
            Message::Prepare(prepare) => {
                let configure = prepare.configure.unwrap();
                assert_eq!(configure.advertise, format!("host-{}", self.name));
                if ranked.is_none() {
                    *ranked = Some(Ranked::spawn(configure));
                }
            }
            Message::Assign(assign) => {
                let token = assign.token.unwrap();
                assert!((token.term, token.generation) > (highest.term, highest.generation));
                *highest = token;
                let post = assign.posts.into_iter().next().unwrap();
                let rank = ranked.as_mut().unwrap();
                assert_eq!(rank.process, post.process);
                self.join(rank, &post.join.unwrap());
            }
            Message::Relay(relay) => {
                let generation = relay.token.unwrap().generation;
                let command = relay.command.unwrap().command.unwrap();
                if ranked.as_ref().is_some_and(|r| r.token.generation == generation) {
                    self.command(command, ranked);
                }
            }
            Message::Acknowledged(_) | Message::Tempo(_) => {}
            Message::Refused(refused) => panic!("{} refused: {}", self.name, refused.reason),
            Message::Dismiss(dismiss) => return dismiss.leave,
        }
        false
    }

    fn join(&self, rank: &mut Ranked, join: &v1::Join) {
        self.leave(rank);
        rank.kept.clear();
        rank.sent = 0;
        rank.token = join.token.unwrap();
        (rank.rank, rank.world) = (join.rank, join.world_size);
        (rank.started, rank.parked, rank.granted) = (false, false, 0);
        let store_address = if rank.rank == 0 { "127.0.0.1:4711".to_owned() } else { String::new() };
        let (applied, trained_in) = (rank.applied, rank.trained_in);
        rank.say(Event::Ready(v1::Ready {
            store_address,
            applied,
            trained_in,
            recorded_from: join.committed,
        }));
    }

    /// Its peers notice.
    fn leave(&self, rank: &Ranked) {
        if rank.started
            && let Some(fabric) = self.fabrics.lock().unwrap().get_mut(&rank.token.generation)
        {
            fabric.broken = true;
        }
    }

    fn command(&self, command: Command, ranked: &mut Option<Ranked>) {
        let Some(rank) = ranked.as_mut() else { return };
        if let Command::Stop(_) | Command::Break(_) = &command {
            self.leave(rank);
        }
        let mut fabrics = self.fabrics.lock().unwrap();
        let fabric = fabrics.entry(rank.token.generation).or_default();
        match command {
            Command::Start(start) if !rank.started && !rank.parked => {
                rank.started = true;
                let first = start.first_step;
                if start.origin == Some(v1::start::Origin::SourceRank(rank.rank)) {
                    assert_eq!(rank.applied, Some(first), "it is said to hold the state");
                }
                if rank.applied != Some(first) {
                    (rank.applied, rank.trained_in) = (Some(first), rank.token.generation);
                }
                fabric.applied.insert(rank.rank, first);
                rank.say(Event::Training(v1::Training { next_step: first }));
            }
            Command::EpochGrant(grant) => {
                rank.granted = rank.granted.max(grant.epoch + 1);
                assert!(
                    grant.lanes.iter().all(|l| !l.slices.is_empty() && l.slices[0].shard.ends_with(".tar"))
                );
            }
            Command::Committed(committed) => {
                rank.forget(|e| matches!(e, Event::Step(r) if r.step <= committed.step))
            }
            Command::Drain(_) | Command::Pause(_) => {
                let most = fabric.applied.values().copied().max().unwrap_or(0);
                fabric.stop_at.get_or_insert((most, matches!(command, Command::Drain(_))));
            }
            Command::Recount(recount) => {
                let generation = rank.trained_in;
                let lanes = 0..super::plan().lanes;
                let step =
                    |s| v1::RecountedStep { generation, report: Some(self.report(rank, s, lanes.clone())) };
                let steps = (recount.first_step..recount.end_step).map(step).collect();
                rank.say(Event::Recounted(v1::Recounted { steps }));
            }
            Command::Break(_) if !rank.parked => rank.broken("told to leave"),
            Command::Stop(_) => *ranked = None,
            _ => {}
        }
    }

    /// One step, where the others are ready for it.
    fn act(&self, rank: &mut Ranked) {
        let me = rank.rank;
        let mut fabrics = self.fabrics.lock().unwrap();
        let fabric = fabrics.entry(rank.token.generation).or_default();
        if !rank.started || rank.parked || fabric.applied.len() < rank.world as usize {
            return;
        }
        if fabric.broken {
            return rank.broken("connection closed by peer");
        }
        let total = rank.total();
        let (stop, stages) = fabric.stop_at.unwrap_or((total, true));
        let step = fabric.applied[&me];
        if step == stop.min(total) {
            rank.parked = true;
            if stages || step == total {
                self.stage(rank, step);
            }
            return rank.say(match () {
                () if step == total => Event::Finished(v1::Finished { step }),
                () if stages => Event::Drained(v1::Drained { step }),
                () => Event::Paused(v1::Paused { step }),
            });
        }
        let slowest = fabric.applied.values().copied().min().unwrap();
        let epoch = rank.schedule().locate(Step::new(step)).epoch.get();
        if step > slowest || epoch >= rank.granted {
            return;
        }
        if self.fatal_in == Some(step) {
            rank.parked = true;
            fabric.broken = true;
            let kind = v1::FailureKind::Fatal.into();
            let message = "the picture index is not what it was".to_owned();
            return rank.say(Event::Failed(v1::Failed { kind, message, step: Some(step) }));
        }
        fabric.applied.insert(me, step + 1);
        (rank.applied, rank.trained_in) = (Some(step + 1), rank.token.generation);
        let lanes = LaneLayout::new(super::plan().lanes, rank.world).unwrap().lanes_of(Rank::new(me));
        let report = self.report(rank, step, lanes);
        rank.say(Event::Step(report));
        if (step + 1).is_multiple_of(CHECKPOINT_EVERY) {
            self.stage(rank, step + 1);
        }
    }

    fn stage(&self, rank: &mut Ranked, step: u64) {
        let (slice, slices) = (rank.rank, rank.world);
        self.store.stage(step, rank.token.generation, slice);
        rank.say(Event::Staged(v1::Staged { step, slice, slices, in_memory: false }));
    }

    fn report(&self, rank: &Ranked, step: u64, lanes: std::ops::Range<u32>) -> v1::StepReport {
        let spec = super::plan();
        let place = rank.schedule().locate(Step::new(step));
        let plan = EpochPlan::new(&spec, Epoch::new(place.epoch.get())).unwrap();
        let wrong = u64::from(self.wrong_in == Some(step));
        let sample = |lane: u32, slot: u32| {
            let planned = plan.sample(place.step_in_epoch, Lane::new(lane), Slot::new(slot)).unwrap();
            let index = (planned.get() + wrong) % spec.dataset_len;
            v1::FedSample {
                index,
                id: format!("{index}.jpg"),
                hash: Digest::of(&index.to_le_bytes()).as_bytes()[..16].to_vec(),
                replaces: None,
                reason: String::new(),
            }
        };
        let lane = |lane: u32| v1::LaneReport {
            lane,
            losses: vec![1.0, 2.0],
            samples: (0..spec.images_per_lane).map(|slot| sample(lane, slot)).collect(),
        };
        v1::StepReport {
            step,
            epoch: place.epoch.get(),
            lanes: lanes.map(lane).collect(),
            learning_rate: 0.1,
            momentum: 0.99,
            grad_norm: 2.0,
            skipped: false,
            step_seconds: 0.02,
            data_wait_seconds: 0.001,
            forward_seconds: 0.008,
            backward_seconds: 0.01,
            collective_seconds: 0.002,
        }
    }
}

impl Ranked {
    fn spawn(configure: v1::Configure) -> Self {
        let mut rank = Self {
            process: PROCESSES.fetch_add(1, Ordering::Relaxed),
            configure,
            token: v1::FencingToken::default(),
            rank: 0,
            world: 0,
            started: false,
            parked: false,
            granted: 0,
            applied: None,
            trained_in: 0,
            kept: Vec::new(),
            sent: 0,
            once: Vec::new(),
        };
        rank.once =
            vec![rank.event(Event::Spawned(v1::Spawned {})), rank.event(Event::Prepared(v1::Prepared {}))];
        rank
    }

    fn told(&self) -> v1::RankProcess {
        v1::RankProcess {
            device: "cpu".to_owned(),
            process: self.process,
            run_id: self.configure.run_id.clone(),
            prepared: true,
            generation: self.token.generation,
            holds_state: self.applied.is_some(),
        }
    }

    fn total(&self) -> u64 {
        self.configure.job_toml.trim().parse().unwrap()
    }

    fn schedule(&self) -> Schedule {
        Schedule::new(super::plan().steps_per_epoch().unwrap(), self.total()).unwrap()
    }

    fn event(&self, event: Event) -> v1::RankEvent {
        v1::RankEvent {
            token: Some(self.token),
            rank: self.rank,
            event: Some(event),
            device: "cpu".to_owned(),
            process: self.process,
        }
    }

    fn say(&mut self, event: Event) {
        self.kept.push(self.event(event));
    }

    fn broken(&mut self, message: &str) {
        self.started = false;
        self.parked = true;
        let message = message.to_owned();
        self.say(Event::Broken(v1::Broken { message, step: None, activity: "backward".to_owned() }));
    }

    fn forget(&mut self, covered: impl Fn(&Event) -> bool) {
        let mut place = 0;
        let mut gone = 0;
        let sent = self.sent;
        self.kept.retain(|e| {
            let keep = !e.event.as_ref().is_some_and(&covered);
            gone += usize::from(!keep && place < sent);
            place += 1;
            keep
        });
        self.sent -= gone;
    }
}

fn beat(ranked: Option<&mut Ranked>, term: u64) -> v1::SessionRequest {
    let mut beat = v1::Heartbeat { token: Some(v1::FencingToken::default()), ..v1::Heartbeat::default() };
    if let Some(ranked) = ranked {
        beat.token = Some(v1::FencingToken { term, generation: ranked.token.generation });
        beat.events = std::mem::take(&mut ranked.once);
        beat.events.extend_from_slice(&ranked.kept[ranked.sent..]);
        ranked.sent = ranked.kept.len();
    }
    v1::SessionRequest { message: Some(v1::session_request::Message::Heartbeat(beat)) }
}
