//! As the message that `GetHistory` answers; whoever reads files makes the same one of them.

use crate::chronicle::{Chronicle, Entry, Happening};
use crate::course::{Course, Point};
use mcl_proto::v1;

/// A run in at most so many points (0: as many as there are), its newest steps, and what happened to it.
pub fn response(
    run_id: &str,
    course: &Course,
    chronicle: &Chronicle,
    points: usize,
) -> v1::GetHistoryResponse {
    v1::GetHistoryResponse {
        run_id: run_id.to_owned(),
        points: course.points(points).into_iter().map(point).collect(),
        recent: course.recent().map(|row| point(row.into())).collect(),
        happenings: chronicle.entries().map(happening).collect(),
    }
}

fn point(p: Point) -> v1::HistoryPoint {
    v1::HistoryPoint {
        first_step: p.first,
        steps: p.steps,
        loss: p.loss,
        loss_per_level: p.loss_per_level,
        lr: p.lr,
        momentum: p.momentum,
        grad_norm: p.grad_norm,
        images_per_second: p.images_per_s,
        data_wait_seconds: p.data_wait_s,
        step_seconds: p.step_s,
        workers: p.workers,
        generation: p.generation,
        skipped: p.skipped,
        time: p.time,
    }
}

fn happening(entry: &Entry) -> v1::Happening {
    let text = entry.what.to_string();
    let told = v1::Happening { time: entry.time, text, generation: entry.what.generation(), ..Default::default() };
    let of = |event: &str| v1::Happening { event: event.to_owned(), ..told.clone() };
    let at = |event: &str, step: u64| v1::Happening { step: Some(step), ..of(event) };
    let because = |event: &str, why: &str| v1::Happening { why: why.to_owned(), ..of(event) };
    match &entry.what {
        Happening::Formed { workers, ranks, why, .. } => {
            v1::Happening { workers: Some(*workers), ranks: Some(*ranks), ..because("formed", why) }
        }
        Happening::Started { step, from, .. } => v1::Happening { why: from.clone(), ..at("started", *step) },
        Happening::Ended { why, .. } => because("ended", why),
        Happening::RolledBack { to, .. } => at("rolled_back", *to),
        Happening::Checkpoint { step } => at("checkpoint", *step),
        Happening::Held => of("held"),
        Happening::Resumed => of("resumed"),
        Happening::Drained => of("drained"),
        Happening::Submitted { step } => at("submitted", *step),
        Happening::TakenOver { .. } => of("taken_over"),
        Happening::Over { outcome, .. } => because("over", outcome),
        Happening::Unknown => of("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn happenings_say_which_generation_and_step_they_are_about() {
        let told = |what| happening(&Entry { time: 2.0, what });
        let formed = told(Happening::Formed { generation: 4, workers: 2, ranks: 3, why: "w1 is lost".to_owned() });
        assert_eq!((formed.generation, formed.workers, formed.ranks), (Some(4), Some(2), Some(3)));
        assert_eq!((formed.event.as_str(), formed.why.as_str(), formed.step), ("formed", "w1 is lost", None));
        let checkpoint = told(Happening::Checkpoint { step: 40 });
        assert_eq!((checkpoint.step, checkpoint.text.as_str()), (Some(40), "checkpoint after 40 steps is visible"));
    }
}
