//! Decisions about processes: the standing order, ends, rests, silence.

use super::*;
use crate::ranks::HELD_UP;
use crate::standing::{FIRST_REST, MAX_REST};
use mcl_proto::v1::{Alive, FailureKind};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn alive(step: Option<u64>, activity: &str, seconds: f64) -> Said {
    Said::Alive(Alive { step, activity: activity.into(), seconds })
}

fn exits(effects: &[Effect]) -> Vec<String> {
    let status = |e: RankEvent| if let Some(Said::Exited(x)) = e.event { Some(x.status) } else { None };
    told(effects).into_iter().filter_map(status).collect()
}

#[test]
fn an_order_starts_a_process_on_every_device_and_the_same_again_changes_nothing() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, prepare(order("job")), SECOND);
    let started = start(&mut state, &effects, SECOND);
    let [(a, first), (b, second)] = &started[..] else { panic!("{started:?}") };
    assert_eq!((first.device.as_str(), second.device.as_str()), ("cpu", "cpu:1"));
    assert_eq!(first.advertise, "10.1.2.3", "filled in where empty");
    assert_eq!((a.0, b.0), (BASE, BASE + 1));
    assert_eq!(hear(&mut state, prepare(order("job")), SECOND), []);
}

#[test]
fn a_process_of_no_generation_is_announced_with_device_and_number() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, prepare(order("job")), SECOND);
    let Some(Effect::Spawn { process, .. }) = effects.first() else { panic!("{effects:?}") };
    let process = *process;
    let spawned = told(&state.apply(Event::Started { process }, SECOND));
    let said = told(&says(&mut state, process, prepared(), SECOND));
    for (event, expected) in [(&spawned[0], Said::Spawned(Default::default())), (&said[0], prepared())] {
        let outside = Some(token(1, 0).into());
        assert_eq!((event.token, event.device.as_str(), event.process), (outside, "cpu", process.0));
        assert_eq!(event.event, Some(expected));
    }
}

#[test]
fn another_job_starts_when_the_last_process_of_the_one_before_is_gone() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    let effects = hear(&mut state, prepare(order("another")), SECOND);
    assert_eq!((killed(&effects), start(&mut state, &effects, SECOND)), (vec![a, b], vec![]));
    let effects = state.apply(gone(a), SECOND);
    assert!(start(&mut state, &effects, SECOND).is_empty());
    let effects = state.apply(gone(b), SECOND);
    let started = start(&mut state, &effects, SECOND);
    assert_eq!(started.len(), 2);
    assert!(started.iter().all(|(id, c)| c.job_toml == "another" && *id > b));
}

#[test]
fn services_that_moved_stop_no_process_and_later_ones_are_told() {
    let mut state = welcomed(1);
    let [a, _] = ready_made(&mut state, order("job"), SECOND);
    let moved = Configure { checkpoint_url: "http://new".into(), lost_after_ms: 500, ..order("job") };
    assert_eq!(hear(&mut state, prepare(moved), SECOND), []);
    let effects = state.apply(gone(a), 2 * SECOND);
    let started = start(&mut state, &effects, 2 * SECOND);
    assert_eq!(started[0].1.checkpoint_url, "http://new");
}

#[test]
fn one_that_was_prepared_starts_again_at_once_and_its_end_is_told_with_its_rank() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    hear(&mut state, assign(token(1, 3), &[post(a, "cpu", 6)]), SECOND);
    let effects = state.apply(gone(a), 2 * SECOND);
    let exited = &told(&effects)[0];
    assert_eq!((exited.token, exited.rank, exited.process), (Some(token(1, 3).into()), 6, a.0));
    let started = start(&mut state, &effects, 2 * SECOND);
    assert_eq!((started.len(), started[0].1.device.as_str()), (1, "cpu"));
    assert!(started[0].0 > b, "no number is used twice");
    let exited = told(&state.apply(gone(b), 2 * SECOND)).remove(0);
    assert_eq!((exited.token, exited.device.as_str()), (Some(token(1, 0).into()), "cpu:1"));
}

