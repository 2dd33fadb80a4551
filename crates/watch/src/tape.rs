//! A run in lines, where there is no terminal: one a change.

use crate::text::{clean, duration, short};
use crate::view::{Event, Link, Snapshot};
use mcl_proto::v1::{GetStatusResponse, PastGeneration};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Seconds between two lines that only say how far it is.
const PROGRESS: f64 = 10.0;

/// A line, for people and for programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// For people.
    pub text: String,
    /// One object.
    pub json: Value,
}

/// What was said already.
#[derive(Debug, Clone, Default)]
pub struct Tape {
    said: Option<Said>,
    away: bool,
    /// When it was said how far it is.
    progress: f64,
    ended: Option<String>,
}

/// The parts of what was seen whose change is said.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    run: String,
    phase: String,
    reason: String,
    steps: u64,
    lost: BTreeSet<String>,
    stragglers: BTreeSet<String>,
    /// By number, with what is said of it.
    generations: BTreeMap<u64, (String, Value)>,
    checkpoints: BTreeSet<u64>,
    /// Not from a coordinator.
    from_files: bool,
}

impl Tape {
    /// The lines that an event makes; `now` in seconds since 1970.
    pub fn take(&mut self, event: &Event, now: f64) -> Vec<Line> {
        match event {
            Event::Seen(seen) => self.seen(seen, now),
            Event::Away(why) if !self.away => {
                self.away = true;
                let why = clean(why);
                vec![line(
                    now,
                    "away",
                    format!("the coordinator does not answer: {why}"),
                    json!({ "why": why }),
                )]
            }
            _ => Vec::new(),
        }
    }

    /// The phase in which the run that was seen first ended, once it has.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    fn seen(&mut self, seen: &Snapshot, now: f64) -> Vec<Line> {
        let status = &seen.status;
        let mut lines = Vec::new();
        if std::mem::take(&mut self.away) {
            lines.push(line(now, "back", "the coordinator answers again".to_owned(), json!({})));
        }
        let last = self.said.take();
        let next = Said::of(seen, last.as_ref());
        let another = last.as_ref().is_some_and(|l| !l.run.is_empty() && l.run != next.run);
        lines.extend(happenings(last.as_ref().filter(|_| !another), &next, now));
        lines.extend(last.iter().flat_map(|last| differences(last, &next, now)));
        let changed = last
            .as_ref()
            .is_none_or(|l| (&l.run, &l.phase, &l.reason) != (&next.run, &next.phase, &next.reason));
        let further = last.as_ref().is_some_and(|l| l.steps != next.steps);
        if changed || (further && now - self.progress >= PROGRESS) {
            self.progress = now;
            let event = if changed { "status" } else { "progress" };
            lines.push(line(now, event, told(seen, changed), numbers(status, &seen.link)));
        }
        if another {
            let past = last.as_ref().and_then(|l| status.past_runs.iter().rev().find(|p| p.run_id == l.run));
            self.ended.get_or_insert_with(|| past.map_or_else(|| "over".to_owned(), |p| p.phase.clone()));
        } else if matches!(status.phase.as_str(), "done" | "failed" | "interrupted" | "cancelled") {
            self.ended.get_or_insert_with(|| status.phase.clone());
        }
        self.said = Some(next);
        lines
    }
}

