//! One operation over many tensors: on a GPU mostly a few kernels instead of one for each tensor. Nothing here waits for the
//! device, and nothing is recorded for a backward pass.

use crate::ffi;
use crate::handles::{EngineError, check, count, raw};
use std::ffi::c_int;
use std::ptr::null_mut;
use tch::Tensor;
use torch_sys::C_tensor;

fn pointers(tensors: &[&Tensor]) -> Result<(Vec<*mut C_tensor>, c_int), EngineError> {
    Ok((tensors.iter().map(|t| raw(t)).collect(), count(tensors.len())?))
}

/// Two lists whose tensors belong together.
fn pairs(
    to: &[&Tensor],
    from: &[&Tensor],
) -> Result<(Vec<*mut C_tensor>, Vec<*mut C_tensor>, c_int), EngineError> {
    if to.len() != from.len() {
        let (found, expected) = (from.len(), to.len());
        return Err(EngineError::Other(format!("{found} tensors for {expected} others: expected as many")));
    }
    let ((to, n), (from, _)) = (pointers(to)?, pointers(from)?);
    Ok((to, from, n))
}

/// `to *= factor`.
///
/// # Errors
/// Whatever libtorch says.
pub fn scale(to: &[&Tensor], factor: f64) -> Result<(), EngineError> {
    let (to, n) = pointers(to)?;
    // SAFETY: `to` holds n live tensors.
    if n == 0 { Ok(()) } else { check(unsafe { ffi::mcl_many_scale(to.as_ptr(), n, factor) }) }
}

/// `to += factor * from`, tensor by tensor.
///
/// # Errors
/// When there are not as many of both, or shapes differ.
pub fn add(to: &[&Tensor], from: &[&Tensor], factor: f64) -> Result<(), EngineError> {
    let (to, from, n) = pairs(to, from)?;
    // SAFETY: both lists hold n live tensors.
    if n == 0 { Ok(()) } else { check(unsafe { ffi::mcl_many_add(to.as_ptr(), from.as_ptr(), n, factor) }) }
}

/// `to += factor * from`, with a factor for each tensor: `factors` is `[n]`, on their device.
///
/// # Errors
/// When there are not as many of all, or shapes differ.
pub fn add_scaled(to: &[&Tensor], from: &[&Tensor], factors: &Tensor) -> Result<(), EngineError> {
    let (to, from, n) = pairs(to, from)?;
    if factors.size() != [i64::from(n)] {
        let found = factors.size();
        return Err(EngineError::Other(format!(
            "factors of shape {found:?} for {n} tensors: expected [{n}]"
        )));
    }
    if n == 0 {
        return Ok(());
    }
    // SAFETY: both lists hold n live tensors, and `factors` is one.
    check(unsafe { ffi::mcl_many_add_scaled(to.as_ptr(), from.as_ptr(), raw(factors), n) })
}

/// `to += weight * (towards - to)`, tensor by tensor.
///
/// # Errors
/// When there are not as many of both, or shapes differ.
pub fn lerp(to: &[&Tensor], towards: &[&Tensor], weight: f64) -> Result<(), EngineError> {
    let (to, towards, n) = pairs(to, towards)?;
    if n == 0 {
        return Ok(());
    }
    // SAFETY: both lists hold n live tensors.
    check(unsafe { ffi::mcl_many_lerp(to.as_ptr(), towards.as_ptr(), n, weight) })
}

/// L2 norm of each: `[n]`, on their device.
///
/// # Errors
/// When there are none, or libtorch fails.
pub fn norms(tensors: &[&Tensor]) -> Result<Tensor, EngineError> {
    let (tensors, n) = pointers(tensors)?;
    if n == 0 {
        return Err(EngineError::Other("the norms of no tensors".to_owned()));
    }
    let mut out = null_mut();
    // SAFETY: `tensors` holds n live tensors; on success `out` is a new tensor that Rust now owns.
    unsafe {
        check(ffi::mcl_many_norms(tensors.as_ptr(), n, &raw mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t).unwrap()
    }

    #[test]
    fn each_does_what_it_says_tensor_by_tensor() {
        let new = || [Tensor::from_slice(&[3.0, 4.0]), Tensor::from_slice(&[1.0])];
        let (to, from) = (new(), new());
        let (a, b): (Vec<&Tensor>, Vec<&Tensor>) = (to.iter().collect(), from.iter().collect());
        scale(&a, 2.0).unwrap();
        assert_eq!((values(a[0]), values(a[1])), (vec![6.0, 8.0], vec![2.0]));
        add(&a, &b, -1.0).unwrap();
        assert_eq!((values(a[0]), values(a[1])), (vec![3.0, 4.0], vec![1.0]));
        add_scaled(&a, &b, &Tensor::from_slice(&[1.0, 10.0])).unwrap();
        assert_eq!((values(a[0]), values(a[1])), (vec![6.0, 8.0], vec![11.0]));
        lerp(&a, &b, 0.5).unwrap();
        assert_eq!((values(a[0]), values(a[1])), (vec![4.5, 6.0], vec![6.0]));
        assert_eq!(values(&norms(&a).unwrap()), [7.5, 6.0]);
        for nothing in [scale(&[], 1.0), add(&[], &[], 1.0), lerp(&[], &[], 1.0)] {
            nothing.unwrap();
        }
    }

    #[test]
    fn lists_that_do_not_belong_together_are_refused() {
        let (two, one) =
            ([Tensor::from_slice(&[1.0]), Tensor::from_slice(&[1.0])], Tensor::from_slice(&[1.0]));
        let two: Vec<&Tensor> = two.iter().collect();
        for refused in [add(&two, &[&one], 1.0), lerp(&[&one], &two, 1.0), add_scaled(&two, &two, &one)] {
            assert!(refused.unwrap_err().to_string().contains("expected"));
        }
        assert!(norms(&[]).is_err());
        assert!(add(&[&one], &[&Tensor::from_slice(&[1.0, 2.0])], 1.0).is_err(), "another shape");
    }
}
