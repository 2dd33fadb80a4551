//! Rank processes that outlive generations: a peer dies at every failpoint, is replaced, and the run ends in the
//! same bits as an undisturbed one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod harness;

use harness::{Rank, TOTAL, World};
use mcl_proto::v1::{self, rank_command::Command, rank_event::Event, start::Origin};
use std::collections::BTreeMap;
use std::time::Instant;

/// By step and lane: bits of the losses, and (index, id, hash, what it replaces) by slot.
type Lanes = BTreeMap<(u64, u32), (Vec<u64>, Vec<(u64, String, Vec<u8>, Option<u64>)>)>;

fn lanes<'a>(reports: impl IntoIterator<Item = &'a v1::StepReport>) -> Lanes {
    let mut lanes = Lanes::new();
    for report in reports {
        for lane in &report.lanes {
            let samples = lane.samples.iter();
            let samples = samples.map(|s| (s.index, s.id.clone(), s.hash.clone(), s.replaces)).collect();
            let losses = lane.losses.iter().map(|l| l.to_bits()).collect();
            lanes.insert((report.step, lane.lane), (losses, samples));
        }
    }
    lanes
}

/// Two ranks from the seed to the end; what their lanes reported.
fn undisturbed(world: &mut World, ranks: &mut [&mut Rank]) -> Lanes {
    let ready = world.join(ranks);
    world.begin(ranks, &ready, 0, Origin::FromSeed(true));
    let mut reports = Vec::new();
    for rank in ranks.iter_mut() {
        rank.finished();
        reports.extend(rank.reports.clone());
    }
    lanes(&reports)
}

/// What a process says of all steps that it holds is complete and true.
fn check_recount(rank: &mut Rank, ready: &v1::Ready, truth: &Lanes) {
    let applied = ready.applied.unwrap();
    assert_eq!(ready.recorded_from, 0);
    let steps = rank.recount(0, applied);
    let told = lanes(steps.iter().map(|s| s.report.as_ref().unwrap()));
    let expected: Lanes =
        truth.iter().filter(|((step, _), _)| *step < applied).map(|(k, v)| (*k, v.clone())).collect();
    assert_eq!(told, expected, "recounted up to {applied}");
}

#[test]
fn a_death_anywhere_in_a_step_costs_that_step_and_no_bit() {
    let mut world = World::new(2);
    let run = "deaths";
    // After each the survivor holds the state after two steps: a rank that dies with all gradients reduced leaves
    // one that applies them.
    let places = [
        "rank/forward:3",
        "rank/mid-backward:3",
        "rank/before-update:2",
        "rank/mid-update:2",
        "rank/after-update-before-report:2",
    ];
    let applied = 2;
    let mut survivor = world.start(run, None);
    let mut second = world.start(run, None);
    survivor.prepared();
    second.prepared();
    let truth = undisturbed(&mut world, &mut [&mut survivor, &mut second]);
    assert_eq!(truth.len(), 2 * usize::try_from(TOTAL).unwrap());
    let digest = world.commit(run, TOTAL, 2);
    for place in places {
        let mut doomed = world.start(run, Some(place));
        doomed.prepared();
        let ready = world.join(&mut [&mut survivor, &mut doomed]);
        assert_eq!((ready[0].applied, ready[1].applied), (Some(TOTAL), None), "{place}");
        world.begin(&mut [&mut survivor, &mut doomed], &ready, 0, Origin::FromSeed(true));
        doomed.dead();
        let broken = survivor.broken();
        assert_eq!(broken.step, Some(applied), "{place}: {broken:?}");
        // The ranks change places, so the replacement hosts the store and the lanes move.
        let started = Instant::now();
        let ready = world.join(&mut [&mut second, &mut survivor]);
        assert_eq!((ready[0].applied, ready[1].applied), (Some(TOTAL), Some(applied)), "{place}");
        check_recount(&mut survivor, &ready[1], &truth);
        world.begin(&mut [&mut second, &mut survivor], &ready, applied, Origin::SourceRank(1));
        second.step(applied);
        println!("{place}: broken in {}, regrouped in {:?}", broken.activity, started.elapsed());
        survivor.finished();
        second.finished();
        assert_eq!(world.commit(run, TOTAL, 2), digest, "{place}");
    }
}

