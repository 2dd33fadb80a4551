//! Collectives between real processes, one of which is lost, silent, slow or aborted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod processes;

use mcl_collective::{CollectiveError, Group, Lifeline, ReduceOp, Reducer, Store, backward};
use processes::{F64, RANK, STORE, TIMEOUT, finish, form, meet, membership, ranks, values};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

const GENERATION: &str = "MCL_TEST_GENERATION";

fn store_done(store: &Store) {
    store.set("done", b"1").unwrap();
}

fn wait_done(store: &Store) {
    assert_eq!(store.get("done").unwrap(), b"1");
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
