//! The rank's side of its worker's pipe: commands in, events out.

use anyhow::{Context, Result, bail};
use mcl_proto::v1::{self, rank_command::Command, rank_event::Event};
use mcl_types::FencingToken;
use prost::Message;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What the control thread has heard and the training loop looks at.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    drain: AtomicBool,
    granted: AtomicU64,
}

impl Heard {
    /// Whether the coordinator wants the run to stop after the step in flight.
    pub(crate) fn wants_drain(&self) -> bool {
        self.drain.load(Ordering::Acquire)
    }

    /// Number of epochs, from 0 on, that the coordinator has handed out.
    pub(crate) fn granted_epochs(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    fn grant(&self, epoch: u64) {
        self.granted.fetch_max(epoch + 1, Ordering::AcqRel);
    }
}

/// Commands for the start of a generation, in order.
pub(crate) struct Commands {
    receiver: Receiver<Command>,
    pub(crate) heard: Arc<Heard>,
}

/// Reads commands on a thread of its own until the worker closes the pipe, which ends this process: a rank
/// without a worker has nobody to report to.
pub(crate) fn listen() -> Commands {
    let (sender, receiver) = channel();
    let heard = Arc::new(Heard::default());
    let shared = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            match read_command(&mut input) {
                Ok(Some(Command::Drain(_))) => shared.drain.store(true, Ordering::Release),
                Ok(Some(Command::EpochGrant(grant))) => shared.grant(grant.epoch),
                Ok(Some(Command::Committed(_) | Command::CheckpointCommitted(_))) => {}
                Ok(Some(Command::Stop(stop))) => leave(&format!("told to stop: {}", stop.reason)),
                Ok(Some(command)) => {
                    if sender.send(command).is_err() {
                        leave("the training loop is over");
                    }
                }
                Ok(None) => leave("the worker closed the pipe"),
                Err(error) => leave(&format!("the worker's pipe: {error:#}")),
            }
        }
    });
    Commands { receiver, heard }
}

/// Ends the process from the control thread, whatever the training loop waits for. Peers notice the closed
/// connections; nothing here needs a destructor.
#[expect(clippy::disallowed_methods, reason = "the main thread may wait in a collective that nobody joins")]
fn leave(reason: &str) -> ! {
    tracing::debug!(reason, "rank leaves");
    std::process::exit(0)
}

impl Commands {
    /// The first command.
    pub(crate) fn configure(&self) -> Result<v1::Configure> {
        match self.receiver.recv().context("no command came")? {
            Command::Configure(configure) => Ok(configure),
            other => bail!("first command is {other:?}, expected Configure"),
        }
    }

    /// Waits until all ranks are ready.
    pub(crate) fn start(&self) -> Result<v1::Start> {
        match self.receiver.recv().context("no command came")? {
            Command::Start(start) => Ok(start),
            other => bail!("second command is {other:?}, expected Start"),
        }
    }

    /// Waits for Stop, which the control thread answers by ending the process.
    pub(crate) fn wait_for_stop(&self) -> ! {
        loop {
            std::thread::park();
        }
    }
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
    pub(crate) fn new(token: FencingToken, rank: u32, output: File) -> Self {
        Self { token, rank, output: Arc::new(Mutex::new(output)) }
    }

    /// Sends one event. A closed pipe is no error here: the control thread ends the process.
    pub(crate) fn send(&self, event: Event) {
        let message = v1::RankEvent { token: Some(self.token.into()), rank: self.rank, event: Some(event) };
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
