//! Ranges and relations between keys; pure.

use crate::sections::{
    Augment, Evaluation, JobFile, Method, Model, Network, Norm, Objective, Optimizer, Train,
};
use mcl_types::PortRange;
use std::path::PathBuf;

/// `section.key` and what is wrong with it.
type Complaint = (&'static str, String);

fn require(holds: bool, key: &'static str, message: impl FnOnce() -> String) -> Result<(), Complaint> {
    if holds { Ok(()) } else { Err((key, message())) }
}

fn share(key: &'static str, value: f64) -> Result<(), Complaint> {
    require((0.0..=1.0).contains(&value), key, || format!("found {value}, expected 0 to 1"))
}

fn positive(key: &'static str, value: f64) -> Result<(), Complaint> {
    require(value.is_finite() && value > 0.0, key, || format!("found {value}, expected a number above 0"))
}

fn not_negative(key: &'static str, value: f64) -> Result<(), Complaint> {
    require(value.is_finite() && value >= 0.0, key, || format!("found {value}, expected 0 or more"))
}

fn at_least_one(key: &'static str, value: u32) -> Result<(), Complaint> {
    require(value >= 1, key, || "found 0, expected at least 1".to_owned())
}

pub(crate) fn check(job: &JobFile) -> Result<(), Complaint> {
    let source = &job.data.source;
    require(source.folder().is_none_or(|path| !path.as_os_str().is_empty()), "data.source", || {
        "not set; expected a folder of pictures, a list of pictures, a .tar shard, a folder of shards, or s3://bucket/prefix with shards"
            .to_owned()
    })?;
    if let Some(cache) = job.data.cache_gb {
        require((0.05..=1e9).contains(&cache), "data.cache_gb", || {
            format!("found {cache}, expected 0.05 or more: parts of a few megabytes are kept")
        })?;
    }
    at_least_one("data.loader_threads", job.data.loader_threads)?;
    at_least_one("data.queue", job.data.queue)?;
    augment(&job.augment)?;
    model(&job.model)?;
    method(&job.method)?;
    batch(job)?;
    objective(job)?;
    train(&job.train)?;
    optimizer(&job.optimizer)?;
    elastic(job)?;
    network(&job.network)?;
    require(job.checkpoint.every_steps >= 1, "checkpoint.every_steps", || {
        "found 0, expected at least 1".to_owned()
    })?;
    evaluation(&job.evaluation)
}

fn evaluation(e: &Evaluation) -> Result<(), Complaint> {
    let pictures = |key, path: &Option<PathBuf>| {
        let is_there = path.as_ref().is_some_and(|p| !p.as_os_str().is_empty());
        require(is_there || !e.is_on(), key, || {
            "not set; evaluation.every_epochs needs labelled pictures, in any form that `mcl eval` takes"
                .to_owned()
        })
    };
    pictures("evaluation.train", &e.train)?;
    pictures("evaluation.test", &e.test)?;
    let Some(short_side) = e.short_side else { return Ok(()) };
    require((32..=4096).contains(&short_side), "evaluation.short_side", || {
        format!("found {short_side}, expected 32 to 4096")
    })?;
    require(e.scenes.is_some(), "evaluation.short_side", || {
        "set without evaluation.scenes: objects are looked at in the size of model.image_size".to_owned()
    })
}

fn augment(a: &Augment) -> Result<(), Complaint> {
    let [low, high] = a.crop_scale;
    require(0.0 < low && low <= high && high <= 1.0, "augment.crop_scale", || {
        format!("found [{low}, {high}], expected 0 < low <= high <= 1")
    })?;
    let [low, high] = a.blur_sigma;
    require(0.0 <= low && low <= high && high <= 16.0, "augment.blur_sigma", || {
        format!("found [{low}, {high}], expected 0 <= low <= high <= 16")
    })?;
    share("augment.flip", a.flip)?;
    share("augment.jitter_p", a.jitter_p)?;
    share("augment.grey_p", a.grey_p)?;
    share("augment.blur_p_q", a.blur_p_q)?;
    share("augment.blur_p_k", a.blur_p_k)?;
    share("augment.solarize_p_q", a.solarize_p_q)?;
    share("augment.solarize_p_k", a.solarize_p_k)?;
    share("augment.channel_permutation_p", a.channel_permutation_p)?;
    share("augment.invert_p", a.invert_p)?;
    share("augment.quarter_turn_p", a.quarter_turn_p)?;
    share("augment.jitter.brightness", a.jitter.brightness)?;
    share("augment.jitter.contrast", a.jitter.contrast)?;
    share("augment.jitter.saturation", a.jitter.saturation)?;
    let hue = a.jitter.hue;
    require((0.0..=0.5).contains(&hue), "augment.jitter.hue", || format!("found {hue}, expected 0 to 0.5"))
}

fn model(m: &Model) -> Result<(), Complaint> {
    require(matches!(m.depth, 18 | 34 | 50 | 101), "model.depth", || {
        format!("found {}, expected 18, 34, 50 or 101", m.depth)
    })?;
    require(m.image_size >= 32 && m.image_size.is_multiple_of(32), "model.image_size", || {
        format!(
            "found {}, expected a multiple of 32: the projector cuts P5 into patches of size/32",
            m.image_size
        )
    })?;
    require(m.image_size <= 4096, "model.image_size", || {
        format!("found {}, expected at most 4096", m.image_size)
    })?;
    at_least_one("model.width", m.width)?;
    at_least_one("model.fpn_channels", m.fpn_channels)?;
    at_least_one("model.projector_convs", m.projector_convs)?;
    at_least_one("model.projector_hidden", m.projector_hidden)?;
    at_least_one("model.embedding", m.embedding)?;
    at_least_one("model.predictor_hidden", m.predictor_hidden)
}

fn method(m: &Method) -> Result<(), Complaint> {
    positive("method.temperature", m.temperature)?;
    let whole: &[u32] = &[1, 2, 4, 8];
    require(!m.levels.is_empty() && whole.starts_with(&m.levels), "method.levels", || {
        format!("found {:?}, expected [1], [1, 2], [1, 2, 4] or [1, 2, 4, 8]", m.levels)
    })?;
    require(m.level_weights.len() == m.levels.len(), "method.level_weights", || {
        format!("found {} weights for {} levels, expected one a level", m.level_weights.len(), m.levels.len())
    })?;
    for weight in &m.level_weights {
        positive("method.level_weights", *weight)?;
    }
    share("method.base_momentum", m.base_momentum)?;
    share("method.end_momentum", m.end_momentum)
}

fn batch(job: &JobFile) -> Result<(), Complaint> {
    let (lanes, images) = (job.batch.lanes, job.batch.images_per_lane);
    require((1..=65_536).contains(&lanes), "batch.lanes", || format!("found {lanes}, expected 1 to 65536"))?;
    require((1..=65_536).contains(&images), "batch.images_per_lane", || {
        format!("found {images}, expected 1 to 65536")
    })?;
    require(u64::from(lanes) * u64::from(images) >= 2, "batch.images_per_lane", || {
        "found one picture a step: batch statistics need two; raise lanes or images_per_lane".to_owned()
    })?;
    require(job.method.norm == Norm::Sync || images >= 2, "batch.images_per_lane", || {
        "found one picture a lane: statistics of a lane (method.norm = \"lane\") need two".to_owned()
    })
}

fn objective(job: &JobFile) -> Result<(), Complaint> {
    let m = &job.method;
    not_negative("method.contrastive_share", m.contrastive_share)?;
    not_negative("method.classifier_share", m.classifier_share)?;
    require(m.contrastive_share + m.classifier_share > 0.0, "method.classifier_share", || {
        "found 0 for both shares, expected one above 0".to_owned()
    })?;
    if m.objective != Objective::MocoV2 {
        return Ok(());
    }
    require(m.levels == [1], "method.levels", || {
        format!("found {:?}, expected [1]: moco-v2 has no pyramid", m.levels)
    })?;
    let batch = u64::from(job.batch.lanes) * u64::from(job.batch.images_per_lane);
    require((1..=1 << 24).contains(&m.queue) && m.queue.is_multiple_of(batch), "method.queue", || {
        format!(
            "found {}, expected 1 to 16777216 and a multiple of the {batch} pictures of a step, such as {}",
            m.queue,
            batch * (m.queue / batch.max(1)).max(1)
        )
    })
}

fn train(t: &Train) -> Result<(), Complaint> {
    match (t.epochs, t.steps) {
        (None, None) => {
            Err(("train.steps", "neither steps nor epochs is set; expected one of them".to_owned()))
        }
        (Some(_), Some(_)) => {
            Err(("train.steps", "both steps and epochs are set; expected one of them".to_owned()))
        }
        (Some(0), None) => Err(("train.epochs", "found 0, expected at least 1".to_owned())),
        (None, Some(0)) => Err(("train.steps", "found 0, expected at least 1".to_owned())),
        _ => Ok(()),
    }?;
    if let (Some(schedule), Some(steps)) = (t.schedule_steps, t.steps) {
        require(schedule >= steps, "train.schedule_steps", || {
            format!("found {schedule}, expected at least train.steps = {steps}")
        })?;
    }
    require((1..=1024).contains(&t.threads_per_rank), "train.threads_per_rank", || {
        format!("found {}, expected 1 to 1024", t.threads_per_rank)
    })
}

fn optimizer(o: &Optimizer) -> Result<(), Complaint> {
    positive("optimizer.lr", o.lr)?;
    not_negative("optimizer.min_lr", o.min_lr)?;
    require(o.min_lr <= o.lr, "optimizer.min_lr", || {
        format!("found {}, expected at most optimizer.lr = {}", o.min_lr, o.lr)
    })?;
    share("optimizer.warmup_ratio", o.warmup_ratio)?;
    not_negative("optimizer.weight_decay", o.weight_decay)?;
    share("optimizer.momentum", o.momentum)?;
    positive("optimizer.eta", o.eta)?;
    positive("optimizer.eps", o.eps)?;
    not_negative("optimizer.clip_norm", o.clip_norm)?;
    for beta in o.betas {
        require((0.0..1.0).contains(&beta), "optimizer.betas", || {
            format!("found {beta}, expected 0 to below 1")
        })?;
    }
    Ok(())
}

fn elastic(job: &JobFile) -> Result<(), Complaint> {
    let (min, lanes) = (job.elastic.min_workers, job.batch.lanes);
    require(min >= 1 && min <= lanes, "elastic.min_workers", || {
        format!("found {min}, expected 1 to batch.lanes = {lanes}: each rank carries at least one lane")
    })?;
    if let Some(most) = job.elastic.max_lanes_per_rank {
        at_least_one("elastic.max_lanes_per_rank", most)?;
    }
    let lost = job.elastic.lost_after;
    require(lost.as_millis() >= 100, "elastic.lost_after", || {
        format!("found {} ms, expected at least 100ms", lost.as_millis())
    })
}

/// The ports of `[network] store_ports`, where that is set.
pub(crate) fn store_ports(n: &Network) -> Result<Option<PortRange>, Complaint> {
    let read = n.store_ports.as_deref().map(str::parse::<PortRange>).transpose();
    read.map_err(|e| ("network.store_ports", e.to_string()))
}

/// `mcl run` has all of them on one machine, so none may be wanted twice.
fn network(n: &Network) -> Result<(), Complaint> {
    let store = store_ports(n)?;
    let services = [
        ("network.coordinator_port", n.coordinator_port.filter(|port| *port != 0)),
        ("network.checkpoint_port", n.checkpoint_port.filter(|port| *port != 0)),
    ];
    for (key, port) in services {
        if let (Some(port), Some(store)) = (port, store) {
            require(!store.contains(port), key, || {
                format!("found {port}, expected a port outside network.store_ports = \"{store}\"")
            })?;
        }
    }
    let [(_, coordinator), (key, checkpoint)] = services;
    require(checkpoint.is_none() || checkpoint != coordinator, key, || {
        format!("found {}, expected another one than network.coordinator_port", checkpoint.unwrap_or(0))
    })
}
