//! One agent's life: streams, one after the other, and what is measured on them.
//!
//! Invariants: heartbeats are due by the clock, at a phase of the agent's own, whatever the answers do; a
//! stream on which too many heartbeats are unanswered is given up, as a real worker's is when too many
//! messages wait.

use crate::BenchError;
use crate::agent::{Agent, Note};
use crate::stream::{Outgoing, StreamError, Trunk};
use crate::tally::Shared;
use crate::workload::Workload;
use mcl_proto::v1::session_response::Message;
use mcl_proto::v1::{Configure, SessionRequest, session_request};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Unanswered heartbeats of one stream.
const OUTSTANDING: usize = 1024;
/// Pauses before the coordinator is tried again double from the first to the second, as with real workers.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// What the agents of a point have in common.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) shared: Shared,
    pub(crate) trunk: Arc<Trunk>,
    pub(crate) workloads: Arc<Workloads>,
    /// Between heartbeats; none: as the welcome says.
    pub(crate) interval: Option<Duration>,
    /// Where in an interval this agent speaks, 0 to 1.
    pub(crate) phase: f64,
    pub(crate) origin: Instant,
    pub(crate) leaving: watch::Receiver<bool>,
}

/// Jobs that agents were told of: read once for all of them.
#[derive(Debug, Default)]
pub(crate) struct Workloads {
    known: Mutex<Option<(Configure, Arc<Workload>)>>,
}

impl Workloads {
    /// Reading a job's pictures takes its time, so it is done ahead where the job is known.
    pub(crate) fn ahead(configure: Configure, workload: Workload) -> Self {
        Self { known: Mutex::new(Some((configure, Arc::new(workload)))) }
    }

    pub(crate) fn of(&self, configure: &Configure) -> Result<Arc<Workload>, BenchError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((job, workload)) = known.as_ref()
            && job.run_id == configure.run_id
            && job.dataset_digest == configure.dataset_digest
            && job.job_toml == configure.job_toml
        {
            return Ok(Arc::clone(workload));
        }
        let workload = Arc::new(Workload::of(configure)?);
        *known = Some((configure.clone(), Arc::clone(&workload)));
        Ok(workload)
    }
}

