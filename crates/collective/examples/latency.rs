//! Time of small collectives between processes of one machine: `latency [RANKS]`.
#![allow(clippy::unwrap_used, clippy::disallowed_macros, missing_docs)]
use mcl_collective::{Group, Membership, ReduceOp, Store};
use mcl_types::{FencingToken, Rank};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

fn main() {
    tch::set_num_threads(1);
    let limit = Duration::from_secs(30);
    let world: u32 = std::env::args().nth(1).map_or(2, |a| a.parse().unwrap());
    let (rank, store, children) = match std::env::args().nth(2) {
        Some(address) => (
            std::env::args().nth(3).unwrap().parse().unwrap(),
            Store::connect(&address, limit).unwrap(),
            Vec::new(),
        ),
        None => {
            let store = Store::host("127.0.0.1", None, limit).unwrap();
            let address = format!("127.0.0.1:{}", store.port().unwrap());
            let own = std::env::current_exe().unwrap();
            let start = |r: u32| {
                std::process::Command::new(&own)
                    .args([&world.to_string(), &address, &r.to_string()])
                    .spawn()
                    .unwrap()
            };
            (0, store, (1..world).map(start).collect())
        }
    };
    let membership = Membership { token: FencingToken::default(), rank: Rank::new(rank), world };
    let group = Group::form(&store, membership, limit, "127.0.0.1", None).unwrap();
    for size in [16, 256, 4096] {
        let t = Tensor::ones([size], (Kind::Float, Device::Cpu));
        let time = |what: &str, work: &dyn Fn()| {
            for _ in 0..20 {
                work();
            }
            let started = Instant::now();
            for _ in 0..300 {
                work();
            }
            if rank == 0 {
                println!("{what} of {size}: {:.0} us", started.elapsed().as_secs_f64() / 300.0 * 1e6);
            }
        };
        time("all-reduce", &|| group.all_reduce(&t, ReduceOp::Sum).unwrap());
        time("all-gather", &|| {
            let _ = group.all_gather(&t).unwrap();
        });
        let x = Tensor::randn([16, size.min(64), 8, 8], (Kind::Float, Device::Cpu));
        time("sync norm", &|| {
            let mut batches = [x.shallow_clone()];
            let _ = mcl_collective::batch_norm(Some(&group), &mut batches, None, None, 1e-5).unwrap();
        });
    }
    for mut child in children {
        child.wait().unwrap();
    }
}
