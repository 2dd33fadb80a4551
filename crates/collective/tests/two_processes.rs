//! Collectives between real processes: this test binary starts itself as the other ranks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_collective::{
    CollectiveError, Group, Lifeline, Membership, ReduceOp, Reducer, Store, backward, batch_norm,
    ready_order, waited,
};
use mcl_types::{FencingToken, Generation, Rank, Term};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const RANK: &str = "MCL_TEST_RANK";
const WORLD: &str = "MCL_TEST_WORLD";
const GENERATION: &str = "MCL_TEST_GENERATION";
const STORE: &str = "MCL_TEST_STORE";
const TIMEOUT: Duration = Duration::from_secs(30);
const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

fn membership(rank: u32, world: u32, generation: u64) -> Membership {
    let token = FencingToken { term: Term::new(1), generation: Generation::new(generation) };
    Membership { token, rank: Rank::new(rank), world }
}

/// Runs `body` as rank 0 here and as ranks 1.. in copies of this process that run only the test `name`.
fn ranks(name: &str, world: u32, body: impl FnOnce(&Store, u32, Vec<Child>)) {
    tch::set_num_threads(1);
    if let Ok(rank) = std::env::var(RANK) {
        let store = Store::connect(&std::env::var(STORE).unwrap(), TIMEOUT).unwrap();
        body(&store, rank.parse().unwrap(), Vec::new());
        return;
    }
    let store = Store::host("127.0.0.1", None, TIMEOUT).unwrap();
    let address = format!("127.0.0.1:{}", store.port().unwrap());
    let children = (1..world)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(RANK, rank.to_string())
                .env(WORLD, world.to_string())
                .env(STORE, &address)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    body(&store, 0, children);
}

fn finish(children: Vec<Child>) {
    for mut child in children {
        assert!(child.wait().unwrap().success(), "a rank failed");
    }
}

fn form(store: &Store, rank: u32, world: u32, generation: u64, timeout: Duration) -> Group {
    Group::form(store, membership(rank, world, generation), timeout, "127.0.0.1", None).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t.reshape([-1])).unwrap()
}

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

#[test]
fn a_killed_peer_is_an_error_and_the_next_generation_works() {
    ranks("a_killed_peer_is_an_error_and_the_next_generation_works", 3, |store, rank, mut children| {
        let group = form(store, rank, 3, 1, TIMEOUT);
        group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap();
        meet(store, rank, 3);
        if rank == 2 {
            std::thread::sleep(TIMEOUT);
            return;
        }
        if rank == 0 {
            children[1].kill().unwrap();
            children[1].wait().unwrap();
            children.pop();
        }
        let started = Instant::now();
        let error = group.all_reduce(&Tensor::ones([1 << 20], F64), ReduceOp::Sum).unwrap_err();
        assert!(error.is_peer_loss(), "{error}");
        assert!(matches!(error, CollectiveError::Peer { .. }), "{error}");
        assert!(started.elapsed() < TIMEOUT / 2);
        drop(group);
        let group = form(store, rank, 2, 2, TIMEOUT);
        let t = Tensor::ones([4], F64);
        group.all_reduce(&t, ReduceOp::Sum).unwrap();
        assert_eq!(values(&t), [2.0; 4]);
        finish(children);
    });
}

#[test]
fn leaving_a_group_ends_the_peers_wait_before_its_timeout() {
    ranks("leaving_a_group_ends_the_peers_wait_before_its_timeout", 2, |store, rank, children| {
        // Made after the store's connection, so that the test can still talk over it.
        let lifeline = (rank == 1).then(|| Lifeline::new(&[]).unwrap());
        let group = match &lifeline {
            Some(l) => l.form(store, membership(rank, 2, 1), TIMEOUT, "127.0.0.1", None).unwrap(),
            None => form(store, rank, 2, 1, TIMEOUT),
        };
        group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap();
        meet(store, rank, 2);
        if rank == 0 {
            let started = Instant::now();
            let error = group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap_err();
            assert!(error.is_peer_loss(), "{error}");
            assert!(started.elapsed() < TIMEOUT / 2, "{:?}", started.elapsed());
            store_done(store);
        } else {
            let lifeline = lifeline.unwrap();
            std::thread::spawn(move || lifeline.abort()).join().unwrap();
            wait_done(store);
        }
        finish(children);
    });
}

/// Returns once all ranks of `world` are here: one rank's collective may end while another's still runs.
fn meet(store: &Store, rank: u32, world: u32) {
    store.set(&format!("here/{rank}"), b"1").unwrap();
    for other in 0..world {
        store.get(&format!("here/{other}")).unwrap();
    }
}

fn store_done(store: &Store) {
    store.set("done", b"1").unwrap();
}

fn wait_done(store: &Store) {
    assert_eq!(store.get("done").unwrap(), b"1");
}

