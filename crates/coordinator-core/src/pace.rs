//! How fast each rank is, and who holds the others up.

use crate::event::StepReport;
use crate::generation::Live;
use crate::state::State;
use crate::status::RankStatus;
use serde::{Deserialize, Serialize};

/// Weight of the newest step: a mean over about 20 steps.
const WEIGHT: f64 = 0.05;
/// Own work of a straggler against the median rank's.
const STRAGGLES: f64 = 1.5;
/// Seconds below which a difference is noise.
const NOTABLE: f64 = 0.01;

/// Means of a rank's times, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Pace {
    steps: u64,
    last_step: u64,
    step: f64,
    data: f64,
    forward: f64,
    backward: f64,
    collective: f64,
}

impl Pace {
    /// Takes a step in.
    pub(crate) fn take(&mut self, report: &StepReport) {
        let weight = if self.steps == 0 { 1.0 } else { WEIGHT };
        let mix = |mean: &mut f64, new: f64| {
            if new.is_finite() {
                *mean += (new - *mean) * weight;
            }
        };
        mix(&mut self.step, report.step_seconds);
        mix(&mut self.data, report.data_wait_seconds);
        mix(&mut self.forward, report.forward_seconds);
        mix(&mut self.backward, report.backward_seconds);
        mix(&mut self.collective, report.collective_seconds);
        self.steps += 1;
        self.last_step = report.step;
    }

    /// What it did itself, a lane: a step less the time that it waited for others.
    fn own_work(&self, lanes: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "lanes are few")]
        let lanes = lanes.max(1) as f64;
        (self.step - self.collective).max(0.0) / lanes
    }
}

impl State {
    /// The ranks of the live generation, with their pace.
    pub(crate) fn rank_statuses(&self) -> Vec<RankStatus> {
        let Some(live) = self.live() else { return Vec::new() };
        let limit = straggling(live);
        live.ranks()
            .zip(&live.places)
            .zip(&live.paces)
            .map(|((rank, place), pace)| RankStatus {
                rank,
                worker: place.worker.clone(),
                device: place.device.clone(),
                step_seconds: pace.step,
                data_wait_seconds: pace.data,
                forward_seconds: pace.forward,
                backward_seconds: pace.backward,
                collective_seconds: pace.collective,
                straggler: pace.own_work(live.layout.lanes_of(rank).len()) > limit,
                last_step: pace.last_step,
            })
            .collect()
    }
}

/// Own work a lane beyond which a rank holds the others up.
fn straggling(live: &Live) -> f64 {
    let work = |(rank, pace): (mcl_types::Rank, &Pace)| pace.own_work(live.layout.lanes_of(rank).len());
    let mut all: Vec<f64> = live.ranks().zip(&live.paces).map(work).collect();
    if all.len() < 2 {
        return f64::INFINITY;
    }
    all.sort_by(f64::total_cmp);
    // The lower median: of two ranks the faster one is the measure.
    let median = all.get((all.len() - 1) / 2).copied().unwrap_or(f64::INFINITY);
    (median * STRAGGLES).max(median + NOTABLE)
}
