//! Stories of membership: who takes part, who is lost, who comes back.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::story::{SECOND, join, name, phase, rank_event, reason, tell, two_workers, with};
use cluster::{Cluster, patient, spec};
use mcl_coordinator_core::{FailureKind, Outcome, Phase, RankSaid, Reason, Settings, ToWorker, WorkerState};
use mcl_types::{Generation, LaneLayout, Rank};

#[test]
fn two_workers_train_to_the_end() {
    let mut cluster = two_workers(4, 20);
    assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
    assert_eq!((cluster.commits, cluster.rolled_back), (20, 0));
    assert!(cluster.visible.iter().eq(&[5, 10, 15, 20]));
    cluster.round();
    assert!(cluster.machines.values().all(|m| m.dismissed));
    let status = cluster.state.status(cluster.now);
    assert_eq!((status.phase, status.committed_steps, status.last_checkpoint), (Phase::Done, 20, Some(20)));
    let last = status.last_step.unwrap();
    // Lanes 0..4 report losses (lane, 1): mean 2.5.
    assert_eq!((last.loss, last.workers, last.images_per_s), (Some(2.5), 2, 16.0));
}

#[test]
fn a_job_waits_for_min_workers_and_says_so() {
    let mut job = spec(4, 10, 8);
    job.min_workers = 2;
    let mut cluster = with(job, Settings::default(), &[1, 1]);
    assert_eq!(reason(&cluster), "0 of 2 workers");
    join(&mut cluster, "w1");
    assert_eq!((phase(&cluster), reason(&cluster)), (Phase::Waiting, "1 of 2 workers".to_owned()));
    join(&mut cluster, "w2");
    assert_eq!(phase(&cluster), Phase::Forming);
    assert_eq!(reason(&cluster), "generation 1: 0 of 2 ranks ready, waiting for rank 0 on w1, rank 1 on w2");
}

#[test]
fn expected_workers_are_waited_for_a_while() {
    let settings = Settings { expected_workers: Some(2), ..Settings::default() };
    let mut cluster = with(spec(4, 10, 8), settings.clone(), &[1, 1]);
    join(&mut cluster, "w2");
    assert!(matches!(
        cluster.state.phase(cluster.now).1,
        Reason::ExpectedWorkers { connected: 1, expected: 2, .. }
    ));
    join(&mut cluster, "w1");
    assert!(reason(&cluster).contains("0 of 2 ranks ready"));

    // Who does not come in time is not waited for.
    let mut cluster = with(spec(4, 10, 8), settings, &[1, 1]);
    join(&mut cluster, "w2");
    for _ in 0..11 {
        cluster.beat(&name("w2"));
        cluster.deliver_up(&name("w2"), 1);
        cluster.advance(SECOND);
    }
    assert!(reason(&cluster).contains("0 of 1 ranks ready"), "{}", reason(&cluster));
}

#[test]
fn max_lanes_per_rank_is_kept_and_the_wait_explained() {
    let mut job = spec(6, 10, 8);
    job.max_lanes_per_rank = Some(2);
    let mut cluster = with(job, Settings::default(), &[2, 1]);
    join(&mut cluster, "w1");
    assert_eq!(reason(&cluster), "2 devices cannot carry 6 lanes with max_lanes_per_rank 2: 3 are needed");
    join(&mut cluster, "w2");
    assert_eq!(phase(&cluster), Phase::Forming);
}

#[test]
fn ranks_are_dealt_in_name_order_and_the_rest_are_spares() {
    let mut cluster = with(spec(3, 10, 8), Settings::default(), &[2, 2]);
    cluster.round();
    // w1 alone formed generation 1 first; drain and look at the next one with all devices there.
    let ranks = |c: &Cluster| {
        c.machines.values().map(|m| m.ranks.keys().copied().collect()).collect::<Vec<Vec<u32>>>()
    };
    cluster.run_to(2);
    cluster.kill_rank(&name("w1"), 0);
    cluster.round();
    cluster.round();
    assert_eq!(
        ranks(&cluster),
        [vec![0, 1], vec![2]],
        "three lanes, four devices: w2's second one is a spare"
    );
}

#[test]
fn a_worker_silent_for_longer_than_lost_after_is_lost() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    let before = cluster.state.generation();
    let only_w1 = |cluster: &mut Cluster, seconds: u32| {
        for _ in 0..seconds {
            cluster.beat(&name("w1"));
            cluster.deliver_up(&name("w1"), 9);
            cluster.advance(SECOND);
        }
    };
    only_w1(&mut cluster, 9);
    assert_eq!(cluster.state.generation(), before);
    assert!(reason(&cluster).contains("w2 silent for 9."), "{}", reason(&cluster));
    only_w1(&mut cluster, 1);
    cluster.answer(false, false);
    assert_eq!(cluster.state.generation(), before.next(), "lost after 10 s, the next generation without it");
    assert!(cluster.warnings[0].contains("worker w2 was silent for 10."), "{:?}", cluster.warnings);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 20 }));
}

