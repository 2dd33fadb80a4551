//! The page of one cluster: what is known of it, kept current as long as anyone wants to know.
//!
//! Invariants: the cluster is asked for a snapshot at most once a second, however many look on, and not at all while
//! nobody does; rows are taken in as they are committed; nobody who looks on can hold up who commits them.

use crate::access::Refused;
use crate::charts;
use crate::live::Live;
use crate::metrics::{self, Own};
use crate::model::{Cluster, Ending, Snapshot};
use crate::process;
use crate::rate::{Rate, Rates};
use crate::sheet::{Ask, Desk};
use crate::state::{Besides, State, compose};
use futures::Stream;
use mcl_history::{Bucket, Chronicle, Happening, Told, What};
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How often viewers are told, and how old a snapshot may be.
const TICK: Duration = Duration::from_secs(1);
/// How long the cluster may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Requests of one address.
const REQUESTS: Rate = Rate { per_second: 50.0, burst: 300.0 };
/// Wrong tokens of one address.
const WRONG_TOKENS: Rate = Rate { per_second: 0.2, burst: 5.0 };

/// How a page is served.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Who shows what is in this file may act; none: nobody may.
    pub token_file: Option<PathBuf>,
    /// It listens on a loopback address: it answers to loopback names alone.
    pub loopback: bool,
}

/// See the module. Cheap to clone.
#[derive(Debug)]
pub struct Page<C> {
    inner: Arc<Inner<C>>,
}

impl<C> Clone for Page<C> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<C> {
    cluster: C,
    config: Config,
    started: Instant,
    chronicle: Chronicle,
    /// Rows since viewers were told last.
    fresh: Mutex<Option<Bucket>>,
    desk: Mutex<Desk>,
    live: Arc<Live>,
    newest: tokio::sync::Mutex<Newest>,
    requests: Mutex<Rates>,
    wrong_tokens: Mutex<Rates>,
    answered: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
}

/// The newest snapshot.
#[derive(Debug, Default)]
struct Newest {
    at: Option<Instant>,
    answered: bool,
    snapshot: Option<Arc<Snapshot>>,
    /// It is the last one.
    over: bool,
}

