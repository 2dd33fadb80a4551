//! Collectives between real processes: what they compute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod processes;

use mcl_collective::{ReduceOp, Reducer, backward, batch_norm, ready_order, waited};
use mcl_types::Rank;
use processes::{F64, TIMEOUT, finish, form, meet, ranks, values};
use std::time::Duration;
use tch::{Kind, Tensor};

fn largest(t: &Tensor) -> f64 {
    t.abs().max().double_value(&[])
}

#[test]
fn sums_maxima_gathers_and_broadcasts() {
    ranks("sums_maxima_gathers_and_broadcasts", 3, |store, rank, children| {
        let group = form(store, rank, 3, 1, TIMEOUT);
        let mine = Tensor::from_slice(&[f64::from(rank), 1.0]);
        let sum = mine.copy();
        group.all_reduce(&sum, ReduceOp::Sum).unwrap();
        assert_eq!(values(&sum), [3.0, 3.0]);
        let max = mine.copy();
        group.all_reduce(&max, ReduceOp::Max).unwrap();
        assert_eq!(values(&max), [2.0, 1.0]);
        assert_eq!(values(&group.all_gather(&mine).unwrap()), [0.0, 1.0, 1.0, 1.0, 2.0, 1.0]);
        let from_one = mine.copy();
        group.broadcast(&from_one, Rank::new(1)).unwrap();
        assert_eq!(values(&from_one), [1.0, 1.0]);
        finish(children);
    });
}

/// Leaves of a graph: both sides' rows, scale and shift.
struct Leaves {
    sides: [Tensor; 2],
    weight: Tensor,
    bias: Tensor,
}

impl Leaves {
    fn new(sides: &[Tensor; 2], weight: &Tensor, bias: &Tensor) -> Self {
        let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
        Self { sides: sides.each_ref().map(leaf), weight: leaf(weight), bias: leaf(bias) }
    }

    fn affine(&self, on: bool) -> [Option<&Tensor>; 2] {
        if on { [Some(&self.weight), Some(&self.bias)] } else { [None, None] }
    }

    /// Both sides normalised by the engine, each with [mean, unbiased variance].
    fn plainly(&self, affine: bool) -> [(Tensor, Tensor); 2] {
        let [w, b] = self.affine(affine);
        self.sides.each_ref().map(|x| {
            let own = Tensor::zeros([2, x.size()[1]], F64);
            let (mean, var) = (own.select(0, 0), own.select(0, 1));
            (Tensor::batch_norm(x, w, b, Some(&mean), Some(&var), true, 1.0, 1e-5, false), own)
        })
    }
}

/// Rows of both sides under weights, so that every output's gradient is another.
fn weighted(sides: &[Tensor; 2], by: &[Tensor; 2]) -> Tensor {
    sides.iter().zip(by).map(|(y, w)| (y * w).sum(Kind::Double)).sum()
}

#[test]
fn synchronised_norm_equals_norm_of_the_whole_batch_with_uneven_rows() {
    ranks("synchronised_norm_equals_norm_of_the_whole_batch_with_uneven_rows", 2, |store, rank, children| {
        let group = form(store, rank, 2, 1, TIMEOUT);
        for (shape, affine) in [(vec![8_i64, 3, 5, 4], true), (vec![8, 3], true), (vec![8, 3], false)] {
            tch::manual_seed(5);
            // A mean far from zero: E[x^2] - mean^2 would lose eight digits here.
            let all = [1e4, -3.0].map(|mean| Tensor::randn(&shape, F64) + mean);
            let weights = [0, 1].map(|_| Tensor::randn(&shape, F64));
            let (w, b) = (Tensor::randn([3], F64), Tensor::randn([3], F64));
            let (first, n) = if rank == 0 { (0, 3) } else { (3, 5) };
            let share = |all: &[Tensor; 2]| all.each_ref().map(|t| t.narrow(0, first, n));
            let mine = Leaves::new(&share(&all), &w, &b);
            let [w1, b1] = mine.affine(affine);
            let mut y = mine.sides.each_ref().map(Tensor::shallow_clone);
            let statistics = batch_norm(Some(&group), &mut y, w1, b1, 1e-5).unwrap();
            backward(&weighted(&y, &share(&weights)), group.membership()).unwrap();
            let whole = Leaves::new(&all, &w, &b);
            let expected = whole.plainly(affine);
            weighted(&expected.each_ref().map(|(y, _)| y.shallow_clone()), &weights).backward();
            let close = |what: &str, a: &Tensor, b: &Tensor| {
                let error = largest(&(a - b)) / largest(b).max(1e-6);
                assert!(error < 1e-9, "{what} of {shape:?}: {error:e}");
            };
            for (side, (whole_y, own)) in (0_i64..).zip(&expected) {
                let at = usize::try_from(side).unwrap();
                close("y", &y[at], &whole_y.narrow(0, first, n));
                close("dx", &mine.sides[at].grad(), &whole.sides[at].grad().narrow(0, first, n));
                let [found, own] = [statistics.select(0, side), own.shallow_clone()];
                close("mean", &found.select(0, 0), &own.select(0, 0));
                close("variance", &found.select(0, 1), &own.select(0, 1));
            }
            if affine {
                for (mine, whole) in [(&mine.weight, &whole.weight), (&mine.bias, &whole.bias)] {
                    let total = mine.grad().copy();
                    group.all_reduce(&total, ReduceOp::Sum).unwrap();
                    close("parameter gradient", &total, &whole.grad());
                }
            }
        }
        finish(children);
    });
}