#[test]
fn a_silent_peer_is_an_error_after_the_timeout() {
    ranks("a_silent_peer_is_an_error_after_the_timeout", 2, |store, rank, children| {
        let group = form(store, rank, 2, 1, Duration::from_secs(4));
        if rank == 0 {
            let started = Instant::now();
            let error = group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap_err();
            assert!(error.is_peer_loss(), "{error}");
            assert!(started.elapsed() < TIMEOUT);
            store_done(store);
        } else {
            wait_done(store);
        }
        finish(children);
    });
}

/// Stopped until the test ends it.
fn stop(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
}

/// Aborts `lifeline` from another thread after a while; `wait` must then fail well before its timeout.
fn aborted<T>(what: &str, lifeline: &Lifeline, wait: impl FnOnce() -> Result<T, CollectiveError>) {
    let handle = lifeline.clone();
    let control = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let at = Instant::now();
        handle.abort();
        at
    });
    let error = wait().err().expect("nothing ended the wait");
    let woken = control.join().unwrap().elapsed();
    assert!(error.is_peer_loss(), "{what}: {error}");
    assert!(woken < TIMEOUT / 6, "{what}: {woken:?}");
    println!("abort to error, {what}: {woken:?} ({error})");
}

/// A peer that is stopped and of whom nothing is heard; the test's own process leaves the group and meets
/// a fresh process in the next generation.
fn with_a_stopped_peer(name: &str, what: &str, wait: impl FnOnce(&Group) -> Result<(), CollectiveError>) {
    ranks(name, 2, |store, rank, mut children| {
        let generation = std::env::var(GENERATION).map_or(1, |g| g.parse().unwrap());
        if rank == 1 {
            store.set(&format!("alive/{generation}"), b"1").unwrap();
            let group = form(store, 1, 2, generation, TIMEOUT);
            group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap();
            if generation == 1 {
                std::thread::sleep(TIMEOUT);
            }
            return;
        }
        let lifeline = Lifeline::new(&[]).unwrap();
        let meet = |l: &Lifeline, generation: u64| {
            store.get(&format!("alive/{generation}")).unwrap();
            l.form(store, membership(0, 2, generation), TIMEOUT, "127.0.0.1", None).unwrap()
        };
        let group = meet(&lifeline, 1);
        group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap();
        stop(&children[0]);
        aborted(what, &lifeline, || wait(&group));
        assert!(group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap_err().is_peer_loss());
        let started = Instant::now();
        drop(group);
        println!("freeing the old group: {:?}", started.elapsed());
        assert!(started.elapsed() < TIMEOUT / 3);
        lifeline.close();
        children[0].kill().unwrap();
        children[0].wait().unwrap();
        let lifeline = Lifeline::new(&[]).unwrap();
        let next = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(RANK, "1")
            .env(GENERATION, "2")
            .env(STORE, format!("127.0.0.1:{}", store.port().unwrap()))
            .spawn()
            .unwrap();
        let group = meet(&lifeline, 2);
        let t = Tensor::ones([4], F64);
        group.all_reduce(&t, ReduceOp::Sum).unwrap();
        assert_eq!(values(&t), [2.0; 4]);
        finish(vec![next]);
    });
}

#[test]
fn abort_wakes_a_wait_in_a_collective() {
    with_a_stopped_peer("abort_wakes_a_wait_in_a_collective", "all-gather", |group| {
        group.all_gather(&Tensor::ones([4], F64)).map(drop)
    });
}

#[test]
fn abort_wakes_the_making_of_a_reducer() {
    with_a_stopped_peer("abort_wakes_the_making_of_a_reducer", "making a Reducer", |group| {
        Reducer::new(group, &[Tensor::ones([4], F64).set_requires_grad(true)]).map(drop)
    });
}

#[test]
fn abort_wakes_backward_with_a_reducer() {
    let name = "abort_wakes_backward_with_a_reducer";
    ranks(name, 2, |store, rank, mut children| {
        meet(store, rank, 2);
        let lifeline = Lifeline::new(&[]).unwrap();
        let group = lifeline.form(store, membership(rank, 2, 1), TIMEOUT, "127.0.0.1", None).unwrap();
        tch::manual_seed(1);
        let params = [Tensor::randn([2048, 1024], F64).set_requires_grad(true)];
        let reducer = Reducer::new(&group, &params).unwrap();
        let loss = |reducer: &Reducer| {
            reducer.prepare_forward().unwrap();
            let x = Tensor::ones([4, 1024], F64);
            let loss = x.linear(&params[0], None::<&Tensor>).square().mean(Kind::Double);
            reducer.prepare_backward().unwrap();
            loss
        };
        // The second step's forward is preceded by the rebuild, a collective of its own.
        for _ in 0..2 {
            backward(&loss(&reducer), group.membership()).unwrap();
        }
        store.set(&format!("ready{rank}"), b"1").unwrap();
        if rank == 1 {
            std::thread::sleep(TIMEOUT);
            return;
        }
        store.get("ready1").unwrap();
        stop(&children[0]);
        aborted("backward", &lifeline, || backward(&loss(&reducer), group.membership()));
        let started = Instant::now();
        drop(reducer);
        drop(group);
        println!("freeing reducer and group: {:?}", started.elapsed());
        assert!(started.elapsed() < TIMEOUT / 3);
        children[0].kill().unwrap();
        children[0].wait().unwrap();
    });
}