#[test]
fn a_peer_that_hangs_or_dies_before_training_is_left_at_once() {
    let mut world = World::new(2);
    let run = "hangs";
    let mut survivor = world.start(run, None);
    let mut second = world.start(run, None);
    let mut stopped = world.start(run, Some("rank/mid-backward:3:stop"));
    let mut absent = world.start(run, Some("rank/rendezvous:1"));
    for rank in [&mut survivor, &mut second, &mut stopped, &mut absent] {
        rank.prepared();
    }
    undisturbed(&mut world, &mut [&mut survivor, &mut second]);
    let digest = world.commit(run, TOTAL, 2);

    // Stopped, not dead: nobody's connection closes, only the next Join ends the wait.
    let ready = world.join(&mut [&mut survivor, &mut stopped]);
    world.begin(&mut [&mut survivor, &mut stopped], &ready, 0, Origin::FromSeed(true));
    survivor.step(1);
    survivor.expect("the third step's backward", |e| match &e.event {
        Some(Event::Alive(a)) if a.step == Some(2) && a.activity == "backward" => Some(()),
        _ => None,
    });
    let (first, took) = world.regroup(&mut [&mut survivor, &mut second], 0);
    assert_eq!(first, 2);
    println!("peer stopped in backward: Join to first step {took:?}");
    survivor.finished();
    second.finished();
    assert_eq!(world.commit(run, TOTAL, 2), digest);

    // Dead in the rendezvous: who waits there is told to leave.
    let ready = world.join(&mut [&mut survivor, &mut absent]);
    world.begin(&mut [&mut survivor, &mut absent], &ready, 0, Origin::FromSeed(true));
    absent.dead();
    let started = Instant::now();
    let token = Some(world.token());
    survivor.send(Command::Break(v1::Break { token, reason: "rank 1 is gone".to_owned() }));
    let broken = survivor.broken();
    println!("Break to Broken in {}: {:?}", broken.activity, started.elapsed());
    assert_eq!((broken.step, broken.activity.as_str()), (None, "rendezvous"));
    assert!(started.elapsed().as_secs() < 1);
    let (first, took) = world.regroup_from_seed(&mut [&mut survivor, &mut second]);
    println!("from the seed: Join to first step {took:?}");
    assert_eq!(first, 0);
    survivor.finished();
    second.finished();
    assert_eq!(world.commit(run, TOTAL, 2), digest);
}

#[test]
fn ranks_pause_grow_drain_and_resume_from_each_others_state_or_a_checkpoint() {
    let mut world = World::new(2);
    let run = "pauses";
    let mut one = world.start(run, None);
    let mut two = world.start(run, None);
    let mut doomed = world.start(run, Some("rank/state-transfer:1"));
    for rank in [&mut one, &mut two, &mut doomed] {
        rank.prepared();
    }
    undisturbed(&mut world, &mut [&mut one, &mut two]);
    let half = world.commit(run, 3, 2);
    let digest = world.commit(run, TOTAL, 2);
    assert_ne!(half, digest);

    // Both stop after the same step, though only one was asked.
    let ready = world.join(&mut [&mut one, &mut two]);
    let pause = Command::Pause(v1::Pause { token: Some(world.token()) });
    two.send(pause);
    world.begin(&mut [&mut one, &mut two], &ready, 0, Origin::FromSeed(true));
    for rank in [&mut one, &mut two] {
        let step = rank.expect("Paused", |e| match &e.event {
            Some(Event::Paused(p)) => Some(p.step),
            _ => None,
        });
        assert_eq!(step, 1);
    }
    // A newcomer dies while the state is passed to it; the source keeps its own.
    let ready = world.join(&mut [&mut one, &mut doomed]);
    world.begin(&mut [&mut one, &mut doomed], &ready, 1, Origin::SourceRank(0));
    doomed.dead();
    let broken = one.broken();
    assert!(broken.step.is_none_or(|s| s == 1), "{broken:?}");
    // The other one is level: nothing is sent, and the run ends as if nothing had been.
    let (first, took) = world.regroup(&mut [&mut one, &mut two], 1);
    println!("all level: Join to first step {took:?}");
    assert_eq!(first, 1);
    one.finished();
    two.finished();
    assert_eq!(world.commit(run, TOTAL, 2), digest);

    // From the checkpoint of step 3, then drained at once.
    let ready = world.join(&mut [&mut two, &mut one]);
    let token = Some(world.token());
    one.send(Command::Drain(v1::Drain { token }));
    world.begin(&mut [&mut two, &mut one], &ready, 3, Origin::CheckpointStep(3));
    for rank in [&mut one, &mut two] {
        let step = rank.expect("Drained", |e| match &e.event {
            Some(Event::Drained(d)) => Some(d.step),
            _ => None,
        });
        assert_eq!(step, 4);
    }
    world.commit(run, 4, 2);
    let (first, _) = world.regroup(&mut [&mut two, &mut one], 0);
    assert_eq!(first, 4);
    one.finished();
    two.finished();
    assert_eq!(world.commit(run, TOTAL, 2), digest);

    // A single rank that carries both lanes, joined by another in the middle. Other bits than those of two: the
    // checkpoint of the end would be refused, so this stops before.
    let ready = world.join(&mut [&mut one]);
    one.send(Command::Pause(v1::Pause { token: Some(world.token()) }));
    world.begin(&mut [&mut one], &ready, 3, Origin::CheckpointStep(3));
    one.expect("Paused", |e| matches!(&e.event, Some(Event::Paused(_))).then_some(()));
    assert_eq!(one.reports[0].lanes.len(), 2);
    let (first, took) = world.regroup(&mut [&mut two, &mut one], 1);
    println!("grown from one: Join to first step {took:?}");
    assert_eq!(first, 4);
}

