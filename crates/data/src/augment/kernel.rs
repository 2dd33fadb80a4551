//! One macro that compiles a plain loop for the widest vector set of the processor it runs on.
//!
//! The loops are safe Rust that the compiler vectorises; `pulp` holds the run-time choice and its
//! unsafe code. Results are the same on every instruction set: nothing here is fused or reordered.

/// Defines a function whose body is compiled for AVX2 and AVX-512 too and chosen at run time.
macro_rules! kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$a:lifetime>($($arg:ident : $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$doc])*
        $vis fn $name<$a>($($arg: $ty),*) -> $ret {
            struct Op<$a> { $($arg: $ty),* }
            impl<$a> pulp::NullaryFnOnce for Op<$a> {
                type Output = $ret;
                #[inline(always)]
                fn call(self) -> $ret {
                    let Self { $($arg),* } = self;
                    $body
                }
            }
            $crate::augment::kernel::dispatch(Op { $($arg),* })
        }
    };
}
pub(crate) use kernel;

/// Runs `op` as compiled for the widest set that this processor has.
#[inline(always)]
pub(crate) fn dispatch<O: pulp::NullaryFnOnce>(op: O) -> O::Output {
    #[cfg(test)]
    match tests::FORCED.get() {
        tests::Set::Widest => {}
        tests::Set::Portable => return op.call(),
        #[cfg(target_arch = "x86_64")]
        tests::Set::Avx2 => {
            if let Some(avx2) = pulp::x86::V3::try_new() {
                return pulp::Simd::vectorize(avx2, op);
            }
        }
    }
    pulp::Arch::new().dispatch(op)
}

/// Truncates a float already in 0..256 to a byte. The sum with 2^23 puts the integer into the low
/// bits of the mantissa, which vectorises where a saturating cast does not.
#[inline(always)]
pub(crate) fn byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is the integer")]
    {
        (value.floor() + 8_388_608.0).to_bits() as u8
    }
}

#[cfg(test)]
mod tests {
    use crate::augment::{AugmentSpec, Augmenter, Scratch, ViewMode, Views};
    use crate::generate::{GenerateSpec, draw};
    use mcl_types::{Epoch, SampleIndex, Seed};
    use std::cell::Cell;

    /// Which compilation of a kernel runs on this thread.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub(super) enum Set {
        Widest,
        Portable,
        #[cfg(target_arch = "x86_64")]
        Avx2,
    }

    thread_local! {
        pub(super) static FORCED: Cell<Set> = const { Cell::new(Set::Widest) };
    }

    #[test]
    fn every_instruction_set_makes_the_same_views() {
        let plan = GenerateSpec { size: (150, 101), ..GenerateSpec::scenes(1, Seed::new(3)) };
        let picture = draw(&plan, 0).unwrap().picture;
        // All stages often, odd sizes for the loops' ends.
        let spec = AugmentSpec {
            solarize_p_k: 0.5,
            grey_p: 0.3,
            invert_p: 0.3,
            channel_permutation_p: 0.3,
            blur_p_k: 0.7,
            blur_sigma: (0.1, 4.0),
            ..AugmentSpec::default()
        };
        for mode in [ViewMode::Exact, ViewMode::Level] {
            let augmenter = Augmenter::new(spec, 72, &[1, 2, 4, 8], mode, Seed::new(5)).unwrap();
            let views = |set: Set, sample: u64| {
                FORCED.set(set);
                let (mut out, mut scratch) = (Views::default(), Scratch::default());
                let made = augmenter.views(
                    &picture,
                    Epoch::new(0),
                    SampleIndex::new(sample),
                    &mut out,
                    &mut scratch,
                );
                FORCED.set(Set::Widest);
                made.map(|()| out).unwrap()
            };
            for sample in 0..40 {
                let portable = views(Set::Portable, sample);
                assert!(portable == views(Set::Widest, sample), "{mode:?}, sample {sample}");
                #[cfg(target_arch = "x86_64")]
                assert!(portable == views(Set::Avx2, sample), "AVX2, {mode:?}, sample {sample}");
            }
        }
    }
}
