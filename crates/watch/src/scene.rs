//! A run for tests.

use crate::view::{Link, Snapshot};
use mcl_proto::v1;

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
        steps,
        loss: Some(6.0 - first_step as f64 / 400.0),
        loss_per_level: vec![3.0 - first_step as f64 / 800.0, 1.5, 1.0, 0.5],
        lr: 1e-3,
        momentum: 0.996,
        grad_norm: Some(1.25),
        images_per_second: 512.0,
        data_wait_seconds: 0.01,
        step_seconds: 0.2,
        workers,
        generation: 2,
        skipped: 0,
        time: 760.0 + first_step as f64 / 5.0,
    };
    let happening = |time: f64, event: &str| v1::Happening { time, event: event.to_owned(), ..Default::default() };
    let happenings = vec![
        v1::Happening { step: Some(0), ..happening(700.0, "submitted") },
        v1::Happening {
            generation: Some(1),
            workers: Some(2),
            ranks: Some(2),
            why: "the run begins".to_owned(),
            ..happening(710.0, "formed")
        },
        v1::Happening { generation: Some(1), step: Some(0), ..happening(720.0, "started") },
        v1::Happening { step: Some(500), ..happening(800.0, "checkpoint") },
        v1::Happening {
            generation: Some(1),
            why: "worker worker-001 was silent for 10.0 s".to_owned(),
            ..happening(820.0, "ended")
        },
        v1::Happening {
            generation: Some(2),
            workers: Some(u64::from(workers)),
            ranks: Some(u64::from(workers)),
            why: "worker worker-001 was silent for 10.0 s".to_owned(),
            ..happening(821.0, "formed")
        },
        v1::Happening { generation: Some(2), step: Some(620), ..happening(822.0, "started") },
        v1::Happening { step: Some(1000), ..happening(960.0, "checkpoint") },
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
            happenings,
        },
        link: Link::Coordinator("http://127.0.0.1:7070".to_owned()),
    }
}
