//! Batch norm of bf16 rows beside the same rows in f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_collective::{autocast, batch_norm};
use tch::{Device, Kind, Tensor};

/// Output and the gradients of x, weight and bias, from the same bits in the given kind.
fn normalised(x: &Tensor, dy: &Tensor, kind: Kind, rest: Kind) -> [Tensor; 4] {
    let channels = x.size()[1];
    let leaf = |t: Tensor| t.set_requires_grad(true);
    let x = leaf(x.to_kind(kind).detach().copy());
    let weight = leaf(Tensor::arange(channels, (rest, Device::Cpu)) + 0.5);
    let bias = leaf(Tensor::ones([channels], (rest, Device::Cpu)));
    let mut batches = [x.shallow_clone()];
    let _ = batch_norm(None, &mut batches, Some(&weight), Some(&bias), 1e-5).unwrap();
    let [y] = batches;
    assert_eq!(y.kind(), kind);
    (&y * dy.to_kind(kind)).sum(Kind::Double).backward();
    [y, x.grad(), weight.grad(), bias.grad()].map(|t| t.detach().to_kind(Kind::Double))
}

#[test]
fn of_half_precision_only_inputs_and_outputs_are_half() {
    tch::manual_seed(3);
    let half = |t: Tensor| t.to_kind(Kind::BFloat16);
    for (shape, mean) in [(&[40, 6][..], 0.0), (&[8, 6, 5, 5], 0.0), (&[8, 6, 5, 5], 12.0)] {
        let x = half(Tensor::randn(shape, (Kind::Double, Device::Cpu)) + mean);
        let dy = half(Tensor::randn(shape, (Kind::Double, Device::Cpu)));
        let found = normalised(&x, &dy, Kind::BFloat16, Kind::Float);
        let expected = normalised(&x, &dy, Kind::Double, Kind::Double);
        for ((found, expected), name) in found.iter().zip(&expected).zip(["y", "dx", "dw", "db"]) {
            let error = (found - expected).abs().max() / expected.abs().max();
            let error = error.double_value(&[]);
            println!("{shape:?} around {mean}: {name} off by {error:.1e}");
            // An output is rounded once, to 8 bits; sums are not.
            assert!(error < if name == "y" || name == "dx" { 4e-3 } else { 1e-3 }, "{name}: {error}");
        }
    }
}

#[test]
fn autocast_ends_with_its_guards_and_sees_new_weights() {
    let (x, w) =
        (Tensor::ones([2, 2], (Kind::Float, Device::Cpu)), Tensor::ones([2, 2], (Kind::Float, Device::Cpu)));
    let product = || x.matmul(&w);
    assert_eq!(product().kind(), Kind::Float);
    {
        let _outer = autocast(Device::Cpu).unwrap();
        drop(autocast(Device::Cpu).unwrap());
        assert_eq!(product().kind(), Kind::BFloat16);
    }
    assert_eq!(product().kind(), Kind::Float);
    let w = w.set_requires_grad(true);
    for expected in [2.0, 4.0] {
        let guard = autocast(Device::Cpu).unwrap();
        assert_eq!(x.matmul(&w).double_value(&[0, 0]), expected);
        drop(guard);
        let _ = tch::no_grad(|| w.shallow_clone().fill_(2.0));
    }
}
