//! A run for tests.

use crate::view::{Link, Snapshot};
use mcl_proto::v1;

fn evaluation(step: u64) -> v1::PastEvaluation {
    let accuracy = |probe: &str, on: &str, trained| v1::ProbeAccuracy {
        probe: probe.to_owned(),
        on: on.to_owned(),
        trained,
        random: 0.2,
        pixels: 0.4,
    };
    let accuracies = vec![accuracy("knn", "objects", 0.542), accuracy("linear", "scenes", 0.409)];
    v1::PastEvaluation { step, encoder: "momentum".to_owned(), accuracies, seconds: 20.0, time: 900.0 }
}

/// So many workers with a rank each, in the middle of training; the last one is slow.
pub(crate) fn training(workers: u32) -> Snapshot {
    let name = |n: u32| format!("worker-{n:03}");
    let worker = |n: u32| v1::WorkerStatus {
        worker: name(n),
        ranks: vec![n],
        state: "training".to_owned(),
        silent_seconds: 0.2,
        advertise: format!("10.0.0.{n}"),
    };
    let rank = |n: u32| v1::RankStatus {
        rank: n,
        worker: name(n),
        device: "cuda:0".to_owned(),
        step_seconds: 0.2,
        data_wait_seconds: 0.01,
        forward_seconds: 0.08,
        backward_seconds: 0.1,
        collective_seconds: 0.02,
        straggler: n > 0 && n + 1 == workers,
        last_step: 1199,
    };
    let point = |first_step: u64, steps: u64| v1::HistoryPoint {
        first_step,
        last_step: first_step + steps - 1,
        generation: 2,
        time: 760.0 + first_step as f64 / 5.0,
        skipped: 0,
        loss: Some(6.0 - first_step as f64 / 400.0),
        loss_per_level: vec![3.0 - first_step as f64 / 800.0, 1.5, 1.0, 0.5],
        lr: Some(1e-3),
        momentum: Some(0.996),
        grad_norm: Some(1.25),
        images_per_second: Some(512.0),
        data_wait_seconds: Some(0.01),
        step_seconds: Some(0.2),
    };
    let generations = vec![
        v1::PastGeneration {
            generation: 2,
            workers,
            ranks: Some(workers),
            since: 821.0,
            first_step: Some(620),
            steps: 580,
            why: Some("generation 1 ended: worker worker-001 was silent for 10.0 s".to_owned()),
            until: None,
        },
        v1::PastGeneration {
            generation: 1,
            workers: 2,
            ranks: Some(2),
            since: 710.0,
            first_step: Some(0),
            steps: 620,
            why: Some("the job began".to_owned()),
            until: Some(820.0),
        },
    ];
    Snapshot {
        status: v1::GetStatusResponse {
            run_id: "r50".to_owned(),
            phase: "training".to_owned(),
            reason: format!("generation 2: {workers} ranks"),
            term: 1,
            generation: 2,
            committed_steps: 1200,
            total_steps: 5000,
            steps_per_epoch: 400,
            workers: (0..workers).map(worker).collect(),
            loss: 3.0,
            images_per_second: 512.0,
            last_checkpoint: Some(1000),
            data_wait_share: 0.05,
            ranks: (0..workers).map(rank).collect(),
            ..Default::default()
        },
        history: v1::GetHistoryResponse {
            run_id: "r50".to_owned(),
            points: (0..150).map(|n| point(n * 8, 8)).collect(),
            recent: (1072..1200).map(|n| point(n, 1)).collect(),
            generations,
            forgotten_generations: 0,
            checkpoints: vec![
                v1::VisibleCheckpoint { step: 1000, time: Some(960.0) },
                v1::VisibleCheckpoint { step: 500, time: None },
            ],
            levels: Vec::new(),
            steps_per_second: Some(5.0),
            evaluations: vec![evaluation(500)],
        },
        link: Link::Coordinator("http://127.0.0.1:7070".to_owned()),
    }
}
