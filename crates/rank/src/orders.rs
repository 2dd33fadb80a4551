//! What the coordinator wants of this process: written by the control thread, waited for by the training thread.
//!
//! Invariants: tokens only grow; the newest Join or Break is the one that counts; a generation that either
//! replaces is aborted before the training thread hears of it.

use mcl_collective::Lifeline;
use mcl_proto::v1::{self, rank_command::Command};
use mcl_train::Halt;
use mcl_types::FencingToken;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    configure: Option<v1::Configure>,
    configured: bool,
    highest: FencingToken,
    /// Rank in the newest generation; what is said of no particular one is said by it.
    rank: u32,
    join: Option<v1::Join>,
    start: Option<v1::Start>,
    leave: Option<v1::Break>,
    engaged: Option<Lifeline>,
    halt: Halt,
    granted: u64,
}

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It waits for the training thread, or was acted upon.
    Noted,
    /// A generation begins; so many steps stand.
    Joined { committed: u64 },
    /// It is of an older generation, or comes where nobody waits for it.
    Stale(&'static str),
}

/// What the training thread is to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Become a rank.
    Join(v1::Join),
    /// Answer that it is in no group.
    Leave(v1::Break),
}

fn token(token: Option<v1::FencingToken>) -> FencingToken {
    token.unwrap_or_default().into()
}

impl State {
    fn abort(&self) {
        if let Some(lifeline) = &self.engaged {
            lifeline.abort();
        }
    }

    fn replaced(&self, its: FencingToken) -> bool {
        self.highest.generation != its.generation || self.join.is_some() || self.leave.is_some()
    }

    /// A later coordinator that took the generation over speaks under its own term: so does this process then.
    fn raise(&mut self, its: Option<v1::FencingToken>) {
        if self.is_current(its) {
            self.highest = token(its);
        }
    }

    fn join(&mut self, join: v1::Join) -> Heard {
        let newer = token(join.token);
        if newer <= self.highest {
            return Heard::Stale("join");
        }
        self.abort();
        self.highest = newer;
        self.rank = join.rank;
        (self.start, self.leave, self.halt) = (None, None, Halt::No);
        let committed = join.committed;
        self.join = Some(join);
        Heard::Joined { committed }
    }

    fn leave(&mut self, leave: v1::Break) -> Heard {
        let its = token(leave.token);
        if its < self.highest {
            return Heard::Stale("break");
        }
        self.abort();
        self.highest = its;
        (self.join, self.start) = (None, None);
        self.leave = Some(leave);
        Heard::Noted
    }

    /// Whether a command is for the newest generation: of the coordinator that formed it, or of a later one that
    /// took it over.
    fn is_current(&self, its: Option<v1::FencingToken>) -> bool {
        let its = token(its);
        its.generation == self.highest.generation && its.term >= self.highest.term
    }

    fn halt(&mut self, its: Option<v1::FencingToken>, halt: Halt) -> Heard {
        if !self.is_current(its) {
            return Heard::Stale("pause or drain");
        }
        self.halt = self.halt.max(halt);
        Heard::Noted
    }
}

