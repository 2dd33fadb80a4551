//! The standing order: one process of the job on every device, and when one that is missing starts.
//!
//! Invariants: one process a device; a process starts only once the last one of another job is gone (devices and
//! memory are free then); starts on one device are at least [`FIRST_REST`] apart, so that a process that dies at
//! once does not keep the machine busy. Left out: what an end means for the job.

use crate::event::{Effect, ProcessId};
use crate::ranks::Process;
use crate::state::State;
use mcl_proto::v1::{Configure, Prepare};
use std::collections::BTreeMap;
use std::time::Duration;

/// Rest of a device whose process ended before it was prepared; it doubles up to [`MAX_REST`].
pub(crate) const FIRST_REST: Duration = Duration::from_millis(500);
/// Long enough for a person to read the log, short enough that a repaired machine is back soon.
pub(crate) const MAX_REST: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Standing {
    order: Option<Configure>,
    /// How many jobs were ordered so far; every process knows under which it was started.
    job: u64,
    slots: BTreeMap<String, Slot>,
}

/// A device.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Not before this.
    start: Duration,
    /// The next rest after an early end.
    rest: Duration,
}

const FRESH: Slot = Slot { start: Duration::ZERO, rest: FIRST_REST };

impl Standing {
    pub fn new(devices: &[String]) -> Self {
        Self { order: None, job: 0, slots: devices.iter().map(|d| (d.clone(), FRESH)).collect() }
    }

    /// Takes an order; whether it is for another job than the present one.
    pub fn replace(&mut self, order: Configure) -> bool {
        let another = self.order.as_ref().is_none_or(|present| !same_job(present, &order));
        if another {
            self.job += 1;
            self.slots.values_mut().for_each(|slot| *slot = FRESH);
        }
        self.order = Some(order);
        another
    }

    pub fn forget(&mut self) {
        self.order = None;
    }

    /// A process is ready: whatever failed on its device before is over.
    pub fn prepared(&mut self, process: &Process) {
        if let Some(slot) = self.slot(process) {
            slot.rest = FIRST_REST;
        }
    }

    /// A process ended or could not be started: decides when the next one may start.
    pub fn ended(&mut self, process: &Process, now: Duration) {
        let Some(slot) = self.slot(process) else { return };
        if process.prepared {
            slot.start = process.since + FIRST_REST;
        } else {
            slot.start = now + slot.rest;
            slot.rest = (slot.rest * 2).min(MAX_REST);
        }
    }

    fn slot(&mut self, process: &Process) -> Option<&mut Slot> {
        // What becomes of another job's process says nothing about this one's.
        if process.job == self.job { self.slots.get_mut(&process.device) } else { None }
    }
}

/// Where services are found may change while a job goes on; its processes need not start again for that.
fn same_job(a: &Configure, b: &Configure) -> bool {
    (&a.run_id, &a.job_toml, &a.dataset_digest, a.dataset_len)
        == (&b.run_id, &b.job_toml, &b.dataset_digest, b.dataset_len)
}

impl State {
    pub(crate) fn prepare(&mut self, prepare: Prepare) {
        let Some(mut order) = prepare.configure else {
            return tracing::error!("a standing order without a job ignored");
        };
        if self.is_leaving() {
            return tracing::info!(run_id = %order.run_id, "leaving: a standing order ignored");
        }
        if order.advertise.is_empty() {
            order.advertise.clone_from(&self.identity.hello.advertise);
        }
        let run_id = order.run_id.clone();
        if self.standing.replace(order) {
            tracing::info!(%run_id, "a standing order");
            self.kill_all();
        }
    }

    /// Starts a process on every device that lacks one and has rested.
    pub(crate) fn start_missing(&mut self) {
        let due: Vec<String> = self
            .missing()
            .filter(|(_, start)| *start <= self.now)
            .map(|(device, _)| device.to_owned())
            .collect();
        let Some(order) = self.standing.order.clone().filter(|_| !due.is_empty()) else { return };
        for device in due {
            let process = ProcessId(self.next_process);
            self.next_process += 1;
            let configure = Configure { device, ..order.clone() };
            self.processes.insert(process, Process::new(&configure, self.standing.job, self.now));
            self.out.push(Effect::Spawn { process, configure: Box::new(configure) });
        }
    }

    /// When the next missing process starts, if nothing else has to happen first.
    pub(crate) fn next_start(&self) -> Option<Duration> {
        self.missing().map(|(_, start)| start).min()
    }

    /// Devices that are to get a process, and not before when; none while something of another job runs.
    fn missing(&self) -> impl Iterator<Item = (&str, Duration)> {
        let wanted = self.standing.order.is_some() && !self.is_ending() && !self.is_leaving();
        let clear = self.processes.values().all(|p| p.job == self.standing.job);
        let taken = |device: &str| self.processes.values().any(|p| p.device == device);
        self.standing
            .slots
            .iter()
            .filter(move |(device, _)| wanted && clear && !taken(device))
            .map(|(device, slot)| (device.as_str(), slot.start))
    }
}
