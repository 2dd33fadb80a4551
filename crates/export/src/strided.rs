//! A tensor as a view of bytes: checked, then copied into one piece.
//!
//! Invariants: nothing is read outside the bytes; no more is allocated than the view's storage holds, since a view
//! that repeats elements is refused. Left out: negative strides, which torch does not have.

use crate::element::size_of;
use crate::values::Bytes;
use mcl_checkpoint_core::{Dtype, OwnedTensor};

/// A tensor that lies somewhere in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strided<'a> {
    /// Type of its elements.
    pub(crate) dtype: Dtype,
    /// Sizes.
    pub(crate) shape: Vec<u64>,
    /// Elements between neighbours along each axis.
    pub(crate) stride: Vec<u64>,
    /// First element.
    pub(crate) offset: u64,
    /// Its storage.
    pub(crate) bytes: Bytes<'a>,
}

impl<'a> Strided<'a> {
    /// A tensor whose bytes are in order, the last axis densest, or the first.
    pub(crate) fn dense(dtype: Dtype, shape: Vec<u64>, fortran: bool, bytes: Bytes<'a>) -> Self {
        let mut stride = vec![1; shape.len()];
        let mut step = 1_u64;
        let mut set = |axis: usize| {
            stride[axis] = step;
            step = step.saturating_mul(shape[axis].max(1));
        };
        match fortran {
            true => (0..shape.len()).for_each(&mut set),
            false => (0..shape.len()).rev().for_each(&mut set),
        }
        Self { dtype, shape, stride, offset: 0, bytes }
    }

