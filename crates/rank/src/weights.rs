//! Tensors to bytes and back.

use anyhow::{Context, Result, bail};
use mcl_checkpoint_core::Dtype;
use mcl_config::Job;
use mcl_model::{ComputeMode, ModelConfig, ModelSpec, Objective};
use mcl_train::NormScope;
use tch::{Kind, Tensor};

/// The model that a job describes; `classes` are those of its pictures, where the objective has labels.
pub(crate) fn model_spec(job: &Job, classes: Option<u32>) -> Result<ModelSpec> {
    let (m, method) = (job.model(), job.method());
    let spec = ModelSpec::new(ModelConfig {
        depth: m.depth,
        width: i64::from(m.width),
        image_size: i64::from(m.image_size),
        fpn_channels: i64::from(m.fpn_channels),
        projector_convs: usize::try_from(m.projector_convs)?,
        projector_channels: None,
        projector_hidden: i64::from(m.projector_hidden),
        embedding: i64::from(m.embedding),
        predictor_hidden: i64::from(m.predictor_hidden),
        levels: method.levels.len(),
        temperature: method.temperature,
        level_weights: method.level_weights.clone(),
        objective: match method.objective {
            mcl_config::Objective::Mcl => Objective::Mcl,
            mcl_config::Objective::MclSupervised => {
                Objective::Supervised { classes: i64::from(classes.unwrap_or(0)) }
            }
            mcl_config::Objective::MocoV2 => Objective::Moco { queue: i64::try_from(method.queue)? },
        },
    })?;
    Ok(spec)
}

/// The compute mode that a job asks for.
pub(crate) const fn compute_mode(compute: mcl_config::Compute) -> ComputeMode {
    match compute {
        mcl_config::Compute::Official => ComputeMode::Official,
        mcl_config::Compute::Exact => ComputeMode::Exact,
        mcl_config::Compute::Selective => ComputeMode::Selective,
    }
}

/// Over what a job's batch statistics are formed.
pub(crate) const fn norm_scope(norm: mcl_config::Norm) -> NormScope {
    match norm {
        mcl_config::Norm::Sync => NormScope::Job,
        mcl_config::Norm::Lane => NormScope::Lane,
    }
}

/// The stored type of a kind.
pub(crate) fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        Kind::BFloat16 => Dtype::BF16,
        other => bail!("a state holds a tensor of kind {other:?}, which has no stored type"),
    })
}

/// A tensor's shape.
pub(crate) fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().filter_map(|d| usize::try_from(*d).ok()).collect()
}

/// A tensor from stored bytes, on the host.
pub(crate) fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
    let kind = match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::BF16 => Kind::BFloat16,
        other => bail!("stored tensor `{name}` has type {other:?}, expected f32, f64, bf16 or i64"),
    };
    let shape: Vec<i64> = shape.iter().map(|d| i64::try_from(*d)).collect::<Result<_, _>>()?;
    Tensor::f_from_data_size(bytes, &shape, kind).with_context(|| format!("stored tensor `{name}`"))
}