#[test]
fn a_worker_that_reconnects_within_its_generation_goes_on() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    let generation = cluster.state.generation();
    cluster.cut(&name("w2"), true);
    cluster.advance(SECOND * 5);
    assert_eq!(cluster.state.status(cluster.now).workers[1].state, WorkerState::Lost);
    assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
    assert_eq!((cluster.state.generation(), cluster.rolled_back), (generation, 0));
}

#[test]
fn a_daemon_that_comes_back_without_its_ranks_ends_the_generation() {
    for disk in [true, false] {
        let mut cluster = two_workers(4, 20);
        cluster.run_to(7);
        let generation = cluster.state.generation();
        cluster.kill_machine(&name("w2"), true, disk);
        join(&mut cluster, "w2");
        cluster.beat(&name("w2"));
        cluster.deliver_up(&name("w2"), 1);
        assert!(cluster.warnings[0].contains("w2 came back without its ranks"), "{:?}", cluster.warnings);
        cluster.round();
        assert_eq!(cluster.state.generation(), generation.next());
        assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
    }
}

#[test]
fn words_from_older_generations_and_from_other_workers_change_nothing() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(3);
    cluster.kill_rank(&name("w1"), 0);
    cluster.run_to(3);
    cluster.run_to(4);
    let generation = cluster.state.generation().get();
    let before = cluster.state.clone();
    let layout = LaneLayout::new(4, 2).unwrap();
    let step = cluster.ledger.len() as u64;
    let report = cluster::machine::report(&cluster.spec, layout, Rank::new(0), step);
    let stale = |said: RankSaid| rank_event(generation - 1, 0, said);
    let words = [
        stale(RankSaid::Step(report)),
        stale(RankSaid::Staged { step: 5, slices: 2 }),
        stale(RankSaid::Drained { step: 5 }),
        stale(RankSaid::Finished),
        stale(RankSaid::Exited { status: "exit status 0".to_owned(), last_words: String::new() }),
        stale(RankSaid::Failed { kind: FailureKind::Fatal, message: "too late".to_owned(), step: None }),
        rank_event(generation, 1, RankSaid::Finished), // Rank 1 is not w1's.
        rank_event(generation + 1, 0, RankSaid::Finished),
        rank_event(generation, 7, RankSaid::Finished),
    ];
    for word in words {
        tell(&mut cluster, "w1", word);
        assert_eq!(cluster.state, before);
    }
}

#[test]
fn a_daemon_that_restarts_while_a_generation_forms_is_waited_for_again() {
    let mut cluster = two_workers(4, 20);
    join(&mut cluster, "w1");
    join(&mut cluster, "w2");
    cluster.deliver_down(&name("w1"), 9);
    cluster.deliver_down(&name("w2"), 9);
    let ready = |cluster: &mut Cluster, worker: &str| {
        cluster.act(&name(worker));
        cluster.beat(&name(worker));
        cluster.deliver_up(&name(worker), 9);
    };
    ready(&mut cluster, "w1");
    assert!(reason(&cluster).contains("1 of 2 ranks ready"));
    cluster.kill_machine(&name("w1"), true, false);
    join(&mut cluster, "w1");
    ready(&mut cluster, "w2");
    assert_eq!(reason(&cluster), "generation 1: 1 of 2 ranks ready, waiting for rank 0 on w1");
    cluster.deliver_down(&name("w1"), 9);
    ready(&mut cluster, "w1");
    assert_eq!(phase(&cluster), Phase::Training);
}

#[test]
fn spare_devices_are_taken_in_without_losing_a_step() {
    let mut cluster = with(spec(4, 200, 50), Settings::default(), &[1]);
    cluster.run_to(7);
    cluster.add("w2", 1);
    cluster.run_to(199);
    let Reason::Training { ranks, generation, .. } = cluster.state.phase(cluster.now).1 else { panic!() };
    assert_eq!((ranks, generation, cluster.rolled_back), (2, Generation::new(2), 0));
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 200 }));
}

#[test]
fn grants_run_ahead_of_need() {
    let mut cluster = with(spec(2, 20, 4), patient(), &[1]);
    join(&mut cluster, "w1");
    let session = cluster.machines[&name("w1")].session.unwrap();
    let mut granted = Vec::new();
    for _ in 0..60 {
        for message in &cluster.down[&session] {
            if let ToWorker::Grant { epoch, steps, lanes, .. } = message {
                assert_eq!(*lanes, 0..2);
                granted.push((*epoch, *steps, cluster.ledger.len()));
            }
        }
        if cluster.over.is_some() {
            break;
        }
        cluster.deliver_down(&name("w1"), usize::MAX);
        cluster.act(&name("w1"));
        cluster.beat(&name("w1"));
        cluster.deliver_up(&name("w1"), usize::MAX);
        while !cluster.service.is_empty() {
            cluster.answer(false, false);
        }
    }
    let epochs: Vec<u64> = granted.iter().map(|(e, _, _)| *e).collect();
    assert_eq!(epochs, [0, 1, 2, 3, 4], "each once");
    assert!(granted.iter().all(|(epoch, _, at)| *at as u64 <= epoch.saturating_sub(1) * 4), "{granted:?}");
}