impl Orders {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.state();
        loop {
            if let Some(found) = take(&mut state) {
                return found;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a command from the pipe.
    pub(crate) fn hear(&self, command: Command) -> Heard {
        let mut state = self.state();
        let heard = match command {
            Command::Configure(_) if state.configured => Heard::Stale("second configure"),
            Command::Configure(configure) => {
                state.configured = true;
                state.configure = Some(configure);
                Heard::Noted
            }
            Command::Join(join) => state.join(join),
            Command::Break(leave) => state.leave(leave),
            Command::Start(start) if state.is_current(start.token) => {
                state.raise(start.token);
                state.start = Some(start);
                Heard::Noted
            }
            Command::Start(_) => Heard::Stale("start"),
            Command::Pause(pause) => state.halt(pause.token, Halt::Pause),
            Command::Drain(drain) => state.halt(drain.token, Halt::Drain),
            Command::EpochGrant(grant) => {
                state.raise(grant.token);
                state.granted = state.granted.max(grant.epoch + 1);
                Heard::Noted
            }
            Command::CheckpointCommitted(_) => Heard::Noted,
            Command::Committed(_) | Command::Recount(_) | Command::Stop(_) => Heard::Stale("not an order"),
        };
        self.changed.notify_all();
        heard
    }

    /// Waits for the job.
    pub(crate) fn configure(&self) -> v1::Configure {
        self.wait_for(|state| state.configure.take())
    }

    /// Waits for what comes between two generations.
    pub(crate) fn next(&self) -> Next {
        self.wait_for(|state| match (state.join.take(), state.leave.take()) {
            (Some(join), _) => Some(Next::Join(join)),
            (None, Some(leave)) => Some(Next::Leave(leave)),
            (None, None) => None,
        })
    }

    /// From now on a newer order aborts `lifeline`; false where there is one already.
    pub(crate) fn engage(&self, its: FencingToken, lifeline: &Lifeline) -> bool {
        let mut state = self.state();
        if state.replaced(its) {
            return false;
        }
        state.engaged = Some(lifeline.clone());
        true
    }

    /// The generation is over for this process.
    pub(crate) fn disengage(&self) {
        self.state().engaged = None;
    }

    /// Waits until all ranks of the generation are ready; nothing where another order comes first.
    pub(crate) fn start(&self) -> Option<v1::Start> {
        self.wait_for(|state| {
            if state.join.is_some() || state.leave.is_some() {
                return Some(None);
            }
            state.start.take().map(Some)
        })
    }

    /// Whether something newer has come since that generation began.
    pub(crate) fn replaced(&self, its: FencingToken) -> bool {
        self.state().replaced(its)
    }

    /// What the coordinator wants after the step in flight.
    pub(crate) fn halt(&self) -> Halt {
        self.state().halt
    }

    /// Number of epochs, from 0 on, that the coordinator has handed out.
    pub(crate) fn granted_epochs(&self) -> u64 {
        self.state().granted
    }

    /// Token and rank of the newest generation.
    pub(crate) fn stamp(&self) -> (FencingToken, u32) {
        let state = self.state();
        (state.highest, state.rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(generation: u64) -> Option<v1::FencingToken> {
        Some(v1::FencingToken { term: 1, generation })
    }

    fn join(generation: u64) -> Command {
        Command::Join(v1::Join { token: at(generation), rank: 1, world_size: 2, committed: 4 })
    }

    #[test]
    fn the_newest_order_counts_and_aborts_what_it_replaces() {
        let orders = Orders::default();
        let lifeline = Lifeline::new(&[]).unwrap();
        assert_eq!(orders.hear(join(2)), Heard::Joined { committed: 4 });
        assert_eq!(orders.hear(join(1)), Heard::Stale("join"));
        assert!(!orders.engage(at(2).unwrap().into(), &lifeline), "an order is not taken yet");
        assert!(matches!(orders.next(), Next::Join(j) if token(j.token) == token(at(2))));
        assert!(orders.engage(at(2).unwrap().into(), &lifeline));
        let start = |generation| {
            Command::Start(v1::Start {
                token: at(generation),
                store_address: String::new(),
                first_step: 0,
                origin: None,
            })
        };
        assert_eq!(orders.hear(start(1)), Heard::Stale("start"));
        assert_eq!(orders.hear(start(2)), Heard::Noted);
        assert!(orders.start().is_some());
        orders.hear(Command::Pause(v1::Pause { token: at(2) }));
        assert_eq!(orders.halt(), Halt::Pause);
        assert!(!lifeline.is_aborted());
        orders.hear(join(3));
        assert!(lifeline.is_aborted());
        assert_eq!(orders.halt(), Halt::No);
        assert!(orders.start().is_none(), "a newer join ends the wait for a start");
        orders.hear(Command::Break(v1::Break { token: at(3), reason: String::new() }));
        assert!(matches!(orders.next(), Next::Leave(_)), "a break takes the place of its join");
        assert_eq!(orders.stamp(), (at(3).unwrap().into(), 1));
    }

    #[test]
    fn a_coordinator_that_took_the_generation_over_is_obeyed() {
        let orders = Orders::default();
        orders.hear(join(2));
        assert!(matches!(orders.next(), Next::Join(_)));
        let later = |term| Some(v1::FencingToken { term, generation: 2 });
        let start = |term| {
            let (token, store_address) = (later(term), String::new());
            Command::Start(v1::Start { token, store_address, first_step: 0, origin: None })
        };
        assert_eq!(orders.hear(start(0)), Heard::Stale("start"), "an earlier one is not");
        assert_eq!(orders.hear(start(2)), Heard::Noted);
        assert!(orders.start().is_some());
        assert_eq!(orders.hear(Command::Drain(v1::Drain { token: later(2) })), Heard::Noted);
        assert_eq!(orders.halt(), Halt::Drain);
        assert!(!orders.replaced(at(2).unwrap().into()));
        assert_eq!(orders.stamp().0, later(2).unwrap().into(), "and answered under its term");
    }
}
