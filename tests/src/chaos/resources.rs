//! Open files and memory of every process, over its life.
//!
//! Left out of the judgement: processes that did not live long enough to have a warm start and an end.

use super::arena::{Arena, Who};
use super::family::{EVERY_STEPS, WORKERS};
use crate::processes::{self, ProcessId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Until a process has done everything for the first time ...
const WARM: Duration = Duration::from_secs(20);
/// ... which takes the checkpoint service some checkpoints, however slow the steps.
const WARM_STEPS: u64 = 2 * EVERY_STEPS;
/// A process that lived so long after it was warm is judged.
const LONG: Duration = Duration::from_secs(40);
/// How many samples a start and an end are the median of.
const FEW: usize = 5;
/// What a process may hold more at its end: a share ...
const GROWTH: f64 = 1.1;
/// ... and so many files, for connections that are about to end ...
const FILES: f64 = 8.0;
/// ... and so many bytes, for what an allocator keeps.
const BYTES: f64 = 16.0 * 1024.0 * 1024.0;

#[derive(Debug)]
struct Track {
    kind: &'static str,
    name: String,
    first: Instant,
    samples: Vec<Sample>,
}

/// One look at a process.
#[derive(Debug, Clone, Copy)]
struct Sample {
    age: Duration,
    /// Steps that the job had committed.
    step: u64,
    /// Ports it listens on: the rank that hosts the rendezvous store has one more, and the store's files.
    ports: usize,
    files: u64,
    bytes: u64,
}

/// What was seen of all processes.
#[derive(Debug, Default)]
pub(super) struct Resources {
    tracks: BTreeMap<ProcessId, Track>,
}

impl Resources {
    /// Looks at everything that is up, when so many steps are committed.
    pub(super) fn sample(&mut self, arena: &Arena, step: u64) {
        for (who, kind) in [(Who::Coordinator, "coordinator"), (Who::Checkpoint, "checkpoint")] {
            if let Some(pid) = arena.pid(who) {
                self.take(pid, kind, kind.to_owned(), step);
            }
        }
        for worker in 0..WORKERS {
            let Some(pid) = arena.pid(Who::Worker(worker)) else { continue };
            self.take(pid, "worker", arena.name(Who::Worker(worker)), step);
            for rank in processes::ranks(pid) {
                self.take(rank, "rank", format!("rank of {}", arena.name(Who::Worker(worker))), step);
            }
        }
    }

    fn take(&mut self, pid: ProcessId, kind: &'static str, name: String, step: u64) {
        let (Some(files), Some(bytes)) = (processes::open_files(pid), processes::resident_bytes(pid)) else {
            return;
        };
        let track = self.tracks.entry(pid).or_insert_with(|| Track {
            kind,
            name,
            first: Instant::now(),
            samples: Vec::new(),
        });
        track.samples.push(Sample {
            age: track.first.elapsed(),
            step,
            ports: processes::listening(pid),
            files,
            bytes,
        });
    }

    /// By kind: how many there were, how many were judged, and start and end of the one that grew most.
    pub(super) fn summary(&self) -> Value {
        let kinds = ["coordinator", "checkpoint", "worker", "rank"].map(|kind| {
            let tracks: Vec<&Track> = self.tracks.values().filter(|t| t.kind == kind).collect();
            let judged: Vec<_> = tracks.iter().filter_map(|t| t.ends()).collect();
            let most = |of: fn(&Ends) -> [f64; 2]| {
                let all = judged.iter().map(of);
                all.max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0])))
            };
            let megabytes = most(|e| e.bytes).map(|b| b.map(|b| (b / 104_857.6).round() / 10.0));
            let entry = json!({
                "processes": tracks.len(), "judged": judged.len(),
                "open_files": most(|e| e.files), "memory_mib": megabytes,
            });
            (kind.to_owned(), entry)
        });
        Value::Object(kinds.into_iter().collect())
    }

    /// Processes that ended with much more than they had when they were warm.
    pub(super) fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (pid, track) in &self.tracks {
            let Some(ends) = track.ends() else { continue };
            for (what, [start, end], allowance) in
                [("open files", ends.files, FILES), ("bytes of memory", ends.bytes, BYTES)]
            {
                if end > start * GROWTH + allowance {
                    leaks.push(format!("{} ({pid}) went from {start:.0} to {end:.0} {what}", track.name));
                }
            }
        }
        leaks
    }
}

/// Start and end of a process that lived long enough.
#[derive(Debug)]
struct Ends {
    files: [f64; 2],
    bytes: [f64; 2],
}

impl Track {
    fn ends(&self) -> Option<Ends> {
        let begun = self.samples.first()?.step;
        let worked = |s: &Sample| self.kind != "checkpoint" || s.step >= begun + WARM_STEPS;
        let warm: Vec<Sample> = self.samples.iter().filter(|s| s.age >= WARM && worked(s)).copied().collect();
        if warm.last()?.age < warm.first()?.age + LONG || warm.len() < 2 * FEW {
            return None;
        }
        Some(Ends { files: Self::files(&warm), bytes: ends(&warm, |s| s.bytes) })
    }

    /// Compared among looks at one role only: which rank hosts the store changes with the generation.
    fn files(warm: &[Sample]) -> [f64; 2] {
        let mut roles: BTreeMap<usize, Vec<Sample>> = BTreeMap::new();
        for sample in warm {
            roles.entry(sample.ports).or_default().push(*sample);
        }
        let long = roles.into_values().filter(|samples| samples.len() >= 2 * FEW);
        let all = long.map(|samples| ends(&samples, |s| s.files));
        all.max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).unwrap_or([0.0; 2])
    }
}

/// Medians of the first few looks and of the last few.
fn ends(samples: &[Sample], of: fn(&Sample) -> u64) -> [f64; 2] {
    let few = FEW.min(samples.len());
    [&samples[..few], &samples[samples.len() - few..]].map(|part| {
        let mut values: Vec<u64> = part.iter().map(of).collect();
        values.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "files and bytes")]
        let middle = values[values.len() / 2] as f64;
        middle
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(files: impl Fn(u64) -> (usize, u64)) -> Track {
        let look = |second: u64| {
            let (ports, files) = files(second);
            Sample { age: Duration::from_secs(second), step: second, ports, files, bytes: 1 << 20 }
        };
        Track {
            kind: "rank",
            name: "rank".to_owned(),
            first: Instant::now(),
            samples: (0..120).map(look).collect(),
        }
    }

    fn leaks(track: Track) -> usize {
        Resources { tracks: [(1, track)].into() }.leaks().len()
    }

    #[test]
    fn a_checkpoint_service_is_warm_after_some_checkpoints_and_a_leak_after_them_is_one() {
        let service = |bytes: fn(u64) -> u64| {
            let mut track = track(|_| (1, 12));
            track.kind = "checkpoint";
            track.samples.iter_mut().for_each(|s| s.bytes = bytes(s.age.as_secs()) << 20);
            leaks(track)
        };
        // The first checkpoint comes after half a minute here.
        assert_eq!(service(|second| if second < 30 { 18 } else { 43 }), 0);
        assert_eq!(service(|second| 18 + second / 2), 1);
    }

    #[test]
    fn hosting_the_store_is_no_leak_and_a_leak_is_one_in_either_role() {
        assert_eq!(leaks(track(|s| if s < 60 { (1, 20) } else { (2, 34) })), 0);
        assert_eq!(leaks(track(|s| (1, 20 + s / 5))), 1);
        assert_eq!(leaks(track(|s| if s % 20 < 10 { (1, 20 + s / 5) } else { (2, 34 + s / 5) })), 1);
    }
}
