//! Stories of endings: failures, drains, checkpoints, restarts, refusals.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::story::{
    SECOND, come, failed, join, name, phase, rank_event, reason, tell, turn, two_workers, with,
};
use cluster::{Cluster, report_of, spec};
use mcl_coordinator_core::{
    EndCause, Event, Failure, FailureKind, Hello, JobSpec, Origin, Outcome, Phase, RankSaid, SessionId,
    Settings, StepReport, ToWorker,
};
use mcl_types::{Digest, FencingToken, Generation, LaneLayout, Rank, RunId, Term, Tier};
use std::time::Duration;

#[test]
fn a_lost_worker_ends_the_generation_and_the_rest_goes_on() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    let generation = cluster.state.generation();
    cluster.kill_machine(&name("w2"), true, true);
    cluster.machines.remove(&name("w2"));
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 20 }));
    assert_eq!((cluster.state.generation(), cluster.rolled_back), (generation.next(), 0));
    assert!(
        cluster.warnings[0].contains("lost its group: connection closed by peer"),
        "{:?}",
        cluster.warnings
    );
}

#[test]
fn a_fatal_failure_fails_the_job_by_name() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(3);
    cluster.fail(&name("w2"), FailureKind::Fatal, "the dataset's digest is abc, expected def");
    cluster.run(10);
    assert_eq!(failed(&cluster), "rank 1 on w2 failed in step 3: the dataset's digest is abc, expected def");
    cluster.round();
    assert!(cluster.machines.values().all(|m| m.dismissed));
}

#[test]
fn a_fatal_failure_counts_even_when_its_echo_came_first() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(3);
    cluster.fail(&name("w2"), FailureKind::Fatal, "no such column");
    cluster.act(&name("w1"));
    cluster.beat(&name("w1"));
    cluster.deliver_up(&name("w1"), 9);
    assert!(cluster.warnings[0].contains("rank 0 on w1 lost its group: connection closed by peer"));
    cluster.beat(&name("w2"));
    cluster.deliver_up(&name("w2"), 9);
    assert_eq!(failed(&cluster), "rank 1 on w2 failed in step 3: no such column");
}

#[test]
fn the_cause_takes_the_place_of_its_echo() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    cluster.kill_rank(&name("w2"), 0);
    for worker in ["w1", "w2"] {
        cluster.act(&name(worker));
        cluster.beat(&name(worker));
        cluster.deliver_up(&name(worker), 9);
    }
    assert!(reason(&cluster).contains("ranks ready"), "known, so no more waiting: {}", reason(&cluster));
    cluster.run(3);
    assert_eq!(cluster.warnings.len(), 1, "one end, however many words about it: {:?}", cluster.warnings);
}

#[test]
fn generations_without_a_step_fail_the_job() {
    let settings = Settings { fruitless_limit: 5, ..Settings::default() };
    let mut job = spec(4, 20, 8);
    job.min_workers = 2;
    let mut cluster = with(job, settings, &[1, 1]);
    cluster.run_to(7);
    for _ in 0..4000 {
        if cluster.over.is_some() {
            break;
        }
        cluster.round();
        // Each time before anything new is committed.
        if phase(&cluster) == Phase::Training {
            cluster.kill_rank(&name("w1"), 0);
        }
    }
    let text = failed(&cluster);
    assert!(
        text.starts_with("5 generations in a row ended without a new step: rank 0 on w1 ended with signal 9"),
        "{text}"
    );
    assert!(text.matches("signal 9").count() == 1 && text.ends_with("(5 times)"), "{text}");
}

