//! Stories of membership: who takes part, who is lost, who comes back.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::story::{SECOND, come, join, name, phase, rank_event, reason, tell, turn, two_workers, with};
use cluster::{Cluster, patient, report_of, spec};
use mcl_coordinator_core::{
    FailureKind, Origin, Outcome, Phase, RankSaid, Reason, Settings, ToWorker, WorkerState,
};
use mcl_types::{Generation, Rank, Tier};

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
    assert_eq!(reason(&cluster), "0 of 2 workers ready");
    join(&mut cluster, "w1");
    let waits = "0 of 2 workers ready, 1 connected, cuda:0 of w1 on its way";
    assert_eq!((phase(&cluster), reason(&cluster)), (Phase::Waiting, waits.to_owned()));
    turn(&mut cluster, "w1");
    assert_eq!(reason(&cluster), "1 of 2 workers ready");
    come(&mut cluster, "w2");
    assert_eq!(phase(&cluster), Phase::Forming);
    assert_eq!(reason(&cluster), "generation 1: 0 of 2 ranks ready, waiting for rank 0 on w1, rank 1 on w2");
}

#[test]
fn expected_workers_are_waited_for_a_while() {
    let settings = Settings { expected_workers: Some(2), ..Settings::default() };
    let mut cluster = with(spec(4, 10, 8), settings.clone(), &[1, 1]);
    come(&mut cluster, "w2");
    assert!(matches!(
        cluster.state.phase(cluster.now).1,
        Reason::ExpectedWorkers { connected: 1, expected: 2, .. }
    ));
    join(&mut cluster, "w1");
    assert_eq!(
        reason(&cluster),
        "processes start, cuda:0 of w1 on its way",
        "nobody is left behind at the start"
    );
    turn(&mut cluster, "w1");
    assert!(reason(&cluster).contains("0 of 2 ranks ready"));

    // Who does not come in time is not waited for.
    let mut cluster = with(spec(4, 10, 8), settings, &[1, 1]);
    come(&mut cluster, "w2");
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
    come(&mut cluster, "w1");
    assert_eq!(reason(&cluster), "2 devices cannot carry 6 lanes with max_lanes_per_rank 2: 3 are needed");
    come(&mut cluster, "w2");
    assert_eq!(phase(&cluster), Phase::Forming);
}

#[test]
fn ranks_are_dealt_in_name_order_and_the_rest_are_spares() {
    let mut cluster =
        with(spec(3, 40, 8), Settings { expected_workers: Some(2), ..Settings::default() }, &[2, 2]);
    let ranks = |c: &Cluster| {
        c.machines.values().map(|m| m.ranks().keys().copied().collect()).collect::<Vec<Vec<u32>>>()
    };
    cluster.run_to(2);
    assert_eq!(
        ranks(&cluster),
        [vec![0, 1], vec![2]],
        "three lanes, four devices: w2's second one is a spare"
    );
    // The spare takes the place of one that dies, and the state comes from who has it.
    cluster.kill_rank(&name("w1"), 0);
    cluster.beat(&name("w1"));
    cluster.deliver_up(&name("w1"), 9);
    assert!(reason(&cluster).contains("0 of 3 ranks ready"), "{}", reason(&cluster));
    cluster.deliver_down(&name("w1"), 9);
    cluster.deliver_down(&name("w2"), 9);
    assert_eq!(ranks(&cluster), [vec![0], vec![1, 2]]);
    cluster.run_to(6);
    assert!(matches!(cluster.origins[1], Origin::Rank(_)), "{:?}", cluster.origins);
    assert_eq!(cluster.rolled_back, 0);
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
    assert_eq!(cluster.state.generation(), before.next(), "lost after 10 s, the next generation without it");
    assert!(cluster.warnings[0].contains("worker w2 was silent for 10."), "{:?}", cluster.warnings);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 20 }));
}

#[test]
fn a_coordinator_that_was_stopped_itself_blames_nobody() {
    let mut cluster = two_workers(4, 40);
    cluster.run_to(7);
    let generation = cluster.state.generation();
    let asleep = SECOND * 30;
    cluster.now += asleep;
    cluster.apply(mcl_coordinator_core::Event::HeldUp { by: asleep });
    cluster.advance(SECOND / 10);
    assert_eq!(cluster.state.generation(), generation);
    cluster.advance(SECOND * 11);
    assert!(cluster.warnings[0].contains("was silent for 11."), "{:?}", cluster.warnings);
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
        assert!(cluster.warnings[0].contains("w2 came back without its ranks"), "{:?}", cluster.warnings);
        assert_eq!(cluster.state.generation(), generation.next(), "w1 goes on at once");
        assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
        assert_eq!(cluster.rolled_back, 0);
    }
}

