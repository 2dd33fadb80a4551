//! What Linux says of processes: CPU time, memory, open files.

use crate::BenchError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// `USER_HZ`: what /proc counts CPU time in, 100 on every platform we run on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Files besides the connections: logs, pipes, the journal, the libraries' own.
const SPARE_FILES: u64 = 128;

/// Lets this process, and those that it starts, open as many files as `connections` need.
pub(crate) fn allow_files(connections: u32) -> Result<(), BenchError> {
    let limit = |e: nix::Error| BenchError::Thread(format!("its limit of open files: {e}"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit)?;
    let needed = u64::from(connections) + SPARE_FILES;
    if needed > hard {
        return Err(BenchError::FileLimit { needed, hard });
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(limit)?;
    }
    Ok(())
}

/// The most connections that this process may ever hold.
pub(crate) fn most_connections() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard.saturating_sub(SPARE_FILES))
}

/// Resident memory in KiB.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Files that a process has open.
pub(crate) fn open_files(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// CPU time at one moment, in ticks.
#[derive(Debug, Clone)]
pub(crate) struct CpuReading {
    at: Instant,
    whole: BTreeMap<u32, u64>,
    threads: BTreeMap<(u32, u32), (String, u64)>,
    machine: u64,
}

impl CpuReading {
    /// Of these processes and of the machine.
    pub(crate) fn now(pids: &[u32]) -> Self {
        let mut reading =
            Self { at: Instant::now(), whole: BTreeMap::new(), threads: BTreeMap::new(), machine: busy() };
        for &pid in pids {
            if let Some((_, ticks)) = ticks(PathBuf::from(format!("/proc/{pid}/stat"))) {
                reading.whole.insert(pid, ticks);
            }
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let thread = task.file_name().to_str().and_then(|t| t.parse().ok());
                if let (Some(thread), Some(found)) = (thread, ticks(task.path().join("stat"))) {
                    reading.threads.insert((pid, thread), found);
                }
            }
        }
        reading
    }

    fn seconds_since(&self, earlier: &Self) -> f64 {
        self.at.saturating_duration_since(earlier.at).max(Duration::from_millis(1)).as_secs_f64()
    }

    /// Cores that a process kept busy since `earlier`; none where it cannot be seen.
    pub(crate) fn cores(&self, earlier: &Self, pid: u32) -> Option<f64> {
        let used = self.whole.get(&pid)?.saturating_sub(*earlier.whole.get(&pid)?);
        Some(cores(used, self.seconds_since(earlier)))
    }

    /// The busiest thread of a process since `earlier`: its name and its share of a core.
    pub(crate) fn busiest(&self, earlier: &Self, pid: u32) -> Option<(String, f64)> {
        let threads = self.threads.range((pid, 0)..=(pid, u32::MAX));
        let used = threads.map(|(id, (name, ticks))| {
            (ticks.saturating_sub(earlier.threads.get(id).map_or(0, |(_, before)| *before)), name)
        });
        used.max_by_key(|(ticks, _)| *ticks)
            .map(|(ticks, name)| (name.clone(), cores(ticks, self.seconds_since(earlier))))
    }

    /// Cores that anything on this machine kept busy.
    pub(crate) fn machine(&self, earlier: &Self) -> f64 {
        cores(self.machine.saturating_sub(earlier.machine), self.seconds_since(earlier))
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks of one machine's life fit 53 bits")]
fn cores(ticks: u64, seconds: f64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND / seconds
}

/// Name and CPU time of a process or thread.
fn ticks(stat: PathBuf) -> Option<(String, u64)> {
    parse_stat(&fs::read_to_string(stat).ok()?)
}

/// The name stands in brackets and may hold anything, brackets too.
fn parse_stat(text: &str) -> Option<(String, u64)> {
    let (head, rest) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split_whitespace();
    // utime and stime are fields 14 and 15, the state behind the name is the third.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((name.to_owned(), user + system))
}

/// Ticks that the machine's cores were not idle.
fn busy() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = text.lines().next() else { return 0 };
    let fields = line.split_whitespace().skip(1).take(8).map(|f| f.parse::<u64>().unwrap_or(0));
    // user nice system idle iowait irq softirq steal
    fields.enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let line = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 70 30 0 0 20 0 1 0 5";
        assert_eq!(parse_stat(line), Some(("a) b (c)".to_owned(), 100)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process_can_be_seen() {
        let pid = std::process::id();
        assert!(resident_kib(pid).unwrap() > 100);
        assert!(open_files(pid).unwrap() > 2);
        let before = CpuReading::now(&[pid]);
        let start = Instant::now();
        let mut sum = 0_u64;
        while start.elapsed() < Duration::from_millis(100) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let after = CpuReading::now(&[pid]);
        let used = after.cores(&before, pid).unwrap();
        assert!(used > 0.05, "{used}");
        assert!(after.busiest(&before, pid).unwrap().1 > 0.05);
        assert!(after.cores(&before, u32::MAX).is_none());
    }

    #[test]
    fn a_hard_limit_is_said() {
        allow_files(10).unwrap();
        let text = allow_files(u32::MAX).unwrap_err().to_string();
        assert!(text.contains("ulimit -Hn"), "{text}");
    }
}
