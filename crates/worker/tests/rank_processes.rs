//! Ranks that die, talk nonsense or do not listen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_proto::v1::rank_command::Command;
use mcl_proto::v1::rank_event::Event as Said;
use mcl_proto::v1::{Configure, Exited, Failed, FailureKind, RankEvent, Stop};
use support::{Coordinator, Running, Session, config, runs};

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

async fn leave(mut worker: Running, session: Session) -> Vec<RankEvent> {
    worker.shut_down();
    let last = session.drained().await;
    worker.outcome().await.unwrap();
    last
}

#[tokio::test]
async fn an_exit_is_told_at_once_after_all_that_was_said_with_the_last_words() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.assign(1, 1, &[(0, "die 3"), (1, "train")]);
    let (mut said, mut exited) = (Vec::new(), None);
    while exited.is_none() {
        let event = session.event().await;
        match event.event {
            Some(Said::Exited(exit)) => exited = Some(exit),
            Some(other) if event.rank == 0 => said.push(other),
            _ => {}
        }
    }
    assert!(matches!(said[..], [Said::Ready(_), Said::Step(_)]), "{said:?}");
    let exited = exited.unwrap();
    assert_eq!((exited.status.as_str(), exited.by_signal), ("exit status 3", false));
    let words: Vec<&str> = exited.last_words.lines().collect();
    assert_eq!((words.len(), words[0], words[19]), (20, "line 31", "I see a lighthouse"));
    leave(worker, session).await;
}

#[tokio::test]
async fn a_signal_is_named() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.assign(1, 1, &[(0, "abort")]);
    session.pid().await;
    let exited = exit(&mut session).await;
    assert_eq!((exited.status.as_str(), exited.by_signal), ("signal 6", true));
    leave(worker, session).await;
}

#[tokio::test]
async fn a_rank_that_writes_something_else_than_frames_is_killed_and_the_worker_goes_on() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    for (generation, mode) in [(1, "garbage"), (2, "text")] {
        session.assign(1, generation, &[(0, mode)]);
        let pid = session.pid().await;
        let failed = failure(&mut session).await;
        assert_eq!(failed.kind(), FailureKind::Other);
        assert!(failed.message.contains("stdout"), "{}", failed.message);
        assert_eq!(exit(&mut session).await.status, "signal 9");
        assert!(!runs(pid));
    }
    session.assign(1, 3, &[(0, "train")]);
    assert!(runs(session.pid().await));
    leave(worker, session).await;
}

#[tokio::test]
async fn a_rank_that_does_not_read_is_killed_and_nobody_waits_for_it() {
    let mut coordinator = Coordinator::anywhere();
    let worker = Running::start(config(coordinator.address));
    let mut session = coordinator.welcome(1).await;
    session.assign(1, 1, &[(0, "deaf"), (1, "train")]);
    session.pid().await;
    session.pid().await;
    // Each is larger than the pipe. Rank 1 is heard in between: the loop does not wait for rank 0.
    let large = Configure { job_toml: "x".repeat(100_000), ..Configure::default() };
    let mut reported = 0;
    let failed = loop {
        for _ in 0..20 {
            session.relay(1, 1, Some(0), Command::Configure(large.clone()));
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
async fn a_program_that_cannot_be_executed_is_a_failure_of_the_rank() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mcl-rank");
    std::fs::write(&program, "not a program").unwrap();
    let mut coordinator = Coordinator::anywhere();
    let mut config = config(coordinator.address);
    config.rank_program = program;
    let worker = Running::start(config);
    let mut session = coordinator.welcome(1).await;
    session.assign(1, 1, &[(0, "train")]);
    let failed = failure(&mut session).await;
    assert!(failed.message.contains("mcl-rank"), "{}", failed.message);
    assert!(leave(worker, session).await.is_empty());
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
    let mut config = config(coordinator.address);
    config.rank_program = program;
    let worker = Running::start(config);
    let mut session = coordinator.welcome(1).await;
    session.assign(1, 1, &[(0, "stubborn")]);
    let pid = session.pid().await;
    session.relay(1, 1, None, Command::Stop(Stop::default()));
    assert_eq!(exit(&mut session).await.status, "signal 9");
    support::vanishes(pid).await;
    leave(worker, session).await;
}
