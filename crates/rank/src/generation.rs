//! A process in one generation: enter, meet, bring the state level, train, leave.
//!
//! Invariant: whatever ends a generation, the process afterwards holds the state after a whole number of steps and
//! says so truly, or it ends.

use crate::control::Reporter;
use crate::engine;
use crate::feed::Feed;
use crate::orders::Orders;
use crate::records::Records;
use crate::snapshot::Snapshots;
use anyhow::{Context, Result, bail};
use mcl_collective::{Group, Lifeline, Membership, Store};
use mcl_config::Job;
use mcl_data::Dataset;
use mcl_failpoint::Failpoint;
use mcl_plan::Schedule;
use mcl_proto::v1::{self, rank_event::Event, start::Origin};
use mcl_train::{Activity, Doing, Trainer};
use mcl_types::{FencingToken, LaneLayout, Rank, Step};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tch::Device;

/// A generation's first step may take this long: devices warm up, libraries tune themselves.
const FIRST_STEP: Duration = Duration::from_secs(120);

/// A store's port that another process of this machine has is waited for so long: that process gives it up when it
/// hears of the new generation, at the latest after its step in flight.
const PORT_PATIENCE: Duration = Duration::from_secs(10);

/// What outlives generations.
pub(crate) struct Process {
    pub(crate) configure: v1::Configure,
    pub(crate) job: Job,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) schedule: Schedule,
    pub(crate) plan: mcl_plan::PlanSpec,
    pub(crate) device: Device,
    pub(crate) trainer: Trainer,
    pub(crate) snapshots: Snapshots,
    pub(crate) feed: Option<Feed>,
    pub(crate) held: Option<Held>,
    pub(crate) records: Arc<Records>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) activity: Activity,
    pub(crate) reporter: Reporter,
    /// The rendezvous store, where this process hosts it: peers may still talk to it until the next Join.
    pub(crate) host: Option<Store>,
}

/// The state that a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// After so many steps.
    pub(crate) applied: Step,
    /// The generation that its last step was applied in, or that it was loaded in.
    pub(crate) trained_in: u64,
}

/// Who the process is in one generation.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) token: FencingToken,
    pub(crate) rank: Rank,
    pub(crate) layout: LaneLayout,
    pub(crate) reporter: Reporter,
    pub(crate) lifeline: Lifeline,
}

impl Process {
    /// Becomes the rank that `join` says, until the generation is over for this process or something fails.
    /// Afterwards it is in no group.
    pub(crate) fn generation(&mut self, join: &v1::Join) -> Result<()> {
        let token = mcl_proto::token(join.token)?;
        self.snapshots.give_up();
        self.host = None;
        let member = Member {
            token,
            rank: Rank::new(join.rank),
            layout: LaneLayout::new(self.job.batch().lanes, join.world_size)?,
            reporter: self.reporter.stamped(token, join.rank),
            lifeline: Lifeline::new(&checkpoint_port(&self.configure.checkpoint_url))?,
        };
        if !self.orders.engage(token, &member.lifeline) {
            return Ok(());
        }
        let outcome = self.live(&member);
        if outcome.is_err() {
            // Frees whoever waits for this rank, and what of this rank's is still under way.
            member.lifeline.abort();
        }
        self.trainer.leave();
        self.orders.disengage();
        member.lifeline.close();
        outcome
    }

    fn live(&mut self, member: &Member) -> Result<()> {
        self.activity.set(Doing::Idle, None);
        let store_address = self.open_store(member)?;
        let applied = self.held.map(|h| h.applied.get());
        member.reporter.send(Event::Ready(v1::Ready {
            store_address,
            applied,
            trained_in: self.held.map_or(0, |h| h.trained_in),
            recorded_from: self.records.known_from(applied.unwrap_or(0)),
        }));
        let Some(start) = self.orders.start() else { return Ok(()) };
        self.activity.set(Doing::Rendezvous, None);
        let group = self.meet(member, &start)?;
        self.trainer.join(member.layout, member.rank, group)?;
        let first = Step::new(start.first_step);
        let stored = self.bring_level(member, &start, first)?;
        let lanes = member.layout.lanes_of(member.rank);
        if !self.feed.as_ref().is_some_and(|feed| feed.serves(&lanes, first)) {
            self.activity.set(Doing::Data, None);
            // The old loader stops before a new one starts.
            self.feed = None;
            let (dataset, plan) = (Arc::clone(&self.dataset), self.plan.clone());
            let (device, schedule) = (self.device, self.schedule);
            self.feed = Some(Feed::start(&self.job, device, dataset, plan, schedule, lanes, first)?);
        }
        member.reporter.send(Event::Training(v1::Training { next_step: first.get() }));
        self.run_steps(member, first, stored)
    }

