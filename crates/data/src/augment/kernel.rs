//! One macro that compiles a plain loop for the widest vector set of the processor it runs on.
//!
//! The loops are safe Rust that the compiler vectorises; `pulp` holds the run-time choice and its
//! unsafe code. Results are the same on every instruction set: nothing here is fused or reordered.

/// Defines a function whose body is compiled for AVX2 too and chosen at run time.
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
            pulp::Arch::new().dispatch(Op { $($arg),* })
        }
    };
}
pub(crate) use kernel;

/// Truncates a float already in 0..256 to a byte. The sum with 2^23 puts the integer into the low
/// bits of the mantissa, which vectorises where a saturating cast does not.
#[inline(always)]
pub(crate) fn byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is the integer")]
    {
        (value.floor() + 8_388_608.0).to_bits() as u8
    }
}