impl Said {
    /// Files tell neither of workers nor of checkpoints, and name a run by its folder: what was known of these stays.
    fn of(seen: &Snapshot, last: Option<&Self>) -> Self {
        let status = &seen.status;
        let history = &seen.history;
        let lost = status.workers.iter().filter(|w| crate::lists::is_lost(w)).map(|w| clean(&w.worker));
        let slow = status.ranks.iter().filter(|r| r.straggler);
        let own = Self {
            run: clean(&status.run_id),
            phase: clean(&status.phase),
            reason: without_seconds(&clean(&status.reason)),
            steps: status.committed_steps,
            lost: lost.collect(),
            stragglers: slow.map(|r| format!("rank {} on {}", r.rank, clean(&r.worker))).collect(),
            generations: history.generations.iter().map(generation).collect(),
            // Those from before this coordinator are no news.
            checkpoints: history.checkpoints.iter().filter(|c| c.time.is_some()).map(|c| c.step).collect(),
            from_files: matches!(seen.link, Link::Files(_)),
        };
        let Some(last) = last else {
            // The name that a coordinator has for it is not known yet.
            return if own.from_files { Self { run: String::new(), ..own } } else { own };
        };
        if own.from_files {
            let mut generations = own.generations;
            generations.extend(last.generations.clone());
            let (run, lost, stragglers) = (last.run.clone(), last.lost.clone(), last.stragglers.clone());
            return Self { run, lost, stragglers, checkpoints: last.checkpoints.clone(), generations, ..own };
        }
        // Between two coordinators there is no run for a moment.
        if own.run.is_empty() { Self { run: last.run.clone(), ..own } } else { own }
    }
}

/// A reason less its fractions: those are seconds, which change all the time.
fn without_seconds(reason: &str) -> String {
    let is_fraction = |word: &&str| word.contains('.') && word.parse::<f64>().is_ok();
    reason.split(' ').filter(|word| !is_fraction(word)).collect::<Vec<_>>().join(" ")
}

/// A generation: its number, and what is said of it.
fn generation(g: &PastGeneration) -> (u64, (String, Value)) {
    let why = g.why.as_deref().map(clean);
    let mut text = format!("generation {}: {} workers", g.generation, g.workers);
    if let Some(ranks) = g.ranks {
        text += &format!(", {ranks} ranks");
    }
    if let Some(why) = &why {
        text += &format!(": {why}");
    }
    let more = json!({
        "generation": g.generation, "workers": g.workers, "ranks": g.ranks, "why": why, "since": g.since,
    });
    (g.generation, (text, more))
}

/// What happened since; nothing that happened before the first look.
fn happenings(last: Option<&Said>, next: &Said, now: f64) -> Vec<Line> {
    let Some(last) = last else { return Vec::new() };
    let mut lines = Vec::new();
    if next.steps < last.steps && next.from_files == last.from_files {
        let text = format!("rolled back to {} steps", next.steps);
        lines.push(line(now, "rolled_back", text, json!({ "committed_steps": next.steps })));
    }
    let known = last.generations.keys().next_back();
    for (text, more) in next.generations.iter().filter(|(n, _)| Some(*n) > known).map(|(_, said)| said) {
        lines.push(line(now, "generation", text.clone(), more.clone()));
    }
    let newest = last.checkpoints.last().copied();
    for step in next.checkpoints.difference(&last.checkpoints).filter(|s| Some(**s) > newest) {
        let text = format!("checkpoint after {step} steps is visible");
        lines.push(line(now, "checkpoint", text, json!({ "step": step })));
    }
    lines
}

fn differences(last: &Said, next: &Said, now: f64) -> Vec<Line> {
    let one = |event: &str, name: &String, text: &str| {
        line(now, event, format!("{name} {text}"), json!({ "who": name }))
    };
    let of = |event: &'static str, names: Vec<&String>, text: &'static str| {
        names.into_iter().map(|n| one(event, n, text)).collect::<Vec<_>>()
    };
    [
        of("worker_lost", next.lost.difference(&last.lost).collect(), "is lost"),
        of("worker_back", last.lost.difference(&next.lost).collect(), "is not lost any more"),
        of("straggler", next.stragglers.difference(&last.stragglers).collect(), "holds the others up"),
        of("no_straggler", last.stragglers.difference(&next.stragglers).collect(), "keeps up again"),
    ]
    .concat()
}

