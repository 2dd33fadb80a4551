//! Rank events on their way to the coordinator.
//!
//! Invariants: events leave in the order in which they came. Nothing of the current generation is forgotten
//! before the coordinator has shown that it no longer needs it, and all of it is sent again on a new
//! stream (the coordinator takes repetitions for what they are). What shows it: `Committed` covers step
//! reports, `CheckpointCommitted` covers staged slices, `Start` covers readiness, and the next assignment
//! covers the rest. What belongs to no generation or an older one is sent once: the processes that a greeting
//! names take its place on the next stream. Left out: a bound. Ranks run no further than the epochs they were
//! granted, which bounds the reports of an outage.

use mcl_proto::v1::{RankEvent, rank_event::Event as Said};
use mcl_types::Generation;
use prost::Message;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a step report may wait for others.
pub(crate) const BATCH_DELAY: Duration = Duration::from_millis(20);

/// Events of one heartbeat: well below what a message may hold, so that no single report can make it too
/// large.
const HEARTBEAT_BYTES: usize = mcl_proto::MAX_MESSAGE_BYTES / 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    events: VecDeque<RankEvent>,
    /// The current one; 0: none.
    generation: u64,
    /// So many of the first ones went out on the present stream.
    sent: usize,
    /// When the others are to go.
    due: Option<Duration>,
}

impl Outbox {
    /// Takes an event; an urgent one makes all of them due at once.
    pub fn push(&mut self, event: RankEvent, now: Duration) {
        let urgent = !matches!(event.event, Some(Said::Step(_)));
        let due = if urgent { now } else { now + BATCH_DELAY };
        self.due = Some(self.due.map_or(due, |d| d.min(due)));
        self.events.push_back(event);
    }

    /// When something is to be sent, if anything is.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// A greeting was written: it covers what came before and is not of the current generation.
    pub fn greeted(&mut self) {
        self.forget(|kept, _, _| !kept);
    }

    /// A new stream: everything is to be sent again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// What has not gone out on the present stream, in portions that fit a message.
    pub fn take(&mut self) -> Vec<Vec<RankEvent>> {
        self.due = None;
        let mut portions = Vec::new();
        let mut portion = Vec::new();
        let mut bytes = 0;
        for event in self.events.iter().skip(self.sent) {
            let more = event.encoded_len();
            if bytes + more > HEARTBEAT_BYTES && !portion.is_empty() {
                portions.push(std::mem::take(&mut portion));
                bytes = 0;
            }
            bytes += more;
            portion.push(event.clone());
        }
        if !portion.is_empty() {
            portions.push(portion);
        }
        self.sent = self.events.len();
        self.forget(|kept, _, _| !kept);
        portions
    }

    /// Steps up to and including this one are durable.
    pub fn committed(&mut self, step: u64) {
        self.forget(|_, _, said| matches!(said, Said::Step(report) if report.step <= step));
    }

    /// The checkpoint of this step is visible, so older ones are of no interest either.
    pub fn checkpointed(&mut self, step: u64) {
        self.forget(|_, _, said| matches!(said, Said::Staged(staged) if staged.step <= step));
    }

    /// The generation was started: all were ready.
    pub fn started(&mut self) {
        self.forget(|kept, _, said| kept && matches!(said, Said::Ready(_)));
    }

    /// Another generation: of the one before only news of its end matter, where they were never sent.
    pub fn next_generation(&mut self, generation: Generation) {
        let end = |said: &Said| matches!(said, Said::Failed(_) | Said::Exited(_));
        self.forget(|kept, sent, said| kept && (sent || !end(said)));
        self.generation = generation.get();
    }

