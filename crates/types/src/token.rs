//! The fencing token: who may still speak.

use crate::{Generation, Term};
use serde::{Deserialize, Serialize};
use std::fmt;

/// (term, generation), ordered: whoever has seen a higher one refuses a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FencingToken {
    /// The coordinator's reign.
    pub term: Term,
    /// The membership formed in it.
    pub generation: Generation,
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.term, self.generation)
    }
}
