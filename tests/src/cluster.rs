//! A cluster whose daemons are started by hand, each in a process group of its own, so that each can be stopped,
//! killed and started again one by one.
//!
//! Invariants: services listen on ports chosen once, so that one that is started again is found where it was. Nothing
//! outlives the cluster: daemons leave when their standard input closes, and what is left when it is dropped is killed.
//! Left out: networks of their own and relays between (see `network`, `chaos`), which only change what a daemon is given.

use crate::processes::{self, ProcessId};
use crate::{PATIENCE, Sandbox, mcl};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Where ports are looked for: below those that the kernel gives to outgoing connections, so that none of these can
/// take the port of a service that is down for a moment.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Daemons leave when their standard input closes, however this process ends.
const WITH_US: &str = "--stop-with-stdin";
/// The same for one that is not to know of a parent: the kernel kills it with the thread that started it.
const DIES_WITH_US: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];
/// Also what ranks say.
const LOGGED: &str = "warn,mcl=info,mcl_rank=info,rank=info";

/// A port of an address that nobody listens at.
pub fn free_port(address: IpAddr) -> SocketAddr {
    // Far from the next process: two that begin at once must not look at the same ports.
    let spread = u16::try_from(std::process::id().wrapping_mul(32) % 11_000).unwrap();
    let (low, high) = (PORTS.start, PORTS.end);
    let order = (low + spread..high).chain(low..low + spread);
    let taken: &mut Vec<SocketAddr> = &mut GIVEN.lock().unwrap();
    let found = order
        .map(|port| SocketAddr::new(address, port))
        .find(|a| !taken.contains(a) && TcpListener::bind(a).is_ok())
        .expect("a free port");
    taken.push(found);
    found
}

/// Ports that this process gave out: none is given twice.
static GIVEN: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

/// A daemon that is under way.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it in a process group of its own; what it says is appended to a file.
    pub fn start(mut command: Command, log: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let open = || File::options().create(true).append(true).open(log).unwrap();
        let child = command.process_group(0).stdin(Stdio::piped()).stdout(open()).stderr(open()).spawn();
        Self { child: child.unwrap() }
    }

    /// Its process number.
    pub fn pid(&self) -> ProcessId {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid(), signal);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            let status = self.ended();
            if status.is_some() || begun.elapsed() > patience {
                return status;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// SIGKILL, for it alone: what it started must notice.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended().is_none() {
            processes::kill_family(self.pid());
            let _ = self.child.wait();
        }
    }
}

/// What a worker daemon is started with.
#[derive(Debug, Clone, Default)]
pub struct Seat {
    /// Words before the command: `ip netns exec NAME`.
    pub launcher: Vec<String>,
    /// Where it finds the coordinator; the coordinator's own address where none is given.
    pub coordinator: Option<String>,
    /// Address that other ranks reach it at.
    pub advertise: Option<String>,
    /// Interface whose address that is; where neither is given, it is the one towards the coordinator.
    pub interface: Option<String>,
    /// Its environment besides.
    pub environment: Vec<(String, String)>,
}

/// Checkpoint service, coordinator and workers.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    /// The run directory.
    pub run_dir: PathBuf,
    /// The coordinator's folder of runs, where it has one.
    runs: Option<PathBuf>,
    /// Folder of the checkpoint service.
    pub store: PathBuf,
    /// Where the coordinator listens.
    pub coordinator_address: SocketAddr,
    /// Where the checkpoint service listens.
    pub checkpoint_address: SocketAddr,
    /// The coordinator, where it is up.
    pub coordinator: Option<Daemon>,
    /// The checkpoint service, where it is up.
    pub checkpoint: Option<Daemon>,
    /// The workers that are up, by name.
    pub workers: BTreeMap<String, Daemon>,
    /// Where daemons that are started from now on die: each knows its own.
    pub failpoint: Option<String>,
    /// Where the coordinator has its page; none: at a free port.
    pub page: Option<SocketAddr>,
    /// Folder of the certificates that everybody shows, by role; none: without TLS.
    pub certs: Option<PathBuf>,
    seats: BTreeMap<String, Seat>,
}

/// Name of the run in every cluster here.
pub const RUN: &str = "story";

impl Cluster {
    /// One whose services listen on loopback; nothing is started yet. Its files lie in `name` of the sandbox.
    pub fn new(sandbox: &Sandbox, name: &str) -> Self {
        Self::at(sandbox, name, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// One whose services listen at an address.
    pub fn at(sandbox: &Sandbox, name: &str, address: IpAddr) -> Self {
        let folder = sandbox.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            run_dir: folder.join("run"),
            runs: None,
            store: folder.join("store"),
            coordinator_address: free_port(address),
            checkpoint_address: free_port(address),
            coordinator: None,
            checkpoint: None,
            workers: BTreeMap::new(),
            failpoint: None,
            page: None,
            certs: None,
            seats: BTreeMap::new(),
            folder,
        }
    }

    /// Both services, and so many workers named `a`, `b`, ...
    pub fn start(sandbox: &Sandbox, name: &str, workers: usize) -> Self {
        let mut cluster = Self::new(sandbox, name);
        cluster.start_services();
        for worker in names(workers) {
            cluster.start_worker(&worker);
        }
        cluster
    }

    /// Where the coordinator is found.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.coordinator_address)
    }

