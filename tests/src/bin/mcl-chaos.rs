//! `mcl-chaos`: campaigns of faults against a real cluster on this machine; wiring only.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use mcl_system_tests::chaos::{Family, Settings, run, watch_for_interrupts};
use std::path::PathBuf;
use std::process::ExitCode;

/// Kill, stop, cut and starve a training cluster by a seeded schedule, and see what it kept of its promises.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seed of the schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// About how long faults go on, a family; an undisturbed run of the same job follows.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Which promises about the weights.
    #[arg(long, value_enum, default_value_t = Families::Both)]
    family: Families,
    /// Where summaries go, and what is left of a campaign that broke a promise.
    #[arg(long, default_value = "target/chaos")]
    out: PathBuf,
    /// Keep everything, also where no promise was broken.
    #[arg(long)]
    keep: bool,
    /// No networks and disks of their own, even where this process may make them.
    #[arg(long)]
    plain: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Families {
    /// Training waits for replacements: the weights keep every bit.
    Steady,
    /// Training goes on with fewer: the weights agree but for rounding.
    Elastic,
    /// One after the other.
    Both,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    watch_for_interrupts();
    let families: &[Family] = match arguments.family {
        Families::Steady => &[Family::Steady],
        Families::Elastic => &[Family::Elastic],
        Families::Both => &[Family::Steady, Family::Elastic],
    };
    let mut broken = 0;
    for family in families {
        let settings = Settings {
            seed: arguments.seed,
            minutes: arguments.minutes,
            family: *family,
            folder: arguments.out.clone(),
            keep: arguments.keep,
            isolate: !arguments.plain,
        };
        let summary = run(&settings);
        for promise in summary.broken() {
            eprintln!("BROKEN ({}, seed {}): {promise}", family.name(), arguments.seed);
        }
        broken += summary.broken().len();
    }
    ExitCode::from(u8::from(broken > 0))
}
