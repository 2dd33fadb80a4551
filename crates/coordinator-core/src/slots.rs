//! The rank processes of a worker, one a device.
//!
//! A worker keeps them ready by a standing order and starts one again that dies; here is only what became of
//! each. Invariant: what is known of a slot is about one process; words about another one change nothing.

use crate::event::{Hello, ProcessId};
use crate::generation::Place;
use crate::reason::EndCause;
use crate::state::{Stage, State, Turn, Worker};
use mcl_types::WorkerName;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A device and its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) device: String,
    pub(crate) process: Option<ProcessId>,
    pub(crate) stage: SlotStage,
    /// It has trained: it may hold the state.
    pub(crate) holds: bool,
    /// Processes in a row that died before they were ready.
    pub(crate) failures: u32,
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SlotStage {
    /// There is none, or it is about to end.
    Down,
    /// It builds its model, since then.
    Preparing(Duration),
    /// It can join a generation.
    Prepared,
}

impl Slot {
    const fn down(device: String) -> Self {
        Self { device, process: None, stage: SlotStage::Down, holds: false, failures: 0 }
    }

    /// Of a generation of an earlier coordinator, before its worker was heard.
    pub(crate) fn remembered(place: &Place) -> Self {
        Self {
            process: Some(place.process),
            stage: SlotStage::Prepared,
            holds: true,
            ..Self::down(place.device.clone())
        }
    }

    /// Its process is told to end.
    pub(crate) const fn dismissed(&mut self) {
        self.stage = SlotStage::Down;
        self.holds = false;
    }

    pub(crate) fn is_prepared(&self) -> bool {
        self.stage == SlotStage::Prepared
    }
}

impl Worker {
    /// The slots that a worker's greeting tells of. How often processes failed before is remembered.
    pub(crate) fn slots_of(hello: &Hello, before: &[Slot], run: Option<&str>, now: Duration) -> Vec<Slot> {
        let slot = |device: &String| {
            let mut slot = Slot::down(device.clone());
            slot.failures = before.iter().find(|s| s.device == *device).map_or(0, |s| s.failures);
            let ours = |id: Option<&str>| run.is_some() && id == run;
            let found = hello
                .processes
                .iter()
                .find(|p| p.device == *device && ours(p.run_id.as_ref().map(mcl_types::RunId::as_str)));
            if let Some(found) = found {
                slot.process = Some(found.process);
                slot.holds = found.holds_state;
                slot.stage = if found.prepared { SlotStage::Prepared } else { SlotStage::Preparing(now) };
            }
            slot
        };
        hello.devices.iter().map(slot).collect()
    }

    /// Its slots can join a generation.
    pub(crate) const fn takes_part(&self) -> bool {
        self.session.is_some() && !self.leaving
    }

    /// The slot of a process.
    pub(crate) fn slot(&mut self, process: ProcessId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|s| s.process == Some(process))
    }
}

impl State {
    /// Processes that can join a generation, in order of worker names and devices.
    pub(crate) fn usable(&self) -> impl Iterator<Item = (&WorkerName, &Slot)> {
        self.workers
            .iter()
            .filter(|(_, w)| w.takes_part())
            .flat_map(|(name, w)| w.slots.iter().map(move |s| (name, s)))
            .filter(|(_, s)| s.is_prepared() && s.process.is_some())
    }

    /// Devices whose process is on its way, or will be: none that failed too often, none that takes too long.
    pub(crate) fn preparing(&self, now: Duration) -> impl Iterator<Item = (&WorkerName, &Slot)> {
        let (limit, timeout) = (self.settings.fruitless_limit, self.settings.preparing_timeout);
        let late = move |s: &Slot| matches!(s.stage, SlotStage::Preparing(since) if now.saturating_sub(since) > timeout);
        self.workers
            .iter()
            .filter(|(_, w)| w.takes_part())
            .flat_map(|(name, w)| w.slots.iter().map(move |s| (name, s)))
            .filter(move |(_, s)| !s.is_prepared() && s.failures < limit && !late(s))
    }

    /// A worker that is away, not lost yet, and may hold the state.
    pub(crate) fn holder_away(&self) -> Option<&WorkerName> {
        let holds = |w: &Worker| w.session.is_none() && w.slots.iter().any(|s| s.holds);
        self.workers.iter().find(|(_, w)| holds(w)).map(|(name, _)| name)
    }
}

impl Turn<'_> {
    /// The worker started a process.
    pub(crate) fn spawned(&mut self, worker: &WorkerName, device: &str, process: ProcessId) {
        let now = self.now;
        let Some(worker) = self.state.workers.get_mut(worker) else { return };
        let Some(slot) = worker.slots.iter_mut().find(|s| s.device == device) else { return };
        // Numbers grow: an older one is an older word.
        if slot.process.is_none_or(|p| p < process) {
            slot.process = Some(process);
            slot.stage = SlotStage::Preparing(now);
            slot.holds = false;
        }
    }

    /// A process can join a generation. That it was started may not have been heard.
    pub(crate) fn prepared(&mut self, worker: &WorkerName, device: &str, process: ProcessId) {
        self.spawned(worker, device, process);
        let Some(slot) = self.state.workers.get_mut(worker).and_then(|w| w.slot(process)) else { return };
        slot.failures = 0;
        if matches!(slot.stage, SlotStage::Preparing(_)) {
            slot.stage = SlotStage::Prepared;
        }
    }

    /// A process is of no more use: it failed, or it is to be replaced.
    pub(crate) fn discard(&mut self, worker: &WorkerName, process: ProcessId) {
        if let Some(slot) = self.state.workers.get_mut(worker).and_then(|w| w.slot(process)) {
            slot.stage = SlotStage::Down;
            slot.holds = false;
        }
    }

    /// A process is gone, or says that it is about to be. One that never became ready counts against its device.
    pub(crate) fn process_gone(&mut self, worker: &WorkerName, process: ProcessId, cause: &EndCause) {
        let limit = self.state.settings.fruitless_limit;
        let Some(slot) = self.state.workers.get_mut(worker).and_then(|w| w.slot(process)) else { return };
        let unready = matches!(slot.stage, SlotStage::Preparing(_));
        slot.stage = SlotStage::Down;
        slot.holds = false;
        if unready {
            slot.failures += 1;
            let failures = slot.failures;
            if failures >= limit {
                self.out.push(crate::Effect::Warn(crate::Warning::DeviceUnfit {
                    worker: worker.clone(),
                    failures,
                    cause: Box::new(cause.clone()),
                }));
            }
        }
    }

    /// The ranks of a generation that starts hold its state from now on.
    pub(crate) fn mark_holders(&mut self) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        for place in live.places.clone() {
            if let Some(slot) = self.state.workers.get_mut(&place.worker).and_then(|w| w.slot(place.process))
            {
                slot.holds = true;
            }
        }
    }
}
