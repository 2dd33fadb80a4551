//! A network namespace for every worker, joined by a bridge on which the services listen: machines with an address and a
//! loopback of their own, whose cable can be pulled. Where this process may not make namespaces there are none.
//!
//! Invariant: what is made here is taken away when it is dropped, also after a panic; names hold this process's number
//! and a count, and what a killed process left is taken away by the next one.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// How namespaces begin.
const PREFIX: &str = "mcl-net-";

/// Where a machine's ports are set.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Bridge and namespaces.
#[derive(Debug)]
pub struct Network {
    /// Process and count: part of every name. An interface's may have 15 letters.
    id: String,
    subnet: u8,
    workers: usize,
}

fn ip(words: &str) -> bool {
    let status =
        Command::new("ip").args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

fn listing(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

impl Network {
    /// One for so many workers; none where this is not allowed.
    pub fn make(workers: usize) -> Option<Self> {
        take_away_leftovers();
        let (pid, count) = (std::process::id(), MADE.fetch_add(1, Ordering::SeqCst));
        let addresses = listing("-4 -o addr show");
        let first = u8::try_from((pid + count) % 200).unwrap();
        let subnet = (first..=250).find(|y| !addresses.contains(&format!(" 10.77.{y}.")))?;
        let network = Self { id: format!("{pid}x{count}"), subnet, workers };
        let bridge = network.bridge();
        let made = ip(&format!("link add {bridge} type bridge"))
            && ip(&format!("addr add {}/24 dev {bridge}", network.services()))
            && ip(&format!("link set {bridge} up"))
            && (0..workers).all(|w| network.plug_in(w));
        // Dropped otherwise, with what was made so far.
        made.then_some(network)
    }

    fn plug_in(&self, worker: usize) -> bool {
        let (space, outer, inner) = (self.space(worker), self.cable(worker), self.interface(worker));
        let address = self.address(worker);
        ip(&format!("netns add {space}"))
            && ip(&format!("link add {outer} type veth peer name {inner}"))
            && ip(&format!("link set {inner} netns {space}"))
            && ip(&format!("link set {outer} master {}", self.bridge()))
            && ip(&format!("link set {outer} up"))
            && ip(&format!("-n {space} link set lo up"))
            && ip(&format!("-n {space} addr add {address}/24 dev {inner}"))
            && ip(&format!("-n {space} link set {inner} up"))
    }

    fn bridge(&self) -> String {
        format!("mc{}b", self.id)
    }

    /// The bridge's end of a worker's cable.
    fn cable(&self, worker: usize) -> String {
        format!("mc{}w{worker}", self.id)
    }

    /// A worker's interface, in its namespace.
    pub fn interface(&self, worker: usize) -> String {
        format!("mc{}e{worker}", self.id)
    }

    /// Words before a command that is to run on a worker's machine.
    pub fn launcher(&self, worker: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(worker)].map(str::to_owned).to_vec()
    }

    /// Ports that a worker's machine gives to those who ask for any.
    pub fn give_ports(&self, worker: usize, ports: &RangeInclusive<u16>) {
        let text = format!("echo {} {} > {EPHEMERAL}", ports.start(), ports.end());
        let words = [self.launcher(worker), ["sh", "-c", &text].map(str::to_owned).to_vec()].concat();
        assert!(Command::new(&words[0]).args(&words[1..]).status().unwrap().success(), "{words:?}");
    }

    /// Name of a worker's namespace.
    fn space(&self, worker: usize) -> String {
        format!("{PREFIX}{}-w{worker}", self.id)
    }

    /// Address of a worker.
    pub fn address(&self, worker: usize) -> IpAddr {
        let last = 11 + u8::try_from(worker).unwrap();
        IpAddr::V4(Ipv4Addr::new(10, 77, self.subnet, last))
    }

    /// Address that services listen at.
    pub fn services(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, self.subnet, 1))
    }

    /// Pulls a worker's cable, or plugs it in again.
    pub fn cut(&self, worker: usize, yes: bool) {
        let state = if yes { "down" } else { "up" };
        assert!(ip(&format!("link set {} {state}", self.cable(worker))), "the cable of worker {worker}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for worker in 0..self.workers {
            ip(&format!("link del {}", self.cable(worker)));
            ip(&format!("netns del {}", self.space(worker)));
        }
        ip(&format!("link del {}", self.bridge()));
    }
}

/// Namespaces, cables and bridges of a process that is gone.
fn take_away_leftovers() {
    for line in listing("netns list").lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let Some(id) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        let Some(owner) = id.split('x').next().and_then(|n| n.parse().ok()) else { continue };
        if !crate::processes::alive(owner) {
            ip(&format!("netns del {name}"));
            ip(&format!("link del mc{id}b"));
        }
    }
}