#[test]
fn one_that_is_prepared_and_dies_at_once_does_not_keep_the_machine_busy() {
    let mut state = welcomed(1);
    let [a, _] = ready_made(&mut state, order("job"), SECOND);
    let effects = state.apply(gone(a), SECOND + at(1));
    assert!(start(&mut state, &effects, SECOND).is_empty());
    assert_eq!(state.deadline(), Some(SECOND + FIRST_REST));
    let effects = state.apply(Event::Tick, SECOND + FIRST_REST);
    assert_eq!(start(&mut state, &effects, SECOND + FIRST_REST).len(), 1);
}

#[test]
fn rests_double_until_a_process_is_prepared() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, prepare(order("job")), SECOND);
    let mut id = start(&mut state, &effects, SECOND)[0].0;
    let mut now = SECOND;
    let mut rests = Vec::new();
    for round in 0..7 {
        // A program that cannot be started rests as one that ends early.
        let event = if round % 2 == 0 {
            gone(id)
        } else {
            Event::NotStarted { process: id, reason: "no such file".into() }
        };
        let effects = state.apply(event, now);
        assert!(start(&mut state, &effects, now).is_empty());
        let due = state.deadline().unwrap();
        rests.push(due - now);
        now = due;
        let effects = state.apply(Event::Tick, now);
        id = start(&mut state, &effects, now)[0].0;
    }
    assert_eq!(rests, [500, 1000, 2000, 4000, 8000, 10_000, 10_000].map(at));
    assert_eq!((rests[0], rests[6]), (FIRST_REST, MAX_REST));
    says(&mut state, id, prepared(), now);
    let effects = state.apply(gone(id), now + SECOND);
    id = start(&mut state, &effects, now + SECOND)[0].0;
    state.apply(gone(id), now + SECOND);
    assert_eq!(state.deadline(), Some(now + SECOND + FIRST_REST), "readiness ends the doubling");
}

#[test]
fn one_that_could_not_be_started_is_a_failure_that_names_the_device() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, prepare(order("job")), SECOND);
    let Some(Effect::Spawn { process, .. }) = effects.first() else { panic!("{effects:?}") };
    let effects = state.apply(Event::NotStarted { process: *process, reason: "no such file".into() }, SECOND);
    let event = &told(&effects)[0];
    let Some(Said::Failed(failed)) = &event.event else { panic!("{event:?}") };
    assert_eq!((failed.kind(), event.device.as_str(), event.process), (FailureKind::Other, "cpu", process.0));
    assert!(failed.message.contains("no such file"), "{}", failed.message);
}

#[test]
fn a_stopped_rank_ends_and_its_device_gets_a_new_process() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    hear(&mut state, assign(token(1, 1), &[post(a, "cpu", 0), post(b, "cpu:1", 1)]), SECOND);
    let stop = Command::Stop(Stop { reason: "over".into() });
    let effects = hear(&mut state, relay_to(token(1, 1), Some(1), stop), 2 * SECOND);
    assert!(matches!(commands(&effects)[..], [(id, Command::Stop(_))] if id == b));
    let hello = down(&mut state, 2 * SECOND);
    assert_eq!(hello.processes.len(), 1, "nobody counts on one that is to end");
    assert_eq!(killed(&state.apply(Event::Tick, 2 * SECOND + GRACE)), [b]);
    let effects = state.apply(gone(b), 5 * SECOND);
    assert_eq!(start(&mut state, &effects, 5 * SECOND)[0].1.device, "cpu:1");
}

#[test]
fn silence_is_an_end_that_says_where() {
    let mut state = welcomed(1);
    let patient = Configure { lost_after_ms: 2000, ..order("job") };
    let effects = hear(&mut state, prepare(patient), SECOND);
    let [(a, _), (b, _)] = start(&mut state, &effects, SECOND)[..] else { panic!("{effects:?}") };
    assert_eq!(state.deadline(), Some(61 * SECOND), "nobody has spoken yet");
    assert_eq!(says(&mut state, a, alive(None, "preparing", 0.5), 2 * SECOND), [], "for the worker alone");
    assert_eq!(state.deadline(), Some(4 * SECOND));
    says(&mut state, a, alive(Some(17), "backward", 1.2), 3 * SECOND);
    assert_eq!(killed(&state.apply(Event::Tick, 4 * SECOND)), []);
    assert_eq!(killed(&state.apply(Event::Tick, 5 * SECOND)), [a]);
    assert_eq!(state.deadline(), Some(61 * SECOND), "once is enough");
    let effects = state.apply(gone(a), 5 * SECOND);
    assert_eq!(exits(&effects), ["silent for 2.0 s in step 17 (backward for 1.2 s): killed"]);

    says(&mut state, b, alive(None, "idle", 0.1), 6 * SECOND);
    state.apply(Event::Tick, 8 * SECOND);
    assert_eq!(exits(&state.apply(gone(b), 8 * SECOND)), ["silent for 2.0 s (idle for 0.1 s): killed"]);
}

