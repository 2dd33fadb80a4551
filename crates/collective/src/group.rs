//! A generation's ranks and their collectives.

use crate::lifeline::Lifeline;
use crate::store::{Store, milliseconds};
use mcl_collective_sys as sys;
use mcl_types::{FencingToken, PortRange, Rank};
use std::sync::Arc;
use std::time::Duration;
use sys::{EngineError, NcclFactory, ReduceOp};
use tch::Tensor;

/// Why ranks could not talk.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// An address that cannot be one.
    #[error("rendezvous address `{address}`: {reason}; expected host:port")]
    Address {
        /// As found.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The rendezvous store.
    #[error("rendezvous store at {address}: {source}")]
    Store {
        /// Where.
        address: String,
        /// What the engine said.
        source: EngineError,
    },
    /// The store has no place to listen at.
    #[error(
        "hosting the rendezvous store at {address}: {source}; expected an address of this machine that the other \
         machines reach: start its worker with --advertise or --interface"
    )]
    Listen {
        /// The address that this machine advertises.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Other programs or other ranks' stores have every port that it may use.
    #[error(
        "hosting the rendezvous store at {address}: all of [network] store_ports = \"{ports}\" are taken; look who \
         has them (ss -ltnp), or give a range with as many ports as this machine has rank processes"
    )]
    PortsTaken {
        /// The address that this machine advertises.
        address: String,
        /// The ports that were tried.
        ports: PortRange,
    },
    /// A peer is gone, the network broke, or a deadline passed; the group is of no further use.
    #[error("{collective} of {membership} failed: {reason}")]
    Peer {
        /// Which collective.
        collective: &'static str,
        /// Who we were.
        membership: Membership,
        /// What the engine said.
        reason: String,
    },
    /// This process was told to leave; the group is of no further use.
    #[error("{collective} of {membership}: told to leave")]
    Aborted {
        /// Which collective.
        collective: &'static str,
        /// Who we were.
        membership: Membership,
    },
    /// The engine refused for another reason: shapes, memory, a bug.
    #[error("{collective} of {membership}: {reason}")]
    Engine {
        /// Which collective.
        collective: &'static str,
        /// Who we were.
        membership: Membership,
        /// What the engine said.
        reason: String,
    },
    /// The process cannot see its own open files.
    #[error("this process's descriptors: {0}")]
    Descriptors(std::io::Error),
    /// A tensor operation beside the collective.
    #[error("{collective}: {source}")]
    Tensor {
        /// Which collective.
        collective: &'static str,
        /// What libtorch said.
        source: tch::TchError,
    },
}

impl CollectiveError {
    /// Whether a new generation may go on where this one failed.
    pub const fn is_peer_loss(&self) -> bool {
        matches!(
            self,
            Self::Peer { .. } | Self::Store { .. } | Self::PortsTaken { .. } | Self::Aborted { .. }
        )
    }
}

/// Who a rank is in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// The fencing token of the generation.
    pub token: FencingToken,
    /// This rank.
    pub rank: Rank,
    /// How many ranks there are.
    pub world: u32,
}

impl Membership {
    /// Of a process without a group.
    pub fn alone() -> Self {
        Self { token: FencingToken::default(), rank: Rank::new(0), world: 1 }
    }
}

impl std::fmt::Display for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} in {}", self.rank, self.world, self.token.generation)
    }
}

/// The ranks of one generation, able to talk.
#[derive(Debug, Clone)]
pub struct Group {
    pub(crate) inner: Arc<sys::Group>,
    membership: Membership,
    timeout: Duration,
    pub(crate) lifeline: Option<Lifeline>,
}

impl Group {
    /// Meets the other ranks at `store`; `address` is where they reach this one. `timeout` bounds every
    /// collective. With `nccl`, CUDA tensors travel over it.
    ///
    /// # Errors
    /// When not all ranks arrive within the timeout.
    pub fn form(
        store: &Store,
        membership: Membership,
        timeout: Duration,
        address: &str,
        nccl: Option<NcclFactory>,
    ) -> Result<Self, CollectiveError> {
        Self::form_within(timeout, store, membership, timeout, address, nccl)
    }

