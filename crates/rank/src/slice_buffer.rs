//! This rank's slice of the state, copied into host memory that is there already.
//!
//! A snapshot is on the way of a training step, so that all it does is copying: which tensors are this rank's and
//! where they lie in the file is worked out once a layout, and the file's memory is kept from snapshot to snapshot
//! (fresh memory costs a page fault every 4 KiB, several times the copy). Invariant: one file's memory at most,
//! while no upload holds another. Left out: sending it.

use crate::weights;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use mcl_checkpoint_core::{SlicePlan, TensorInfo, assign};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tch::Tensor;

/// Bytes between two writes that make memory real.
const PAGE: usize = 4096;
/// Threads that copy, at most.
const MAX_COPIERS: usize = 4;
/// Bytes that are worth a thread.
const MIN_PART: usize = 4 << 20;

/// Which part of the state is whose, as long as neither the state's names nor the number of slices change.
#[derive(Debug)]
struct Deal {
    slice: u32,
    slices: u32,
    names: Vec<String>,
    own: Vec<TensorInfo>,
    plan: SlicePlan,
}

impl Deal {
    fn new(state: &BTreeMap<String, Tensor>, slice: u32, slices: u32) -> Result<Self> {
        let infos: Vec<TensorInfo> = state.iter().map(|(name, t)| info(name, t)).collect::<Result<_>>()?;
        let deal = assign(&infos, slices);
        let own = deal.get(usize::try_from(slice)?).context("this rank has no slice")?;
        let own: Vec<TensorInfo> = own.iter().filter_map(|&index| infos.get(index).cloned()).collect();
        let plan = SlicePlan::new(&own)?;
        let names = infos.into_iter().map(|i| i.name).collect();
        Ok(Self { slice, slices, names, own, plan })
    }

    fn fits(&self, state: &BTreeMap<String, Tensor>, slice: u32, slices: u32) -> bool {
        (self.slice, self.slices) == (slice, slices) && state.keys().eq(&self.names)
    }
}

fn info(name: &str, tensor: &Tensor) -> Result<TensorInfo> {
    let bytes = u64::try_from(tensor.numel() * tensor.kind().elt_size_in_bytes())?;
    let dtype = weights::dtype(tensor.kind())?;
    Ok(TensorInfo { name: name.to_owned(), dtype, shape: weights::shape(tensor), bytes })
}

/// Memory that is waiting to be filled.
type Spare = Arc<Mutex<Option<Vec<u8>>>>;

/// Copies slices; hands them out as bytes whose memory comes back when the last of them is dropped.
#[derive(Debug, Default)]
pub(crate) struct SliceBuffer {
    deal: Option<Deal>,
    spare: Spare,
}

/// Memory on loan.
struct Loan {
    bytes: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::mem::take(&mut self.bytes));
    }
}

impl SliceBuffer {
    /// Works out the deal, and gives the work of making the memory real, which may be done elsewhere; nothing
    /// where it is there already.
    pub(crate) fn prepare(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        slice: u32,
        slices: u32,
    ) -> Result<Option<impl FnOnce() + Send + use<>>> {
        let len = self.deal(state, slice, slices)?.plan.len();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.as_ref().is_some_and(|bytes| bytes.len() == len) {
            return Ok(None);
        }
        // Not two of them, even for a moment.
        *spare = None;
        let home = Arc::clone(&self.spare);
        Ok(Some(move || {
            let bytes = real_memory(len);
            home.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(bytes);
        }))
    }

    /// A slice's file.
    pub(crate) fn copy(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        slice: u32,
        slices: u32,
    ) -> Result<Bytes> {
        let spare = Arc::clone(&self.spare);
        let deal = self.deal(state, slice, slices)?;
        let len = deal.plan.len();
        let kept = spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut bytes = kept.filter(|bytes| bytes.len() == len).unwrap_or_else(|| vec![0; len]);
        let place = |(index, place): (usize, _)| {
            let info = deal.own.get(index).context("the plan names a tensor that is not there")?;
            let tensor = state.get(&info.name).context("the state changed under the deal")?;
            Ok(Copying { name: &info.name, tensor: tensor.shallow_clone(), place })
        };
        let work: Vec<Copying<'_>> =
            deal.plan.lay_out(&mut bytes)?.into_iter().map(place).collect::<Result<_>>()?;
        copy_all(work, copiers(len))?;
        Ok(Bytes::from_owner(Loan { bytes, spare }))
    }

    fn deal(&mut self, state: &BTreeMap<String, Tensor>, slice: u32, slices: u32) -> Result<&Deal> {
        let deal = match self.deal.take() {
            Some(deal) if deal.fits(state, slice, slices) => deal,
            _ => Deal::new(state, slice, slices)?,
        };
        Ok(self.deal.insert(deal))
    }
}

/// A tensor and its place in the file.
struct Copying<'a> {
    name: &'a str,
    tensor: Tensor,
    place: &'a mut [u8],
}

impl Copying<'_> {
    fn run(self) -> Result<()> {
        let (count, kind) = (self.tensor.numel(), self.tensor.kind());
        anyhow::ensure!(
            count * kind.elt_size_in_bytes() == self.place.len(),
            "`{}` has {count} elements of {kind:?}, expected {} bytes",
            self.name,
            self.place.len()
        );
        // Row-major, whatever the strides, and over from the device.
        Ok(self.tensor.f_copy_data_u8(self.place, count)?)
    }
}

