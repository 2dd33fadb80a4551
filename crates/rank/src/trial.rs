//! A trainer on random views: for checks and measurements that need steps and no pictures.

use anyhow::Result;
use mcl_model::{ComputeMode, LaneSide, Model, ModelSpec};
use mcl_train::{
    Halt, LaneInput, NormScope, OptimizerSettings, Rates, Rule, StepInput, StepOutcome, Trainer,
    TrainerSettings,
};
use mcl_types::{Seed, Step};
use tch::{Device, Kind, Tensor};

/// LARS, f32, norms over all lanes, `lanes` lanes in all.
pub(crate) const fn settings(compute: ComputeMode, (lanes, images): (u32, u32)) -> TrainerSettings {
    TrainerSettings {
        lanes,
        images_per_lane: images,
        montages: None,
        compute,
        norm: NormScope::Job,
        autocast: false,
        optimizer: OptimizerSettings { rule: Rule::Lars { momentum: 0.9, eta: 1e-3 }, weight_decay: 1e-5 },
        clip_norm: 500.0,
        seed: mcl_types::Seed::new(0),
        supervision: [1.0, 1.0],
    }
}

/// A trainer of f32 weights, alone until it joins others.
pub(crate) fn trainer(spec: ModelSpec, device: Device, settings: TrainerSettings) -> Result<Trainer> {
    let mut model = Model::new(spec, Kind::Float, device)?;
    model.initialize(Seed::new(1))?;
    Ok(Trainer::new(model, settings)?)
}

/// The next step, on views of its own.
pub(crate) fn step(trainer: &mut Trainer, step: u64) -> Result<StepOutcome> {
    let lanes = trainer.layout().lanes();
    let lanes = lanes.map(|lane| {
        let seed = |side: u64| 2 * (step << 16 | u64::from(lane)) + side;
        Ok(LaneInput {
            q: random_side(trainer, seed(0))?,
            k: random_side(trainer, seed(1))?,
            notes: vec![7],
            classes: Vec::new(),
        })
    });
    let lanes = lanes.collect::<Result<Vec<_>>>()?;
    let rates = Rates { lr: 0.5, momentum: 0.99 };
    let input = StepInput { step: Step::new(step), lanes: &lanes, rates, halt: Halt::No, saving: false };
    Ok(trainer.step(&input)?)
}

fn random_side(trainer: &Trainer, seed: u64) -> Result<LaneSide> {
    let layout = trainer.layout();
    let mut random = mcl_types::SplitMix64::new(seed);
    let mut views = Vec::new();
    let mut permutations = Vec::new();
    for level in 0..layout.levels() {
        let side = trainer.model().spec().image_size / ModelSpec::ratio(level);
        let n = layout.images_per_lane();
        // Made where they are used: drawing them on a CPU would cost more than a step on a GPU.
        views.push(Tensor::f_randint(256, [n, 3, side, side], (Kind::Uint8, trainer.model().device()))?);
        if level > 0 {
            let tiles = usize::try_from(layout.tiles(level))?;
            let drawn = random.permutation(tiles);
            permutations.push(drawn.into_iter().map(i64::try_from).collect::<Result<_, _>>()?);
        }
    }
    Ok(LaneSide { views, permutations })
}