#[test]
fn of_three_ranks_two_shrink_and_grow_again() {
    let mut world = World::new(3);
    let run = "three";
    let mut one = world.start(run, None);
    let mut two = world.start(run, None);
    let mut doomed = world.start(run, Some("rank/mid-backward:2"));
    for rank in [&mut one, &mut two, &mut doomed] {
        rank.prepared();
    }
    let ready = world.join(&mut [&mut one, &mut doomed, &mut two]);
    world.begin(&mut [&mut one, &mut doomed, &mut two], &ready, 0, Origin::FromSeed(true));
    // Whoever does not talk to the dead one is freed by the other's leaving.
    doomed.dead();
    let started = Instant::now();
    for rank in [&mut one, &mut two] {
        assert_eq!(rank.broken().step, Some(1));
    }
    println!("one of three killed: both others know after {:?}", started.elapsed());
    assert!(started.elapsed().as_secs() < 2);
    // Two carry three lanes: one rank now has two.
    let ready = world.join(&mut [&mut one, &mut two]);
    for rank in [&mut one, &mut two] {
        rank.send(Command::Pause(v1::Pause { token: Some(world.token()) }));
    }
    world.begin(&mut [&mut one, &mut two], &ready, 1, Origin::SourceRank(0));
    for rank in [&mut one, &mut two] {
        rank.expect("Paused", |e| matches!(&e.event, Some(Event::Paused(p)) if p.step == 2).then_some(()));
    }
    let told = lanes(one.recount(1, 2).iter().map(|s| s.report.as_ref().unwrap()));
    let reported = lanes(one.reports.iter().chain(&two.reports));
    assert_eq!((told.len(), &told), (3, &reported));
    let mut third = world.start(run, None);
    third.prepared();
    let (first, took) = world.regroup(&mut [&mut third, &mut one, &mut two], 2);
    println!("grown to three: Join to first step {took:?}");
    assert_eq!(first, 2);
    for rank in [&mut one, &mut two, &mut third] {
        rank.finished();
    }
}

#[test]
fn training_goes_on_while_the_checkpoint_service_does_not_answer_and_all_ranks_skip_alike() {
    let lines = [("every_steps = 3", "every_steps = 2\n[elastic]\nlost_after = \"1s\"")];
    let mut world = World::without_checkpoints(2, &lines);
    let run = "away";
    let mut one = world.start(run, None);
    let mut two = world.start(run, None);
    for rank in [&mut one, &mut two] {
        rank.prepared();
    }
    let ready = world.join(&mut [&mut one, &mut two]);
    let started = Instant::now();
    world.begin(&mut [&mut one, &mut two], &ready, 0, Origin::FromSeed(true));
    // The upload of step 2 is under way when that of step 4 is due.
    for rank in [&mut one, &mut two] {
        rank.step(TOTAL - 1);
    }
    println!("all steps in {:?} without a checkpoint service", started.elapsed());
    assert!(started.elapsed().as_secs() < 30);
    // The last state is not given up: as soon as the service is there, both checkpoints are.
    world.serve_checkpoints();
    for rank in [&mut one, &mut two] {
        rank.finished();
        assert_eq!(rank.staged, [2, TOTAL]);
    }
    world.commit(run, 2, 2);
    world.commit(run, TOTAL, 2);
}
