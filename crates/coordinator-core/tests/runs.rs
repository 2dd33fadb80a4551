//! Runs one after the other, and runs that begin with a given state.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::story::{failed, name, two_workers, with};
use cluster::{Cluster, spec};
use mcl_coordinator_core::{Event, JobSpec, Origin, Outcome, PastRun, Settings};
use mcl_types::{Digest, RunId};

fn submit(cluster: &mut Cluster, spec: JobSpec, past: Option<PastRun>) -> Result<u64, String> {
    cluster.apply(Event::Submit { request: 2, spec, past: past.map(Box::new) });
    cluster.answers.pop().unwrap()
}

fn other(spec: &JobSpec) -> JobSpec {
    JobSpec { run_id: RunId::new("other").unwrap(), ..spec.clone() }
}

fn many(steps: u64) -> Cluster {
    with(spec(4, steps, 8), Settings { many_runs: true, ..Settings::default() }, &[1, 1])
}

#[test]
fn another_run_follows_with_the_same_workers_and_higher_generations() {
    let mut cluster = many(6);
    cluster.run(200);
    assert_eq!(cluster.over, Some(Outcome::Done { steps: 6 }));
    let before = cluster.state.generation();
    let next = other(&cluster.spec);
    assert_eq!(submit(&mut cluster, next, None), Ok(0));
    cluster.run(400);
    assert_eq!(cluster.over, Some(Outcome::Done { steps: 6 }));
    assert!(cluster.state.generation() > before);
    assert_eq!(cluster.origins.last(), Some(&Origin::Seed));
}

#[test]
fn a_cancelled_run_is_followed_at_once() {
    let mut cluster = many(40);
    cluster.run_to(5);
    cluster.apply(Event::Cancel);
    let next = other(&cluster.spec);
    assert_eq!(submit(&mut cluster, next, None), Ok(0));
    cluster.run(800);
    assert_eq!(cluster.over, Some(Outcome::Done { steps: 40 }));
    assert_eq!(cluster.origins.last(), Some(&Origin::Seed), "no state of the other run is taken");
}

#[test]
fn an_earlier_run_is_judged_by_what_is_on_record_of_it() {
    let mut cluster = many(6);
    cluster.run(200);
    let old = other(&cluster.spec);
    let past = |change: fn(&mut PastRun)| {
        let mut past = PastRun { spec: old.clone(), committed: 4, last_checkpoint: Some(4), fresh: false };
        change(&mut past);
        Some(past)
    };
    let error =
        submit(&mut cluster, old.clone(), past(|p| p.spec.job_digest = Digest::of(b"x"))).unwrap_err();
    assert!(error.contains("steps of another job"), "{error}");
    let error = submit(&mut cluster, old.clone(), past(|p| p.committed = 7)).unwrap_err();
    assert!(error.contains("now ends after 6"), "{error}");
    assert_eq!(cluster.state.outcome(), Some(&Outcome::Done { steps: 6 }), "nothing was begun");
}

/// A run that is to begin with a checkpoint of step 0.
fn given() -> Cluster {
    let job = JobSpec { initial: Some(Digest::of(b"weights")), ..spec(4, 20, 8) };
    with(job, Settings::default(), &[1, 1])
}

#[test]
fn a_given_state_is_where_a_run_begins_and_goes_back_to() {
    let mut cluster = given();
    cluster.visible.insert(0);
    cluster.contents.insert(0, Vec::new());
    cluster.run_to(3);
    assert_eq!(cluster.origins, [Origin::Checkpoint(0)]);
    for worker in ["w1", "w2"] {
        cluster.kill_rank(&name(worker), 0);
    }
    cluster.run(600);
    assert_eq!(cluster.origins[1], Origin::Checkpoint(0), "not the seed: {:?}", cluster.origins);
    assert_eq!(cluster.over, Some(Outcome::Done { steps: 20 }));
}

#[test]
fn without_the_given_state_nothing_begins() {
    let mut cluster = given();
    cluster.run(100);
    assert!(failed(&cluster).contains("submit it again with --from"), "{}", failed(&cluster));
    assert!(cluster.origins.is_empty());
}

#[test]
fn a_run_of_its_seed_takes_no_state_of_step_zero() {
    let mut cluster = two_workers(4, 20);
    cluster.visible.insert(0);
    cluster.run_to(3);
    for worker in ["w1", "w2"] {
        cluster.kill_rank(&name(worker), 0);
    }
    cluster.run(600);
    assert_eq!(cluster.origins[1], Origin::Seed, "{:?}", cluster.origins);
}

#[test]
fn a_run_keeps_the_state_that_it_began_with() {
    let mut cluster = given();
    cluster.visible.insert(0);
    cluster.contents.insert(0, Vec::new());
    cluster.run_to(3);
    let spec = cluster.spec.clone();
    let changed = JobSpec { initial: Some(Digest::of(b"others")), ..spec.clone() };
    let error = submit(&mut cluster, changed.clone(), None).unwrap_err();
    assert!(error.contains("began with the state"), "{error}");
    assert!(submit(&mut cluster, JobSpec { initial: None, ..spec.clone() }, None).is_ok());
    cluster.apply(Event::Drain);
    cluster.run(100);
    assert!(submit(&mut cluster, changed, None).unwrap_err().contains("began with the state"));
    assert!(
        submit(&mut cluster, JobSpec { initial: None, ..spec }, None).is_ok(),
        "continued without --from"
    );
    cluster.restart_coordinator(false);
    cluster.run(600);
    assert_eq!(cluster.over, Some(Outcome::Done { steps: 20 }));
}
