//! Chaos: a real cluster on this machine, a seeded schedule of faults, and what was promised about it.
//!
//! `schedule` says what happens (pure, by seed), `arena` does it to processes, networks and disks, `campaign` is the
//! one loop over both, `recovery`, `resources` and `verdict` say what came of it. Everything is measured from
//! outside: files, `mcl status`, `/proc`.
//!
//! Left out: faults inside a process other than the failpoints that ranks have; clocks that jump.

mod arena;
mod campaign;
mod disk;
mod family;
mod ongoing;
mod recovery;
mod relay;
mod resources;
mod schedule;
mod verdict;

pub use campaign::{Settings, run};
pub use family::Family;
pub use verdict::Summary;

use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C: the campaign stops, and everything it made is taken away.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM end the campaign in order.
pub fn watch_for_interrupts() {
    use tokio::signal::unix::{SignalKind, signal};
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).unwrap();
            let mut terminate = signal(SignalKind::terminate()).unwrap();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::SeqCst);
        });
    });
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
