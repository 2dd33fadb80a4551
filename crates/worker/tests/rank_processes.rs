//! Ranks that die, hang, talk nonsense or do not listen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_proto::v1::rank_command::Command;
use mcl_proto::v1::rank_event::Event as Said;
use mcl_proto::v1::{Break, Configure, Exited, Failed, FailureKind, RankEvent, Stop};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};
use support::{Coordinator, Running, Session, Slot, config, runs, small, token};

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

async fn exit(session: &mut Session) -> Exited {
    match session.event().await.event {
        Some(Said::Exited(exited)) => exited,
        other => panic!("expected an exit, found {other:?}"),
    }
}

async fn failure(session: &mut Session) -> Failed {
    match session.event().await.event {
        Some(Said::Failed(failed)) => failed,
        other => panic!("expected a failure, found {other:?}"),
    }
}

async fn leave(worker: Running, session: Session) -> Vec<RankEvent> {
    worker.shut_down();
    let last = session.drained().await;
    worker.outcome().await.unwrap();
    last
}

#[tokio::test]
async fn an_exit_is_told_at_once_after_all_that_was_said_with_the_last_words() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.join_all("die 3", 1).await;
    let said = session.event().await;
    assert!(matches!(said.event, Some(Said::Step(_))), "{said:?}");
    let exited = exit(&mut session).await;
    assert_eq!((exited.status.as_str(), exited.by_signal), ("exit status 3", false));
    let words: Vec<&str> = exited.last_words.lines().collect();
    assert_eq!((words.len(), words[0], words[19]), (20, "line 31", "I see a lighthouse"));
    leave(worker, session).await;
}

#[tokio::test]
async fn a_signal_is_named() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.join_all("abort", 1).await;
    let exited = exit(&mut session).await;
    assert_eq!((exited.status.as_str(), exited.by_signal), ("signal 6", true));
    leave(worker, session).await;
}

#[tokio::test]
async fn one_that_was_killed_is_back_at_once_and_can_join_while_its_neighbour_lives_on() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (slots, pids) = session.join_all("train", 2).await;
    assert_eq!([slots[0].0.as_str(), slots[1].0.as_str()], ["cpu", "cpu:1"]);
    signal(pids[1], Signal::SIGKILL);
    let exited = session.event().await;
    assert_eq!((exited.device.as_str(), exited.process, exited.rank), ("cpu:1", slots[1].1, 1));
    assert_eq!(exited.token, token(1, 1));
    assert!(matches!(exited.event, Some(Said::Exited(e)) if e.status == "signal 9"));
    let new: Vec<Slot> = session.prepared(1).await;
    assert!(new[0].0 == "cpu:1" && new[0].1 > slots[1].1, "{new:?}");
    session.assign(1, 2, &[(0, &slots[0]), (1, &new[0])]);
    let again = [session.pid().await, session.pid().await];
    assert!(again.contains(&pids[0]) && runs(pids[0]), "the neighbour is the same process");
    leave(worker, session).await;
}

#[tokio::test]
async fn one_that_hangs_is_killed_and_its_end_says_where_it_hung() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.order(Configure { job_toml: "train".into(), lost_after_ms: 1000, ..Configure::default() });
    let slots = session.prepared(1).await;
    session.assign(1, 1, &[(0, &slots[0])]);
    let pid = session.pid().await;
    // It speaks, so it is left alone for longer than silence is borne.
    let limit = tokio::time::timeout(Duration::from_millis(1500), session.event()).await;
    assert!(limit.is_err(), "{limit:?}");
    signal(pid, Signal::SIGSTOP);
    let begin = Instant::now();
    let exited = exit(&mut session).await;
    assert!((Duration::from_millis(700)..Duration::from_secs(30)).contains(&begin.elapsed()));
    assert!(exited.status.starts_with("silent for "), "{}", exited.status);
    assert!(exited.status.ends_with(" s in step 17 (backward for 1.2 s): killed"), "{}", exited.status);
    assert!(!runs(pid));
    session.prepared(1).await;
    leave(worker, session).await;
}

