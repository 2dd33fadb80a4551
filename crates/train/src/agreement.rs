//! A step's one agreement: flags, and what every lane saw, gathered before anything is updated.
//!
//! Invariant: a rank that has applied a step can tell the losses and the notes of all K lanes of it, even
//! where the ranks that carried them are gone. Left out: what notes mean, which the rank process knows.

use crate::TrainError;
use mcl_collective::Group;
use mcl_types::{LaneLayout, Rank};
use tch::{Device, Kind, Tensor};

/// Numbers before the lanes' own: a bad loss, the wish to halt, an earlier state still being saved.
const FLAGS: usize = 3;

/// What a rank wants after the step in flight; where ranks differ, the later one in this list counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Halt {
    /// Go on.
    #[default]
    No,
    /// Stop at the boundary and keep the state.
    Pause,
    /// Stop at the boundary after a checkpoint.
    Drain,
}

/// One rank's part.
#[derive(Debug)]
pub(crate) struct Word<'a> {
    pub(crate) bad: bool,
    pub(crate) halt: Halt,
    pub(crate) saving: bool,
    /// By lane of this rank, equally many each.
    pub(crate) losses: &'a [Vec<f64>],
    /// By lane of this rank, equally many each on all ranks.
    pub(crate) notes: Vec<&'a [i64]>,
}

/// What all ranks know then.
#[derive(Debug, Default)]
pub(crate) struct Agreed {
    pub(crate) bad: bool,
    pub(crate) halt: Halt,
    pub(crate) saving: bool,
    /// By lane of the job.
    pub(crate) losses: Vec<Vec<f64>>,
    /// By lane of the job.
    pub(crate) notes: Vec<Vec<i64>>,
}

impl Word<'_> {
    fn widths(&self) -> Result<(usize, usize), TrainError> {
        let losses = self.losses.first().map_or(0, Vec::len);
        let notes = self.notes.first().map_or(0, |n| n.len());
        if self.losses.iter().any(|l| l.len() != losses)
            || self.notes.iter().any(|n| n.len() != notes)
            || self.losses.len() != self.notes.len()
        {
            return Err(TrainError::State("lanes of one rank bring different numbers of notes".to_owned()));
        }
        Ok((losses, notes))
    }

    fn encode(&self, lanes: usize, width: usize) -> Vec<i64> {
        let mut numbers = vec![i64::from(self.bad), self.halt.code(), i64::from(self.saving)];
        for (losses, notes) in self.losses.iter().zip(&self.notes) {
            numbers.extend(losses.iter().map(|l| l.to_bits().cast_signed()));
            numbers.extend_from_slice(notes);
        }
        numbers.resize(FLAGS + lanes * width, 0);
        numbers
    }

    /// One gather over `group`.
    pub(crate) fn agree(
        &self,
        group: &Group,
        layout: LaneLayout,
        device: Device,
    ) -> Result<Agreed, TrainError> {
        let (losses, notes) = self.widths()?;
        let most = usize::try_from(layout.most_lanes()).unwrap_or(usize::MAX);
        let own = self.encode(most, losses + notes);
        let all = group.all_gather(&Tensor::f_from_slice(&own)?.f_to_device(device)?)?;
        let all: Vec<Vec<i64>> = Vec::try_from(all.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?)?;
        let mut agreed = Agreed::default();
        for (numbers, rank) in all.iter().zip(0_u32..) {
            agreed.bad |= numbers.first().is_some_and(|n| *n != 0);
            agreed.halt = agreed.halt.max(numbers.get(1).map_or(Halt::No, |n| Halt::of(*n)));
            agreed.saving |= numbers.get(2).is_some_and(|n| *n != 0);
            let lanes = layout.lanes_of(Rank::new(rank)).len();
            let rest = numbers.get(FLAGS..).unwrap_or_default();
            for lane in rest.chunks_exact((losses + notes).max(1)).take(lanes) {
                let (l, n) = lane.split_at(losses.min(lane.len()));
                agreed.losses.push(l.iter().map(|bits| f64::from_bits(bits.cast_unsigned())).collect());
                agreed.notes.push(n.to_vec());
            }
        }
        Ok(agreed)
    }

    /// Where this rank carries all lanes.
    pub(crate) fn alone(&self) -> Agreed {
        Agreed {
            bad: self.bad,
            halt: self.halt,
            saving: self.saving,
            losses: self.losses.to_vec(),
            notes: self.notes.iter().map(|n| n.to_vec()).collect(),
        }
    }
}

impl Halt {
    const fn code(self) -> i64 {
        match self {
            Self::No => 0,
            Self::Pause => 1,
            Self::Drain => 2,
        }
    }

    const fn of(code: i64) -> Self {
        match code {
            0 => Self::No,
            1 => Self::Pause,
            _ => Self::Drain,
        }
    }
}
