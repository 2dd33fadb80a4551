//! `mcl status`.

use crate::arguments::ServerArguments;
use crate::client::{Coordinator, runtime};
use anyhow::Result;
use console::Style;
use mcl_proto::v1::{GetStatusResponse, RankStatus, WorkerStatus};
use mcl_terminal::{has_colour, print, say};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::SystemTime;

/// So many earlier runs are shown to a person.
const PAST_RUNS: usize = 5;
/// What a coordinator calls a worker that it hears nothing of.
const LOST: &str = "lost";

pub(crate) fn status(a: &ServerArguments) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let status = Coordinator::of(a).await?.status().await?;
        if a.json {
            say!("{}", as_json(&status))?;
        } else {
            let colour = has_colour(std::io::stdout().is_terminal());
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            print(&as_text(&status, now.as_secs_f64(), Paint { colour }))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn as_json(s: &GetStatusResponse) -> serde_json::Value {
    let workers: Vec<_> = s
        .workers
        .iter()
        .map(|w| {
            serde_json::json!({
                "worker": w.worker, "ranks": w.ranks, "state": w.state,
                "silent_seconds": w.silent_seconds, "advertise": w.advertise,
            })
        })
        .collect();
    serde_json::json!({
        "run": s.run_id, "phase": s.phase, "reason": s.reason, "term": s.term, "generation": s.generation,
        "committed_steps": s.committed_steps, "total_steps": s.total_steps,
        "steps_per_epoch": s.steps_per_epoch, "loss": s.loss, "images_per_s": s.images_per_second,
        "last_checkpoint": s.last_checkpoint, "data_wait_share": s.data_wait_share, "workers": workers,
        "ranks": s.ranks.iter().map(rank_json).collect::<Vec<_>>(),
        "queue": s.queue.iter().map(|w| &w.run_id).collect::<Vec<_>>(),
        "past_runs": s.past_runs.iter()
            .map(|p| serde_json::json!({ "run": p.run_id, "outcome": p.outcome }))
            .collect::<Vec<_>>(),
        "checkpoint_url": s.checkpoint_url,
    })
}

fn rank_json(r: &RankStatus) -> serde_json::Value {
    serde_json::json!({
        "rank": r.rank, "worker": r.worker, "device": r.device, "last_step": r.last_step,
        "step_seconds": r.step_seconds, "data_wait_seconds": r.data_wait_seconds,
        "forward_seconds": r.forward_seconds, "backward_seconds": r.backward_seconds,
        "collective_seconds": r.collective_seconds, "straggler": r.straggler,
    })
}

/// What needs a look comes first, then how far it is, then the rest.
fn as_text(s: &GetStatusResponse, now: f64, paint: Paint) -> String {
    let run = if s.run_id.is_empty() { "no job" } else { &s.run_id };
    let mut text = format!("{}: {} ({})\n", paint.strong(run), paint.phase(&s.phase), s.reason);
    text += &attention(s, paint);
    if s.total_steps > 0 {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = 100.0 * s.committed_steps as f64 / s.total_steps as f64;
        text += &format!("{}/{} steps ({share:.1} %)", s.committed_steps, s.total_steps);
        if let Some(epoch) = s.committed_steps.checked_div(s.steps_per_epoch) {
            text += &format!(", epoch {epoch}");
        }
        text += &format!(", generation {}, term {}\n", s.generation, s.term);
    }
    if s.committed_steps > 0 {
        text += &format!("loss {:.4}, {:.0} img/s", s.loss, s.images_per_second);
        text += &format!(", {:.0} % of a step waits for pictures\n", 100.0 * s.data_wait_share);
    }
    if let Some(step) = s.last_checkpoint {
        text += &format!("last checkpoint after {step} steps\n");
    }
    text += &workers(s, paint);
    text += &ranks(s, paint);
    text += &queue(s, now);
    text
}

/// Lost workers and those that hold the others up.
fn attention(s: &GetStatusResponse, paint: Paint) -> String {
    let mut text = String::new();
    for w in s.workers.iter().filter(|w| w.state == LOST) {
        let line =
            format!("! worker {} is lost: silent for {}", w.worker, mcl_watch::duration(w.silent_seconds));
        text += &paint.bad(&line);
        text.push('\n');
    }
    for r in s.ranks.iter().filter(|r| r.straggler) {
        let line = format!("! rank {} on {} is a straggler: the others wait for it", r.rank, r.worker);
        text += &paint.warn(&line);
        text.push('\n');
    }
    text
}

fn workers(s: &GetStatusResponse, paint: Paint) -> String {
    let mut workers: Vec<_> = s.workers.iter().collect();
    workers.sort_by_key(|w| w.state != LOST);
    let row = |w: &&WorkerStatus| {
        let ranks: Vec<String> = w.ranks.iter().map(ToString::to_string).collect();
        let cells = [
            w.worker.clone(),
            w.state.clone(),
            format!("{:.1} s", w.silent_seconds),
            ranks.join(","),
            w.advertise.clone(),
        ];
        (cells, (w.state == LOST).then_some(Mark::Bad))
    };
    table(
        ["worker", "state", "silent", "ranks", "address"],
        "llrll",
        workers.iter().map(row).collect(),
        paint,
    )
}

fn ranks(s: &GetStatusResponse, paint: Paint) -> String {
    let mut ranks: Vec<_> = s.ranks.iter().collect();
    ranks.sort_by_key(|r| !r.straggler);
    let row = |r: &&RankStatus| {
        let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
        let cells = [
            r.rank.to_string(),
            format!("{}/{}", r.worker, r.device),
            ms(r.step_seconds),
            ms(r.data_wait_seconds),
            ms(r.forward_seconds),
            ms(r.backward_seconds),
            ms(r.collective_seconds),
        ];
        (cells, r.straggler.then_some(Mark::Warn))
    };
    let titles = ["rank", "worker/device", "step ms", "data", "forward", "backward", "of it in collectives"];
    table(titles, "rlrrrrr", ranks.iter().map(row).collect(), paint)
}

fn queue(s: &GetStatusResponse, now: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let ago = |then: u64| mcl_watch::age(now - then as f64);
    let mut text = String::new();
    for (at, job) in s.queue.iter().enumerate() {
        text += &format!("waits, place {}: {} for {}\n", at + 1, job.run_id, ago(job.since));
    }
    for past in s.past_runs.iter().rev().take(PAST_RUNS) {
        text += &format!("before: {} {} ({} ago)\n", past.run_id, past.outcome, ago(past.until));
    }
    text
}

/// How much a row needs a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Bad,
    Warn,
}