    /// Forgets what is covered, told of each event: is it of the current generation, was it sent, what is it?
    fn forget(&mut self, covered: impl Fn(bool, bool, &Said) -> bool) {
        let (mut place, sent, mut kept_sent) = (0, self.sent, 0);
        let current = self.generation;
        self.events.retain(|event| {
            let was_sent = place < sent;
            place += 1;
            let of_current = current != 0 && event.token.as_ref().is_some_and(|t| t.generation == current);
            let keep = event.event.as_ref().is_some_and(|said| !covered(of_current, was_sent, said));
            kept_sent += usize::from(keep && was_sent);
            keep
        });
        self.sent = kept_sent;
        if self.sent == self.events.len() {
            self.due = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_proto::v1::{Broken, Exited, FencingToken, Prepared, Ready, Staged, StepReport};

    fn of(generation: u64, said: Said) -> RankEvent {
        let token = Some(FencingToken { term: 1, generation });
        RankEvent { token, event: Some(said), ..RankEvent::default() }
    }
    fn event(said: Said) -> RankEvent {
        of(1, said)
    }
    fn step(step: u64) -> RankEvent {
        event(Said::Step(StepReport { step, ..StepReport::default() }))
    }
    fn steps(portions: &[Vec<RankEvent>]) -> Vec<u64> {
        let step = |e: &RankEvent| if let Some(Said::Step(r)) = &e.event { Some(r.step) } else { None };
        portions.iter().flatten().filter_map(step).collect()
    }
    /// In generation 1.
    fn outbox() -> Outbox {
        Outbox { generation: 1, ..Outbox::default() }
    }

    #[test]
    fn reports_wait_and_everything_else_takes_them_along_at_once() {
        let mut outbox = outbox();
        let at = Duration::from_millis;
        outbox.push(step(0), at(10));
        outbox.push(step(1), at(20));
        assert_eq!(outbox.due(), Some(at(10) + BATCH_DELAY));
        outbox.push(event(Said::Exited(Exited::default())), at(25));
        assert_eq!(outbox.due(), Some(at(25)));
        let portions = outbox.take();
        assert_eq!((steps(&portions), portions[0].len(), outbox.due()), (vec![0, 1], 3, None));
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn what_is_covered_is_forgotten_and_the_rest_sent_again() {
        let mut outbox = outbox();
        outbox.push(event(Said::Ready(Ready::default())), Duration::ZERO);
        (0..4).for_each(|s| outbox.push(step(s), Duration::ZERO));
        outbox.push(event(Said::Staged(Staged { step: 2, ..Staged::default() })), Duration::ZERO);
        outbox.take();
        outbox.push(step(4), Duration::ZERO);
        outbox.started();
        outbox.committed(1);
        outbox.checkpointed(2);
        assert_eq!(steps(&outbox.take()), [4]);
        outbox.rewind();
        assert_eq!(steps(&outbox.take()), [2, 3, 4]);
        assert_eq!(outbox.events.len(), 3);
    }

    #[test]
    fn a_generations_end_is_told_once_after_the_next_has_begun() {
        let mut outbox = outbox();
        outbox.push(step(0), Duration::ZERO);
        outbox.push(event(Said::Exited(Exited::default())), Duration::ZERO);
        outbox.next_generation(Generation::new(2));
        assert_eq!(outbox.take()[0], [event(Said::Exited(Exited::default()))]);
        assert!(outbox.events.is_empty());
    }

    #[test]
    fn what_is_of_no_generation_or_an_older_one_is_sent_once_and_covered_by_a_greeting() {
        let mut outbox = outbox();
        let passing = [of(0, Said::Prepared(Prepared {})), of(3, Said::Exited(Exited::default()))];
        outbox.next_generation(Generation::new(4));
        let lasting = of(4, Said::Broken(Broken::default()));
        let push = |outbox: &mut Outbox| {
            passing.iter().for_each(|e| outbox.push(e.clone(), Duration::ZERO));
            outbox.push(lasting.clone(), Duration::ZERO);
        };
        push(&mut outbox);
        assert_eq!(outbox.take()[0].len(), 3);
        outbox.rewind();
        assert_eq!(outbox.take(), [vec![lasting.clone()]]);
        push(&mut outbox);
        outbox.greeted();
        outbox.push(passing[0].clone(), Duration::ZERO);
        outbox.rewind();
        assert_eq!(outbox.take()[0], [lasting.clone(), lasting.clone(), passing[0].clone()]);
    }

    #[test]
    fn a_long_outage_fits_into_messages() {
        let mut outbox = outbox();
        let mut large = event(Said::Exited(Exited { last_words: "x".repeat(3 << 20), ..Exited::default() }));
        for rank in 0..9 {
            large.rank = rank;
            outbox.push(large.clone(), Duration::ZERO);
        }
        let portions = outbox.take();
        assert_eq!(portions.iter().map(Vec::len).sum::<usize>(), 9);
        assert!(portions.len() > 3);
    }
}
