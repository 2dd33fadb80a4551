//! What agents count together.

use crate::report::{Errors, Latency};
use hdrhistogram::Histogram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Longest time that is told apart, in microseconds.
const LONGEST: u64 = 600_000_000;

/// Shared by all agents of a point; they live on one thread, so the lock is never waited for.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tally: Mutex<Tally>,
    changed: Notify,
}

/// A span of time in which heartbeats count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

/// The clock that all ranks take their steps by.
#[derive(Debug, Clone, Copy)]
struct StepClock {
    origin: Instant,
    first: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tally {
    began: Instant,
    agents: u32,
    /// Ranks that a generation must have to count as formed.
    world: u32,
    steps_per_second: f64,
    clock: Option<StepClock>,
    window: Option<Window>,
    latency: Histogram<u64>,
    lateness: Histogram<u64>,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Streams that are open and welcome.
    pub(crate) connected: u32,
    pub(crate) welcomed: u32,
    pub(crate) all_welcomed: Option<Duration>,
    started: (u64, u32),
    pub(crate) formed: Option<Duration>,
    pub(crate) formed_ranks: u32,
    pub(crate) generations: u32,
    pub(crate) waited_for_grants: u64,
    pub(crate) interval: Option<Duration>,
    pub(crate) errors: Errors,
}

impl Shared {
    pub(crate) fn new(agents: u32, world: u32, steps_per_second: f64) -> Option<Self> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST, 3).ok();
        let tally = Tally {
            began: Instant::now(),
            agents,
            world,
            steps_per_second,
            clock: None,
            window: None,
            latency: histogram()?,
            lateness: histogram()?,
            sent: 0,
            answered: 0,
            connected: 0,
            welcomed: 0,
            all_welcomed: None,
            started: (0, 0),
            formed: None,
            formed_ranks: 0,
            generations: 0,
            waited_for_grants: 0,
            interval: None,
            errors: Errors::default(),
        };
        Some(Self { inner: Arc::new(Inner { tally: Mutex::new(tally), changed: Notify::new() }) })
    }

    /// Looks at the tally, or changes it; wakes whoever waits where `change` says so.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Tally) -> T) -> T {
        look(&mut self.inner.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn note(&self, change: impl FnOnce(&mut Tally) -> bool) {
        if self.with(change) {
            self.inner.changed.notify_one();
        }
    }

    /// Until it holds, but no longer than `patience`.
    pub(crate) async fn until(&self, patience: Duration, holds: impl Fn(&Tally) -> bool) {
        let waiting = async {
            while !self.with(|tally| holds(tally)) {
                self.inner.changed.notified().await;
            }
        };
        // What has not come about by then is in the numbers.
        let _ = tokio::time::timeout(patience, waiting).await;
    }
}

impl Tally {
    /// A worker's first welcome; true once all have one.
    pub(crate) fn welcome(&mut self, interval: Duration, first: bool) -> bool {
        self.interval = Some(interval);
        self.connected += 1;
        self.welcomed += u32::from(first);
        if self.welcomed < self.agents || self.all_welcomed.is_some() {
            return false;
        }
        self.all_welcomed = Some(self.began.elapsed());
        true
    }

    /// Ranks were started; true once all of a large enough generation are.
    pub(crate) fn start(&mut self, generation: u64, world: u32, ranks: u32, first_step: u64) -> bool {
        if generation > self.started.0 {
            self.started = (generation, 0);
        }
        if generation < self.started.0 {
            return false;
        }
        self.started.1 += ranks;
        if self.started.1 != world {
            return false;
        }
        self.generations += 1;
        self.formed_ranks = world;
        if world < self.world {
            return false;
        }
        self.formed.get_or_insert(self.began.elapsed());
        self.clock.get_or_insert(StepClock { origin: Instant::now(), first: first_step });
        true
    }

    /// Steps of the run that are over by the clock.
    pub(crate) fn steps(&self, now: Instant) -> u64 {
        let Some(clock) = self.clock else { return 0 };
        let seconds = now.saturating_duration_since(clock.origin).as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let taken = (seconds * self.steps_per_second) as u64;
        clock.first + taken
    }

