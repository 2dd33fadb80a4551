//! How often workers speak: the more there are, the less often.
//!
//! Invariant: never so seldom that a worker could be taken for lost between two words.

use crate::performing::millis;
use crate::rim::Rim;
use mcl_coordinator_core::SessionId;
use mcl_proto::v1::{self, session_response::Message};
use std::time::Duration;

/// Heartbeats a second that all workers together may send; measured with `mcl bench coordinator`, a core carries
/// several times as many.
const BEATS_PER_SECOND: u32 = 2_000;
/// Words within `lost_after`, at least.
const WORDS: u32 = 4;

/// The interval for so many workers.
pub(crate) fn tempo(asked: Duration, lost_after: Duration, workers: usize) -> Duration {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    let stretched = Duration::from_secs(1) * workers / BEATS_PER_SECOND;
    asked.max(stretched).min(lost_after / WORDS)
}

impl Rim {
    /// Tells all workers where their number has changed the interval by half or more.
    pub(crate) fn keep_tempo(&mut self) {
        let now = tempo(self.heartbeat_interval, self.state.lost_after(), self.sessions.len());
        if now < self.tempo * 3 / 2 && now * 3 / 2 > self.tempo {
            return;
        }
        self.tempo = now;
        let message = Message::Tempo(v1::Tempo { heartbeat_interval_ms: millis(now) });
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.post(session, message.clone());
        }
    }

    /// The heartbeat of this number was acted on.
    pub(crate) fn acknowledge(&mut self, session: SessionId, sequence: u64) {
        self.post(session, Message::Acknowledged(v1::Acknowledged { sequence }));
    }

    fn post(&mut self, session: SessionId, message: Message) {
        let Some(to) = self.sessions.get(&session) else { return };
        if to.outgoing.try_send(Ok(v1::SessionResponse { message: Some(message) })).is_err() {
            tracing::warn!(session = session.0, "a worker does not read what it is sent: stream ended");
            self.sessions.remove(&session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_with_the_cluster_and_stays_within_patience() {
        let (asked, lost_after) = (Duration::from_millis(500), Duration::from_secs(10));
        assert_eq!(tempo(asked, lost_after, 3), asked);
        assert_eq!(tempo(asked, lost_after, 2_000), Duration::from_secs(1));
        assert_eq!(tempo(asked, lost_after, 100_000), Duration::from_millis(2_500));
        assert_eq!(tempo(asked, Duration::from_secs(1), 3), Duration::from_millis(250));
    }
}