#[test]
fn processes_that_never_become_ready_fail_the_job() {
    let settings = Settings { fruitless_limit: 3, ..Settings::default() };
    let mut cluster = with(spec(4, 20, 8), settings, &[1]);
    join(&mut cluster, "w1");
    cluster.deliver_down(&name("w1"), 9);
    for _ in 0..3 {
        cluster.kill_rank(&name("w1"), 0);
        cluster.beat(&name("w1"));
        cluster.deliver_up(&name("w1"), 9);
    }
    let text = failed(&cluster);
    let expected = "3 processes in a row died on every device before they were ready: the process on cuda:0 of w1 ended with signal 9";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_process_that_cannot_start_for_good_fails_the_job_by_name() {
    let mut cluster = two_workers(4, 20);
    join(&mut cluster, "w1");
    cluster.deliver_down(&name("w1"), 9);
    cluster.fail(&name("w1"), FailureKind::Fatal, "the dataset's digest is abc, expected def");
    cluster.beat(&name("w1"));
    cluster.deliver_up(&name("w1"), 9);
    let text = failed(&cluster);
    assert_eq!(text, "the process on cuda:0 of w1 failed: the dataset's digest is abc, expected def");
}

#[test]
fn ranks_that_never_get_ready_are_named_and_replaced() {
    let settings = Settings { joining_timeout: SECOND * 30, ..Settings::default() };
    let mut cluster = with(spec(4, 10, 8), settings, &[1]);
    come(&mut cluster, "w1");
    for _ in 0..31 {
        cluster.beat(&name("w1"));
        cluster.deliver_up(&name("w1"), 1);
        cluster.advance(SECOND);
    }
    assert!(cluster.warnings[0].contains("not ready after 30 s: rank 0 on w1"), "{:?}", cluster.warnings);
    let process = cluster.machines[&name("w1")].processes["cuda:0"].id;
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 10 }));
    assert_ne!(cluster.machines[&name("w1")].next_process, process.0 + 1, "another process took its place");
}

#[test]
fn a_drain_stops_at_a_step_boundary_and_the_job_can_be_continued() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    cluster.apply(Event::Drain);
    assert_eq!(phase(&cluster), Phase::Draining);
    let Some(Outcome::Interrupted { step }) = cluster.run(100) else { panic!("{:?}", cluster.over) };
    assert_eq!(step, cluster.ledger.len() as u64);
    assert!((7..=9).contains(&step) && cluster.visible.contains(&step));
    cluster.submit();
    assert_eq!(cluster.answers.last().unwrap(), &Ok(step));
    assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
    assert_eq!(cluster.rolled_back, 0);
    cluster.submit();
    assert_eq!(cluster.run(10), Some(Outcome::Done { steps: 20 }), "a job that is done stays done");
}

#[test]
fn a_drain_before_training_ends_at_once() {
    let mut cluster = two_workers(4, 20);
    cluster.apply(Event::Drain);
    assert_eq!(cluster.over, Some(Outcome::Interrupted { step: 0 }));
    let mut cluster = two_workers(4, 20);
    come(&mut cluster, "w1");
    come(&mut cluster, "w2");
    assert_eq!(phase(&cluster), Phase::Forming);
    cluster.apply(Event::Drain);
    assert_eq!(cluster.over, Some(Outcome::Interrupted { step: 0 }));
}

#[test]
fn a_drain_that_was_not_heard_is_said_again() {
    for restart in [false, true] {
        let mut cluster = two_workers(4, 200);
        cluster.run_to(7);
        cluster.apply(Event::Drain);
        // Neither worker hears of it.
        for worker in ["w1", "w2"] {
            cluster.cut(&name(worker), true);
        }
        if restart {
            cluster.restart_coordinator(true);
        }
        let Some(Outcome::Interrupted { step }) = cluster.run(50) else { panic!("{:?}", cluster.over) };
        assert!((7..=9).contains(&step));
    }
}