    /// How many bytes it takes in one piece.
    ///
    /// # Errors
    /// When it reaches beyond its storage or repeats elements of it.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let size =
            size_of(self.dtype).ok_or_else(|| format!("type {} is of less than a byte", self.dtype))?;
        let stored = (self.bytes.len() / size) as u64;
        let wrong = || {
            format!(
                "sizes {:?} with strides {:?} from element {} on, in a storage of {stored} elements; the file is damaged",
                self.shape, self.stride, self.offset
            )
        };
        // Sizes beside a zero are held to what memory can address too: whoever multiplies them may do so in any order.
        let sizes = self.shape.iter().try_fold(1_u64, |n, d| n.checked_mul((*d).max(1)));
        sizes.and_then(|n| usize::try_from(n).ok()).and_then(|n| n.checked_mul(size)).ok_or_else(wrong)?;
        let count = self.shape.iter().product::<u64>();
        if count > stored && self.repeats() {
            return Err(format!(
                "it is expanded: sizes {:?} over a storage of {stored} elements; in Python, save its .contiguous()",
                self.shape
            ));
        }
        let count = Some(count).filter(|n| *n <= stored).ok_or_else(wrong)?;
        if count > 0 {
            let last =
                self.shape.iter().zip(&self.stride).try_fold(self.offset, |at, (size, stride)| {
                    at.checked_add((size - 1).checked_mul(*stride)?)
                });
            last.filter(|at| *at < stored).ok_or_else(wrong)?;
        }
        usize::try_from(count).ok().and_then(|n| n.checked_mul(size)).ok_or_else(wrong)
    }

    /// Whether elements come up more than once because neighbours along an axis are the same one.
    fn repeats(&self) -> bool {
        self.shape.iter().zip(&self.stride).any(|(size, stride)| *size > 1 && *stride == 0)
    }

    /// The tensor in one piece, the last axis densest.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn copied(&self) -> Result<OwnedTensor, String> {
        let length = self.check()?;
        let size = size_of(self.dtype).unwrap_or(1);
        let sizes = |sizes: &[u64]| sizes.iter().map(|s| *s as usize).collect::<Vec<usize>>();
        let (shape, stride) = (sizes(&self.shape), sizes(&self.stride));
        if length == 0 {
            return Ok(OwnedTensor { dtype: self.dtype, shape, bytes: Vec::new() });
        }
        let mut bytes = Vec::with_capacity(length);
        let mut at = vec![0_usize; shape.len()];
        // The innermost axes that lie dense are copied as one run.
        let (outer, run) = dense_run(&shape, &stride);
        let start = self.offset as usize;
        while bytes.len() < length {
            let element = start + at.iter().zip(&stride).map(|(i, s)| i * s).sum::<usize>();
            let piece = self.bytes.get(element * size..(element + run) * size);
            bytes.extend_from_slice(piece.ok_or("it reaches beyond its storage")?);
            for axis in (0..outer).rev() {
                at[axis] += 1;
                if at[axis] < shape[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Ok(OwnedTensor { dtype: self.dtype, shape, bytes })
    }
}

/// How many outer axes are left when the dense inner ones are taken as one, and how many elements those are.
fn dense_run(shape: &[usize], stride: &[usize]) -> (usize, usize) {
    let (mut outer, mut run) = (shape.len(), 1);
    for axis in (0..shape.len()).rev() {
        if stride[axis] != run && shape[axis] != 1 {
            break;
        }
        run *= shape[axis];
        outer = axis;
    }
    (outer, run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view<'a>(shape: &[u64], stride: &[u64], offset: u64, bytes: &'a [u8]) -> Strided<'a> {
        Strided {
            dtype: Dtype::U8,
            shape: shape.to_vec(),
            stride: stride.to_vec(),
            offset,
            bytes: bytes.into(),
        }
    }

    #[test]
    fn views_are_copied_in_order() {
        let bytes: Vec<u8> = (0..12).collect();
        let copied = |shape: &[u64], stride: &[u64], offset| {
            view(shape, stride, offset, &bytes).copied().unwrap().bytes
        };
        assert_eq!(copied(&[3, 4], &[4, 1], 0), bytes);
        assert_eq!(copied(&[4, 3], &[1, 4], 0), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(copied(&[2, 2], &[4, 1], 5), [5, 6, 9, 10]);
        assert_eq!(copied(&[2, 1, 2], &[6, 99, 2], 1), [1, 3, 7, 9]);
        assert_eq!(copied(&[], &[], 7), [7]);
        assert_eq!(copied(&[3, 0], &[1, 1], 0), [0; 0]);
        assert_eq!(
            Strided::dense(Dtype::U8, vec![2, 3], true, bytes.as_slice().into()).copied().unwrap().bytes,
            [0, 2, 4, 1, 3, 5]
        );
    }

    #[test]
    fn elements_of_several_bytes_move_as_one() {
        let bytes: Vec<u8> = (0..16).collect();
        let (shape, stride, offset) = (vec![2, 2], vec![1, 2], 0);
        let view = Strided { dtype: Dtype::F32, shape, stride, offset, bytes: bytes.as_slice().into() };
        assert_eq!(view.copied().unwrap().bytes, [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]);
    }

    #[test]
    fn what_reaches_beyond_or_repeats_is_refused() {
        let bytes = [0; 12];
        for (shape, stride, offset) in [
            (&[13_u64][..], &[1_u64][..], 0_u64),
            (&[3, 4], &[4, 1], 1),
            (&[1 << 40], &[0], 0),
            (&[1 << 32, 1 << 32], &[0, 0], 0),
            (&[0, 1 << 40, 1 << 40], &[1, 1, 1], 0),
            (&[1 << 40, 1 << 40, 0], &[1, 1, 1], 0),
            (&[2], &[u64::MAX], 5),
            (&[1], &[1], u64::MAX),
        ] {
            let error = view(shape, stride, offset, &bytes).copied().unwrap_err();
            assert!(error.contains("storage of 12"), "{error}");
        }
    }

    /// Nothing is damaged about `tensor.expand(...)`, so the message says what to do instead.
    #[test]
    fn an_expanded_tensor_is_called_so() {
        let error = view(&[1 << 20, 2], &[0, 1], 0, &[0; 12]).copied().unwrap_err();
        assert!(error.contains("expanded") && error.contains(".contiguous()"), "{error}");
        assert!(!error.contains("damaged"), "{error}");
    }

    proptest! {
        /// Sizes of any magnitude, zeros among them: an answer or an error, never a panic.
        #[test]
        fn huge_sizes_beside_a_zero_never_panic(
            shape in proptest::collection::vec(
                prop_oneof![Just(0_u64), Just(1), Just(1 << 40), Just(u64::MAX), 0_u64..9], 0..6),
            fortran in any::<bool>(),
        ) {
            let tensor = Strided::dense(Dtype::F32, shape.clone(), fortran, Bytes::File(&[]));
            if let Ok(copied) = tensor.copied() {
                prop_assert!(shape.contains(&0) && copied.bytes.is_empty());
            }
        }

        /// Against the definition, one element at a time.
        #[test]
        fn copies_are_those_of_the_definition(
            axes in proptest::collection::vec((0_u64..5, 0_u64..9), 0..4), offset in 0_u64..9,
        ) {
            let bytes: Vec<u8> = (0..60).collect();
            let (shape, stride): (Vec<u64>, Vec<u64>) = axes.iter().copied().unzip();
            let view = view(&shape, &stride, offset, &bytes);
            if let Ok(copied) = view.copied() {
                let count: u64 = shape.iter().product();
                let element = |n: u64| {
                    let (mut rest, mut at) = (n, offset);
                    for (size, stride) in axes.iter().rev() {
                        at += rest % size * stride;
                        rest /= size;
                    }
                    bytes[at as usize]
                };
                prop_assert_eq!(copied.bytes, (0..count).map(element).collect::<Vec<u8>>());
            }
        }
    }
}