#[test]
fn words_from_older_generations_and_from_other_workers_change_nothing() {
    let mut cluster = two_workers(4, 40);
    cluster.run_to(3);
    cluster.kill_rank(&name("w1"), 0);
    cluster.run_to(8);
    let generation = cluster.state.generation().get();
    let before = cluster.state.clone();
    let step = cluster.ledger.len() as u64;
    let report = report_of(&cluster.spec, 0..2, step);
    let say = |g: u64, r: u32, said: RankSaid| rank_event(&cluster, g, r, said);
    let of_another_process = |said: RankSaid| {
        let mut event = say(generation, 0, said);
        event.process = mcl_coordinator_core::ProcessId(9_999);
        event
    };
    let exited = RankSaid::Exited { status: "exit status 0".to_owned(), last_words: String::new() };
    let words = [
        say(generation - 1, 0, RankSaid::Step(report)),
        say(generation - 1, 0, RankSaid::Staged { step: 5, slices: 2, tier: Tier::Durable }),
        say(generation - 1, 0, RankSaid::Drained { step: 5 }),
        say(generation - 1, 0, RankSaid::Finished),
        of_another_process(exited.clone()),
        of_another_process(RankSaid::Failed {
            kind: FailureKind::Fatal,
            message: "too late".to_owned(),
            step: None,
        }),
        say(generation, 1, RankSaid::Finished), // Rank 1 is not w1's.
        say(generation + 1, 0, RankSaid::Finished),
        say(generation, 7, RankSaid::Finished),
    ];
    for word in words {
        tell(&mut cluster, "w1", word.clone());
        assert_eq!(cluster.state, before, "{word:?}");
    }
}

#[test]
fn a_daemon_that_restarts_while_a_generation_forms_is_left_out_of_it() {
    let mut cluster = two_workers(4, 20);
    come(&mut cluster, "w1");
    come(&mut cluster, "w2");
    assert!(reason(&cluster).contains("0 of 2 ranks ready"), "{}", reason(&cluster));
    turn(&mut cluster, "w1");
    assert!(reason(&cluster).contains("1 of 2 ranks ready"));
    cluster.kill_machine(&name("w1"), true, false);
    join(&mut cluster, "w1");
    assert!(cluster.warnings[0].contains("w1 came back without its ranks"), "{:?}", cluster.warnings);
    assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
}

#[test]
fn processes_that_become_ready_are_taken_in_without_losing_a_step() {
    let mut cluster = with(spec(4, 200, 50), Settings::default(), &[1]);
    cluster.run_to(7);
    cluster.add("w2", 1);
    cluster.run_to(199);
    let Reason::Training { ranks, generation, .. } = cluster.state.phase(cluster.now).1 else { panic!() };
    assert_eq!((ranks, generation, cluster.rolled_back), (2, Generation::new(2), 0));
    assert_eq!(cluster.origins, [Origin::Seed, Origin::Rank(Rank::new(0))], "no checkpoint was read");
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 200 }));
}

#[test]
fn a_killed_rank_costs_the_step_in_flight_and_its_replacement_one_pause() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(7);
    cluster.kill_rank(&name("w2"), 0);
    cluster.beat(&name("w2"));
    cluster.deliver_up(&name("w2"), 9);
    let ranks = |cluster: &Cluster| cluster.state.status(cluster.now).ranks.len();
    assert_eq!(ranks(&cluster), 1, "the survivor goes on alone");
    cluster.run_to(30);
    assert_eq!(ranks(&cluster), 2, "and takes the replacement in");
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert_eq!(
        (cluster.rolled_back, cluster.commits, cluster.state.generation()),
        (0, 60, Generation::new(3))
    );
}

#[test]
fn with_all_workers_required_the_survivor_waits_for_the_replacement() {
    let mut job = spec(4, 60, 8);
    job.min_workers = 2;
    let mut cluster = with(job, Settings::default(), &[1, 1]);
    cluster.run_to(7);
    cluster.kill_rank(&name("w2"), 0);
    cluster.beat(&name("w2"));
    cluster.deliver_up(&name("w2"), 9);
    let waits = "1 of 2 workers ready, 2 connected, cuda:0 of w2 on its way (after: rank 1 on w2 ended with signal 9)";
    assert_eq!(reason(&cluster), waits);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert_eq!((cluster.rolled_back, cluster.state.generation()), (0, Generation::new(2)));
}

#[test]
fn a_step_that_the_dead_rank_never_reported_is_recounted_by_a_survivor() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(7);
    // Both apply the step; w2 and its report are lost, and w1's report with its stream.
    let next = cluster.ledger.len() as u64;
    while cluster.fabrics.values().last().unwrap().applied.values().any(|a| *a <= next) {
        cluster.act(&name("w1"));
        cluster.act(&name("w2"));
    }
    cluster.kill_machine(&name("w2"), true, true);
    cluster.machines.remove(&name("w2"));
    let before = cluster.commits;
    turn(&mut cluster, "w1");
    for _ in 0..4 {
        turn(&mut cluster, "w1");
        cluster.advance(SECOND / 4);
    }
    assert!(cluster.commits > before, "{}", reason(&cluster));
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert_eq!((cluster.rolled_back, cluster.commits), (0, 60));
}