#[test]
fn ranks_that_are_through_may_go() {
    let mut cluster = two_workers(4, 12);
    cluster.run_to(12);
    while !cluster
        .machines
        .values()
        .all(|m| m.ranks().values().all(|r| *r == cluster::machine::Stage::Parked))
    {
        for worker in ["w1", "w2"] {
            cluster.act(&name(worker));
            cluster.beat(&name(worker));
            cluster.deliver_up(&name(worker), 9);
        }
    }
    assert_eq!(reason(&cluster), "the checkpoint of step 12 is not visible yet");
    cluster.kill_rank(&name("w1"), 0);
    cluster.beat(&name("w1"));
    cluster.deliver_up(&name("w1"), 9);
    cluster.kill_machine(&name("w2"), true, true);
    cluster.advance(SECOND * 11);
    assert_eq!(cluster.run(5), Some(Outcome::Done { steps: 12 }));
    assert_eq!((cluster.state.generation(), cluster.rolled_back), (Generation::new(1), 0));
}

#[test]
fn a_drained_job_keeps_its_checkpoint_when_ranks_go_early() {
    let mut cluster = two_workers(4, 200);
    cluster.run_to(7);
    cluster.apply(Event::Drain);
    while cluster.service.is_empty() {
        for worker in ["w1", "w2"] {
            cluster.deliver_down(&name(worker), 9);
            cluster.act(&name(worker));
            cluster.beat(&name(worker));
            cluster.deliver_up(&name(worker), 9);
        }
    }
    cluster.kill_rank(&name("w1"), 0);
    cluster.beat(&name("w1"));
    cluster.deliver_up(&name("w1"), 9);
    assert_eq!(phase(&cluster), Phase::Draining, "{}", reason(&cluster));
    let step = cluster.ledger.len() as u64;
    assert_eq!(cluster.run(5), Some(Outcome::Interrupted { step }));
}

#[test]
fn a_checkpoint_waits_for_the_steps_before_it() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(4);
    let generation = cluster.state.generation();
    let next = cluster.ledger.len() as u64;
    let layout = LaneLayout::new(4, 2).unwrap();
    for (rank, worker) in [(0, "w1"), (1, "w2")] {
        cluster.stored.entry((next + 1, generation)).or_default().insert(rank);
        let staged = RankSaid::Staged { step: next + 1, slices: 2, tier: Tier::Durable };
        let staged = rank_event(&cluster, generation.get(), rank, staged);
        tell(&mut cluster, worker, staged);
        let drained = rank_event(&cluster, generation.get(), rank, RankSaid::Drained { step: next + 1 });
        tell(&mut cluster, worker, drained);
    }
    assert!(cluster.service.is_empty(), "{} is not committed", next);
    for (rank, worker) in [(0, "w1"), (1, "w2")] {
        let report = report_of(&cluster.spec, layout.lanes_of(Rank::new(rank)), next);
        let event = rank_event(&cluster, generation.get(), rank, RankSaid::Step(report));
        tell(&mut cluster, worker, event);
    }
    assert_eq!(cluster.service.len(), 1);
}

#[test]
fn a_restarted_coordinator_takes_the_generation_over() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    let generation = cluster.state.generation();
    cluster.restart_coordinator(true);
    assert_eq!(cluster.state.term(), Term::new(2));
    assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 20 }));
    assert_eq!((cluster.state.generation(), cluster.rolled_back, cluster.commits), (generation, 0, 20));
}

#[test]
fn a_coordinator_that_restarts_between_generations_waits_for_who_may_hold_the_state() {
    let mut cluster = two_workers(4, 40);
    cluster.run_to(7);
    cluster.kill_rank(&name("w2"), 0);
    turn(&mut cluster, "w2");
    cluster.settings.expected_workers = None;
    cluster.restart_coordinator(true);
    // w2 is back first, without a state.
    for _ in 0..5 {
        cluster.connect(&name("w2"));
        turn(&mut cluster, "w2");
        cluster.advance(SECOND / 2);
    }
    assert!(reason(&cluster).starts_with("worker w1 is away"), "{}", reason(&cluster));
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 40 }));
    assert_eq!(cluster.rolled_back, 0);
}

