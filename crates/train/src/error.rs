//! Why a step failed.

use mcl_collective::{CollectiveError, EngineError};
use mcl_model::ModelError;
use tch::TchError;

/// What ended a step or kept a trainer from being made. Nothing of the step is left behind.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Ranks could not talk.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// libtorch failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] TchError),
    /// An operation over many tensors failed, or one that tch does not have.
    #[error("tensor operation: {0}")]
    Engine(#[from] EngineError),
    /// Too many steps in a row whose numbers were not finite.
    #[error(
        "step {step}: {tensor} is not finite, for the {in_a_row}th step in a row; every rank skipped these updates. \
         Lower [optimizer] lr, lengthen warmup_steps, or look at the pictures of this step in the ledger"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The first tensor in name order.
        tensor: String,
        /// How many steps in a row.
        in_a_row: u32,
    },
    /// Ranks that must hold equal bits do not.
    #[error(
        "step {step}: parameters of {ranks:?} differ from rank 0's: a device or its memory is at fault; take it out and resume from the last checkpoint"
    )]
    Diverged {
        /// The step after which they were compared.
        step: u64,
        /// The ranks that differ.
        ranks: Vec<u32>,
    },
    /// The update itself failed: the state may be half of one step and half of another.
    #[error("interrupted in the middle of an update, the state is lost: {source}")]
    Torn {
        /// By what.
        source: Box<TrainError>,
    },
    /// The rank that is to pass its state on does not hold it.
    #[error("rank {source_rank} is to pass on the state after {step} steps and holds {found} (-1: none)")]
    Source {
        /// The rank.
        source_rank: u32,
        /// The steps after which its state was wanted.
        step: u64,
        /// Those after which it is.
        found: i64,
    },
    /// A saved state does not fit.
    #[error("saved state: {0}")]
    State(String),
    /// A golden case cannot be read.
    #[error("golden case {case}: {reason}")]
    Golden {
        /// Folder of the case.
        case: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl TrainError {
    /// Whether a new generation may go on where this one failed.
    pub fn is_peer_loss(&self) -> bool {
        match self {
            Self::Collective(e) => e.is_peer_loss(),
            Self::Model(ModelError::Group(e)) => {
                e.downcast_ref::<CollectiveError>().is_some_and(CollectiveError::is_peer_loss)
            }
            _ => false,
        }
    }
}