#[test]
fn a_worker_that_asks_to_leave_is_let_go_at_a_step_boundary() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(7);
    let generation = cluster.state.generation();
    cluster.machines.get_mut(&name("w2")).unwrap().leaving = true;
    cluster.beat(&name("w2"));
    cluster.deliver_up(&name("w2"), 9);
    assert_eq!(phase(&cluster), Phase::Draining);
    assert!(reason(&cluster).ends_with("to go on with other workers"), "{}", reason(&cluster));
    while !cluster.machines[&name("w2")].dismissed {
        cluster.round();
    }
    let session = cluster.machines.remove(&name("w2")).and_then(|m| m.session);
    if let Some(session) = session {
        cluster.apply(mcl_coordinator_core::Event::Disconnected { session });
    }
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert_eq!(cluster.state.status(cluster.now).workers.len(), 1, "nobody misses it");
    assert_eq!((cluster.rolled_back, cluster.warnings.len()), (0, 0), "{:?}", cluster.warnings);
    assert_eq!(cluster.state.generation(), generation.next());
}

#[test]
fn the_last_worker_leaves_its_state_in_a_checkpoint() {
    let mut cluster = with(spec(4, 60, 8), Settings::default(), &[1]);
    cluster.run_to(7);
    cluster.machines.get_mut(&name("w1")).unwrap().leaving = true;
    while !cluster.machines[&name("w1")].dismissed {
        cluster.round();
    }
    let step = cluster.ledger.len() as u64;
    assert!(cluster.visible.contains(&step), "{step} {:?}", cluster.visible);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }), "it comes back and goes on");
    assert_eq!(cluster.rolled_back, 0);
}

#[test]
fn all_ranks_lost_at_once_means_the_newest_checkpoint() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(8);
    cluster.kill_rank(&name("w1"), 0);
    cluster.kill_rank(&name("w2"), 0);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert!((3..=5).contains(&cluster.rolled_back), "back to step 5: {}", cluster.rolled_back);
    assert!(cluster.origins.contains(&Origin::Checkpoint(5)), "{:?}", cluster.origins);
}

#[test]
fn a_holder_that_is_away_is_waited_for_until_it_is_lost() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(8);
    cluster.cut(&name("w2"), true);
    cluster.kill_rank(&name("w1"), 0);
    for _ in 0..3 {
        turn(&mut cluster, "w1");
    }
    assert!(
        reason(&cluster).starts_with("worker w2 is away and may hold the newest state"),
        "{}",
        reason(&cluster)
    );
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert_eq!(cluster.rolled_back, 0, "it came back with it");
}

#[test]
fn a_held_job_keeps_its_processes_and_goes_on_where_it_was() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(7);
    cluster.apply(mcl_coordinator_core::Event::Hold);
    for _ in 0..20 {
        cluster.round();
    }
    assert_eq!(reason(&cluster), "held: `mcl resume` lets it go on");
    let step = cluster.ledger.len();
    cluster.restart_coordinator(true);
    for _ in 0..20 {
        cluster.round();
    }
    assert_eq!((cluster.ledger.len(), phase(&cluster)), (step, Phase::Waiting), "held over a restart too");
    cluster.apply(mcl_coordinator_core::Event::Resume);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 60 }));
    assert!(cluster.origins.ends_with(&[Origin::Rank(Rank::new(0))]), "{:?}", cluster.origins);
    assert_eq!(cluster.rolled_back, 0);
}

#[test]
fn a_straggler_is_named() {
    let mut cluster = two_workers(4, 60);
    cluster.run_to(4);
    let generation = cluster.state.generation().get();
    for step in 4..30 {
        for (rank, worker) in [(0, "w1"), (1, "w2")] {
            let mut report = report_of(&cluster.spec, rank * 2..rank * 2 + 2, step);
            report.step_seconds = 1.0;
            report.collective_seconds = if rank == 1 { 0.0 } else { 0.8 };
            let event = rank_event(&cluster, generation, rank, RankSaid::Step(report));
            tell(&mut cluster, worker, event);
        }
    }
    let slow: Vec<bool> = cluster.state.status(cluster.now).ranks.iter().map(|r| r.straggler).collect();
    assert_eq!(slow, [false, true]);
}

#[test]
fn grants_run_ahead_of_need() {
    let mut cluster = with(spec(2, 20, 4), patient(), &[1]);
    come(&mut cluster, "w1");
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
