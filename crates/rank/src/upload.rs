//! One slice on its way to the checkpoint service.
//!
//! This process may be the only one that holds the newest state, so a durable slice is tried until it is stored: a
//! full disk, a service that is away and a broken connection are somebody's to mend. What ends it otherwise is the
//! end of its generation, or an answer that no repetition can change. A snapshot in memory is tried once (the client
//! rides out short absences): the next one makes up for it, and a durable one must not wait for it. Every try that
//! fails is said here and at once; whoever waits for the upload need not say it again. Left out: what is uploaded
//! when.

use crate::control::Reporter;
use crate::orders::Orders;
use crate::snapshot::{LOOK, Left, unless_left};
use anyhow::Result;
use bytes::Bytes;
use mcl_checkpoint::{CheckpointClient, ClientError, Draft};
use mcl_collective::Lifeline;
use mcl_failpoint::Failpoint;
use mcl_proto::v1::{self, rank_event::Event};
use mcl_types::{FencingToken, Generation, RunId, Step, Tier};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Pauses between tries double from the first to the second of these: short beside what a step costs, and in the end
/// so long that the warnings of an outage can still be read.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// See the module.
pub(crate) struct Upload {
    pub(crate) client: CheckpointClient,
    pub(crate) orders: Arc<Orders>,
    pub(crate) lifeline: Lifeline,
    pub(crate) reporter: Reporter,
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    pub(crate) step: Step,
    pub(crate) tier: Tier,
    pub(crate) slice: u32,
    pub(crate) slices: u32,
    pub(crate) bytes: Bytes,
    /// Set once a try has failed.
    pub(crate) troubled: Arc<AtomicBool>,
}

impl Upload {
    /// Uploads, then reports Staged.
    pub(crate) async fn run(self) -> Result<()> {
        let mut pause = PAUSES.0;
        loop {
            let (token, _) = self.orders.stamp();
            if token.generation != self.generation {
                return Err(Left.into());
            }
            let draft =
                Draft { token, run: &self.run, step: self.step, slices: self.slices, tier: self.tier };
            match self.client.put_slice(draft, self.slice, self.bytes.clone()).await {
                Ok(()) => break,
                // A new coordinator has announced itself to the service and not yet to this rank; if it takes the
                // generation over, its term comes.
                Err(ClientError::Fenced { reason, .. }) => {
                    tracing::info!(step = self.step.get(), %reason, "upload waits for a later term");
                    unless_left(&self.lifeline, later_term(&self.orders, token)).await?;
                }
                Err(error) if self.tier == Tier::Memory || error.is_final() => return Err(self.lost(error)),
                Err(error) => {
                    self.troubled.store(true, Ordering::Relaxed);
                    let (step, slice, next) = (self.step.get(), self.slice, pause.as_secs_f64());
                    tracing::warn!(step, slice, next_try_in_seconds = next, %error, "upload failed, is tried again");
                    unless_left(&self.lifeline, tokio::time::sleep(pause)).await?;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
        mcl_failpoint::pass(Failpoint::StagedBeforeReport);
        self.reporter.send(Event::Staged(v1::Staged {
            step: self.step.get(),
            slice: self.slice,
            slices: self.slices,
            in_memory: self.tier == Tier::Memory,
        }));
        Ok(())
    }

    /// Said, and as whoever must not miss this checkpoint hands it on.
    fn lost(&self, error: ClientError) -> anyhow::Error {
        self.troubled.store(true, Ordering::Relaxed);
        let (step, slice, slices) = (self.step, self.slice, self.slices);
        let in_memory = self.tier == Tier::Memory;
        tracing::warn!(
            step = step.get(), slice, in_memory, %error,
            "upload failed, there will be no checkpoint of this step: the next one makes up for it"
        );
        anyhow::Error::from(error).context(format!("checkpoint of {step}: slice {slice} of {slices}"))
    }
}

/// Waits until this process speaks under a later term than `refused`.
async fn later_term(orders: &Orders, refused: FencingToken) {
    while orders.stamp().0 <= refused {
        tokio::time::sleep(LOOK).await;
    }
}