    /// Where the checkpoint service is found.
    pub fn checkpoint_url(&self) -> String {
        format!("{}://{}", self.scheme(), self.checkpoint_address)
    }

    const fn scheme(&self) -> &'static str {
        if self.certs.is_some() { "https" } else { "http" }
    }

    /// What somebody of a role is given besides, where certificates are in use.
    pub fn tls(&self, role: &str) -> Vec<String> {
        let folder = self.certs.as_ref().map(|certs| certs.join(role).display().to_string());
        folder.map_or_else(Vec::new, |folder| vec!["--tls".to_owned(), folder])
    }

    /// The same for a service.
    fn protection(&self) -> Vec<String> {
        if self.certs.is_some() { self.tls("service") } else { vec!["--insecure".to_owned()] }
    }

    /// Log of a daemon.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("logs/{name}.log"))
    }

    /// What a daemon said since it was started first.
    pub fn said(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log(name)).unwrap_or_default()).into_owned()
    }

    /// The newest checkpoints' folder: an argument for `mcl checkpoint`.
    pub fn checkpoints(&self) -> String {
        self.store.join(RUN).display().to_string()
    }

    /// From now on its coordinator has a folder of runs, this cluster's among them.
    pub fn keep_many_runs(&mut self) {
        self.runs = Some(self.folder.join("runs"));
        self.run_dir = self.folder.join("runs").join(RUN);
    }

    fn command(&self, launcher: &[String], arguments: &[&str]) -> Command {
        let mut words = launcher.iter().map(PathBuf::from).chain([mcl()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(arguments).current_dir(&self.folder).env("RUST_LOG", LOGGED);
        if let Some(failpoint) = &self.failpoint {
            command.env(mcl_failpoint::VARIABLE, failpoint);
        }
        command
    }

    /// Checkpoint service and coordinator.
    pub fn start_services(&mut self) {
        self.start_checkpoint();
        self.start_coordinator();
    }

    /// The checkpoint service; returns when it can be reached or has ended.
    pub fn start_checkpoint(&mut self) {
        self.launch_checkpoint();
        reachable(self.checkpoint.as_mut().unwrap(), self.checkpoint_address);
    }

    /// The checkpoint service, without waiting for it.
    pub fn launch_checkpoint(&mut self) {
        let (root, at) = (self.store.display().to_string(), self.checkpoint_address.to_string());
        let mut command =
            self.command(&[], &["checkpoint-server", "--root", &root, "--listen", &at, WITH_US]);
        command.args(self.protection());
        self.checkpoint = Some(Daemon::start(command, &self.log("checkpoint")));
    }

    /// The coordinator; returns when it can be reached or has ended.
    pub fn start_coordinator(&mut self) {
        self.launch_coordinator();
        reachable(self.coordinator.as_mut().unwrap(), self.coordinator_address);
    }

    /// The coordinator, without waiting for it.
    pub fn launch_coordinator(&mut self) {
        self.coordinator =
            Some(self.launch_coordinator_over(&self.run_dir, self.coordinator_address, "coordinator"));
    }

    /// A coordinator over any run directory, at any address; returns when it can be reached or has ended.
    pub fn coordinator_over(&self, run_dir: &Path, address: SocketAddr, log: &str) -> Daemon {
        let mut daemon = self.launch_coordinator_over(run_dir, address, log);
        reachable(&mut daemon, address);
        daemon
    }

    fn launch_coordinator_over(&self, run_dir: &Path, address: SocketAddr, log: &str) -> Daemon {
        let checkpoint = self.checkpoint_url();
        let (flag, home) = match &self.runs {
            Some(runs) => ("--runs", runs.display().to_string()),
            None => ("--run-dir", run_dir.display().to_string()),
        };
        let at = address.to_string();
        let arguments = ["coordinator", flag, &home, "--checkpoint", &checkpoint, "--listen", &at];
        // Not `--stop-with-stdin`: one that is given it takes its workers along when it ends.
        let with_us: Vec<String> = DIES_WITH_US.map(str::to_owned).to_vec();
        let mut command = self.command(&with_us, &arguments);
        command.args(self.protection());
        if let Some(page) = self.page {
            command.args(["--page", &page.to_string()]);
        }
        Daemon::start(command, &self.log(log))
    }

    /// Where and how a worker of this name will be started.
    pub fn seat(&mut self, name: &str) -> &mut Seat {
        self.seats.entry(name.to_owned()).or_default()
    }

    /// A worker with one CPU slot.
    pub fn start_worker(&mut self, name: &str) {
        let seat = self.seats.get(name).cloned().unwrap_or_default();
        let url = seat.coordinator.clone().unwrap_or_else(|| self.url());
        let state = self.folder.join(format!("workers/{name}")).display().to_string();
        let mut arguments = vec![
            "worker",
            "--coordinator",
            &url,
            "--name",
            name,
            "--devices",
            "cpu",
            "--state-dir",
            &state,
            WITH_US,
        ];
        if let Some(address) = &seat.advertise {
            arguments.extend(["--advertise", address]);
        }
        if let Some(interface) = &seat.interface {
            arguments.extend(["--interface", interface]);
        }
        let mut command = self.command(&seat.launcher, &arguments);
        command.envs(seat.environment.iter().cloned()).args(self.tls("worker"));
        let daemon = Daemon::start(command, &self.log(&format!("worker-{name}")));
        self.workers.insert(name.to_owned(), daemon);
    }

    /// SIGKILL for a worker daemon alone.
    pub fn kill_worker(&mut self, name: &str) {
        if let Some(worker) = self.workers.remove(name) {
            worker.kill();
        }
    }

    /// SIGTERM for a worker, and how it ended.
    pub fn drain_worker(&mut self, name: &str) -> ExitStatus {
        let mut worker = self.workers.remove(name).unwrap();
        worker.signal(Signal::SIGTERM);
        let Some(status) = worker.wait(PATIENCE) else { panic!("worker {name} did not leave") };
        status
    }

    /// The rank process of a worker, where there is one.
    pub fn rank(&self, worker: &str) -> Option<ProcessId> {
        processes::ranks(self.workers.get(worker)?.pid()).into_iter().next()
    }

    /// SIGKILL for every worker and every rank at the same time.
    pub fn kill_all_workers(&mut self) {
        let all: Vec<_> = self.workers.values().flat_map(|w| processes::family(w.pid())).collect();
        for pid in all {
            processes::signal(pid, Signal::SIGKILL);
        }
        self.workers.clear();
    }

    /// Hands the coordinator the sandbox's job.
    pub fn submit(&self, sandbox: &Sandbox, overrides: &[&str]) {
        let url = self.url();
        let mut arguments = vec!["submit", "job.toml", "--name", RUN, "--coordinator", &url];
        for o in overrides {
            arguments.extend(["--set", o]);
        }
        let tls = self.tls("operator");
        arguments.extend(tls.iter().map(String::as_str));
        sandbox.ok(&arguments);
    }

    /// What the coordinator says; none while it cannot be asked.
    pub fn status(&self) -> Option<Value> {
        status_with(&self.url(), &self.tls("operator"))
    }

    /// Committed steps.
    pub fn committed(&self) -> u64 {
        crate::committed(&self.run_dir) as u64
    }

    /// Waits until something holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let status = || self.status().unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "{what} did not come to pass: {}", status());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until so many steps are committed.
    pub fn until_committed(&mut self, steps: u64) {
        self.until(&format!("step {steps}"), |c| c.committed() >= steps);
    }

    /// Waits until the newest committed step was taken by so many workers.
    pub fn until_workers(&mut self, workers: u64) {
        self.until(&format!("a step of {workers} workers"), |c| {
            crate::last_metric(&c.run_dir).is_some_and(|m| m["workers"] == workers)
        });
    }

    /// Waits until the job is over: the coordinator leaves.
    pub fn until_done(&mut self) {
        let mut coordinator = self.coordinator.take().unwrap();
        let status = coordinator.wait(2 * PATIENCE);
        let code = status.and_then(|s| s.code());
        assert_eq!(
            code,
            Some(0),
            "the coordinator ended with {status:?}:\n{}",
            tail(&self.log("coordinator"))
        );
    }
}

/// Names of workers: `a`, `b`, ...
pub fn names(count: usize) -> Vec<String> {
    ('a'..='z').take(count).map(|c| c.to_string()).collect()
}

/// What a coordinator says; none while it cannot be asked.
pub fn status_of(url: &str) -> Option<Value> {
    status_with(url, &[])
}

/// The same with more arguments.
pub fn status_with(url: &str, more: &[String]) -> Option<Value> {
    let output = Command::new(mcl())
        .args(["status", "--json", "--coordinator", url])
        .args(more)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    serde_json::from_slice(&output.ok()?.stdout).ok()
}

/// What a coordinator says, asked for again and again beside everything else: one that is frozen holds up its asker.
#[derive(Debug)]
pub struct StatusWatch {
    newest: Arc<Mutex<Value>>,
    over: Arc<AtomicBool>,
}

impl StatusWatch {
    /// Asks about once a second from now on.
    pub fn start(url: String) -> Self {
        let watch = Self { newest: Arc::default(), over: Arc::default() };
        let (newest, over) = (Arc::clone(&watch.newest), Arc::clone(&watch.over));
        std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let status = status_of(&url).unwrap_or_default();
                *newest.lock().unwrap() = status;
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        watch
    }

    /// The newest answer; null where there was none.
    pub fn newest(&self) -> Value {
        self.newest.lock().unwrap().clone()
    }
}

impl Drop for StatusWatch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Waits until a daemon takes connections, or has ended.
fn reachable(daemon: &mut Daemon, address: SocketAddr) {
    let begun = Instant::now();
    while daemon.ended().is_none() && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        assert!(begun.elapsed() < PATIENCE, "nothing listens at {address}");
        std::thread::sleep(LOOK);
    }
}
