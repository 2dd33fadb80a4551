//! A checkpoint service killed at every one of its failpoints, again and again, while it is written to: what it holds
//! afterwards is whole, and never older than what it said was saved.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use bytes::Bytes;
use mcl_checkpoint::{CheckpointClient, Draft};
use mcl_checkpoint_core::{CheckpointDir, Dtype, SliceView, digest_state, write_slice};
use mcl_failpoint::{Failpoint, Process};
use mcl_system_tests::mcl;
use mcl_types::{Digest, FencingToken, Generation, Retention, RunId, Step, Term, Tier};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Deaths at each place.
const ROUNDS: u64 = 8;
const RUN: &str = "a";

/// The state after so many steps, in two slices.
fn slices(step: u64) -> [Bytes; 2] {
    let data: Vec<u8> = (0..4000_u64).map(|i| (i * 7 + step * 31) as u8).collect();
    ["w", "v"].map(|name| {
        Bytes::from(write_slice(&[(name.to_owned(), Dtype::U8, vec![data.len()], data.as_slice())]).unwrap())
    })
}

fn digest(step: u64) -> Digest {
    let [a, b] = slices(step);
    digest_state(&[SliceView::parse(&a).unwrap(), SliceView::parse(&b).unwrap()]).unwrap()
}

/// A service over `root`, which dies at the first passing of `at`.
async fn serve(root: &Path, at: Option<Failpoint>) -> (Child, String) {
    let mut command = Command::new(mcl());
    command.args(["checkpoint-server", "--flat", "--stop-with-stdin", "--listen", "127.0.0.1:0", "--root"]);
    command.arg(root).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    if let Some(at) = at {
        command.env(mcl_failpoint::VARIABLE, at.name());
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("an address");
    (child, line.strip_prefix("listening ").expect(&line).to_owned())
}

/// One save as a run does it, under the next generation.
async fn save(url: &str, step: u64, generation: u64) -> Digest {
    let client = CheckpointClient::lazy(url, None).unwrap();
    let run = RunId::new(RUN).unwrap();
    let token = FencingToken { term: Term::new(1), generation: Generation::new(generation) };
    client.announce_term(&run, token.term, 0).await.unwrap();
    let draft = Draft { token, run: &run, step: Step::new(step), slices: 2, tier: Tier::Durable };
    for (slice, bytes) in (0..).zip(slices(step)) {
        client.put_slice(draft, slice, bytes).await.unwrap();
    }
    let meta = format!("{{\"step\":{step}}}");
    client.commit(draft, &meta, Retention::newest(2)).await.unwrap()
}

/// The newest good checkpoint, every byte of it what was saved.
async fn newest(root: &Path) -> u64 {
    let dir = CheckpointDir::open(root).unwrap();
    let step = dir.newest().await.unwrap().expect("always a good one");
    let (manifest, _) = dir.verify(step).await.unwrap();
    assert_eq!(manifest.state_digest, digest(step.get()), "step {step}: another state");
    step.get()
}

#[tokio::test]
async fn killed_at_every_place_it_keeps_a_whole_checkpoint_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut child, url) = serve(root, None).await;
    for step in [1, 2] {
        save(&url, step, step).await;
    }
    child.kill().await.unwrap();
    let (mut step, mut deaths, mut came_through) = (2, 0, 0);
    let places: Vec<Failpoint> =
        Failpoint::ALL.iter().copied().filter(|p| p.process() == Process::Checkpoint).collect();
    for round in 0..ROUNDS {
        for place in &places {
            let saved = step;
            step += 1;
            let (mut dying, url) = serve(root, Some(*place)).await;
            // Waiting closes it otherwise, and the service would leave.
            let _input = dying.stdin.take();
            let status = tokio::select! {
                status = dying.wait() => status.unwrap(),
                _ = save(&url, step, step) => panic!("round {round}: nothing died at {}", place.name()),
            };
            assert_eq!(status.signal(), Some(9), "{}", place.name());
            deaths += 1;
            let found = newest(root).await;
            assert!(found == saved || found == step, "{}: fell from {saved} to {found}", place.name());
            came_through += u64::from(found == step);
            // Another one takes over: the same save again is the same checkpoint.
            let (mut next, url) = serve(root, None).await;
            assert_eq!(save(&url, step, step).await, digest(step), "{}", place.name());
            drop(next.stdin.take());
            assert!(next.wait().await.unwrap().success());
            assert_eq!(newest(root).await, step, "{}", place.name());
        }
    }
    println!("{deaths} deaths at {} places, {came_through} after the checkpoint was visible", places.len());
    assert_eq!(deaths, ROUNDS * places.len() as u64);
    let left = std::fs::read_dir(root).unwrap().count();
    assert_eq!(left, 4, "two checkpoints, the fence and the lock: nothing else piles up");
}