impl<C: Cluster> Page<C> {
    /// Of a cluster, and of what happens in it.
    pub fn new(cluster: C, chronicle: Chronicle, config: Config) -> Self {
        let inner = Inner {
            cluster,
            config,
            started: Instant::now(),
            chronicle,
            fresh: Mutex::default(),
            desk: Mutex::default(),
            live: Arc::new(Live::new()),
            newest: tokio::sync::Mutex::default(),
            requests: Mutex::new(Rates::new(REQUESTS)),
            wrong_tokens: Mutex::new(Rates::new(WRONG_TOKENS)),
            answered: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Refused::ALL.len()],
        };
        Self { inner: Arc::new(inner) }
    }

    /// Keeps its chronicle, until what happens ends.
    pub async fn follow(&self, told: impl Stream<Item = Told> + Send) {
        self.inner.chronicle.follow(told, |happening| self.hear(happening)).await;
    }

    /// Tells viewers what is new, as long as there are some, for ever.
    pub async fn tick(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.inner.live.viewers() > 0 {
                self.renew().await;
            }
        }
    }

    /// The cluster ends: viewers are told how, and nothing is asked of it any more.
    pub async fn end(&self, ending: Ending) {
        {
            let mut newest = self.inner.newest.lock().await;
            let mut last = newest.snapshot.as_ref().map(|s| s.as_ref().clone()).unwrap_or_default();
            let Ending { phase, reason, committed, last_checkpoint } = ending;
            (last.phase, last.reason, last.held) = (phase, reason, false);
            (last.committed, last.last_checkpoint) = (committed, last_checkpoint);
            *newest = Newest { snapshot: Some(Arc::new(last)), over: true, ..Newest::default() };
        }
        self.renew().await;
    }

    /// The document, not older than a tick.
    pub(crate) async fn renew(&self) {
        let Some((snapshot, _)) = self.snapshot().await else { return };
        let document = serde_json::to_value(self.state(&snapshot)).unwrap_or(Value::Null);
        let revision = self.inner.chronicle.record().revision;
        let fresh = lock(&self.inner.fresh).take();
        self.inner.live.publish(document, fresh.map(|bucket| charts::point(&bucket, revision)));
    }

    /// The newest snapshot, and whether the cluster answered when it was asked last.
    pub(crate) async fn snapshot(&self) -> Option<(Arc<Snapshot>, bool)> {
        let mut newest = self.inner.newest.lock().await;
        if !newest.over && newest.at.is_none_or(|at| at.elapsed() >= TICK) {
            let answer = tokio::time::timeout(ANSWER, self.inner.cluster.snapshot()).await.ok().flatten();
            newest.answered = answer.is_some();
            newest.snapshot = answer.map(Arc::new).or(newest.snapshot.take());
            newest.at = Some(Instant::now());
        }
        let answered = newest.answered;
        newest.snapshot.clone().map(|s| (s, answered))
    }

    pub(crate) fn state(&self, snapshot: &Snapshot) -> State {
        let besides = Besides {
            sheet: lock(&self.inner.desk).state(snapshot.run.as_deref()),
            actions: self.inner.config.token_file.is_some(),
            reading: self.inner.chronicle.is_reading(),
        };
        compose(snapshot, &self.inner.chronicle.record(), besides, now())
    }

    pub(crate) fn history(&self, query: charts::Query) -> Value {
        charts::history(&self.inner.chronicle.record(), query)
    }

    pub(crate) async fn metrics(&self) -> String {
        let snapshot = self.snapshot().await.filter(|(_, answered)| *answered);
        let own = Own {
            viewers: self.inner.live.viewers(),
            requests: self.inner.answered.load(Ordering::Relaxed),
            refused: self.inner.refused.each_ref().map(|count| count.load(Ordering::Relaxed)),
            cpu_s: process::cpu_seconds(),
            memory: process::resident_bytes(),
        };
        metrics::text(snapshot.as_ref().map(|(s, _)| s.as_ref()), &self.inner.chronicle.record(), &own)
    }

    /// The newest sheet, where there is one; a newer one is drawn in the background.
    pub(crate) async fn sheet(&self) -> Option<(u64, bytes::Bytes)> {
        let run = self.snapshot().await?.0.run.clone()?;
        let newest = self.inner.chronicle.record().history.last().map(|row| row.step);
        let (ask, sheet) = {
            let mut desk = lock(&self.inner.desk);
            (desk.ask(&run, newest, now()), desk.sheet(&run))
        };
        if let Ask::Draw(step) = ask {
            let page = self.clone();
            tokio::spawn(async move {
                let drawn = page.inner.cluster.draw(step).await;
                if let Err(reason) = &drawn {
                    tracing::warn!(step, reason, "montage sheet");
                }
                lock(&page.inner.desk).drawn(&run, step, drawn, now());
            });
        }
        sheet
    }

    pub(crate) fn cluster(&self) -> &C {
        &self.inner.cluster
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.inner.live
    }

    pub(crate) fn count_answer(&self) {
        self.inner.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refusal(&self, why: Refused) {
        let at = Refused::ALL.iter().position(|r| *r == why);
        if let Some(count) = at.and_then(|at| self.inner.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether an address may make another request.
    pub(crate) fn may_request(&self, from: IpAddr) -> bool {
        lock(&self.inner.requests).take(from, self.inner.started.elapsed())
    }

    /// Whether an address may try a token.
    pub(crate) fn may_try(&self, from: IpAddr) -> bool {
        lock(&self.inner.wrong_tokens).has_one(from, self.inner.started.elapsed())
    }

    pub(crate) fn was_wrong(&self, from: IpAddr) {
        lock(&self.inner.wrong_tokens).take(from, self.inner.started.elapsed());
    }

    fn hear(&self, happening: &Happening) {
        let mut fresh = lock(&self.inner.fresh);
        match &happening.what {
            What::Committed(row) => match fresh.as_mut() {
                Some(fresh) => fresh.join(&Bucket::of(row)),
                None => *fresh = Some(Bucket::of(row)),
            },
            What::Began { .. } | What::RolledBack { .. } => *fresh = None,
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
