//! What `/proc` says of processes: who descends from whom, what they hold open, how much memory they use.
//!
//! Left out: anything that needs a process's cooperation.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// How a rank process is called in its command line.
const RANK: &str = "mcl-rank train";

/// Number of a process.
pub type ProcessId = i32;

fn file(pid: ProcessId, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// State letter and parent of a process.
fn stat(pid: ProcessId) -> Option<(char, ProcessId)> {
    let text = std::fs::read_to_string(file(pid, "stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Parent of every process there is.
fn parents() -> BTreeMap<ProcessId, ProcessId> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|e| {
            let pid: ProcessId = e.file_name().to_str()?.parse().ok()?;
            Some((pid, stat(pid)?.1))
        })
        .collect()
}

/// A process and everything below it, by parent.
pub fn family(pid: ProcessId) -> Vec<ProcessId> {
    let parents = parents();
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let parent = all[at];
        all.extend(parents.iter().filter(|(_, p)| **p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    all
}

/// Rank processes below a process.
pub fn ranks(pid: ProcessId) -> Vec<ProcessId> {
    family(pid).into_iter().filter(|pid| command_line(*pid).contains(RANK)).collect()
}

/// How long it has been there.
pub fn age(pid: ProcessId) -> Option<std::time::Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22, after a name that may hold anything: hundredths of a second from the machine's start to its own.
    let started: f64 = stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    std::time::Duration::try_from_secs_f64(up - started / 100.0).ok()
}

/// Whether it is there and has not ended.
pub fn alive(pid: ProcessId) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// Whether SIGSTOP holds it.
pub fn stopped(pid: ProcessId) -> bool {
    stat(pid).is_some_and(|(state, _)| state == 'T')
}

/// Its arguments, with blanks between.
pub fn command_line(pid: ProcessId) -> String {
    let bytes = std::fs::read(file(pid, "cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Processes anywhere that work in a folder or have it in their command line: what a run left behind.
pub fn of_folder(folder: &Path) -> Vec<ProcessId> {
    let own = i32::try_from(std::process::id()).unwrap();
    let name = folder.display().to_string();
    let belongs = |pid: ProcessId| {
        let works_there = std::fs::read_link(file(pid, "cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        works_there || command_line(pid).contains(&name)
    };
    parents().into_keys().filter(|pid| *pid != own && alive(*pid) && belongs(*pid)).collect()
}

/// File descriptors it holds.
pub fn open_files(pid: ProcessId) -> Option<u64> {
    Some(std::fs::read_dir(file(pid, "fd")).ok()?.count() as u64)
}

/// Ports that the process itself listens on: of all in its network namespace, those whose socket it holds.
pub fn listening(pid: ProcessId) -> usize {
    let links = std::fs::read_dir(file(pid, "fd")).into_iter().flatten().flatten();
    let held: BTreeSet<String> =
        links.filter_map(|l| Some(std::fs::read_link(l.path()).ok()?.to_str()?.to_owned())).collect();
    let sockets = sockets(pid);
    let listening = sockets.lines().filter(|line| listener(line).is_some());
    let inodes = listening.filter_map(|line| line.split_whitespace().nth(9));
    inodes.filter(|inode| held.contains(&format!("socket:[{inode}]"))).count()
}

/// A variable that it was started with.
pub fn variable(pid: ProcessId, name: &str) -> Option<String> {
    let bytes = std::fs::read(file(pid, "environ")).ok()?;
    let mut all = bytes.split(|b| *b == 0).map(String::from_utf8_lossy);
    all.find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// Where anybody listens in its network namespace.
pub fn listeners(pid: ProcessId) -> Vec<SocketAddr> {
    sockets(pid).lines().filter_map(listener).collect()
}

/// The kernel's tables of its network namespace, a socket a line.
fn sockets(pid: ProcessId) -> String {
    ["net/tcp", "net/tcp6"].map(|t| std::fs::read_to_string(file(pid, t)).unwrap_or_default()).concat()
}

/// A line of the kernel's table: number, own address, peer, state 0A where somebody listens.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace();
    let (own, _, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
    let (ip, port) = own.split_once(':').filter(|_| state == "0A")?;
    // Words of 32 bits as the machine holds them.
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = if ip.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.as_flattened()).ok()?))
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Memory it has resident, in bytes.
pub fn resident_bytes(pid: ProcessId) -> Option<u64> {
    let text = std::fs::read_to_string(file(pid, "status")).ok()?;
    let line = text.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Processor time that it has used, in seconds.
pub fn cpu_seconds(pid: ProcessId) -> Option<f64> {
    let stat = std::fs::read_to_string(file(pid, "stat")).ok()?;
    // Fields 14 and 15, after a name that may hold anything: hundredths of a second.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut hundredths = || fields.next()?.parse::<f64>().ok();
    Some((hundredths()? + hundredths()?) / 100.0)
}

/// Sends a signal; whether the process was there to get it.
pub fn signal(pid: ProcessId, signal: Signal) -> bool {
    kill(Pid::from_raw(pid), signal).is_ok()
}

/// SIGKILL for a process and everything below it.
pub fn kill_family(pid: ProcessId) {
    for pid in family(pid) {
        signal(pid, Signal::SIGKILL);
    }
}
