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
    drain_at: Option<u64>,
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

/// The rank that it runs.
struct Ranked {
    configure: v1::Configure,
    generation: u64,
    started: bool,
    parked: bool,
    granted: u64,
    /// Everything it said that is not known to be durable.
    kept: Vec<v1::RankEvent>,
    sent: usize,
}

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
            Message::Assign(assign) => {
                let token = assign.token.unwrap();
                assert!(
                    (token.term, token.generation) > (highest.term, highest.generation) || ranked.is_none()
                );
                *highest = token;
                let configure = assign.ranks.into_iter().next().unwrap();
                assert_eq!(configure.advertise, format!("host-{}", self.name));
                let mut fresh = Ranked {
                    generation: token.generation,
                    started: false,
                    parked: false,
                    granted: 0,
                    kept: Vec::new(),
                    sent: 0,
                    configure,
                };
                let store_address =
                    if fresh.configure.rank == 0 { "127.0.0.1:4711".to_owned() } else { String::new() };
                fresh.say(Event::Ready(v1::Ready { store_address }));
                *ranked = Some(fresh);
            }
            Message::Relay(relay) => {
                let generation = relay.token.unwrap().generation;
                let command = relay.command.unwrap().command.unwrap();
                if ranked.as_ref().is_some_and(|r| r.generation == generation) {
                    self.command(command, ranked);
                }
            }
            Message::Refused(refused) => panic!("{} refused: {}", self.name, refused.reason),
            Message::Dismiss(dismiss) => return dismiss.leave,
        }
        false
    }

    fn command(&self, command: Command, ranked: &mut Option<Ranked>) {
        let Some(rank) = ranked.as_mut() else { return };
        let mut fabrics = self.fabrics.lock().unwrap();
        let fabric = fabrics.entry(rank.generation).or_default();
        match command {
            Command::Start(_) if !rank.started => {
                rank.started = true;
                let first = rank.configure.resume_step.unwrap_or(0);
                fabric.applied.insert(rank.configure.rank, first);
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
            Command::Drain(_) => {
                let most = fabric.applied.values().copied().max().unwrap_or(0);
                fabric.drain_at.get_or_insert(most);
            }
            Command::Stop(_) => {
                fabric.broken = true;
                *ranked = None;
            }
            _ => {}
        }
    }

    /// One step, where the others are ready for it.
    fn act(&self, rank: &mut Ranked) {
        let me = rank.configure.rank;
        let mut fabrics = self.fabrics.lock().unwrap();
        let fabric = fabrics.entry(rank.generation).or_default();
        if !rank.started || rank.parked || fabric.applied.len() < rank.configure.world_size as usize {
            return;
        }
        if fabric.broken {
            rank.parked = true;
            let message = "connection closed by peer".to_owned();
            let kind = v1::FailureKind::Collective.into();
            return rank.say(Event::Failed(v1::Failed { kind, message, step: None }));
        }
        let total: u64 = rank.configure.job_toml.trim().parse().unwrap();
        let stop = fabric.drain_at.unwrap_or(total).min(total);
        let step = fabric.applied[&me];
        let schedule = Schedule::new(super::plan().steps_per_epoch().unwrap(), total).unwrap();
        if step == stop {
            rank.parked = true;
            self.stage(rank, step);
            return rank.say(if step == total {
                Event::Finished(v1::Finished { step })
            } else {
                Event::Drained(v1::Drained { step })
            });
        }
        let slowest = fabric.applied.values().copied().min().unwrap();
        let epoch = schedule.locate(Step::new(step)).epoch.get();
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
        let report = self.report(rank, schedule, step);
        rank.say(Event::Step(report));
        if (step + 1).is_multiple_of(CHECKPOINT_EVERY) {
            self.stage(rank, step + 1);
        }
    }

    fn stage(&self, rank: &mut Ranked, step: u64) {
        let (slice, slices) = (rank.configure.rank, rank.configure.world_size);
        self.store.stage(step, rank.generation, slice);
        rank.say(Event::Staged(v1::Staged { step, slice, slices }));
    }

    fn report(&self, rank: &Ranked, schedule: Schedule, step: u64) -> v1::StepReport {
        let spec = super::plan();
        let place = schedule.locate(Step::new(step));
        let plan = EpochPlan::new(&spec, Epoch::new(place.epoch.get())).unwrap();
        let layout = LaneLayout::new(spec.lanes, rank.configure.world_size).unwrap();
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
            lanes: layout.lanes_of(Rank::new(rank.configure.rank)).map(lane).collect(),
            learning_rate: 0.1,
            momentum: 0.99,
            grad_norm: 2.0,
            skipped: false,
            step_seconds: 0.02,
            data_wait_seconds: 0.001,
        }
    }
}

impl Ranked {
    fn say(&mut self, event: Event) {
        let (token, rank) = (self.configure.token, self.configure.rank);
        self.kept.push(v1::RankEvent { token, rank, event: Some(event) });
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
    let mut beat = v1::Heartbeat { token: Some(v1::FencingToken::default()), events: Vec::new() };
    if let Some(ranked) = ranked {
        beat.token = Some(v1::FencingToken { term, generation: ranked.generation });
        beat.events = ranked.kept[ranked.sent..].to_vec();
        ranked.sent = ranked.kept.len();
    }
    v1::SessionRequest { message: Some(v1::session_request::Message::Heartbeat(beat)) }
}