#[test]
fn synchronised_norm_of_half_precision_is_that_of_the_whole_batch() {
    ranks("synchronised_norm_of_half_precision_is_that_of_the_whole_batch", 2, |store, rank, children| {
        let group = form(store, rank, 2, 1, TIMEOUT);
        tch::manual_seed(6);
        let shape = [8_i64, 3, 5, 4];
        let half = |t: Tensor| t.to_kind(Kind::BFloat16);
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        let all = [12.0, 0.5].map(|mean| half(Tensor::randn(shape, F64) + mean));
        let weights = [0, 1].map(|_| half(Tensor::randn(shape, F64)));
        let scale = Tensor::arange(3, F64) + 0.5;
        let zero = Tensor::zeros([3], F64);
        let (first, n) = if rank == 0 { (0, 3) } else { (3, 5) };
        let share = |all: &[Tensor; 2]| all.each_ref().map(|t| t.narrow(0, first, n));
        let mine = Leaves::new(&share(&all), &scale.to_kind(Kind::Float), &zero);
        let mut y = mine.sides.each_ref().map(Tensor::shallow_clone);
        let statistics = batch_norm(Some(&group), &mut y, Some(&mine.weight), None, 1e-5).unwrap();
        assert_eq!((y[0].kind(), statistics.kind()), (Kind::BFloat16, Kind::Float));
        backward(&weighted(&y, &share(&weights)), group.membership()).unwrap();
        let whole = Leaves::new(&all.each_ref().map(wide), &scale, &zero);
        let expected = whole.plainly(true);
        let wide_weights = weights.each_ref().map(wide);
        weighted(&expected.each_ref().map(|(y, _)| y.shallow_clone()), &wide_weights).backward();
        let total = mine.weight.grad().copy();
        group.all_reduce(&total, ReduceOp::Sum).unwrap();
        let mut checks = vec![("dw", total, whole.weight.grad(), 1e-3)];
        for (side, (whole_y, own)) in expected.into_iter().enumerate() {
            let found = statistics.select(0, i64::try_from(side).unwrap());
            let dx = whole.sides[side].grad().narrow(0, first, n);
            checks.push(("y", y[side].shallow_clone(), whole_y.narrow(0, first, n), 4e-3));
            checks.push(("dx", mine.sides[side].grad(), dx, 4e-3));
            checks.push(("mean", found.select(0, 0), own.select(0, 0), 1e-5));
            checks.push(("variance", found.select(0, 1), own.select(0, 1), 1e-4));
        }
        for (what, found, expected, bound) in checks {
            let error = largest(&(wide(&found) - &expected)) / largest(&expected);
            assert!(error < bound, "{what}: {error:e}");
        }
        finish(children);
    });
}

fn net(params: &[Tensor], x: &Tensor) -> Tensor {
    let hidden = x.linear(&params[0], Some(&params[1])).relu();
    hidden.linear(&params[2], Some(&params[3])).square().mean(Kind::Double)
}

