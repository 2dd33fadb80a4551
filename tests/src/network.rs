//! A network namespace for every worker, joined by a bridge on which the services listen, so that a machine's cable can
//! be pulled. Where this process may not make namespaces there are none, and only relays are cut.
//!
//! Invariant: what is made here is taken away when it is dropped, also after a panic; names hold this process's number,
//! and what a killed campaign left is taken away by the next one.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// How namespaces of campaigns begin.
const PREFIX: &str = "mcl-chaos-";

/// Bridge and namespaces.
#[derive(Debug)]
pub(super) struct Network {
    pid: u32,
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
    pub(super) fn make(workers: usize) -> Option<Self> {
        take_away_leftovers();
        let pid = std::process::id();
        let addresses = listing("-4 -o addr show");
        let first = u8::try_from(pid % 200).unwrap();
        let subnet = (first..=250).find(|y| !addresses.contains(&format!(" 10.77.{y}.")))?;
        let network = Self { pid, subnet, workers };
        let bridge = network.bridge();
        let made = ip(&format!("link add {bridge} type bridge"))
            && ip(&format!("addr add {}/24 dev {bridge}", network.services()))
            && ip(&format!("link set {bridge} up"))
            && (0..workers).all(|w| network.plug_in(w));
        // Dropped otherwise, with what was made so far.
        made.then_some(network)
    }

    fn plug_in(&self, worker: usize) -> bool {
        let (space, outer, inner) =
            (self.space(worker), self.cable(worker), format!("mc{}e{worker}", self.pid));
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
        format!("mc{}b", self.pid)
    }

    /// The bridge's end of a worker's cable.
    fn cable(&self, worker: usize) -> String {
        format!("mc{}w{worker}", self.pid)
    }

    /// Name of a worker's namespace.
    pub(super) fn space(&self, worker: usize) -> String {
        format!("{PREFIX}{}-w{worker}", self.pid)
    }

    /// Address of a worker.
    pub(super) fn address(&self, worker: usize) -> IpAddr {
        let last = 11 + u8::try_from(worker).unwrap();
        IpAddr::V4(Ipv4Addr::new(10, 77, self.subnet, last))
    }

    /// Address that services listen at.
    pub(super) fn services(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, self.subnet, 1))
    }

    /// Pulls a worker's cable, or plugs it in again.
    pub(super) fn cut(&self, worker: usize, yes: bool) {
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

/// Namespaces, cables and bridges of campaigns whose process is gone.
fn take_away_leftovers() {
    for line in listing("netns list").lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|n| n.parse::<i32>().ok()) else { continue };
        if !crate::processes::alive(owner) {
            ip(&format!("netns del {name}"));
            ip(&format!("link del mc{owner}b"));
        }
    }
}
