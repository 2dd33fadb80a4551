//! Every edge between making something durable and telling somebody: the process dies right there, is started again,
//! and the run ends as if nothing had been.
//!
//! The list of edges is the code's own, [`Failpoint::ALL`]. Each belongs to one of the stories below, which fails where it
//! is not reached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use Failpoint as At;
use mcl_failpoint::{Failpoint, Process};
use mcl_system_tests::Sandbox;
use mcl_system_tests::story::{SteadyJob, Story};

/// In which story a process dies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    /// From the start of a coordinator to the first checkpoints.
    Beginning,
    /// Generations that end, runs that go back, are held and interrupted.
    Turns,
    /// The end of a job.
    End,
    /// The life of the checkpoint service.
    Checkpoints,
    /// Workers and their ranks.
    Workers,
    /// Jobs that wait for their turn.
    Queue,
}

/// Exhaustive, so that a new edge without a story does not compile.
const fn story_of(point: Failpoint) -> In {
    match point {
        At::BeforeJournalTerm
        | At::AfterJournalTerm
        | At::TermAnnounced
        | At::BeforeJournalJob
        | At::AfterJournalJob
        | At::BeforeJournalFormed
        | At::AfterJournalFormed
        | At::BeforeJournalStarted
        | At::AfterJournalStarted
        | At::ResumedAppended
        | At::MetricsAppended
        | At::LedgerAppended
        | At::MetricsSynced
        | At::LedgerSynced => In::Beginning,
        At::BeforeJournalEnded
        | At::AfterJournalEnded
        | At::RecountAppended
        | At::RollBackAppended
        | At::RollBackSynced
        | At::RollBackRowsMoved
        | At::BeforeJournalHeld
        | At::AfterJournalHeld
        | At::BeforeJournalDrain
        | At::AfterJournalDrain
        | At::InterruptedAppended
        | At::BeforeSubmitAnswer => In::Turns,
        At::BeforeCommitAsked
        | At::CommitAnswered
        | At::BeforeJournalCheckpoint
        | At::AfterJournalCheckpoint
        | At::BeforeJournalOver
        | At::AfterJournalOver => In::End,
        At::BeforeFence
        | At::AfterFence
        | At::BeforeTermAnswer
        | At::BeforeTicket
        | At::AfterTicket
        | At::BeforeSliceAnswer
        | At::BeforeManifest
        | At::AfterManifest
        | At::PruneManifestRemoved
        | At::PruneSliceRemoved
        | At::PruneStepRemoved
        | At::BeforeCommitAnswer => In::Checkpoints,
        At::BeforeJournalQueued
        | At::AfterJournalQueued
        | At::BeforeJournalDequeued
        | At::AfterJournalDequeued => In::Queue,
        At::BeforeToken
        | At::AfterToken
        | At::BeforeReport
        | At::AfterReport
        | At::Rendezvous
        | At::StateTransfer
        | At::Forward
        | At::MidBackward
        | At::BeforeUpdate
        | At::MidUpdate
        | At::AfterUpdateBeforeReport
        | At::StagedBeforeReport => In::Workers,
    }
}

/// Epochs of six steps.
fn sandbox() -> Sandbox {
    Sandbox::at(tempfile::tempdir().unwrap().keep(), 48)
}

