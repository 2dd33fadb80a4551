//! The worker's side of a session: greeting, assignment, relaying, outages, the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_proto::v1::rank_command::Command;
use mcl_proto::v1::rank_event::Event as Said;
use mcl_proto::v1::{
    CheckpointCommitted, Committed, Configure, Drain, Pause, RankEvent, RankProcess, Recount, Refused, Start,
    Stop, session_response::Message,
};
use mcl_worker::{Farewell, WorkerError, WorkerOutcome};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use support::{Coordinator, PATIENCE, Running, Session, config, runs, small, token};

fn steps(events: &[RankEvent]) -> Vec<u64> {
    let step = |e: &RankEvent| if let Some(Said::Step(r)) = &e.event { Some(r.step) } else { None };
    events.iter().filter_map(step).collect()
}

/// Heartbeats until `count` steps are reported, with the steps of each.
async fn batches(session: &mut Session, count: usize) -> Vec<Vec<u64>> {
    let mut batches: Vec<Vec<u64>> = Vec::new();
    while batches.iter().map(Vec::len).sum::<usize>() < count {
        let found = steps(&session.heartbeat().await.unwrap().events);
        if !found.is_empty() {
            batches.push(found);
        }
    }
    batches
}

#[tokio::test]
async fn a_worker_says_who_it_is_keeps_processes_has_them_join_and_relays() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let hello = &session.hello;
    assert_eq!((hello.worker.as_str(), hello.protocol, hello.devices.len()), ("w1", mcl_proto::PROTOCOL, 2));
    assert_eq!((hello.advertise.as_str(), hello.highest), ("10.1.2.3", token(0, 0)));
    assert!(hello.processes.is_empty() && !hello.leaving);

    session.prepare("train");
    let slots = session.prepared(2).await;
    session.prepare("train");
    session.assign(1, 1, &[(0, &slots[0]), (1, &slots[1])]);
    let (first, second) = (session.event().await, session.event().await);
    assert_eq!([first.rank, second.rank].iter().sum::<u32>(), 1, "both ranks are ready");
    assert_eq!(first.token, token(1, 1));

    let start = Start { token: token(1, 1), store_address: "127.0.0.1:1".into(), ..Start::default() };
    session.relay(1, 1, None, Command::Start(start));
    for _ in 0..2 {
        assert!(matches!(session.event().await.event, Some(Said::Training(_))));
    }
    session.relay(1, 1, Some(1), Command::Drain(Drain { token: token(1, 1) }));
    let drained = session.event().await;
    assert!(matches!(drained.event, Some(Said::Drained(_))) && drained.rank == 1);
    session.relay(1, 1, Some(0), Command::Pause(Pause { token: token(1, 1) }));
    assert!(matches!(session.event().await.event, Some(Said::Paused(_))));
    session.relay(1, 1, Some(0), Command::Recount(Recount::default()));
    assert!(matches!(session.event().await.event, Some(Said::Recounted(_))));
    worker.shut_down();
    let last = session.drained().await;
    assert!(last.iter().all(|e| matches!(e.event, Some(Said::Exited(_)))) && last.len() == 2, "{last:?}");
    assert_eq!(worker.outcome().await.unwrap(), WorkerOutcome::Shutdown);
}

