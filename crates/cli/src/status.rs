//! `mcl status`.

use crate::arguments::ServerArguments;
use crate::client::{Coordinator, runtime};
use anyhow::Result;
use mcl_proto::v1::{GetStatusResponse, RankStatus};
use std::process::ExitCode;

/// So many earlier runs are shown to a person.
const PAST_RUNS: usize = 5;

pub(crate) fn status(a: &ServerArguments) -> Result<ExitCode> {
    runtime()?.block_on(async {
        let status = Coordinator::of(a).await?.status().await?;
        if a.json {
            println!("{}", as_json(&status));
        } else {
            print!("{}", as_text(&status));
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

fn as_text(s: &GetStatusResponse) -> String {
    let mut text = format!(
        "{}: {} ({})\n{}/{} steps, generation {}, term {}\n",
        if s.run_id.is_empty() { "no job" } else { &s.run_id },
        s.phase,
        s.reason,
        s.committed_steps,
        s.total_steps,
        s.generation,
        s.term
    );
    if s.committed_steps > 0 {
        text += &format!("loss {:.4}, {:.0} img/s\n", s.loss, s.images_per_second);
    }
    if let Some(step) = s.last_checkpoint {
        text += &format!("last checkpoint after {step} steps\n");
    }
    for w in &s.workers {
        let ranks: Vec<String> = w.ranks.iter().map(ToString::to_string).collect();
        text += &format!(
            "  {:<20} {:<10} ranks [{}]  silent {:.1} s  {}\n",
            w.worker,
            w.state,
            ranks.join(", "),
            w.silent_seconds,
            w.advertise
        );
    }
    if !s.queue.is_empty() {
        let waiting: Vec<&str> = s.queue.iter().map(|w| w.run_id.as_str()).collect();
        text += &format!("  waiting for their turn: {}\n", waiting.join(", "));
    }
    for past in s.past_runs.iter().rev().take(PAST_RUNS) {
        text += &format!("  before: {} {}\n", past.run_id, past.outcome);
    }
    if !s.ranks.is_empty() {
        text += "  rank  worker/device          step ms    data  forward  backward  of it in collectives\n";
    }
    for r in &s.ranks {
        let ms = |seconds: f64| seconds * 1e3;
        text += &format!(
            "  {:<5} {:<20} {:>9.1} {:>7.1} {:>8.1} {:>9.1} {:>11.1}{}\n",
            r.rank,
            format!("{}/{}", r.worker, r.device),
            ms(r.step_seconds),
            ms(r.data_wait_seconds),
            ms(r.forward_seconds),
            ms(r.backward_seconds),
            ms(r.collective_seconds),
            if r.straggler { "  straggler: the others wait for it" } else { "" }
        );
    }
    text
}
