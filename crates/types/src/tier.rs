//! How safe a checkpoint is.

use serde::{Deserialize, Serialize};

/// Where a checkpoint is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Tier {
    /// In the store: survives everything that the store survives.
    #[default]
    Durable,
    /// In the memory of the checkpoint service: survives every rank, worker and coordinator, not the service.
    Memory,
}
