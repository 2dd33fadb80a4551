//! Ranks that are processes: a test binary starts itself as the other ones.

use mcl_collective::{Group, Membership, Store};
use mcl_types::{FencingToken, Generation, Rank, Term};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

pub const RANK: &str = "MCL_TEST_RANK";
const WORLD: &str = "MCL_TEST_WORLD";
pub const STORE: &str = "MCL_TEST_STORE";
pub const TIMEOUT: Duration = Duration::from_secs(30);
pub const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

pub fn membership(rank: u32, world: u32, generation: u64) -> Membership {
    let token = FencingToken { term: Term::new(1), generation: Generation::new(generation) };
    Membership { token, rank: Rank::new(rank), world }
}

/// Runs `body` as rank 0 here and as ranks 1.. in copies of this process that run only the test `name`.
pub fn ranks(name: &str, world: u32, body: impl FnOnce(&Store, u32, Vec<Child>)) {
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

pub fn finish(children: Vec<Child>) {
    for mut child in children {
        assert!(child.wait().unwrap().success(), "a rank failed");
    }
}

pub fn form(store: &Store, rank: u32, world: u32, generation: u64, timeout: Duration) -> Group {
    Group::form(store, membership(rank, world, generation), timeout, "127.0.0.1", None).unwrap()
}

pub fn values(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t.reshape([-1])).unwrap()
}

/// Returns once all ranks of `world` are here: one rank's collective may end while another's still runs.
pub fn meet(store: &Store, rank: u32, world: u32) {
    store.set(&format!("here/{rank}"), b"1").unwrap();
    for other in 0..world {
        store.get(&format!("here/{other}")).unwrap();
    }
}
