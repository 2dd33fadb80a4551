//! Machines with addresses of their own, and ports that were asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::cluster::{Cluster, free_port, status_of};
use mcl_system_tests::network::Network;
use mcl_system_tests::processes::{self, ProcessId};
use mcl_system_tests::{Sandbox, committed, error_of, last_metric};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;

/// Machines.
const MACHINES: usize = 3;
/// Their workers.
const WORKERS: [&str; MACHINES] = ["a", "b", "c"];
/// Where the rendezvous store may listen.
const STORE_PORTS: RangeInclusive<u16> = 29_500..=29_509;
/// What the machines give to Gloo, among others.
const DATA_PORTS: RangeInclusive<u16> = 45_000..=45_299;
/// Steps of the job.
const STEPS: u64 = 100;

/// Each worker learns its address in another way: it is told, it looks at an interface, it goes towards the coordinator.
fn take_seats(cluster: &mut Cluster, network: &Network) {
    for (machine, worker) in WORKERS.iter().enumerate() {
        network.give_ports(machine, &DATA_PORTS);
        let seat = cluster.seat(worker);
        seat.launcher = network.launcher(machine);
        match machine {
            0 => seat.advertise = Some(network.address(machine).to_string()),
            1 => seat.interface = Some(network.interface(machine)),
            _ => {}
        }
    }
}

fn ranks(cluster: &Cluster) -> Vec<ProcessId> {
    WORKERS.iter().map(|worker| cluster.rank(worker).unwrap()).collect()
}

/// Where the store of the generation is, once it was looked at what listens on every machine: nothing but the
/// store and Gloo, at the machine's own address.
fn store_among_listeners(cluster: &Cluster, network: &Network) -> (usize, u16) {
    let mut stores = Vec::new();
    for (machine, rank) in ranks(cluster).into_iter().enumerate() {
        let listeners = processes::listeners(rank);
        println!("machine {machine}: {listeners:?}");
        for at in &listeners {
            assert_eq!(at.ip(), network.address(machine), "machine {machine} listens at {at}");
            let expected = STORE_PORTS.contains(&at.port()) || DATA_PORTS.contains(&at.port());
            assert!(expected, "machine {machine} listens at {at}");
        }
        let ports = listeners.iter().map(SocketAddr::port);
        stores.extend(ports.clone().filter(|p| STORE_PORTS.contains(p)).map(|p| (machine, p)));
        assert!(
            ports.clone().any(|p| DATA_PORTS.contains(&p)),
            "machine {machine}: no Gloo at {listeners:?}"
        );
    }
    assert_eq!(stores.len(), 1, "stores: {stores:?}");
    stores[0]
}

#[test]
fn three_machines_with_addresses_of_their_own_meet_at_a_fixed_port_also_after_its_host_was_killed() {
    let Some(network) = Network::make(MACHINES) else {
        println!("no right to make network namespaces here: nothing was tested");
        return;
    };
    let sandbox = Sandbox::new();
    let mut cluster = Cluster::at(&sandbox, "run", network.services());
    take_seats(&mut cluster, &network);
    cluster.start_services();
    for worker in WORKERS {
        cluster.start_worker(worker);
    }
    let steps = format!("train.steps={STEPS}");
    let store_ports = format!("network.store_ports={}-{}", STORE_PORTS.start(), STORE_PORTS.end());
    let job = ["batch.lanes=3", &steps, "batch.images_per_lane=4", "elastic.min_workers=3", &store_ports];
    cluster.submit(&sandbox, &job);
    cluster.until_workers(MACHINES as u64);
    cluster.until_committed(20);

    let status = cluster.status().unwrap();
    let said: BTreeSet<_> =
        status["workers"].as_array().unwrap().iter().map(|w| w["advertise"].as_str().unwrap()).collect();
    let addresses: Vec<String> = (0..MACHINES).map(|m| network.address(m).to_string()).collect();
    assert_eq!(said, addresses.iter().map(String::as_str).collect(), "{status}");
    for (machine, rank) in ranks(&cluster).into_iter().enumerate() {
        let interface = format!("={}", network.interface(machine));
        assert_eq!(processes::variable(rank, "NCCL_SOCKET_IFNAME"), Some(interface), "machine {machine}");
    }
    let (host, port) = store_among_listeners(&cluster, &network);
    assert_eq!(port, *STORE_PORTS.start());

    let (victim, before) = (ranks(&cluster)[host], generation(&cluster));
    processes::signal(victim, Signal::SIGKILL);
    cluster.until("a new generation", |c| generation(c) > before);
    let (_, port) = store_among_listeners(&cluster, &network);
    // There is one rank process a machine, so nobody else can have the first port: it is free though the connections
    // of the killed one may still wait for their last packets.
    assert_eq!(port, *STORE_PORTS.start());
    cluster.until_done();
    let report = sandbox.exact_ledger(&cluster.run_dir.display().to_string());
    assert_eq!((&report["steps"], &report["rolled_back"]), (&STEPS.into(), &0.into()), "{report}");
}

