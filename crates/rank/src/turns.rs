//! Measurements in turns, so that a driver can let two programs take theirs by turns on one machine.

use crate::engine;
use crate::memory::Peak;
use anyhow::Result;
use mcl_terminal::say;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;
use std::io::{BufRead, Write};
use std::time::Instant;
use tch::Device;

/// What one unit of work of a turn cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cost {
    /// Seconds that passed.
    wall_s: f64,
    /// Seconds of CPU time, all threads together.
    cpu_s: f64,
    /// Most memory that was held so far.
    #[serde(flatten)]
    peak: Peak,
}

/// When turns are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many, one after the other.
    Count(u32),
    /// One for each line on standard input, answered by a JSON line; the first says that all is ready.
    Lines,
}

/// Takes turns of `units` units each; one is over when `device` has done what it was given.
pub(crate) fn take(
    pace: Pace,
    units: u32,
    device: Device,
    mut turn: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut costs = Vec::new();
    let mut one = || -> Result<Cost> {
        let (wall, cpu) = (Instant::now(), cpu_time()?);
        turn()?;
        engine::settle(device);
        let (passed, n) = (wall.elapsed().as_secs_f64(), f64::from(units.max(1)));
        Ok(Cost { wall_s: passed / n, cpu_s: (cpu_time()? - cpu) / n, peak: Peak::of(device)? })
    };
    match pace {
        Pace::Count(count) => {
            for _ in 0..count {
                costs.push(one()?);
            }
        }
        Pace::Lines => {
            say(&serde_json::json!({ "ready": true }))?;
            for line in std::io::stdin().lock().lines() {
                line?;
                say(&one()?)?;
            }
        }
    }
    if !costs.is_empty() {
        let of = |pick: fn(&Cost) -> f64| -> (f64, f64, f64) {
            let mut sorted: Vec<f64> = costs.iter().map(pick).collect();
            sorted.sort_by(f64::total_cmp);
            let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN) * 1e3;
            (at(sorted.len() / 2), at(0), at(sorted.len() - 1))
        };
        for (name, (median, min, max)) in [("wall", of(|c| c.wall_s)), ("CPU", of(|c| c.cpu_s))] {
            say!("{name:<5} {median:>9.2} ms (from {min:.2} to {max:.2}, {} turns)", costs.len())?;
        }
        if let Some(Cost { peak, .. }) = costs.last() {
            let place = if peak.gpu_peak_bytes.is_some() { "of the GPU" } else { "of the process" };
            say!("most memory {place} {} MB", peak.scarce() / 1_000_000)?;
        }
    }
    Ok(())
}

fn say(answer: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// CPU time of this process so far, in seconds.
fn cpu_time() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |t: TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