    /// The same where all ranks are known to be there: they meet within `rendezvous`, or not at all.
    pub(crate) fn form_within(
        rendezvous: Duration,
        store: &Store,
        membership: Membership,
        timeout: Duration,
        address: &str,
        nccl: Option<NcclFactory>,
    ) -> Result<Self, CollectiveError> {
        let failed = |source| told("rendezvous", membership, source);
        // The key prefix is the fence: ranks of another generation never see these keys.
        let prefix =
            format!("generation/{}/{}", membership.token.term.get(), membership.token.generation.get());
        let store = store.inner.prefixed(&prefix).map_err(failed)?;
        let rank = c_number(membership.rank.get());
        let world = c_number(membership.world);
        let mut inner =
            sys::Group::gloo(&store, rank, world, milliseconds(rendezvous), address).map_err(failed)?;
        inner.set_timeout(milliseconds(timeout)).map_err(failed)?;
        if let Some(factory) = nccl {
            inner.add_nccl(&store, factory, milliseconds(timeout)).map_err(failed)?;
        }
        Ok(Self { inner: Arc::new(inner), membership, timeout, lifeline: None })
    }

    /// Who we are.
    pub const fn membership(&self) -> Membership {
        self.membership
    }

    /// How many ranks there are.
    pub const fn world(&self) -> u32 {
        self.membership.world
    }

    /// Bounds every collective from now on, those of a Reducer and inside backward among them. NCCL keeps the
    /// deadline that its group was made with: there the lifeline alone ends a wait earlier.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), CollectiveError> {
        self.timeout = timeout;
        self.inner.set_timeout(milliseconds(timeout)).map_err(|e| told("timeout", self.membership, e))
    }

    /// Whether the group is still of use; asked once more where what the peers sent is about to count.
    ///
    /// # Errors
    /// When it was aborted.
    pub fn check(&self) -> Result<(), CollectiveError> {
        self.lifeline.as_ref().map_or(Ok(()), |l| l.check("group", self.membership))
    }

    /// Ends all waits in this group, here and at the peers. Before a group is freed because of an error: what
    /// else is under way in it would otherwise hold its end up until peers leave too.
    pub fn abort(&self) {
        if let Some(lifeline) = &self.lifeline {
            lifeline.abort();
        }
    }

    fn wait(
        &self,
        collective: &'static str,
        work: Result<sys::Work, EngineError>,
    ) -> Result<(), CollectiveError> {
        self.check()?;
        work.and_then(|w| w.wait(milliseconds(self.timeout)))
            .map_err(|e| told(collective, self.membership, e))
    }

    /// Combines `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// When a peer is lost.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<(), CollectiveError> {
        self.wait("all-reduce", self.inner.all_reduce(tensor, op))
    }

    /// Copies `root`'s tensor to all, in place.
    ///
    /// # Errors
    /// When a peer is lost.
    pub fn broadcast(&self, tensor: &Tensor, root: Rank) -> Result<(), CollectiveError> {
        self.wait("broadcast", self.inner.broadcast(tensor, c_number(root.get())))
    }

    /// Every rank's `input` [..], stacked in rank order: [W, ..]. Shapes must be equal on all ranks.
    ///
    /// # Errors
    /// When a peer is lost or shapes differ.
    pub fn all_gather(&self, input: &Tensor) -> Result<Tensor, CollectiveError> {
        let collective = "all-gather";
        let tensor = |source| CollectiveError::Tensor { collective, source };
        let mut shape = vec![i64::from(self.world())];
        shape.extend(input.size());
        // Gloo wants both sides flat.
        let input = input.f_reshape([-1]).map_err(tensor)?;
        let output = Tensor::f_empty([shape.iter().product::<i64>()], (input.kind(), input.device()))
            .map_err(tensor)?;
        self.wait(collective, self.inner.all_gather(&output, &input))?;
        output.f_view(shape.as_slice()).map_err(tensor)
    }
}

/// Batch norm over the rows of all ranks of a group, or of this process alone; see [`sys::batch_norm`].
///
/// # Errors
/// When a peer is lost or shapes do not fit.
pub fn batch_norm(
    group: Option<&Group>,
    batches: &mut [Tensor],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor, CollectiveError> {
    let inner = group.map(|group| &*group.inner);
    let membership = group.map_or_else(Membership::alone, Group::membership);
    sys::batch_norm(inner, batches, weight, bias, eps).map_err(|e| told("batch norm", membership, e))
}

fn c_number(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(crate) fn told(collective: &'static str, membership: Membership, error: EngineError) -> CollectiveError {
    match error {
        EngineError::Communication(reason) => CollectiveError::Peer { collective, membership, reason },
        EngineError::Other(reason) => CollectiveError::Engine { collective, membership, reason },
    }
}