    /// Rank 0's process hosts the store that all meet at: a fresh one each time, so that nothing of an older
    /// generation is found in it.
    fn open_store(&mut self, member: &Member) -> Result<String> {
        if member.rank.get() != 0 {
            return Ok(String::new());
        }
        let (at, ports) = (&self.configure.advertise, self.job.store_ports());
        let store = member.lifeline.host(at, ports, self.first_timeout(), PORT_PATIENCE)?;
        let address = host_and_port(at, store.port()?);
        tracing::info!(%address, "hosting the rendezvous store");
        self.host = Some(store);
        Ok(address)
    }

    /// Meets the other ranks where there are any.
    fn meet(&self, member: &Member, start: &v1::Start) -> Result<Option<Group>> {
        let world = member.layout.world();
        if world == 1 {
            return Ok(None);
        }
        let limit = self.first_timeout();
        // The hosting process talks to its own store over the network too: no second code path.
        let store = member.lifeline.connect(&start.store_address, limit)?;
        mcl_failpoint::pass(Failpoint::Rendezvous);
        let membership = Membership { token: member.token, rank: member.rank, world };
        let nccl = match self.device {
            Device::Cpu => None,
            _ => Some(engine::nccl()?),
        };
        Ok(Some(member.lifeline.form(&store, membership, limit, &self.configure.advertise, nccl)?))
    }

    /// Afterwards every rank holds the same state, that before step `first`, and this was checked. The
    /// checkpoint that it is in, where it was loaded from one.
    fn bring_level(&mut self, member: &Member, start: &v1::Start, first: Step) -> Result<Option<u64>> {
        let trained_in = member.token.generation.get();
        match start.origin {
            Some(Origin::SourceRank(source)) => {
                self.activity.set(Doing::StateTransfer, None);
                let applied = self.held.map(|h| h.applied);
                let levelled = self.trainer.level(first, applied, Rank::new(source))?;
                if levelled.received {
                    self.records.clear();
                    self.held = Some(Held { applied: first, trained_in });
                }
                if levelled.bytes > 0 {
                    tracing::info!(bytes = levelled.bytes, received = levelled.received, "state passed on");
                }
                return Ok(None);
            }
            Some(Origin::CheckpointStep(step)) if step == first.get() => {
                self.activity.set(Doing::LoadingCheckpoint, None);
                let state = self
                    .snapshots
                    .load(&member.lifeline, first)
                    .with_context(|| format!("loading the checkpoint of {first}"))?;
                self.forget_state();
                match step {
                    0 => self.trainer.reset_with(self.job.seed(), state)?,
                    _ => self.trainer.load(state)?,
                }
            }
            Some(Origin::FromSeed(_)) if first.get() == 0 => {
                self.forget_state();
                self.trainer.reset(self.job.seed())?;
            }
            ref other => bail!("start at {first} with a state from {other:?}"),
        }
        self.held = Some(Held { applied: first, trained_in });
        self.activity.set(Doing::StateTransfer, None);
        self.trainer.check_agreement(first)?;
        let stored = matches!(start.origin, Some(Origin::CheckpointStep(_)));
        Ok(stored.then_some(first.get()))
    }

    fn forget_state(&mut self) {
        self.held = None;
        self.records.clear();
    }

    /// For a generation's first step and all before it: three times the silence after which a machine is lost,
    /// and long enough for devices to warm up. What ends a wait earlier is the lifeline.
    pub(crate) fn first_timeout(&self) -> Duration {
        (self.job.elastic().lost_after * 3).max(FIRST_STEP)
    }
}

/// As the other ranks are told it: an IPv6 address in brackets.
fn host_and_port(host: &str, port: u16) -> String {
    host.parse::<IpAddr>()
        .map_or_else(|_| format!("{host}:{port}"), |ip| SocketAddr::new(ip, port).to_string())
}

/// The port that connections to the checkpoint service go to: those are no generation's.
fn checkpoint_port(url: &str) -> Vec<u16> {
    let host = url.rsplit("//").next().unwrap_or(url).split('/').next().unwrap_or_default();
    host.rsplit(':').next().and_then(|port| port.parse().ok()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_either_family_and_names_get_their_port() {
        assert_eq!(host_and_port("10.0.0.1", 29500), "10.0.0.1:29500");
        assert_eq!(host_and_port("fd00::1", 29500), "[fd00::1]:29500");
        assert_eq!(host_and_port("node-7", 29500), "node-7:29500");
    }

    #[test]
    fn the_checkpoint_services_port_is_found() {
        assert_eq!(checkpoint_port("http://127.0.0.1:7011"), [7011]);
        assert_eq!(checkpoint_port("http://[::1]:7011/x"), [7011]);
        assert!(checkpoint_port("http://host").is_empty());
    }
}