fn generation(cluster: &Cluster) -> u64 {
    last_metric(&cluster.run_dir).unwrap()["generation"].as_u64().unwrap()
}

fn port() -> u16 {
    free_port(IpAddr::V4(Ipv4Addr::LOCALHOST)).port()
}

#[test]
fn one_command_uses_the_ports_that_its_job_asks_for() {
    let sandbox = Sandbox::new();
    let [coordinator, checkpoint, store] = [port(), port(), port()];
    let ports = [
        format!("network.coordinator_port={coordinator}"),
        format!("network.checkpoint_port={checkpoint}"),
        format!("network.store_ports={store}"),
        "train.steps=60".to_owned(),
    ];
    let mut run = sandbox.start("run", 2, &ports.each_ref().map(String::as_str));
    run.until("a step", |dir| committed(dir) >= 1);
    let status = status_of(&format!("http://127.0.0.1:{coordinator}")).expect("the coordinator's answer");
    assert_eq!(status["run"], "run", "{status}");
    for port in [checkpoint, store] {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "nobody listens at {port}");
    }
    let output = run.end();
    assert!(output.status.success(), "{}", error_of(&output));
    sandbox.exact_ledger("run");
}

#[test]
fn ports_that_are_taken_or_make_no_sense_are_named() {
    let sandbox = Sandbox::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let coordinator = format!("network.coordinator_port={port}");
    let store = format!("network.store_ports={port}");
    sandbox.fails(
        1,
        &[&port, "coordinator_port"],
        &["run", "job.toml", "--devices", "cpu", "--set", &coordinator],
    );
    for (setting, key) in [(&coordinator, "coordinator_port"), (&store, "store_ports")] {
        let output = sandbox.run(&["doctor", "job.toml", "--devices", "cpu", "--set", setting]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = said.lines().find(|l| l.starts_with("BAD")).unwrap_or_default();
        assert!(line.contains("ports") && line.contains(key) && line.contains(&port), "{said}");
    }
    drop(taken);
    let said = sandbox.ok(&["doctor", "job.toml", "--devices", "cpu", "--set", &store]);
    assert!(said.contains("ip_local_port_range"), "{said}");

    let job = std::fs::read_to_string(sandbox.path("job.toml")).unwrap();
    std::fs::write(sandbox.path("ports.toml"), job + "[network]\nstore_ports = \"29509-29500\"\n").unwrap();
    sandbox.fails(2, &["ports.toml:", "network.store_ports", "29500-29509"], &["validate", "ports.toml"]);
}

#[test]
fn a_checkpoint_service_that_ranks_elsewhere_cannot_find_is_refused() {
    let sandbox = Sandbox::new();
    let url = "http://0.0.0.0:7071";
    sandbox.fails(2, &[url, "reach"], &["coordinator", "--run-dir", "run", "--checkpoint", url]);
}
