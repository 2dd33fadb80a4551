//! What happens to a run, remembered: from the coordinator's words to those of [`mcl_history`], and from there to those
//! that `GetHistory` answers with.

use crate::row::row;
use mcl_config::Job;
use mcl_coordinator::{Adopted, DrainFor, Observation, Observed};
use mcl_history::{
    Accuracy, Bucket, Draining, Evaluation, Happening, METRICS, Record, Run, SERIES, Told, What,
};
use mcl_proto::v1;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};

/// Points of the whole run where none are asked for, and at most.
const POINTS: (usize, usize) = (512, 2048);
/// Newest steps that are told one by one.
const RECENT: usize = 128;

/// What happens, and what features are found to be worth; `adopted` hears of the job that is run.
pub(crate) fn told(
    observations: broadcast::Receiver<Observation>,
    evaluations: broadcast::Receiver<Happening>,
    mut adopted: impl FnMut(&Adopted) + Send,
) -> impl Stream<Item = Told> + Send {
    let evaluations = BroadcastStream::new(evaluations).filter_map(Result::ok).map(Told::Happening);
    let observations = BroadcastStream::new(observations).map(move |observed| match observed {
        Err(BroadcastStreamRecvError::Lagged(_)) => Told::Missed,
        Ok(Observation { time, what }) => {
            if let Observed::Adopted(job) = &what {
                adopted(job);
            }
            Told::Happening(Happening { time, what: happened(what, time) })
        }
    });
    observations.merge(evaluations)
}

fn happened(what: Observed, time: f64) -> What {
    match what {
        Observed::Adopted(adopted) => began(&adopted),
        Observed::Committed(metrics) => What::Committed(Box::new(row(*metrics, time))),
        Observed::RolledBack { to } => What::RolledBack { to },
        Observed::Formed { generation, workers, ranks } => {
            What::Formed { generation: generation.get(), workers, ranks }
        }
        Observed::Continued { generation, workers, ranks, term } => {
            What::Continued { generation: generation.get(), workers, ranks, term: term.get() }
        }
        Observed::Ended { generation } => What::Ended { generation: generation.get(), cause: None },
        Observed::Failed { generation, cause } => {
            What::Ended { generation: generation.get(), cause: Some(cause.to_string()) }
        }
        Observed::Draining(why) => What::Draining(match why {
            DrainFor::Stop => Draining::Stop,
            DrainFor::Hold => Draining::Hold,
            DrainFor::Departure => Draining::Departure,
            DrainFor::Regroup => Draining::Regroup,
        }),
        Observed::Checkpoint { step } => What::Checkpoint { step },
        Observed::CheckpointsFound { steps } => What::CheckpointsFound(steps),
    }
}

fn began(adopted: &Adopted) -> What {
    let plan = &adopted.facts.plan;
    let mut run = Run {
        name: adopted.run_id.to_string(),
        lanes: plan.lanes,
        images_per_lane: plan.images_per_lane,
        ..Run::default()
    };
    // It was read before it was adopted; without it the page lacks names of levels and bounds of the loss.
    if let Ok(job) = Job::parse(&adopted.facts.job_toml, "the job") {
        run.levels = job.method().levels.iter().map(|r| level(*r)).collect();
        let bounds = crate::run_dir::loss_bounds(&job);
        (run.chance, run.floor) = (bounds.map(|b| b.chance), bounds.map(|b| b.floor));
    }
    What::Began {
        run: Box::new(run),
        metrics: adopted.run_dir.join(METRICS),
        committed: adopted.committed,
        checkpoint: adopted.checkpoint,
    }
}

/// A level is named for the size of its pictures.
fn level(ratio: u32) -> String {
    if ratio == 1 { "full size".to_owned() } else { format!("1/{ratio} size") }
}

/// A record as it is told to one who looks on from elsewhere, the whole run in about so many points; 0: as usual.
pub(crate) fn response(record: &Record, points: usize) -> v1::GetHistoryResponse {
    let points = if points == 0 { POINTS.0 } else { points.min(POINTS.1) };
    let (generations, forgotten_generations) = record.generations();
    let generation = |g: &mcl_history::Generation| v1::PastGeneration {
        generation: g.generation,
        workers: g.workers,
        ranks: g.ranks,
        since: g.since,
        first_step: g.first_step,
        steps: g.steps,
        why: g.why.clone(),
        until: g.until,
    };
    let checkpoint = |c: &mcl_history::Checkpoint| v1::VisibleCheckpoint { step: c.step, time: c.time };
    v1::GetHistoryResponse {
        run_id: record.run.as_ref().map(|r| r.name.clone()).unwrap_or_default(),
        points: record.history.whole(points).iter().map(point).collect(),
        recent: record.history.newest(RECENT, RECENT).iter().map(point).collect(),
        generations: generations.map(generation).collect(),
        forgotten_generations,
        checkpoints: record.checkpoints().map(checkpoint).collect(),
        evaluations: record.evaluations().map(evaluation).collect(),
        levels: record.run.as_ref().map(|r| r.levels.clone()).unwrap_or_default(),
        steps_per_second: record.pace(),
    }
}