#[test]
fn a_restarted_coordinator_without_one_of_its_workers_goes_on_with_the_others() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    let generation = cluster.state.generation();
    cluster.restart_coordinator(true);
    cluster.kill_machine(&name("w2"), true, true);
    cluster.machines.remove(&name("w2"));
    for _ in 0..14 {
        cluster.round();
        cluster.advance(SECOND);
    }
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 20 }));
    assert!(cluster.state.generation() > generation && cluster.rolled_back == 0);
}

#[test]
fn a_final_checkpoint_that_is_refused_is_made_again() {
    let mut cluster = two_workers(4, 12);
    cluster.run_to(12);
    // The commit of step 12 is asked for next; the service refuses it once.
    for _ in 0..10 {
        cluster.advance(Duration::from_millis(10));
        for worker in ["w1", "w2"] {
            cluster.act(&name(worker));
            cluster.beat(&name(worker));
            cluster.deliver_up(&name(worker), 9);
        }
    }
    while !cluster.service.is_empty() {
        let last = cluster.service.len() == 1;
        cluster.answer(last && cluster.visible.contains(&10), false);
    }
    assert_eq!(cluster.run(200), Some(Outcome::Done { steps: 12 }));
    assert!(
        cluster.warnings.iter().any(|w| w.contains("was refused: a slice is damaged")),
        "{:?}",
        cluster.warnings
    );
    assert!(cluster.rolled_back == 0 && cluster.visible.contains(&12), "staged again from the state at hand");
}

#[test]
fn a_damaged_newest_checkpoint_means_the_one_before() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(12);
    cluster.visible.remove(&10);
    cluster.kill_rank(&name("w1"), 0);
    cluster.kill_rank(&name("w2"), 0);
    assert_eq!(cluster.run(300), Some(Outcome::Done { steps: 20 }));
    assert!(cluster.rolled_back >= 7, "back to 5: {}", cluster.rolled_back);
}

/// The service was started over another folder, say: training must not begin anew as if nothing had been saved.
#[test]
fn checkpoints_that_are_nowhere_to_be_found_end_the_job() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(12);
    let elsewhere = std::mem::take(&mut cluster.visible);
    cluster.kill_rank(&name("w1"), 0);
    cluster.kill_rank(&name("w2"), 0);
    let Some(Outcome::Failed(failure)) = cluster.run(300) else { panic!("{:?}", cluster.over) };
    assert_eq!(failure, Failure::CheckpointsLost { step: 10 });
    assert!(failure.to_string().contains("--root"), "{failure}");
    assert!(cluster.ledger.len() >= 12 && cluster.rolled_back == 0, "nothing was rolled back");
    // The right one: it goes on.
    cluster.visible = elsewhere;
    cluster.submit();
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 20 }));
    assert_eq!(cluster.origins.last(), Some(&Origin::Checkpoint(10)));
}

/// Proven damage of all of them leaves the seed, which is said.
#[test]
fn checkpoints_that_are_all_damaged_leave_the_seed() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(12);
    while !cluster.visible.is_empty() {
        cluster.damage();
    }
    cluster.kill_rank(&name("w1"), 0);
    cluster.kill_rank(&name("w2"), 0);
    assert_eq!(cluster.run(500), Some(Outcome::Done { steps: 20 }));
    assert!(cluster.origins.iter().filter(|o| **o == Origin::Seed).count() == 2, "{:?}", cluster.origins);
}

fn hello(worker: &str, advertise: &str) -> Hello {
    Hello {
        worker: name(worker),
        build: String::new(),
        libtorch: "2.11.0".to_owned(),
        devices: vec!["cpu".to_owned()],
        advertise: advertise.to_owned(),
        highest: FencingToken::default(),
        processes: Vec::new(),
        leaving: false,
    }
}

fn refusal(cluster: &mut Cluster, hello: Hello) -> Option<String> {
    let session = SessionId(900);
    cluster.apply(Event::Connected { session, hello });
    // A refused stream is closed, so its messages are gone: the warning says the same.
    cluster.warnings.pop()
}

