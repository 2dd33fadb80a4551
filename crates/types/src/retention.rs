//! Which checkpoints stay when a new one is visible.

use crate::Step;
use serde::{Deserialize, Serialize};

/// How many checkpoints stay, and which besides. Pinned ones always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest ones, the one just made among them; 0: all.
    pub keep: u32,
    /// Besides, those whose step is a multiple of this; 0: none.
    pub keep_every: u64,
}

impl Retention {
    /// Nothing goes.
    pub const ALL: Self = Self::newest(0);

    /// The newest `keep` stay, with 0 all.
    pub const fn newest(keep: u32) -> Self {
        Self { keep, keep_every: 0 }
    }

    /// Whether a checkpoint stays that has `newer` visible ones after it.
    pub const fn stays(self, step: Step, newer: u32) -> bool {
        self.keep == 0
            || newer < self.keep
            || (self.keep_every > 0 && step.get().is_multiple_of(self.keep_every))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_multiples_stay() {
        let stays =
            |keep, keep_every, step, newer| Retention { keep, keep_every }.stays(Step::new(step), newer);
        assert!(stays(0, 0, 7, 100));
        assert!(stays(2, 0, 7, 0) && stays(2, 0, 7, 1) && !stays(2, 0, 7, 2));
        assert!(stays(2, 100, 300, 9) && !stays(2, 100, 350, 9));
    }
}