#[test]
fn abort_wakes_a_rendezvous_that_nobody_joins() {
    tch::set_num_threads(1);
    let host = Store::host("127.0.0.1", None, TIMEOUT).unwrap();
    let address = format!("127.0.0.1:{}", host.port().unwrap());
    let lifeline = Lifeline::new(&[]).unwrap();
    let store = lifeline.connect(&address, TIMEOUT).unwrap();
    let form = |l: &Lifeline, store: &Store, world| {
        l.form(store, membership(0, world, 1), TIMEOUT, "127.0.0.1", None)
    };
    aborted("rendezvous", &lifeline, || form(&lifeline, &store, 2));
    let started = Instant::now();
    assert!(form(&lifeline, &store, 1).unwrap_err().is_peer_loss(), "an aborted lifeline formed a group");
    assert!(lifeline.connect(&address, TIMEOUT).unwrap_err().is_peer_loss());
    assert!(started.elapsed() < TIMEOUT / 3);
    lifeline.close();

    // A key that never comes, and an address where nobody is.
    let lifeline = Lifeline::new(&[]).unwrap();
    let store = lifeline.connect(&address, TIMEOUT).unwrap();
    aborted("store", &lifeline, || store.get("never"));
    lifeline.close();
    let lifeline = Lifeline::new(&[]).unwrap();
    aborted("connecting", &lifeline, || lifeline.connect("127.0.0.1:1", TIMEOUT));
    lifeline.close();

    // A host that accepts and says nothing, and is gone a moment after the abort: the engine then tries to reach it
    // again and again by itself.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = silent.local_addr().unwrap().to_string();
    let host_of_a_moment = std::thread::spawn(move || {
        let begun = Instant::now();
        let mut held = Vec::new();
        silent.set_nonblocking(true).unwrap();
        while begun.elapsed() < Duration::from_secs(1) {
            held.extend(silent.accept());
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let lifeline = Lifeline::new(&[]).unwrap();
    aborted("connecting to a silent host", &lifeline, || lifeline.connect(&gone, TIMEOUT));
    lifeline.close();
    host_of_a_moment.join().unwrap();

    // The same process goes on.
    let lifeline = Lifeline::new(&[]).unwrap();
    let store = lifeline.connect(&address, TIMEOUT).unwrap();
    let group = lifeline.form(&store, membership(0, 1, 2), TIMEOUT, "127.0.0.1", None).unwrap();
    group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap();
}

#[test]
fn ranks_that_met_may_take_longer_for_a_step_than_for_meeting() {
    let name = "ranks_that_met_may_take_longer_for_a_step_than_for_meeting";
    ranks(name, 2, |store, rank, children| {
        meet(store, rank, 2);
        let lifeline = Lifeline::new(&[]).unwrap();
        let group = lifeline.form(store, membership(rank, 2, 1), TIMEOUT, "127.0.0.1", None).unwrap();
        if rank == 1 {
            std::thread::sleep(Duration::from_secs(11));
        }
        let t = Tensor::ones([4], F64);
        group.all_reduce(&t, ReduceOp::Sum).unwrap();
        assert_eq!(values(&t), [2.0; 4]);
        lifeline.close();
        finish(children);
    });
}

#[test]
fn a_timeout_can_be_shortened() {
    ranks("a_timeout_can_be_shortened", 2, |store, rank, children| {
        let mut group = form(store, rank, 2, 1, TIMEOUT);
        group.all_reduce(&Tensor::ones([4], F64), ReduceOp::Sum).unwrap();
        if rank == 0 {
            group.set_timeout(Duration::from_secs(1)).unwrap();
            let started = Instant::now();
            assert!(group.all_gather(&Tensor::ones([4], F64)).unwrap_err().is_peer_loss());
            assert!(started.elapsed() < TIMEOUT / 2);
            store_done(store);
        } else {
            wait_done(store);
        }
        finish(children);
    });
}

#[test]
fn an_unreachable_store_is_an_error_that_names_the_address() {
    let error = Store::connect("127.0.0.1:1", Duration::from_millis(300)).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1"), "{error}");
    assert!(Store::connect("nowhere", TIMEOUT).unwrap_err().to_string().contains("host:port"));
}