#[test]
fn who_may_not_take_part_is_told_why() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(2);
    let other_host = refusal(&mut cluster, hello("w1", "elsewhere")).unwrap();
    assert!(other_host.contains("the name w1 is taken by the worker at host-w1"), "{other_host}");
    let other_torch = Hello { libtorch: "2.10.0".to_owned(), ..hello("w3", "h3") };
    assert!(refusal(&mut cluster, other_torch).unwrap().contains("all workers of a run need the same one"));
    let no_device = Hello { devices: Vec::new(), ..hello("w3", "h3") };
    assert!(refusal(&mut cluster, no_device).unwrap().contains("offers no device"));
    cluster.state = {
        let mut text = serde_json::to_value(&cluster.state).unwrap();
        text["settings"]["build"] = "0.1.0".into();
        serde_json::from_value(text).unwrap()
    };
    let other_build = Hello { build: "0.2.0".to_owned(), ..hello("w3", "h3") };
    assert!(
        refusal(&mut cluster, other_build)
            .unwrap()
            .contains("w3 is mcl 0.2.0, this coordinator is mcl 0.1.0")
    );
    let twice = Hello { devices: vec!["cpu".to_owned(), "cpu".to_owned()], ..hello("w3", "h3") };
    assert!(refusal(&mut cluster, twice).unwrap().contains("offers device cpu twice"));
    let highest = FencingToken { term: Term::new(9), generation: Generation::new(1) };
    let newer = Hello { highest, ..hello("w3", "h3") };
    assert!(refusal(&mut cluster, newer).unwrap().contains("it was replaced"));
    assert_eq!(cluster.reign_checks, 1, "whether that is so, the run's store knows");
    assert_eq!(refusal(&mut cluster, hello("w3", "h3")), None);
}