/// How a stream ended.
enum End {
    /// Asked to.
    Leaving,
    /// The coordinator wants no more of this agent.
    Over,
    /// To be tried again.
    Lost(&'static str, String),
}

/// Lives until it is told to leave or the coordinator has no use for it.
pub(crate) async fn live(mut agent: Agent, setup: Setup) {
    let mut pause = PAUSES.0;
    let mut leaving = setup.leaving.clone();
    let mut welcomed_before = false;
    loop {
        let mut session = Session::new(&mut agent, &setup, welcomed_before);
        let end = session.run(&mut leaving).await;
        let welcomed = session.welcomed;
        if welcomed {
            setup.shared.with(|t| t.connected = t.connected.saturating_sub(1));
            welcomed_before = true;
            pause = PAUSES.0;
        }
        match end {
            End::Leaving | End::Over => return,
            End::Lost(kind, example) => setup.shared.with(|t| t.errors.add(kind, &example)),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = leaving.wait_for(|leaving| *leaving) => return,
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// A heartbeat under way.
struct Flight {
    sequence: u64,
    sent: Instant,
    counts: bool,
}

struct Session<'a> {
    agent: &'a mut Agent,
    setup: &'a Setup,
    in_flight: VecDeque<Flight>,
    interval: Option<Duration>,
    next_beat: Instant,
    welcomed: bool,
    welcomed_before: bool,
}

impl<'a> Session<'a> {
    fn new(agent: &'a mut Agent, setup: &'a Setup, welcomed_before: bool) -> Self {
        let (in_flight, next_beat) = (VecDeque::new(), setup.origin);
        Self { agent, setup, in_flight, interval: None, next_beat, welcomed: false, welcomed_before }
    }

    async fn run(&mut self, leaving: &mut watch::Receiver<bool>) -> End {
        let hello = session_request::Message::Hello(self.agent.hello());
        let opening = self.setup.trunk.open(SessionRequest { message: Some(hello) });
        let opened = tokio::select! {
            opened = opening => opened,
            _ = leaving.wait_for(|leaving| *leaving) => return End::Leaving,
        };
        let (mut outgoing, mut incoming) = match opened {
            Ok(stream) => stream,
            Err(error) => return lost(&error),
        };
        let timer = tokio::time::sleep_until(self.next_beat);
        tokio::pin!(timer);
        loop {
            let turn = tokio::select! {
                heard = incoming.next() => match heard {
                    Ok(message) => self.hear(message.message, &mut outgoing),
                    Err(error) => return lost(&error),
                },
                () = &mut timer, if self.interval.is_some() => self.beat(&mut outgoing),
                _ = leaving.wait_for(|leaving| *leaving) => {
                    outgoing.end();
                    return End::Leaving;
                }
            };
            if let ControlFlow::Break(end) = turn {
                return end;
            }
            if self.interval.is_some() && timer.deadline() != self.next_beat {
                timer.as_mut().reset(self.next_beat);
            }
        }
    }

    fn hear(&mut self, message: Option<Message>, outgoing: &mut Outgoing) -> ControlFlow<End> {
        match message {
            None => {}
            Some(Message::Acknowledged(acknowledged)) => self.answered(acknowledged.sequence),
            Some(Message::Prepare(prepare)) => {
                match self.setup.workloads.of(&prepare.configure.unwrap_or_default()) {
                    Ok(workload) => self.agent.prepare(workload),
                    Err(error) => {
                        self.setup.shared.with(|t| t.errors.add("job", &error.to_string()));
                        return ControlFlow::Break(End::Over);
                    }
                }
            }
            Some(message) => {
                if let Some(note) = self.agent.hear(message) {
                    self.noted(note)?;
                }
            }
        }
        if self.interval.is_some() && self.agent.is_urgent() {
            return self.send(outgoing, None);
        }
        ControlFlow::Continue(())
    }

    fn noted(&mut self, note: Note) -> ControlFlow<End> {
        let shared = &self.setup.shared;
        match note {
            Note::Welcome { interval } => {
                let first = !self.welcomed_before && !self.welcomed;
                if !self.welcomed {
                    shared.note(|t| t.welcome(interval, first));
                }
                self.welcomed = true;
                self.interval = Some(self.setup.interval.unwrap_or(interval));
                self.next_beat = self.slot_after(Instant::now());
            }
            Note::Tempo { interval } => {
                shared.with(|t| t.interval = Some(interval));
                self.interval = Some(self.setup.interval.unwrap_or(interval));
                self.next_beat = self.slot_after(Instant::now());
            }
            Note::Started { generation, world, ranks, first_step } => {
                shared.note(|t| t.start(generation, world, ranks, first_step));
            }
            Note::Refused(reason) => {
                shared.with(|t| t.errors.add("refused", &reason));
                return ControlFlow::Break(End::Over);
            }
            Note::Dismissed { leave } => {
                shared.with(|t| t.errors.add("dismissed", "the job is over"));
                if leave {
                    return ControlFlow::Break(End::Over);
                }
            }
            Note::Odd(what) => shared.with(|t| t.errors.add("odd", what)),
        }
        ControlFlow::Continue(())
    }

    /// The agent's next place in the common rhythm.
    fn slot_after(&self, now: Instant) -> Instant {
        let interval = self.interval.unwrap_or(PAUSES.1);
        let first = self.setup.origin + interval.mul_f64(self.setup.phase);
        let gone = now.saturating_duration_since(first).as_nanos() / interval.as_nanos().max(1);
        let mut slot = first + interval.saturating_mul(u32::try_from(gone).unwrap_or(u32::MAX));
        while slot <= now {
            slot += interval;
        }
        slot
    }

    fn beat(&mut self, outgoing: &mut Outgoing) -> ControlFlow<End> {
        let (now, due) = (Instant::now(), self.next_beat);
        let turn = self.send(outgoing, Some(now.saturating_duration_since(due)));
        self.next_beat = self.slot_after(now.max(due));
        turn
    }

    /// A heartbeat with all there is to say.
    fn send(&mut self, outgoing: &mut Outgoing, late: Option<Duration>) -> ControlFlow<End> {
        if self.in_flight.len() >= OUTSTANDING {
            let example = format!("{OUTSTANDING} heartbeats unanswered");
            return ControlFlow::Break(End::Lost("not answered", example));
        }
        let now = Instant::now();
        let shared = &self.setup.shared;
        let steps = shared.with(|t| t.steps(now));
        let beat = self.agent.beat(steps);
        let ungranted = self.agent.ungranted(steps) > 0;
        let counts = shared.with(|t| t.send(now, late, ungranted));
        self.in_flight.push_back(Flight { sequence: beat.sequence, sent: now, counts });
        let message = Some(session_request::Message::Heartbeat(beat));
        match outgoing.send(&SessionRequest { message }) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(lost(&error)),
        }
    }

    /// Answers come in order; what is passed over was not answered.
    fn answered(&mut self, sequence: u64) {
        while let Some(flight) = self.in_flight.front() {
            if flight.sequence > sequence {
                return;
            }
            let (found, sent, counts) = (flight.sequence, flight.sent, flight.counts);
            self.in_flight.pop_front();
            if found == sequence && counts {
                self.setup.shared.note(|t| t.answer(sent.elapsed()));
            }
        }
    }
}

fn lost(error: &StreamError) -> End {
    let kind = match error {
        StreamError::Connect(_) => "connect",
        StreamError::Broken(_) => "broken",
        StreamError::Protocol(_) => "protocol",
    };
    End::Lost(kind, error.to_string())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