const fn at_once(_: &mut Story<'_>) {}

#[test]
fn a_coordinator_dies_at_every_edge_from_its_start_to_the_first_steps() {
    let sandbox = sandbox();
    let job = SteadyJob::new(120, 10, 2);
    let truth = job.undisturbed(&sandbox);

    let mut story = Story::begin(&sandbox, "edges", job);
    for point in [At::BeforeJournalTerm, At::AfterJournalTerm] {
        story.service_dies(point, at_once);
    }
    for point in [At::BeforeJournalJob, At::AfterJournalJob] {
        story.service_dies(point, |s| s.submit_in_vain());
    }
    // The job was accepted: it is not handed in again.
    story.service_dies(At::TermAnnounced, at_once);
    story.start_workers();
    for point in
        [At::BeforeJournalFormed, At::AfterJournalFormed, At::BeforeJournalStarted, At::AfterJournalStarted]
    {
        story.service_dies(point, at_once);
    }
    for point in [At::MetricsAppended, At::LedgerAppended, At::MetricsSynced, At::LedgerSynced] {
        story.service_dies(point, at_once);
    }
    story.service_dies(At::ResumedAppended, |s| s.kill_rank("b"));
    story.until_done();
    let report = story.told(&truth);
    assert_eq!(report["rolled_back"], 0, "{report}");
    story.reached_all(|point| story_of(point) == In::Beginning);
}

#[test]
fn a_coordinator_dies_at_every_edge_of_generations_that_end_and_runs_that_go_back() {
    let sandbox = sandbox();
    let job = SteadyJob::new(150, 5, 2);
    let truth = job.undisturbed(&sandbox);

    let mut story = Story::begin(&sandbox, "edges", job);
    story.submit();
    story.start_workers();
    story.more_steps(2);
    story.service_dies(At::BeforeJournalEnded, |s| s.kill_rank("b"));
    story.service_dies(At::AfterJournalEnded, at_once);
    a_survivor_recounts(&mut story);
    for point in [At::AfterJournalStarted, At::RollBackAppended, At::RollBackSynced] {
        everybody_dies(&mut story);
        story.service_dies(point, |s| s.start_workers());
        story.service_dies(At::RollBackRowsMoved, at_once);
    }
    everybody_dies(&mut story);
    story.service_dies(At::RollBackRowsMoved, |s| s.start_workers());

    story.service_dies(At::BeforeJournalHeld, |s| s.say_in_vain("pause"));
    story.service_dies(At::AfterJournalHeld, |s| s.say_in_vain("pause"));
    story.cluster.start_coordinator();
    story.cluster.until("a pause", |c| c.status().is_some_and(|s| s["reason"].to_string().contains("held")));
    story.say("resume");
    story.more_steps(2);

    story.service_dies(At::BeforeJournalDrain, |s| s.say_in_vain("drain"));
    story.service_dies(At::AfterJournalDrain, |s| s.say_in_vain("drain"));
    for point in [At::InterruptedAppended, At::BeforeJournalOver, At::AfterJournalOver] {
        story.service_dies(point, at_once);
    }
    story.service_dies(At::BeforeSubmitAnswer, |s| s.submit_in_vain());
    story.until_done();
    let report = story.told(&truth);
    assert!(report["rolled_back"].as_u64().unwrap() >= 8, "{report}");
    let shared = [At::AfterJournalStarted, At::MetricsAppended, At::BeforeJournalOver, At::AfterJournalOver];
    story.reached_all(|point| story_of(point) == In::Turns || shared.contains(&point));
}

/// Both ranks apply a step, only one of them lives to tell, and the coordinator was not there to hear it.
fn a_survivor_recounts(story: &mut Story<'_>) {
    story.service_dies(At::MetricsAppended, at_once);
    story.cluster.kill_worker("b");
    story.service_dies(At::RecountAppended, |s| s.cluster.start_worker("b"));
}

/// Steps beyond the newest checkpoint, and nobody left who holds them.
fn everybody_dies(story: &mut Story<'_>) {
    story.cluster.start_coordinator();
    story.more_steps(1);
    drop(story.cluster.checkpoint.take());
    story.more_steps(2);
    story.cluster.kill_all_workers();
    story.cluster.start_checkpoint();
}

#[test]
fn a_coordinator_dies_at_every_edge_of_the_end_of_a_job() {
    let sandbox = sandbox();
    // The only checkpoint is that of the end.
    let job = SteadyJob::new(8, 1000, 2);
    let truth = job.undisturbed(&sandbox);

    let mut story = Story::begin(&sandbox, "edges", job);
    story.submit();
    drop(story.cluster.coordinator.take());
    story.start_workers();
    for point in [
        At::BeforeCommitAsked,
        At::CommitAnswered,
        At::BeforeJournalCheckpoint,
        At::AfterJournalCheckpoint,
        At::BeforeJournalEnded,
        At::AfterJournalEnded,
        At::BeforeJournalOver,
        At::AfterJournalOver,
    ] {
        story.service_dies(point, at_once);
    }
    // The job is over, whoever comes; its ranks were not told by the one that ended it.
    story.cluster.start_coordinator();
    story.cluster.until("the end of the ranks", |c| c.rank("a").is_none() && c.rank("b").is_none());
    assert_eq!(story.cluster.status().unwrap()["phase"], "done");
    let report = story.told(&truth);
    assert_eq!(report["rolled_back"], 0, "{report}");
    let shared = [At::BeforeJournalEnded, At::AfterJournalEnded];
    story.reached_all(|point| story_of(point) == In::End || shared.contains(&point));
}

#[test]
fn a_checkpoint_service_dies_at_every_edge() {
    let sandbox = sandbox();
    let job = SteadyJob::new(120, 4, 2);
    let truth = job.undisturbed(&sandbox);

    let mut story = Story::before(&sandbox, "edges", job);
    story.service_dies(At::BeforeFence, |s| {
        s.cluster.start_coordinator();
        s.submit();
    });
    for point in [At::AfterFence, At::BeforeTermAnswer] {
        story.service_dies(point, at_once);
    }
    // The first slice of the first generation raises the token again.
    story.service_dies(At::BeforeFence, |s| s.start_workers());
    for point in [
        At::AfterFence,
        At::BeforeTicket,
        At::AfterTicket,
        At::BeforeSliceAnswer,
        At::BeforeManifest,
        At::AfterManifest,
        At::PruneManifestRemoved,
        At::PruneSliceRemoved,
        At::PruneStepRemoved,
        At::BeforeCommitAnswer,
    ] {
        story.service_dies(point, at_once);
    }
    story.cluster.start_checkpoint();
    story.until_done();
    let report = story.told(&truth);
    assert_eq!(report["rolled_back"], 0, "{report}");
    // What a death left half removed went with a later commit.
    let folders = std::fs::read_dir(story.cluster.checkpoints()).unwrap().count();
    assert_eq!(folders, 2, "steps in the store");
    story.reached_all(|point| story_of(point) == In::Checkpoints);
}

#[test]
fn a_worker_and_its_rank_die_at_every_edge() {
    let sandbox = sandbox();
    let job = SteadyJob::new(150, 3, 2);
    let truth = job.undisturbed(&sandbox);

    let mut story = Story::begin(&sandbox, "edges", job);
    story.submit();
    story.start_workers();
    story.more_steps(2);
    for point in Failpoint::of(Process::Worker) {
        // The first reports are of a process that is not prepared yet.
        let nth = if matches!(point, At::BeforeReport | At::AfterReport) { 6 } else { 1 };
        story.worker_dies("b", point, nth);
    }
    for point in Failpoint::of(Process::Rank) {
        let once = matches!(point, At::Rendezvous | At::StateTransfer | At::StagedBeforeReport);
        story.rank_dies("b", point, if once { 1 } else { 2 });
    }
    story.cluster.start_worker("b");
    story.until_done();
    let report = story.told(&truth);
    assert_eq!(report["rolled_back"], 0, "{report}");
    story.reached_all(|point| story_of(point) == In::Workers);
}

#[test]
fn a_coordinator_dies_at_every_edge_of_its_queue() {
    let sandbox = sandbox();
    let mut story = Story::before(&sandbox, "edges", SteadyJob::new(8, 4, 2));
    story.cluster.keep_many_runs();
    story.cluster.start_services();
    story.submit();
    let url = story.cluster.url();
    let submit = ["submit", "job.toml", "--name", "second", "--coordinator", &url];
    let cancel = ["cancel", "second", "--coordinator", &url];
    let waits = |story: &mut Story<'_>| {
        story.cluster.start_coordinator();
        let status = story.cluster.status().unwrap();
        assert_eq!(status["run"], "story", "{status}");
        status["queue"] == serde_json::json!(["second"])
    };
    for (point, command, expected) in [
        (At::BeforeJournalQueued, submit.as_slice(), false),
        (At::AfterJournalQueued, &submit, true),
        (At::BeforeJournalDequeued, &cancel, true),
        (At::AfterJournalDequeued, &cancel, false),
    ] {
        story.service_dies(point, |_| drop(sandbox.fails(1, &[], command)));
        assert_eq!(waits(&mut story), expected, "{}", point.name());
    }
    // Between the end of one job and the beginning of the next.
    sandbox.ok(&submit);
    for point in [At::AfterJournalOver, At::BeforeJournalJob, At::AfterJournalJob] {
        story.service_dies(point, |s| {
            if point == At::AfterJournalOver {
                sandbox.fails(1, &[], &["cancel", "--coordinator", &s.cluster.url()]);
            }
        });
    }
    story.cluster.start_coordinator();
    let status = story.cluster.status().unwrap();
    assert_eq!((&status["run"], &status["queue"]), (&"second".into(), &serde_json::json!([])), "{status}");
    let shared = [At::AfterJournalOver, At::BeforeJournalJob, At::AfterJournalJob];
    story.reached_all(|point| story_of(point) == In::Queue || shared.contains(&point));
}

#[test]
fn a_failpoint_that_does_not_exist_is_an_error_that_names_the_nearest() {
    let sandbox = sandbox();
    let mut command = sandbox.command(&["validate", "job.toml"]);
    let output = command.env(mcl_failpoint::VARIABLE, "coordinator/ledger-sync:2").output().unwrap();
    let error = mcl_system_tests::error_of(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("did you mean `coordinator/ledger-synced`"), "{error}");
}