fn told(seen: &Snapshot, reason: bool) -> String {
    let status = &seen.status;
    let mut text = if reason {
        let run = if status.run_id.is_empty() { "no job" } else { &status.run_id };
        format!("{run}: {} ({})", status.phase, status.reason)
    } else {
        status.run_id.clone()
    };
    if status.total_steps > 0 {
        text += &format!("  {}/{} steps", status.committed_steps, status.total_steps);
    }
    if status.committed_steps > 0 && status.loss.is_finite() {
        text += &format!("  loss {}  {:.0} img/s", short(status.loss), status.images_per_second);
    }
    if let (false, Some(left)) = (reason, crate::draw::left(seen)) {
        text += &format!("  ETA {}", duration(left));
    }
    clean(&text)
}

fn numbers(status: &GetStatusResponse, link: &Link) -> Value {
    let finite = |v: f64| v.is_finite().then_some(v);
    let from = match link {
        Link::None => None,
        Link::Coordinator(url) | Link::Files(url) => Some(url),
    };
    json!({
        "run": status.run_id, "phase": status.phase, "reason": status.reason, "term": status.term,
        "generation": status.generation, "committed_steps": status.committed_steps,
        "total_steps": status.total_steps, "loss": finite(status.loss),
        "images_per_s": status.images_per_second, "data_wait_share": finite(status.data_wait_share),
        "last_checkpoint": status.last_checkpoint, "workers": status.workers.len(),
        "ranks": status.ranks.len(), "queue": status.queue.len(), "from": from,
    })
}

