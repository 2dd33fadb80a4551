//! A cluster that trains while hostile connections besiege its coordinator, and what that costs.

use crate::Sandbox;
use crate::cluster::{Cluster, RUN, status_with};
use crate::hostile::{Arms, Fared, Kind, attack, make_certs, refused_in};
use crate::processes;
use crate::watch::MetricsWatch;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// More than a siege takes: the job is drained.
const ENDLESS: &str = "train.steps=1000000";

/// What is seen of the coordinator while it is besieged.
#[derive(Debug, Default)]
struct Seen {
    peak_kib: u64,
    /// What an operator's `mcl status` took, in seconds.
    answers: Vec<f64>,
    unanswered: u64,
}

/// Besieges a coordinator with so many connections, holds them for a while, lets go; what was seen. That training is
/// unharmed and that each kind was refused and counted is asserted.
pub fn besiege(sandbox: &Sandbox, count: usize, hold: Duration) -> Value {
    let certs = sandbox.path("certs");
    std::fs::create_dir_all(&certs).unwrap();
    make_certs(&certs);
    let mut cluster = Cluster::new(sandbox, "siege");
    cluster.certs = Some(certs.clone());
    cluster.start_services();
    ["a", "b"].iter().for_each(|name| cluster.start_worker(name));
    cluster.submit(sandbox, &[ENDLESS, "checkpoint.every_steps=100"]);
    cluster.until_workers(2);
    let mut steps = MetricsWatch::new(&cluster.run_dir);
    steps.look();
    let (begun, generation) = (steps.committed(), steps.last().unwrap().generation);
    let pid = cluster.coordinator.as_ref().unwrap().pid();
    let memory = || processes::resident_bytes(pid).unwrap_or(0) >> 10;
    let before = memory();
    let started = Instant::now();
    let (seen, fared, opened) = look_on(&cluster, count, hold, pid);
    let lasted = started.elapsed();
    let after = settled(&memory);
    steps.look();
    let during = steps.committed().saturating_sub(begun);
    // It goes on where it was: the same generation, nothing taken back.
    cluster.until_committed(steps.committed() + 5);
    steps.look();
    assert!(during > 0, "no step in {lasted:?}");
    assert_eq!(steps.last().unwrap().generation, generation, "the generation goes on");
    assert_eq!(steps.withdrawals(), 0);
    drain(sandbox, &mut cluster);
    let report = sandbox.exact_ledger(&cluster.run_dir.display().to_string());
    assert_eq!(report["rolled_back"], 0, "{report}");
    let refused = refused_in(&cluster.said("coordinator"));
    for (kind, name) in Kind::ALL {
        assert!(refused.contains_key(name), "{kind:?} was not counted: {refused:?}");
    }
    assert_eq!(seen.unanswered, 0, "the operator was not answered: {seen:?}");
    let slowest = seen.answers.iter().copied().fold(0.0, f64::max);
    json!({
        "connections": count, "attacked": fared.attacked, "turned_away": fared.turned_away,
        "opening_s": opened.as_secs_f64(), "lasted_s": lasted.as_secs_f64(),
        "memory_kib": { "before": before, "peak": seen.peak_kib, "after": after },
        "steps_meanwhile": during, "operator_asked": seen.answers.len(), "slowest_answer_s": slowest,
        "refused": refused,
    })
}

/// Attacks, and looks at the coordinator meanwhile.
fn look_on(
    cluster: &Cluster,
    count: usize,
    hold: Duration,
    pid: processes::ProcessId,
) -> (Seen, Fared, Duration) {
    let over = Arc::new(AtomicBool::new(false));
    let asker = {
        let (over, url, tls) = (Arc::clone(&over), cluster.url(), cluster.tls("operator"));
        std::thread::spawn(move || {
            let (mut answers, mut unanswered) = (Vec::new(), 0);
            while !over.load(Ordering::SeqCst) {
                let asked = Instant::now();
                match status_with(&url, &tls).is_some_and(|s| s["run"] == RUN) {
                    true => answers.push(asked.elapsed().as_secs_f64()),
                    false => unanswered += 1,
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            (answers, unanswered)
        })
    };
    let sampler = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut peak = 0;
            while !over.load(Ordering::SeqCst) {
                peak = peak.max(processes::resident_bytes(pid).unwrap_or(0) >> 10);
                std::thread::sleep(LOOK);
            }
            peak
        })
    };
    let arms = Arc::new(Arms::load(cluster.certs.as_ref().unwrap()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (fared, opened) = runtime.block_on(async {
        let (ready, mut is_ready) = watch::channel(false);
        let (release, released) = watch::channel(false);
        let began = Instant::now();
        let attacking = tokio::spawn(attack(cluster.coordinator_address, arms, count, ready, released));
        is_ready.wait_for(|ready| *ready).await.unwrap();
        let opened = began.elapsed();
        tokio::time::sleep(hold).await;
        release.send_replace(true);
        (attacking.await.unwrap(), opened)
    });
    over.store(true, Ordering::SeqCst);
    let (answers, unanswered) = asker.join().unwrap();
    (Seen { peak_kib: sampler.join().unwrap(), answers, unanswered }, fared, opened)
}

/// Memory once it no longer shrinks.
fn settled(memory: &impl Fn() -> u64) -> u64 {
    let (begun, mut last) = (Instant::now(), memory());
    while begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_secs(3));
        let now = memory();
        if now + 256 >= last {
            return now;
        }
        last = now;
    }
    last
}

fn drain(sandbox: &Sandbox, cluster: &mut Cluster) {
    let (url, tls) = (cluster.url(), cluster.tls("operator"));
    let arguments =
        [&["drain", "--coordinator", &url][..], &tls.iter().map(String::as_str).collect::<Vec<_>>()];
    sandbox.ok(&arguments.concat());
    let mut coordinator = cluster.coordinator.take().unwrap();
    assert!(coordinator.wait(PATIENCE).is_some(), "the coordinator does not leave");
}

/// Lets this process hold so many connections.
pub fn allow_connections() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
