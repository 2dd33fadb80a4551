//! The rank's side of its worker's pipe: commands in, events out.

use crate::orders::{Heard, Orders};
use crate::records::Records;
use anyhow::{Context, Result, bail};
use mcl_proto::v1::{self, rank_command::Command, rank_event::Event};
use mcl_train::Activity;
use mcl_types::FencingToken;
use prost::Message;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The process speaks this often at least, where the worker's patience allows it.
const SLOWEST_ALIVE: Duration = Duration::from_secs(1);
/// Signs of life within the silence after which the worker ends the process.
const ALIVE_WITHIN_SILENCE: u32 = 5;

/// What the control thread works with.
pub(crate) struct Control {
    pub(crate) orders: Arc<Orders>,
    pub(crate) records: Arc<Records>,
    pub(crate) reporter: Reporter,
}

impl Control {
    /// Reads commands on a thread of its own until the worker closes the pipe, which ends this process: a rank
    /// without a worker has nobody to report to. What cannot wait for the training thread is done there.
    pub(crate) fn listen(self) {
        std::thread::spawn(move || {
            let mut input = std::io::stdin().lock();
            loop {
                match read_command(&mut input) {
                    Ok(Some(command)) => self.hear(command),
                    Ok(None) => leave("the worker closed the pipe"),
                    Err(error) => leave(&format!("the worker's pipe: {error:#}")),
                }
            }
        });
    }

    fn hear(&self, command: Command) {
        match command {
            Command::Committed(committed) => self.records.forget_before(committed.step + 1),
            Command::Recount(recount) => self.recount(&recount),
            Command::Stop(stop) => leave(&format!("told to stop: {}", stop.reason)),
            command => match self.orders.hear(command) {
                Heard::Noted => {}
                Heard::Joined { committed } => self.records.forget_before(committed),
                Heard::Stale(what) => tracing::warn!(what, "command of another generation, or out of order"),
            },
        }
    }

    /// Answered here: the training thread may be waiting for its next generation or in it.
    fn recount(&self, recount: &v1::Recount) {
        let (token, rank) = self.orders.stamp();
        if recount.token.map(FencingToken::from) != Some(token) {
            tracing::warn!("recount of another generation");
            return;
        }
        let steps = self.records.recount(recount.first_step, recount.end_step);
        self.reporter.stamped(token, rank).send(Event::Recounted(v1::Recounted { steps }));
    }
}

/// Says on a thread of its own that the process lives and what its training thread does.
pub(crate) fn keep_alive(reporter: Reporter, orders: Arc<Orders>, activity: Activity, lost_after_ms: u64) {
    let patience = Duration::from_millis(lost_after_ms) / ALIVE_WITHIN_SILENCE;
    let pause = if lost_after_ms == 0 { SLOWEST_ALIVE } else { patience.min(SLOWEST_ALIVE) };
    std::thread::spawn(move || {
        loop {
            let now = activity.now();
            let (token, rank) = orders.stamp();
            reporter.stamped(token, rank).send(Event::Alive(v1::Alive {
                step: now.step.map(mcl_types::Step::get),
                activity: now.doing.to_string(),
                seconds: now.lasted().as_secs_f64(),
            }));
            std::thread::sleep(pause);
        }
    });
}

/// Ends the process from the control thread, whatever the training loop waits for. Peers notice the closed
/// connections; nothing here needs a destructor.
fn leave(reason: &str) -> ! {
    tracing::debug!(reason, "rank leaves");
    mcl_collective::exit_at_once(0)
}

fn read_command(input: &mut impl Read) -> Result<Option<Command>> {
    let Some(size) = read_length(input)? else { return Ok(None) };
    if size > mcl_proto::MAX_MESSAGE_BYTES {
        bail!("a command of {size} bytes, expected at most {}", mcl_proto::MAX_MESSAGE_BYTES);
    }
    let mut bytes = vec![0; size];
    input.read_exact(&mut bytes).context("a command was cut short")?;
    let message = v1::RankCommand::decode(bytes.as_slice()).context("a command does not decode")?;
    message.command.map(Some).context("an empty command: the worker speaks another protocol version")
}

/// A varint, or nothing at the end of the stream.
fn read_length(input: &mut impl Read) -> Result<Option<usize>> {
    let mut size = 0_u64;
    for place in 0..10 {
        let mut byte = [0_u8];
        if input.read(&mut byte)? == 0 {
            if place == 0 {
                return Ok(None);
            }
            bail!("the stream ended inside a length");
        }
        size |= u64::from(byte[0] & 0x7F) << (7 * place);
        if byte[0] & 0x80 == 0 {
            return Ok(Some(usize::try_from(size)?));
        }
    }
    bail!("a length of more than ten bytes")
}

/// Sends events to the worker; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    token: FencingToken,
    rank: u32,
    output: Arc<Mutex<File>>,
}

/// Standard output for ourselves alone: whatever a library prints from now on goes to standard error and
/// cannot tear a message.
pub(crate) fn claim_output() -> Result<File> {
    let own = nix::unistd::dup(std::io::stdout()).context("duplicating standard output")?;
    nix::unistd::dup2_stdout(std::io::stderr()).context("sending standard output to standard error")?;
    Ok(File::from(own))
}

impl Reporter {
    /// Of a process that belongs to no generation yet.
    pub(crate) fn new(output: File) -> Self {
        Self { token: FencingToken::default(), rank: 0, output: Arc::new(Mutex::new(output)) }
    }

    /// The same pipe, for a rank of a generation.
    pub(crate) fn stamped(&self, token: FencingToken, rank: u32) -> Self {
        Self { token, rank, output: Arc::clone(&self.output) }
    }

    /// Sends one event. A closed pipe is no error here: the control thread ends the process.
    pub(crate) fn send(&self, event: Event) {
        // Which device and process this is, the worker adds.
        let message = v1::RankEvent {
            token: Some(self.token.into()),
            rank: self.rank,
            event: Some(event),
            ..v1::RankEvent::default()
        };
        let bytes = message.encode_length_delimited_to_vec();
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = output.write_all(&bytes).and_then(|()| output.flush()) {
            tracing::debug!(%error, "the worker does not listen");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_round_trip_and_garbage_is_an_error() {
        let drain = v1::RankCommand { command: Some(Command::Drain(v1::Drain { token: None })) };
        let mut bytes = drain.encode_length_delimited_to_vec();
        let whole = bytes.clone();
        assert!(matches!(read_command(&mut whole.as_slice()), Ok(Some(Command::Drain(_)))));
        assert!(matches!(read_command(&mut [].as_slice()), Ok(None)));
        bytes.pop();
        assert!(read_command(&mut bytes.as_slice()).is_err(), "a cut command was accepted");
        assert!(read_command(&mut [0xFF; 16].as_slice()).is_err(), "an endless length was accepted");
        let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x7F];
        assert!(read_command(&mut huge.as_slice()).is_err(), "a huge command was accepted");
    }
}