#[tokio::test]
async fn step_reports_travel_together_and_what_is_urgent_takes_them_along() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.join_all("train", 1).await;
    session.grant(1, 1, None, 50);
    let batches = batches(&mut session, 50).await;
    assert_eq!(batches.concat(), (0..50).collect::<Vec<_>>());
    assert!(batches.len() < 25, "expected few heartbeats, found {}", batches.len());

    session.grant(1, 1, None, 1);
    session.relay(1, 1, None, Command::Drain(Drain::default()));
    let mut said = Vec::new();
    while !said.iter().any(|e: &RankEvent| matches!(e.event, Some(Said::Drained(_)))) {
        said.extend(session.heartbeat().await.unwrap().events);
    }
    assert_eq!((steps(&said), said.len()), (vec![50], 2));
    worker.shut_down();
    drop(session.drained().await);
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn heartbeats_come_as_often_as_the_coordinator_wants() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.accept().await;
    let welcome = mcl_proto::v1::Welcome { term: 1, heartbeat_interval_ms: 20, lost_after_ms: 200 };
    session.say(Message::Welcome(welcome));
    for _ in 0..5 {
        assert_eq!(session.heartbeat().await.unwrap().token, token(1, 0));
    }
    worker.shut_down();
    drop(session.drained().await);
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn the_next_generation_is_joined_by_the_same_processes_and_an_older_one_is_refused() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(3).await;
    session.prepare("train");
    let slots = session.prepared(1).await;
    let post = [(0, &slots[0])];
    session.assign(3, 1, &post);
    let pid = session.pid().await;
    session.assign(3, 2, &post);
    assert_eq!(session.pid().await, pid);
    session.assign(3, 1, &post);
    session.assign(2, 9, &post);
    session.grant(3, 1, None, 1);
    session.grant(2, 2, None, 1);
    session.grant(3, 2, None, 1);
    let only = session.event().await;
    assert_eq!((only.token, steps(&[only])), (token(3, 2), vec![0]));
    assert!(runs(pid));
    worker.shut_down();
    let last = session.drained().await;
    assert!(matches!(&last[..], [RankEvent { event: Some(Said::Exited(_)), .. }]), "{last:?}");
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn another_job_takes_the_place_of_the_one_before() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("stubborn", 2).await;
    let other = Configure { run_id: "other".into(), job_toml: "train".into(), ..Configure::default() };
    session.order(other);
    for _ in 0..2 {
        assert!(matches!(session.event().await.event, Some(Said::Exited(x)) if x.status == "signal 9"));
    }
    session.prepared(2).await;
    assert!(!pids.into_iter().any(runs));
    worker.shut_down();
    drop(session.drained().await);
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn a_restarted_coordinator_hears_again_what_it_did_not_acknowledge() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut coordinator = Coordinator::start(listener.try_clone().unwrap());
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.prepare("train");
    let slots = session.prepared(1).await;
    session.assign(1, 4, &[(0, &slots[0])]);
    let pid = session.pid().await;
    session.relay(1, 4, None, Command::Start(Start::default()));
    session.grant(1, 4, None, 6);
    batches(&mut session, 6).await;
    session.relay(1, 4, None, Command::Committed(Committed { step: 2 }));
    // The rank's answer proves that the worker has heard both.
    session.relay(1, 4, None, Command::CheckpointCommitted(CheckpointCommitted::default()));
    while !matches!(session.event().await.event, Some(Said::Staged(_))) {}
    drop((session, coordinator));

    let mut coordinator = Coordinator::start(listener);
    let mut session = coordinator.welcome(2).await;
    assert_eq!(session.hello.highest, token(1, 4));
    let process = RankProcess {
        device: slots[0].0.clone(),
        process: slots[0].1,
        run_id: String::new(),
        prepared: true,
        generation: 4,
        holds_state: true,
    };
    assert_eq!(session.hello.processes, [process]);
    let again = session.heartbeat().await.unwrap();
    assert_eq!(again.token, token(2, 4));
    assert_eq!(steps(&again.events), [3, 4, 5]);
    let others: Vec<_> = again.events.iter().filter(|e| !matches!(e.event, Some(Said::Step(_)))).collect();
    assert!(matches!(others[0].event, Some(Said::Training(_))), "{others:?}");
    assert!(matches!(others[1].event, Some(Said::Staged(_))) && others.len() == 2, "{others:?}");
    assert!(runs(pid), "ranks go on without a coordinator");
    session.grant(2, 4, None, 1);
    assert_eq!(steps(&[session.event().await]), [6]);
    worker.shut_down();
    drop(session.drained().await);
    worker.outcome().await.unwrap();
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_restarted_worker_remembers_the_highest_token() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::anywhere();
    let mut config = small(coordinator.address);
    config.state_dir = Some(folder.path().join("worker"));
    let worker = Running::start(config.clone());
    let mut session = coordinator.welcome(1).await;
    session.prepare("train");
    let slots = session.prepared(1).await;
    session.assign(1, 7, &[(0, &slots[0])]);
    let pid = session.pid().await;
    worker.abort().await;
    support::vanishes(pid).await;

    let worker = Running::start(config);
    let mut session = coordinator.welcome(1).await;
    assert_eq!(session.hello.highest, token(1, 7));
    assert_eq!(session.heartbeat().await.unwrap().token, token(1, 0), "it says that its ranks are gone");
    assert!(session.hello.processes.is_empty());
    session.prepare("train");
    assert!(session.prepared(1).await[0].1 > slots[0].1, "numbers are not used again");
    worker.shut_down();
    drop(session.drained().await);
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn dismissal_leaves_nothing_and_ends_the_worker_only_where_it_says_so() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("train", 2).await;
    session.dismiss(false);
    for _ in 0..2 {
        let Some(Said::Exited(exited)) = session.event().await.event else { panic!("expected an exit") };
        assert_eq!((exited.status.as_str(), exited.by_signal), ("exit status 0", false));
    }
    assert!(!pids.into_iter().any(runs));
    let quiet = tokio::time::timeout(Duration::from_millis(700), session.event()).await;
    assert!(quiet.is_err(), "nothing is started again: {quiet:?}");

    session.prepare("train");
    let slots = session.prepared(2).await;
    session.assign(1, 2, &[(0, &slots[1])]);
    let pid = session.pid().await;
    session.dismiss(true);
    session.drained().await;
    assert_eq!(worker.outcome().await.unwrap(), WorkerOutcome::Dismissed("all done".into()));
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_worker_that_is_to_drain_says_so_and_its_ranks_train_until_it_is_dismissed() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("train", 2).await;
    session.relay(1, 1, None, Command::Start(Start::default()));
    for _ in 0..2 {
        assert!(matches!(session.event().await.event, Some(Said::Training(_))));
    }
    worker.leave(Farewell::Drain);
    while !session.heartbeat().await.unwrap().leaving {}
    session.grant(1, 1, Some(0), 1);
    assert_eq!(steps(&[session.event().await]), [0], "ranks go on");
    session.relay(1, 1, None, Command::Pause(Pause { token: token(1, 1) }));
    for _ in 0..2 {
        assert!(matches!(session.event().await.event, Some(Said::Paused(_))));
    }
    assert!(pids.iter().copied().all(runs));
    session.dismiss(true);
    session.drained().await;
    assert_eq!(worker.outcome().await.unwrap(), WorkerOutcome::Dismissed("all done".into()));
    assert!(!pids.into_iter().any(runs));
}