/// Threads that copy: the training thread waits for them, and one alone does not use up the memory's bandwidth.
fn copiers(len: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.min(MAX_COPIERS).min(len / MIN_PART).max(1)
}

/// Copies on so many threads, this one among them. Each takes the next tensor when it is done with one: a thread that
/// the system does not run leaves its share to the others.
fn copy_all(work: Vec<Copying<'_>>, threads: usize) -> Result<()> {
    let queue = Mutex::new(work.into_iter());
    let run = || -> Result<()> {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(next) = next else { return Ok(()) };
            next.run()?;
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let own = run();
        others.into_iter().try_fold((), |(), other| {
            other.join().unwrap_or_else(|_| bail!("a thread that copied panicked"))
        })?;
        own
    })
}

fn real_memory(len: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; len];
    for page in bytes.chunks_mut(PAGE) {
        if let Some(first) = page.first_mut() {
            // Zeroes that nobody wrote are not memory yet; the compiler must not know better.
            *std::hint::black_box(first) = 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_checkpoint_core::{SliceView, write_slice};
    use tch::{Device, Kind};

    fn state(seed: i64) -> BTreeMap<String, Tensor> {
        let t = |n: i64, kind| (Tensor::arange(n, (kind, Device::Cpu)) + seed).set_requires_grad(false);
        BTreeMap::from([
            ("a".to_owned(), t(12, Kind::Float).view([3, 4])),
            ("b".to_owned(), t(12, Kind::Double).view([3, 4]).transpose(0, 1)),
            ("c".to_owned(), t(1, Kind::Int64).view([])),
            ("d".to_owned(), t(7, Kind::Float)),
        ])
    }

    fn by_hand(state: &BTreeMap<String, Tensor>) -> Vec<u8> {
        let bytes: Vec<_> = state.values().map(|t| mcl_train::bytes_of(t).unwrap()).collect();
        let tensors: Vec<_> = state
            .iter()
            .zip(&bytes)
            .map(|((n, t), b)| {
                (n.clone(), weights::dtype(t.kind()).unwrap(), weights::shape(t), b.as_slice())
            })
            .collect();
        write_slice(&tensors).unwrap()
    }

    #[test]
    fn a_slice_is_what_it_would_be_by_hand_also_out_of_used_memory() {
        let mut buffer = SliceBuffer::default();
        for seed in 0..3 {
            assert_eq!(buffer.copy(&state(seed), 0, 1).unwrap(), by_hand(&state(seed)));
        }
        let mut names = Vec::new();
        for slice in 0..2 {
            let bytes = buffer.copy(&state(5), slice, 2).unwrap();
            names.extend(SliceView::parse(&bytes).unwrap().tensors().map(|(n, _)| n.to_owned()));
        }
        names.sort();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }

    #[test]
    fn several_threads_copy_the_same_and_say_what_is_wrong() {
        let t = |n: i64| Tensor::arange(n, (Kind::Float, Device::Cpu));
        let state: BTreeMap<_, _> =
            (0..9).map(|i| (format!("t{i}"), t([3_000_000, 1, 700_000][i % 3]) + i as f64)).collect();
        let len = by_hand(&state).len();
        assert!(len > 2 * MIN_PART);
        let deal = Deal::new(&state, 0, 1).unwrap();
        let copied = |threads: usize, wrong: Option<&Tensor>| {
            let mut bytes = vec![0; len];
            let work = deal.plan.lay_out(&mut bytes).unwrap().into_iter().map(|(index, place)| {
                let name = deal.own[index].name.as_str();
                let tensor = wrong.filter(|_| name == "t3").unwrap_or(&state[name]).shallow_clone();
                Copying { name, tensor, place }
            });
            copy_all(work.collect(), threads).map(|()| bytes)
        };
        for threads in [1, 2, 3, 100] {
            assert_eq!(copied(threads, None).unwrap(), by_hand(&state), "{threads} threads");
            let error = copied(threads, Some(&t(5))).unwrap_err().to_string();
            assert!(error.contains("`t3` has 5 elements"), "{error}");
        }
    }

    #[test]
    fn memory_comes_back_once_nobody_reads_it_and_is_used_again() {
        let mut buffer = SliceBuffer::default();
        buffer.prepare(&state(0), 0, 1).unwrap().expect("none is there yet")();
        assert!(buffer.prepare(&state(0), 0, 1).unwrap().is_none());
        let first = buffer.copy(&state(0), 0, 1).unwrap();
        let place = first.as_ptr();
        let reader = first.slice(8..);
        drop(first);
        // Somebody still reads: other memory.
        assert_ne!(buffer.copy(&state(1), 0, 1).unwrap().as_ptr(), place);
        assert_eq!(reader, by_hand(&state(0))[8..]);
        drop(reader);
        assert_eq!(buffer.copy(&state(2), 0, 1).unwrap().as_ptr(), place);
    }

    #[test]
    fn a_state_of_other_names_is_dealt_anew() {
        let mut buffer = SliceBuffer::default();
        buffer.copy(&state(0), 0, 1).unwrap();
        let mut more = state(0);
        more.insert("e".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
        assert_eq!(buffer.copy(&more, 0, 1).unwrap(), by_hand(&more));
        let mut other = state(0);
        other.insert("a".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
        buffer.copy(&state(0), 0, 1).unwrap();
        let error = buffer.copy(&other, 0, 1).unwrap_err().to_string();
        assert!(error.contains("`a` has 2 elements"), "{error}");
    }
}