fn line(now: f64, event: &str, text: String, mut more: Value) -> Line {
    if let Some(object) = more.as_object_mut() {
        object.insert("event".to_owned(), event.into());
        object.insert("time".to_owned(), now.into());
        object.insert("text".to_owned(), text.as_str().into());
    }
    Line { text, json: more }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene;
    use mcl_proto::v1;

    fn texts(tape: &mut Tape, seen: &Snapshot, now: f64) -> Vec<String> {
        tape.take(&Event::Seen(Box::new(seen.clone())), now).into_iter().map(|l| l.text).collect()
    }

    #[test]
    fn a_change_is_a_line_and_nothing_is_none() {
        let mut tape = Tape::default();
        let mut seen = scene::training(3);
        let first = texts(&mut tape, &seen, 1000.0);
        assert_eq!(first, ["r50: training (generation 2: 3 ranks)  1200/5000 steps  loss 3.0000  512 img/s"]);
        seen.status.committed_steps = 1205;
        assert_eq!(texts(&mut tape, &seen, 1001.0), [""; 0]);
        assert_eq!(texts(&mut tape, &seen, 1010.5).len(), 0, "no step more since then");
        seen.status.committed_steps = 1260;
        let progress = texts(&mut tape, &seen, 1011.0);
        assert_eq!(progress, ["r50  1260/5000 steps  loss 3.0000  512 img/s  ETA 12 m 28 s"]);
        // A reason whose seconds go on is the same.
        seen.status.reason = "generation 2: 3 ranks, w silent for 1.5 s".to_owned();
        assert_eq!(texts(&mut tape, &seen, 1012.0).len(), 1);
        seen.status.reason = "generation 2: 3 ranks, w silent for 2.5 s".to_owned();
        assert_eq!(texts(&mut tape, &seen, 1013.0).len(), 0);
    }

    #[test]
    fn lost_workers_stragglers_and_happenings_are_lines_of_their_own() {
        let mut tape = Tape::default();
        let mut seen = scene::training(3);
        texts(&mut tape, &seen, 1000.0);
        seen.status.workers[1].state = "lost".to_owned();
        seen.status.ranks[2].straggler = false;
        seen.history.checkpoints.insert(0, v1::VisibleCheckpoint { step: 1250, time: Some(1.0) });
        let why = Some("the workers changed\n".to_owned());
        let generation = v1::PastGeneration { generation: 3, workers: 2, why, ..Default::default() };
        seen.history.generations.insert(0, generation);
        let lines = texts(&mut tape, &seen, 1001.0);
        assert_eq!(
            lines,
            [
                "generation 3: 2 workers: the workers changed ",
                "checkpoint after 1250 steps is visible",
                "worker-001 is lost",
                "rank 2 on worker-002 keeps up again"
            ]
        );
        seen.status.workers[1].state = "training".to_owned();
        seen.status.committed_steps = 1100;
        let lines = texts(&mut tape, &seen, 1002.0);
        assert_eq!(lines, ["rolled back to 1100 steps", "worker-001 is not lost any more"]);
    }

    #[test]
    fn away_and_back_are_said_once() {
        let mut tape = Tape::default();
        let seen = scene::training(1);
        texts(&mut tape, &seen, 1000.0);
        let away = Event::Away("refused\n".to_owned());
        let lines = tape.take(&away, 1001.0);
        assert_eq!((lines.len(), lines[0].json["event"].as_str()), (1, Some("away")));
        assert!(tape.take(&away, 1002.0).is_empty());
        assert_eq!(texts(&mut tape, &seen, 1003.0), ["the coordinator answers again"]);
    }

    #[test]
    fn the_end_of_the_run_that_was_seen_first_is_the_end() {
        let mut tape = Tape::default();
        let mut seen = scene::training(1);
        texts(&mut tape, &seen, 1000.0);
        assert_eq!(tape.ended(), None);
        let mut done = tape.clone();
        seen.status.phase = "done".to_owned();
        texts(&mut done, &seen, 1001.0);
        assert_eq!(done.ended(), Some("done"));
        // Another one is run by now.
        seen.status.run_id = "other".to_owned();
        seen.status.phase = "training".to_owned();
        let outcome = "drained; continues after step 20".to_owned();
        let phase = "interrupted".to_owned();
        seen.status.past_runs = vec![v1::PastRun { run_id: "r50".to_owned(), outcome, until: 0, phase }];
        texts(&mut tape, &seen, 1001.0);
        assert_eq!(tape.ended(), Some("interrupted"));
    }

    #[test]
    fn a_line_is_one_object() {
        let mut tape = Tape::default();
        let mut seen = scene::training(1);
        seen.status.loss = f64::NAN;
        let lines = tape.take(&Event::Seen(Box::new(seen)), 5.5);
        let json = &lines[0].json;
        assert_eq!((json["event"].as_str(), json["time"].as_f64()), (Some("status"), Some(5.5)));
        assert_eq!((json["committed_steps"].as_u64(), json["loss"].is_null()), (Some(1200), true));
        assert!(!json.to_string().contains('\n'));
    }

    #[test]
    fn files_in_between_make_no_news_and_names_of_folders_are_no_other_runs() {
        let mut tape = Tape::default();
        let mut files = scene::training(0);
        files.status.run_id = "folder".to_owned();
        files.status.phase = "unattended".to_owned();
        files.link = Link::Files("runs/folder".to_owned());
        files.history.checkpoints.clear();
        files.history.generations.clear();
        texts(&mut tape, &files, 1000.0);
        let mut idle = scene::training(0);
        (idle.status.run_id, idle.status.phase) = (String::new(), "idle".to_owned());
        texts(&mut tape, &idle, 1001.0);
        let mut seen = scene::training(3);
        seen.status.workers[0].state = "lost".to_owned();
        texts(&mut tape, &seen, 1002.0);
        // Killed: files only. Then there is a coordinator again.
        let lines = texts(&mut tape, &files, 1003.0);
        assert_eq!((lines.len(), lines[0].contains("unattended")), (1, true), "{lines:?}");
        let lines = texts(&mut tape, &seen, 1004.0);
        assert_eq!((lines.len(), lines[0].contains("training")), (1, true), "{lines:?}");
        assert_eq!(tape.ended(), None);
    }

    #[test]
    fn counts_in_a_reason_are_news_and_seconds_are_not() {
        let of = |reason: &str| without_seconds(reason);
        assert_eq!(of("w1 silent for 1.5 s"), of("w1 silent for 12.0 s"));
        assert_ne!(of("1 of 4 workers ready"), of("2 of 4 workers ready"));
    }
}