    pub(crate) const fn measure(&mut self, window: Window) {
        self.window = Some(window);
    }

    /// A heartbeat goes out, `late` after it was due where it was; whether it counts.
    pub(crate) fn send(&mut self, now: Instant, late: Option<Duration>, ungranted: bool) -> bool {
        let counts = self.window.is_some_and(|w| w.from <= now && now < w.until);
        if counts {
            self.sent += 1;
            self.waited_for_grants += u64::from(ungranted);
            if let Some(late) = late {
                self.lateness.saturating_record(micros(late));
            }
        }
        counts
    }

    /// A heartbeat that counts was answered; true once all are.
    pub(crate) fn answer(&mut self, after: Duration) -> bool {
        self.answered += 1;
        self.latency.saturating_record(micros(after));
        self.answered == self.sent
    }

    /// From send to answer.
    pub(crate) fn latency(&self) -> Latency {
        spread(&self.latency)
    }

    /// From due to send: the generator's own.
    pub(crate) fn lateness(&self) -> Latency {
        spread(&self.lateness)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(LONGEST).max(1)
}

#[expect(clippy::cast_precision_loss, reason = "times of minutes")]
fn spread(times: &Histogram<u64>) -> Latency {
    let ms = |us: u64| us as f64 / 1000.0;
    Latency {
        p50_ms: ms(times.value_at_quantile(0.5)),
        p90_ms: ms(times.value_at_quantile(0.9)),
        p99_ms: ms(times.value_at_quantile(0.99)),
        max_ms: ms(times.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_generation_counts_once_all_its_ranks_are_started() {
        let shared = Shared::new(2, 4, 2.0).unwrap();
        shared.with(|t| {
            assert!(!t.start(1, 2, 2, 0), "too small, though complete");
            assert!(!t.start(2, 4, 3, 8));
            assert!(!t.start(1, 2, 1, 0), "an older one");
            assert_eq!((t.formed, t.steps(Instant::now())), (None, 0));
            assert!(t.start(2, 4, 1, 8));
            assert_eq!((t.generations, t.formed_ranks), (2, 4));
        });
        tokio::time::advance(Duration::from_millis(1600)).await;
        assert_eq!(shared.with(|t| t.steps(Instant::now())), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_sent_in_the_window_counts() {
        let shared = Shared::new(1, 1, 0.0).unwrap();
        let from = Instant::now() + Duration::from_secs(1);
        let late = Some(Duration::from_millis(3));
        shared.with(|t| t.measure(Window { from, until: from + Duration::from_secs(1) }));
        assert!(!shared.with(|t| t.send(Instant::now(), late, false)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(shared.with(|t| t.send(Instant::now(), late, true)));
        assert!(shared.with(|t| t.answer(Duration::from_millis(20))));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!shared.with(|t| t.send(Instant::now(), None, false)));
        shared.with(|t| {
            assert_eq!((t.sent, t.answered, t.waited_for_grants), (1, 1, 1));
            assert!((t.latency().max_ms - 20.0).abs() < 0.1);
            assert!((t.lateness().p50_ms - 3.0).abs() < 0.1);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_last_welcome_or_with_patience() {
        let shared = Shared::new(2, 2, 1.0).unwrap();
        let interval = Duration::from_millis(500);
        shared.note(|t| t.welcome(interval, true));
        shared.note(|t| t.welcome(interval, false));
        let start = Instant::now();
        shared.until(Duration::from_secs(9), |t| t.all_welcomed.is_some()).await;
        assert_eq!(start.elapsed(), Duration::from_secs(9));
        shared.note(|t| t.welcome(interval, true));
        shared.until(Duration::from_secs(9), |t| t.all_welcomed.is_some()).await;
        assert_eq!(start.elapsed(), Duration::from_secs(9));
        assert_eq!(shared.with(|t| (t.welcomed, t.connected)), (2, 3));
    }
}