#[tokio::test]
async fn one_that_never_gets_ready_is_started_again_more_and_more_slowly() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(small(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.prepare("unborn 4");
    let begin = Instant::now();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let spawned = session.event().await;
        assert!(matches!(spawned.event, Some(Said::Spawned(_))), "{spawned:?}");
        let exited = session.event().await;
        assert_eq!((exited.process, exited.token), (spawned.process, token(1, 0)));
        assert!(matches!(exited.event, Some(Said::Exited(e)) if e.status == "exit status 4"));
        numbers.push(spawned.process);
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(begin.elapsed() >= Duration::from_millis(1500), "0.5 s, then 1 s");
    session.prepare("train");
    session.prepared(1).await;
    leave(worker, session).await;
}

#[tokio::test]
async fn one_that_writes_something_else_than_frames_is_killed_and_the_worker_goes_on() {
    for mode in ["garbage", "text"] {
        let mut coordinator = Coordinator::anywhere();
        let worker = Running::start(small(coordinator.address));
        let mut session = coordinator.welcome(1).await;
        let (_, pids) = session.join_all(mode, 1).await;
        let failed = failure(&mut session).await;
        assert_eq!(failed.kind(), FailureKind::Other);
        assert!(failed.message.contains("stdout"), "{}", failed.message);
        assert_eq!(exit(&mut session).await.status, "signal 9");
        assert!(!runs(pids[0]));
        session.prepared(1).await;
        leave(worker, session).await;
    }
}

#[tokio::test]
async fn one_that_does_not_read_is_killed_and_nobody_waits_for_it() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("train", 2).await;
    signal(pids[0], Signal::SIGSTOP);
    // Each is larger than the pipe. Rank 1 is heard in between: the loop does not wait for rank 0.
    let large = Break { reason: "x".repeat(100_000), ..Break::default() };
    let mut reported = 0;
    let failed = loop {
        for _ in 0..20 {
            session.relay(1, 1, Some(0), Command::Break(large.clone()));
        }
        session.grant(1, 1, Some(1), 1);
        let event = session.event().await;
        match event.event {
            Some(Said::Step(_)) if event.rank == 1 => reported += 1,
            Some(Said::Failed(failed)) if event.rank == 0 => break failed,
            other => panic!("{other:?}"),
        }
        assert!(reported < 100, "a rank that reads nothing was left alone");
    };
    assert!(reported > 5, "a few commands may wait");
    assert!(failed.message.contains("does not read"), "{}", failed.message);
    leave(worker, session).await;
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_a_failure_of_the_device_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mcl-rank");
    std::fs::write(&program, "not a program").unwrap();
    let mut coordinator = Coordinator::anywhere();
    let mut config = small(coordinator.address);
    config.rank_program.clone_from(&program);
    let worker = Running::start(config);
    let mut session = coordinator.welcome(1).await;
    session.prepare("train");
    let event = session.event().await;
    let Some(Said::Failed(failed)) = event.event else { panic!("{event:?}") };
    assert!(failed.message.contains("mcl-rank"), "{}", failed.message);
    assert_eq!((event.device.as_str(), event.token), ("cpu", token(1, 0)));
    // Repaired, as a file that takes the place of the other.
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mcl-fake-rank"), folder.path().join("new")).unwrap();
    std::fs::rename(folder.path().join("new"), &program).unwrap();
    loop {
        match session.event().await.event {
            Some(Said::Prepared(_)) => break,
            Some(Said::Failed(_) | Said::Spawned(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    leave(worker, session).await;
}

#[tokio::test]
async fn the_whole_process_group_goes_with_a_rank() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mcl-rank");
    // Does not `exec`: the rank is a grandchild, and it ignores what it is asked.
    let script = format!("#!/bin/sh\n{} train\n", env!("CARGO_BIN_EXE_mcl-fake-rank"));
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut coordinator = Coordinator::anywhere();
    let mut config = small(coordinator.address);
    config.rank_program = program;
    let worker = Running::start(config);
    let mut session = coordinator.welcome(1).await;
    let (_, pids) = session.join_all("stubborn", 1).await;
    session.relay(1, 1, None, Command::Stop(Stop::default()));
    assert_eq!(exit(&mut session).await.status, "signal 9");
    support::vanishes(pids[0]).await;
    leave(worker, session).await;
}