#[tokio::test]
async fn a_worker_without_anything_to_drain_leaves_at_once() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("train", 2).await;
    worker.leave(Farewell::Drain);
    session.drained().await;
    assert_eq!(worker.outcome().await.unwrap(), WorkerOutcome::Shutdown);
    assert!(!pids.into_iter().any(runs));
}

#[tokio::test]
async fn shutdown_waits_for_nobody_longer_than_its_grace() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("stubborn", 2).await;
    let begin = Instant::now();
    worker.shut_down();
    let last = session.drained().await;
    assert_eq!(worker.outcome().await.unwrap(), WorkerOutcome::Shutdown);
    assert!((Duration::from_secs(2)..Duration::from_secs(30)).contains(&begin.elapsed()));
    assert!(!pids.into_iter().any(runs));
    let signalled = |e: &RankEvent| matches!(&e.event, Some(Said::Exited(x)) if x.by_signal);
    assert!(last.iter().all(signalled) && last.len() == 2, "{last:?}");
}

#[tokio::test]
async fn a_stop_of_the_generation_is_enforced() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("stubborn", 1).await;
    session.relay(1, 1, None, Command::Stop(Stop { reason: "over".into() }));
    assert!(matches!(session.event().await.event, Some(Said::Exited(x)) if x.status == "signal 9"));
    assert!(!runs(pids[0]));
    session.prepared(1).await;
    worker.shut_down();
    drop(session.drained().await);
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn a_refused_worker_ends_with_the_reason() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let session = coordinator.accept().await;
    session.say(Message::Refused(Refused { reason: "the name w1 is taken".into() }));
    let error = worker.outcome().await.unwrap_err();
    assert!(matches!(&error, WorkerError::Refused { reason, .. } if reason == "the name w1 is taken"));
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_that_names_it() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config(address);
    config.connect_timeout = Duration::from_millis(400);
    let text = Running::start(config).outcome().await.unwrap_err().to_string();
    assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
    assert!(text.contains("check that it runs"), "{text}");
}

#[tokio::test]
async fn a_coordinator_that_comes_later_is_waited_for_and_silence_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut quiet = config(listener.local_addr().unwrap());
    quiet.connect_timeout = Duration::from_millis(300);
    let error = Running::start(quiet).outcome().await.unwrap_err();
    assert!(matches!(error, WorkerError::Unreachable { .. }), "{error}");

    let worker = Running::start(config(listener.local_addr().unwrap()));
    let mut coordinator = Coordinator::start(listener);
    let session = coordinator.welcome(1).await;
    worker.shut_down();
    session.drained().await;
    worker.outcome().await.unwrap();
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_said_at_once() {
    let good = config("127.0.0.1:1".parse().unwrap());
    let end = async |config| {
        let outcome = tokio::time::timeout(PATIENCE, mcl_worker::run(config, nobody_asks()));
        outcome.await.unwrap().unwrap_err().to_string()
    };
    let mut bad = good.clone();
    bad.rank_program = "no/such/mcl-rank".into();
    assert!(end(bad).await.contains("no/such/mcl-rank"));
    let mut bad = good.clone();
    bad.devices.clear();
    assert!(end(bad).await.contains("cuda:0"));
    let mut bad = good.clone();
    bad.devices = vec!["cpu".into(), "cpu".into()];
    assert!(end(bad).await.contains("`cpu` twice"));
    let mut bad = good.clone();
    bad.coordinator_url = "http://".into();
    assert!(end(bad).await.contains("expected one like"));
}

/// Nobody asks the worker to leave.
fn nobody_asks() -> tokio::sync::mpsc::Receiver<Farewell> {
    tokio::sync::mpsc::channel(1).1
}