#[test]
fn a_process_that_never_says_a_word_is_not_waited_for_for_ever() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, prepare(Configure { lost_after_ms: 2000, ..order("job") }), SECOND);
    let [(a, _), (b, _)] = start(&mut state, &effects, SECOND)[..] else { panic!("{effects:?}") };
    says(&mut state, a, prepared(), 2 * SECOND);
    let mut killed_at = Vec::new();
    for second in 3..70 {
        let mut effects = says(&mut state, a, alive(None, "idle", 0.1), second * SECOND);
        effects.extend(state.apply(Event::Tick, second * SECOND));
        killed_at.extend(killed(&effects).into_iter().map(|id| (id, second)));
    }
    assert_eq!(killed_at, [(b, 61)]);
    let said = exits(&state.apply(gone(b), 70 * SECOND));
    assert_eq!(said, ["silent for 60.0 s since its start: killed"]);
}

#[test]
fn a_limit_of_zero_is_none_and_any_word_counts() {
    let mut state = welcomed(1);
    ready_made(&mut state, order("job"), SECOND);
    assert_eq!(killed(&state.apply(Event::Tick, 59 * SECOND)), []);
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, Configure { lost_after_ms: 2000, ..order("job") }, SECOND);
    says(&mut state, a, prepared(), 2 * SECOND);
    assert_eq!(killed(&state.apply(Event::Tick, 3 * SECOND)), [b]);
    assert_eq!(exits(&state.apply(gone(b), 3 * SECOND)), ["silent for 2.0 s: killed"]);
}

#[test]
fn a_worker_that_was_held_up_itself_does_not_call_that_silence() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, Configure { lost_after_ms: 2000, ..order("job") }, SECOND);
    assert_eq!(state.deadline(), Some(3 * SECOND));
    assert_eq!(killed(&state.apply(Event::Tick, 20 * SECOND)), [], "it was stopped for 17 s");
    assert_eq!(state.deadline(), Some(22 * SECOND));
    says(&mut state, a, alive(None, "idle", 9.0), 21 * SECOND);
    assert_eq!(killed(&state.apply(Event::Tick, 22 * SECOND + HELD_UP / 2)), [b]);
}

#[test]
fn one_that_cannot_be_worked_with_is_reported_once_and_killed() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    let deaf = || Event::RankDeaf { process: a, waiting: 256 };
    let effects = state.apply(deaf(), SECOND);
    assert_eq!(killed(&effects), [a]);
    assert!(matches!(told(&effects)[0].event, Some(Said::Failed(_))));
    assert_eq!(state.apply(deaf(), SECOND), []);
    let forged = Said::Exited(Exited::default());
    let effects = says(&mut state, b, forged, SECOND);
    assert_eq!(killed(&effects), [b]);
    assert!(matches!(told(&effects)[..], [RankEvent { event: Some(Said::Failed(_)), .. }]), "{effects:?}");
}

#[test]
fn one_that_says_it_failed_frees_its_device_soon_even_if_it_hangs() {
    let mut state = welcomed(1);
    let [a, _] = ready_made(&mut state, order("job"), SECOND);
    let failed = crate::ranks::failed("out of memory".into());
    assert_eq!(told(&says(&mut state, a, failed.clone(), 2 * SECOND))[0].event, Some(failed));
    assert_eq!(down(&mut state, 2 * SECOND).processes.len(), 1);
    assert_eq!(killed(&state.apply(Event::Tick, 2 * SECOND + GRACE)), [a]);
}