fn evaluation(e: &Evaluation) -> v1::PastEvaluation {
    let accuracy = |a: &Accuracy| v1::ProbeAccuracy {
        probe: a.probe.clone(),
        on: a.on.clone(),
        trained: a.trained,
        random: a.random,
        pixels: a.pixels,
    };
    v1::PastEvaluation {
        step: e.step,
        encoder: e.encoder.clone(),
        accuracies: e.accuracies.iter().map(accuracy).collect(),
        seconds: e.seconds,
        time: e.time,
    }
}

fn point(bucket: &Bucket) -> v1::HistoryPoint {
    let mean = |name: &str| {
        let at = SERIES.iter().position(|s| *s == name)?;
        bucket.spans.get(at)?.mean()
    };
    let levels = bucket.spans.iter().skip(SERIES.len());
    v1::HistoryPoint {
        first_step: bucket.first,
        last_step: bucket.last,
        generation: bucket.generation,
        time: bucket.time,
        skipped: bucket.skipped,
        loss: mean("loss"),
        loss_per_level: levels.map(|span| span.mean().unwrap_or(f64::NAN)).collect(),
        lr: mean("lr"),
        momentum: mean("momentum"),
        grad_norm: mean("grad_norm"),
        images_per_second: mean("images_per_s"),
        data_wait_seconds: mean("data_wait_s"),
        step_seconds: mean("step_s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_history::Row;

    fn committed(step: u64) -> Happening {
        let row = Row {
            step,
            epoch: 0,
            generation: 2,
            loss: (step != 1).then_some(4.0),
            loss_per_level: if step == 1 { Vec::new() } else { vec![3.0, 1.0] },
            lr: 0.5,
            momentum: 0.9,
            grad_norm: Some(1.5),
            images_per_s: 64.0,
            workers: 2,
            data_wait_s: 0.25,
            step_s: 0.5,
            skipped: step == 1,
            time: 100.0 + step as f64,
        };
        Happening { time: row.time, what: What::Committed(Box::new(row)) }
    }

    #[test]
    fn an_answer_holds_every_number_under_its_name_and_has_a_bound() {
        let mut record = Record::default();
        let run = Run { name: "r".to_owned(), levels: vec!["full size".to_owned()], ..Run::default() };
        let metrics = METRICS.into();
        let began = What::Began { run: Box::new(run), metrics, committed: 0, checkpoint: Some(1) };
        record.take(Happening { time: 1.0, what: began });
        record.take(Happening { time: 2.0, what: What::Formed { generation: 2, workers: 2, ranks: 4 } });
        (0..5000).for_each(|s| record.take(committed(s)));
        let told = response(&record, 0);
        assert!(told.points.len() <= 512 && told.points.len() > 256, "{}", told.points.len());
        assert_eq!((told.run_id.as_str(), told.recent.len(), told.levels.len()), ("r", 128, 1));
        assert_eq!(told.points.iter().map(|p| p.skipped).sum::<u64>(), 1);
        assert!(response(&record, usize::MAX).points.len() <= 2048);
        let first = &response(&record, 2048).points[0];
        assert_eq!(
            (first.first_step, first.loss, first.loss_per_level.as_slice()),
            (0, Some(4.0), &[3.0, 1.0][..])
        );
        let expected = (Some(0.5), Some(0.9), Some(1.5), Some(64.0), Some(0.25), Some(0.5));
        let found = (
            first.lr,
            first.momentum,
            first.grad_norm,
            first.images_per_second,
            first.data_wait_seconds,
            first.step_seconds,
        );
        assert_eq!(found, expected);
        let generation = &told.generations[0];
        assert_eq!((generation.generation, generation.ranks, generation.steps), (2, Some(4), 5000));
        assert_eq!(generation.why.as_deref(), Some("the job began"));
        assert_eq!((told.checkpoints[0].step, told.steps_per_second), (1, Some(1.0)));
    }
}