/// Columns as wide as what is in them, `l` to the left and `r` to the right; nothing where there is no row.
fn table<const N: usize>(
    titles: [&str; N],
    sides: &str,
    rows: Vec<([String; N], Option<Mark>)>,
    paint: Paint,
) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let wide = |s: &str| s.chars().count();
    let mut widths = titles.map(wide);
    for (cells, _) in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = wide(cell).max(*width);
        }
    }
    let line = |cells: &[String; N]| {
        let cell = |((text, width), side): ((&String, &usize), char)| {
            if side == 'r' { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        let cells: Vec<String> = cells.iter().zip(&widths).zip(sides.chars()).map(cell).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut text = format!("\n{}\n", paint.faint(&line(&titles.map(str::to_owned))));
    for (cells, mark) in rows {
        let line = line(&cells);
        text += &match mark {
            Some(Mark::Bad) => paint.bad(&line),
            Some(Mark::Warn) => paint.warn(&line),
            None => line,
        };
        text.push('\n');
    }
    text
}

/// Colours, where they are wanted.
#[derive(Debug, Clone, Copy)]
struct Paint {
    colour: bool,
}

impl Paint {
    fn with(self, style: &Style, text: &str) -> String {
        style.clone().force_styling(self.colour).apply_to(text).to_string()
    }

    fn strong(self, text: &str) -> String {
        self.with(&Style::new().bold(), text)
    }

    fn faint(self, text: &str) -> String {
        self.with(&Style::new().dim(), text)
    }

    fn bad(self, text: &str) -> String {
        self.with(&Style::new().red().bold(), text)
    }

    fn warn(self, text: &str) -> String {
        self.with(&Style::new().yellow(), text)
    }

    fn phase(self, phase: &str) -> String {
        match phase {
            "training" | "done" => self.with(&Style::new().green(), phase),
            "failed" | "cancelled" => self.bad(phase),
            _ => self.warn(phase),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_proto::v1::QueuedJob;

    fn seen() -> GetStatusResponse {
        let worker = |name: &str, state: &str, silent_seconds: f64, ranks: Vec<u32>| WorkerStatus {
            worker: name.to_owned(),
            ranks,
            state: state.to_owned(),
            silent_seconds,
            advertise: "10.0.0.1".to_owned(),
        };
        let rank = |rank: u32, worker: &str, straggler: bool| RankStatus {
            rank,
            worker: worker.to_owned(),
            device: "cpu".to_owned(),
            step_seconds: 0.2,
            straggler,
            ..RankStatus::default()
        };
        GetStatusResponse {
            run_id: "first".to_owned(),
            phase: "waiting".to_owned(),
            reason: "1 of 2 workers ready".to_owned(),
            committed_steps: 30,
            total_steps: 120,
            steps_per_epoch: 20,
            loss: 2.5,
            workers: vec![
                worker("a", "training", 0.1, vec![0, 1]),
                worker("a-long-name", LOST, 75.0, vec![]),
            ],
            ranks: vec![rank(0, "a", false), rank(1, "a", true)],
            queue: vec![QueuedJob { run_id: "next".to_owned(), since: 940 }],
            ..GetStatusResponse::default()
        }
    }

    #[test]
    fn what_needs_a_look_comes_first_and_columns_are_aligned() {
        let text = as_text(&seen(), 1000.0, Paint { colour: false });
        let expected = "\
first: waiting (1 of 2 workers ready)
! worker a-long-name is lost: silent for 1 m 15 s
! rank 1 on a is a straggler: the others wait for it
30/120 steps (25.0 %), epoch 1, generation 0, term 0
loss 2.5000, 0 img/s, 0 % of a step waits for pictures

worker       state     silent  ranks  address
a-long-name  lost      75.0 s         10.0.0.1
a            training   0.1 s  0,1    10.0.0.1

rank  worker/device  step ms  data  forward  backward  of it in collectives
   1  a/cpu            200.0   0.0      0.0       0.0                   0.0
   0  a/cpu            200.0   0.0      0.0       0.0                   0.0
waits, place 1: next for 1 m
";
        assert_eq!(text, expected);
        let coloured = as_text(&seen(), 1000.0, Paint { colour: true });
        assert!(coloured.contains("\u{1b}[31m"), "{coloured:?}");
        assert_eq!(console::strip_ansi_codes(&coloured), expected);
    }

    #[test]
    fn without_a_job_there_is_one_line() {
        let idle = GetStatusResponse {
            phase: "idle".to_owned(),
            reason: "no job submitted".to_owned(),
            ..Default::default()
        };
        assert_eq!(as_text(&idle, 0.0, Paint { colour: false }), "no job: idle (no job submitted)\n");
    }
}
