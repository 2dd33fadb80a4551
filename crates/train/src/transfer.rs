//! Bringing all ranks of a generation to one state over their group.
//!
//! Invariant: a rank's own state is replaced only once all of another's has arrived.

use crate::activity::Doing;
use crate::digest::disagreement;
use crate::{TrainError, Trainer};
use mcl_collective::Group;
use mcl_failpoint::Failpoint;
use mcl_types::{Digest, Rank, Step};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, no_grad};

/// A state travels in pieces of about so many bytes: few enough to cost no round trips, small enough to be held
/// twice.
const PIECE_BYTES: usize = 64 << 20;

/// What levelling did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levelled {
    /// This rank took another's state.
    pub received: bool,
    /// How many bytes went over the group; 0 where all ranks were level.
    pub bytes: usize,
}

/// One rank's standing: steps applied, and the digest of its state in four numbers.
type Standing = [i64; 5];

/// Of a rank that holds nothing.
const NOTHING: Standing = [-1, 0, 0, 0, 0];

fn standing(applied: Step, digest: Digest) -> Standing {
    let mut numbers = NOTHING;
    numbers[0] = i64::try_from(applied.get()).unwrap_or(i64::MAX);
    for (number, bytes) in numbers.iter_mut().skip(1).zip(digest.as_bytes().chunks_exact(8)) {
        *number = bytes.iter().fold(0, |n, b| (n << 8) | i64::from(*b));
    }
    numbers
}

impl Trainer {
    /// After this all ranks hold `source`'s state, which is that after `step` steps, and their digests were
    /// compared. `applied` is what this rank holds. Nothing is sent where all are level.
    ///
    /// # Errors
    /// When a peer is lost (this rank's state is as before), when the source does not hold that state, or
    /// digests differ afterwards.
    pub fn level(&mut self, step: Step, applied: Option<Step>, source: Rank) -> Result<Levelled, TrainError> {
        let wrong = |found: i64| TrainError::Source { source_rank: source.get(), step: step.get(), found };
        let mine = match applied {
            Some(applied) => standing(applied, self.digest()?),
            None => NOTHING,
        };
        let Some(group) = self.group.clone() else {
            let level = applied == Some(step);
            return if level { Ok(Levelled { received: false, bytes: 0 }) } else { Err(wrong(mine[0])) };
        };
        let all = group.all_gather(&Tensor::f_from_slice(&mine)?.f_to_device(self.model.device())?)?;
        let all: Vec<Vec<i64>> = Vec::try_from(all.f_to_device(Device::Cpu)?)?;
        let at = usize::try_from(source.get()).unwrap_or(usize::MAX);
        let theirs = all.get(at).cloned().unwrap_or_else(|| NOTHING.to_vec());
        let found = theirs.first().copied().unwrap_or(-1);
        if i64::try_from(step.get()).ok() != Some(found) {
            return Err(wrong(found));
        }
        if all.iter().all(|standing| *standing == theirs) {
            return Ok(Levelled { received: false, bytes: 0 });
        }
        let receives = mine.as_slice() != theirs.as_slice();
        if receives && applied == Some(step) {
            tracing::warn!(%step, "as many steps and another state: taking the source's");
        }
        let bytes = self.pass_on(&group, source, receives)?;
        let ranks = disagreement(&group, self.digest()?, self.model.device())?;
        if !ranks.is_empty() {
            return Err(TrainError::Diverged { step: step.get(), ranks });
        }
        Ok(Levelled { received: receives, bytes })
    }

    fn pass_on(&mut self, group: &Group, source: Rank, receives: bool) -> Result<usize, TrainError> {
        let state = self.state()?;
        let sends = group.membership().rank == source;
        let device = self.model.device();
        let mut arrived = BTreeMap::new();
        let mut bytes = 0;
        for piece in pieces(&state) {
            mcl_failpoint::pass(Failpoint::StateTransfer);
            let kind = piece.first().map_or(Kind::Float, |(_, t)| t.kind());
            let total: i64 = piece.iter().map(|(_, t)| elements(t)).sum();
            let flat = if sends {
                let parts: Vec<Tensor> = piece
                    .iter()
                    .map(|(_, t)| t.f_to_device(device)?.f_reshape([-1]))
                    .collect::<Result<_, _>>()?;
                no_grad(|| Tensor::f_cat(&parts, 0))?
            } else {
                Tensor::f_empty([total], (kind, device))?
            };
            group.broadcast(&flat, source)?;
            bytes += flat.numel() * kind.elt_size_in_bytes();
            if receives {
                let mut at = 0;
                for (name, own) in piece {
                    let count = elements(own);
                    arrived.insert(name.to_owned(), flat.f_narrow(0, at, count)?.f_reshape(own.size())?);
                    at += count;
                }
            }
        }
        group.check()?;
        if receives {
            self.activity.set(Doing::StateTransfer, None);
            self.load(arrived).map_err(|source| TrainError::Torn { source: Box::new(source) })?;
        }
        Ok(bytes)
    }
}

fn elements(tensor: &Tensor) -> i64 {
    i64::try_from(tensor.numel()).unwrap_or(i64::MAX)
}

/// Tensors of one kind that travel together.
type Piece<'a> = Vec<(&'a str, &'a Tensor)>;

/// The state's tensors by kind, in name order, dealt to pieces: the same on all ranks.
fn pieces(state: &BTreeMap<String, Tensor>) -> Vec<Piece<'_>> {
    let mut open: Vec<(Kind, usize, Piece<'_>)> = Vec::new();
    let mut done = Vec::new();
    for (name, tensor) in state {
        let size = tensor.numel() * tensor.kind().elt_size_in_bytes();
        let at = open.iter().position(|(kind, ..)| *kind == tensor.kind()).unwrap_or_else(|| {
            open.push((tensor.kind(), 0, Vec::new()));
            open.len() - 1
        });
        let Some((_, bytes, piece)) = open.get_mut(at) else { continue };
        piece.push((name, tensor));
        *bytes += size;
        if *bytes >= PIECE_BYTES {
            *bytes = 0;
            done.push(std::mem::take(piece));
        }
    }
    done.extend(open.into_iter().map(|(_, _, piece)| piece).filter(|piece| !piece.is_empty()));
    done
}