#[test]
fn what_cannot_be_ends_the_generation_by_name() {
    let layout = LaneLayout::new(4, 2).unwrap();
    let said = |cluster: &Cluster, rank: u32, change: fn(&mut StepReport)| {
        let mut report = report_of(&cluster.spec, layout.lanes_of(Rank::new(rank)), 7);
        change(&mut report);
        RankSaid::Step(report)
    };
    type Case = (fn(&mut StepReport), &'static str);
    let cases: [Case; 4] = [
        (|r| r.epoch = 3, "epoch 3: expected epoch 0"),
        (|r| drop(r.lanes.pop()), "reports lanes [0] in step 7: expected 0..2"),
        (|r| drop(r.lanes[0].fed.samples.pop()), "was fed 1 pictures in step 7: expected 2"),
        (|r| r.step = 99, "reports step 99: expected 0 to 19"),
    ];
    for (change, expected) in cases {
        let mut cluster = two_workers(4, 20);
        cluster.run_to(3);
        let generation = cluster.state.generation().get();
        let said = said(&cluster, 0, change);
        let event = rank_event(&cluster, generation, 0, said);
        tell(&mut cluster, "w1", event);
        assert!(cluster.warnings[0].contains(expected), "{:?} lacks {expected}", cluster.warnings);
        assert!(cluster.warnings[0].contains("rank 0 on w1 is out of line"));
    }
}

#[test]
fn one_job_at_a_time_and_one_plan_a_run_directory() {
    let mut cluster = two_workers(4, 20);
    let submit = |cluster: &mut Cluster, change: fn(&mut JobSpec)| {
        let mut spec = cluster.spec.clone();
        change(&mut spec);
        cluster.apply(Event::Submit { request: 2, spec, past: None });
        cluster.answers.pop().unwrap()
    };
    cluster.run_to(3);
    assert!(submit(&mut cluster, |_| {}).is_ok_and(|steps| steps >= 3), "the same job again is no harm");
    let error = submit(&mut cluster, |s| s.run_id = RunId::new("other").unwrap()).unwrap_err();
    assert!(error.contains("running `run`"), "{error}");
    let error = submit(&mut cluster, |s| s.job_digest = Digest::of(b"changed")).unwrap_err();
    assert!(error.contains("another job file"), "{error}");
    cluster.apply(Event::Drain);
    cluster.run(50);
    let error = submit(&mut cluster, |s| s.run_id = RunId::new("other").unwrap()).unwrap_err();
    assert!(error.contains("holds run `run`, not `other`"), "{error}");
    let error = submit(&mut cluster, |s| s.plan_digest = Digest::of(b"changed")).unwrap_err();
    assert!(error.contains("another epoch plan"), "{error}");
    let error = submit(&mut cluster, |s| s.schedule = mcl_plan::Schedule::new(8, 2).unwrap()).unwrap_err();
    assert!(error.contains("now ends after 2"), "{error}");
    let error = submit(&mut cluster, |s| s.job_digest = Digest::of(b"changed")).unwrap_err();
    assert!(error.contains("steps of another job"), "{error}");
    let longer = submit(&mut cluster, |s| s.schedule = mcl_plan::Schedule::new(8, 30).unwrap());
    assert!(longer.is_ok(), "a run may be made longer");
}

#[test]
fn a_late_comer_to_a_finished_job_is_dismissed() {
    let mut cluster = two_workers(4, 5);
    cluster.run(100);
    cluster.add("w3", 1);
    join(&mut cluster, "w3");
    cluster.deliver_down(&name("w3"), 9);
    assert!(cluster.machines[&name("w3")].dismissed);
}

#[test]
fn workers_wait_for_a_drained_job_to_be_submitted_to_the_next_coordinator() {
    let mut cluster = two_workers(4, 20);
    cluster.run_to(7);
    cluster.apply(Event::Drain);
    cluster.run(100);
    for name in ["w1", "w2"] {
        cluster.add(name, 1);
    }
    cluster.restart_coordinator(true);
    cluster.round();
    cluster.round();
    assert_eq!(phase(&cluster), Phase::Interrupted);
    assert!(cluster.machines.values().all(|m| !m.dismissed && m.session.is_some()));
    cluster.submit();
    assert_eq!(cluster.run(100), Some(Outcome::Done { steps: 20 }));
    assert_eq!(cluster.rolled_back, 0);
}

#[test]
fn ranks_that_were_not_told_of_the_end_hear_of_it_from_the_next_coordinator() {
    let mut cluster = two_workers(4, 5);
    cluster.run_to(3);
    // The coordinator dies with its last words.
    for _ in 0..200 {
        if cluster.over.is_some() {
            break;
        }
        cluster.round();
    }
    cluster
        .down
        .values_mut()
        .for_each(|messages| messages.retain(|m| !matches!(m, ToWorker::Dismiss { .. })));
    cluster.restart_coordinator(true);
    cluster.round();
    cluster.round();
    assert!(cluster.machines.values().all(|m| m.dismissed));
}

#[test]
fn a_job_that_could_never_run_is_refused() {
    assert!(spec(4, 10, 8).check().is_ok());
    let too_many = JobSpec { min_workers: 5, ..spec(4, 10, 8) };
    assert!(too_many.check().unwrap_err().to_string().contains("at most 4 workers"));
    assert!(JobSpec { min_workers: 0, ..spec(4, 10, 8) }.check().is_err());
    assert!(JobSpec { max_lanes_per_rank: Some(0), ..spec(4, 10, 8) }.check().is_err());
}

#[test]
fn causes_read_well() {
    let cause = EndCause::RankExited {
        rank: Rank::new(3),
        worker: name("w2"),
        status: "signal 9".to_owned(),
        last_words: "loading\nout of memory\n".to_owned(),
    };
    assert_eq!(cause.to_string(), "rank 3 on w2 ended with signal 9: out of memory");
    let failure = Failure::NoProgress { generations: 2, causes: vec![cause.clone(), cause] };
    assert!(failure.to_string().starts_with("2 generations in a row ended without a new step: rank 3"));
}