#[test]
fn reducer_averages_like_a_plain_all_reduce_and_never_rebuilds_its_buckets() {
    let name = "reducer_averages_like_a_plain_all_reduce_and_never_rebuilds_its_buckets";
    ranks(name, 2, |store, rank, children| {
        let group = form(store, rank, 2, 1, TIMEOUT);
        tch::manual_seed(1);
        // Large enough for several buckets: 16 MiB and 8 MiB of gradients.
        let shapes: [&[i64]; 4] = [&[2048, 1024], &[2048], &[512, 2048], &[512]];
        let params: Vec<Tensor> =
            shapes.iter().map(|s| (Tensor::randn(*s, F64) * 0.01).set_requires_grad(true)).collect();
        let batch = |step: i64, rank: u32| {
            tch::manual_seed(100 + step * 10 + i64::from(rank));
            Tensor::randn([4, 1024], F64)
        };
        let order = ready_order(&net(&params, &batch(0, rank)), &params, group.membership()).unwrap();
        assert_eq!(order.len(), 4);
        for p in &params {
            let _ = p.grad().zero_();
        }
        let ready: Vec<Tensor> = order.iter().map(|i| params[*i].shallow_clone()).collect();
        let expected: Vec<Vec<Tensor>> = (0..3)
            .map(|step| {
                for p in &params {
                    let _ = p.grad().zero_();
                }
                net(&params, &batch(step, rank)).backward();
                params
                    .iter()
                    .map(|p| {
                        let g = p.grad() / 2.0;
                        group.all_reduce(&g, ReduceOp::Sum).unwrap();
                        g
                    })
                    .collect()
            })
            .collect();
        let reducer = Reducer::new(&group, &ready).unwrap();
        assert!(reducer.buckets() >= 2, "{} buckets", reducer.buckets());
        for (step, grads) in expected.iter().enumerate() {
            for p in &params {
                let _ = p.grad().zero_();
            }
            reducer.prepare_forward().unwrap();
            let loss = net(&params, &batch(step as i64, rank));
            reducer.prepare_backward().unwrap();
            backward(&loss, group.membership()).unwrap();
            for (p, g) in params.iter().zip(grads) {
                assert_eq!(largest(&(p.grad() - g)), 0.0, "step {step}");
            }
        }
        drop(reducer);
        finish(children);
    });
}

/// A third of a number is not the number times a third: a gradient must reach its bucket in one way only.
#[test]
fn the_first_step_of_a_reducer_has_the_bits_of_the_second() {
    ranks("the_first_step_of_a_reducer_has_the_bits_of_the_second", 3, |store, rank, children| {
        let group = form(store, rank, 3, 1, TIMEOUT);
        tch::manual_seed(2);
        let params = [Tensor::randn([64, 64], F64).set_requires_grad(true)];
        let x = Tensor::randn([8, 64], F64);
        let reducer = Reducer::new(&group, &params).unwrap();
        let mut steps = Vec::new();
        for _ in 0..2 {
            if params[0].grad().defined() {
                let _ = params[0].grad().zero_();
            }
            reducer.prepare_forward().unwrap();
            let loss = x.linear(&params[0], None::<&Tensor>).square().mean(Kind::Double);
            reducer.prepare_backward().unwrap();
            backward(&loss, group.membership()).unwrap();
            steps.push(params[0].grad().copy());
        }
        assert_eq!(largest(&(&steps[0] - &steps[1])), 0.0);
        drop(reducer);
        finish(children);
    });
}

#[test]
fn waiting_for_the_buckets_of_a_slower_rank_is_counted() {
    ranks("waiting_for_the_buckets_of_a_slower_rank_is_counted", 2, |store, rank, children| {
        let group = form(store, rank, 2, 1, TIMEOUT);
        let params = [Tensor::ones([8, 8], F64).set_requires_grad(true)];
        let reducer = Reducer::new(&group, &params).unwrap();
        reducer.prepare_forward().unwrap();
        let loss = Tensor::ones([1, 8], F64).linear(&params[0], None::<&Tensor>).mean(Kind::Double);
        reducer.prepare_backward().unwrap();
        meet(store, rank, 2);
        let slow = Duration::from_millis(500);
        if rank == 1 {
            std::thread::sleep(slow);
        }
        let before = waited();
        backward(&loss, group.membership()).unwrap();
        let waited = waited() - before;
        assert!(rank == 1 || waited > slow / 2, "{waited:?}");
        drop(reducer);
        finish(children);
    });
}
