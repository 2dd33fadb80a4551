//! The job file's sections and keys, with their defaults: the paper's settings where it has one.

use mcl_types::{Retention, SourceKind, StoreLocation};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $kind:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }
        impl $name {
            pub(crate) const KEYS: &'static [&'static str] = &[$(stringify!($field),)*];
        }
    };
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)* }
    };
}

choice!(
    /// How an epoch's samples are mixed.
    Shuffle {
        /// Over the whole dataset: folders and local disks.
        Global = "global",
        /// Shards permuted, dealt to lanes in windows, samples mixed inside: tar shards.
        Windowed = "windowed",
    }
);
choice!(
    /// At which size a level's views are made.
    Views {
        /// All at full size, then decimated: the official pipeline.
        Exact = "exact",
        /// Cropped straight to the level's size.
        Level = "level",
    }
);
choice!(
    /// What is learned.
    Objective {
        /// Multi-level contrastive learning.
        Mcl = "mcl",
    }
);
choice!(
    /// How much of the official graph is computed.
    Compute {
        /// All of it.
        Official = "official",
        /// Official less what cannot change loss or gradients.
        Exact = "exact",
        /// Only the rows that reach the loss: other batch statistics.
        Selective = "selective",
    }
);
choice!(
    /// Over what batch statistics are formed.
    Norm {
        /// All lanes (the paper).
        Sync = "sync",
        /// Each lane for itself: ranks exchange no statistics, and the lanes of a rank need the memory of one.
        Lane = "lane",
    }
);
choice!(
    /// Width of the numbers.
    Precision {
        /// 32 bits.
        F32 = "f32",
        /// Convolutions and matrix products in bf16, all else in f32.
        Bf16 = "bf16",
        /// 64 bits: for parity checks.
        F64 = "f64",
    }
);
choice!(
    /// The update rule.
    OptimizerKind {
        /// The paper's.
        Lars = "lars",
        /// Momentum SGD (lr outside the momentum buffer).
        Sgd = "sgd",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }
);

section!(
    /// `[data]`: where pictures come from.
    Data {
        /// Folder of pictures (nested at will), a list of pictures, a .tar shard, a folder of .tar shards or their names in
        /// braces, or such shards in an object store (`s3://bucket/prefix`, `gs://...`, `az://...`).
        #[serde(with = "crate::source")]
        source: StoreLocation = StoreLocation::Folder(PathBuf::new()),
        /// How the source is read, where what is there does not tell.
        kind: Option<SourceKind> = None,
        /// How an epoch is mixed; default: windowed for tar shards, global for folders.
        shuffle: Option<Shuffle> = None,
        /// Views at full size then decimated, or straight at level size.
        views: Views = Views::Exact,
        /// Threads that decode and augment, a rank.
        loader_threads: u32 = 1,
        /// Lane batches made ahead of time, a rank.
        queue: u32 = 4,
        /// Where parts of shards in an object store are kept; default: the user's folder for caches.
        cache_dir: Option<PathBuf> = None,
        /// Most gigabytes (10^9 bytes) kept there, by all ranks of the machine; default: 10.
        cache_gb: Option<f64> = None,
    }
);
section!(
    /// `[augment]`: strengths of the augmentations; defaults are the paper's.
    Augment {
        /// Share of the picture's area a crop takes: [low, high].
        crop_scale: [f64; 2] = [0.2, 1.0],
        /// Probability of a horizontal flip.
        flip: f64 = 0.5,
        /// Probability of colour jitter.
        jitter_p: f64 = 0.8,
        /// Strengths of the colour jitter.
        jitter: Jitter = Jitter::default(),
        /// Probability of turning grey.
        grey_p: f64 = 0.2,
        /// Probability of blur on the q views.
        blur_p_q: f64 = 1.0,
        /// Probability of blur on the k views.
        blur_p_k: f64 = 0.1,
        /// PIL radius of the blur: [low, high].
        blur_sigma: [f64; 2] = [0.1, 2.0],
        /// Probability of solarising a q view.
        solarize_p_q: f64 = 0.0,
        /// Probability of solarising a k view.
        solarize_p_k: f64 = 0.2,
        /// Probability of permuting the colour channels (not in the paper; small recipes).
        channel_permutation_p: f64 = 0.0,
        /// Probability of inverting the picture (not in the paper; small recipes).
        invert_p: f64 = 0.0,
    }
);
section!(
    /// `[augment.jitter]`: each factor is drawn from 1 - x .. 1 + x, the hue shift from -x .. x turns.
    Jitter {
        /// Brightness.
        brightness: f64 = 0.4,
        /// Contrast.
        contrast: f64 = 0.4,
        /// Saturation.
        saturation: f64 = 0.2,
        /// Hue, at most 0.5.
        hue: f64 = 0.1,
    }
);
section!(
    /// `[model]`: the network's shape; defaults are the paper's ResNet-50.
    Model {
        /// 18, 34, 50 or 101.
        depth: u32 = 50,
        /// Channels of the first stage; 64 is the usual ResNet.
        width: u32 = 64,
        /// Side of a full view in pixels; a multiple of 32.
        image_size: u32 = 224,
        /// Channels of the feature pyramid and of the projector's convolutions.
        fpn_channels: u32 = 256,
        /// Convolutions of the projector.
        projector_convs: u32 = 4,
        /// Hidden width of the projector's MLP.
        projector_hidden: u32 = 2048,
        /// Width of the embedding.
        embedding: u32 = 256,
        /// Hidden width of the predictors.
        predictor_hidden: u32 = 2048,
    }
);
section!(
    /// `[method]`: what is learned and how it is computed.
    Method {
        /// The objective.
        objective: Objective = Objective::Mcl,
        /// How much of the official graph is computed.
        compute: Compute = Compute::Exact,
        /// Over what batch statistics are formed.
        norm: Norm = Norm::Sync,
        /// Temperature of the losses.
        temperature: f64 = 1.0,
        /// Down-sampling ratios of the levels: 1, then 2, 4, 8 as far as wanted.
        levels: Vec<u32> = vec![1, 2, 4, 8],
        /// Weight of each level's loss.
        level_weights: Vec<f64> = vec![0.5, 0.25, 0.125, 0.125],
        /// The momentum encoder's momentum at the first step.
        base_momentum: f64 = 0.99,
        /// ... and at the last.
        end_momentum: f64 = 1.0,
    }
);
section!(
    /// `[batch]`: the global batch, lanes x images_per_lane.
    Batch {
        /// K, the logical ranks; the most workers that can take part.
        lanes: u32 = 1,
        /// N, pictures a lane and step.
        images_per_lane: u32 = 128,
    }
);
section!(
    /// `[train]`: how long, and with which numbers.
    Train {
        /// Epochs to train; give this or `steps`.
        epochs: Option<u64> = None,
        /// Steps to train; give this or `epochs`.
        steps: Option<u64> = None,
        /// Length of the schedules in steps where it is not the length of the run (a run stopped early).
        schedule_steps: Option<u64> = None,
        /// Seed of everything random.
        seed: u64 = 0,
        /// Threads of a rank's tensor operations.
        threads_per_rank: u32 = 1,
        /// Width of the numbers.
        precision: Precision = Precision::F32,
    }
);
section!(
    /// `[optimizer]`: the update; defaults are the paper's.
    Optimizer {
        /// The rule.
        kind: OptimizerKind = OptimizerKind::Lars,
        /// Learning rate after warm-up.
        lr: f64 = 16.0,
        /// Learning rate at the end of the cosine.
        min_lr: f64 = 1e-4,
        /// Steps of linear warm-up.
        warmup_steps: u64 = 3127,
        /// Share of the learning rate at the first step.
        warmup_ratio: f64 = 1e-4,
        /// Weight decay; none on biases and most norms.
        weight_decay: f64 = 1e-5,
        /// Momentum of LARS and SGD.
        momentum: f64 = 0.9,
        /// Trust coefficient of LARS.
        eta: f64 = 1e-3,
        /// Decay rates of AdamW's moments.
        betas: [f64; 2] = [0.9, 0.999],
        /// AdamW's epsilon.
        eps: f64 = 1e-8,
        /// Gradients are scaled down to this total norm; 0 switches it off.
        clip_norm: f64 = 500.0,
    }
);
section!(
    /// `[elastic]`: who must be there.
    Elastic {
        /// Worker daemons without which training waits.
        min_workers: u32 = 1,
        /// Most lanes one rank may carry; bounds its memory.
        max_lanes_per_rank: Option<u32> = None,
        /// Silence after which a worker is lost.
        #[serde(with = "humantime_serde")]
        lost_after: Duration = Duration::from_secs(10),
    }
);
section!(
    /// `[network]`: addresses others reach this machine at, and ports for those behind firewalls.
    Network {
        /// Address to advertise; default: loopback for one machine.
        advertise: Option<String> = None,
        /// Interface whose address to advertise.
        interface: Option<String> = None,
        /// Ports of the rendezvous store, one or a range; default: any. Read it with `Job::store_ports`.
        store_ports: Option<String> = None,
        /// Port of `mcl run`'s coordinator; default, and 0: any.
        coordinator_port: Option<u16> = None,
        /// Port of `mcl run`'s checkpoint service; default, and 0: any.
        checkpoint_port: Option<u16> = None,
    }
);
section!(
    /// `[checkpoint]`: how often, how many.
    Checkpoint {
        /// Steps between checkpoints; the end and a drain always make one.
        every_steps: u64 = 500,
        /// Steps between snapshots in the checkpoint service's memory, for the loss of all ranks; 0: none.
        memory_every_steps: u64 = 0,
        /// Visible checkpoints to keep; 0 keeps all.
        keep: u32 = 3,
        /// Besides, checkpoints stay whose step is a multiple of this; 0: none. Pinned ones always do.
        keep_every: u64 = 0,
        /// Where: a folder or `s3://bucket/prefix`, `gs://...`, `az://...`; default `checkpoints` in the run directory.
        store: Option<StoreLocation> = None,
    }
);

impl Checkpoint {
    /// Which checkpoints stay.
    pub const fn retention(&self) -> Retention {
        Retention { keep: self.keep, keep_every: self.keep_every }
    }
}

/// The whole file, before validation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobFile {
    /// `[data]`
    pub data: Data,
    /// `[augment]`
    pub augment: Augment,
    /// `[model]`
    pub model: Model,
    /// `[method]`
    pub method: Method,
    /// `[batch]`
    pub batch: Batch,
    /// `[train]`
    pub train: Train,
    /// `[optimizer]`
    pub optimizer: Optimizer,
    /// `[elastic]`
    pub elastic: Elastic,
    /// `[network]`
    pub network: Network,
    /// `[checkpoint]`
    pub checkpoint: Checkpoint,
}

impl JobFile {
    /// Every key as `section.key`.
    pub(crate) fn known_keys() -> Vec<String> {
        let sections: [(&str, &[&str]); 11] = [
            ("data", Data::KEYS),
            ("augment", Augment::KEYS),
            ("augment.jitter", Jitter::KEYS),
            ("model", Model::KEYS),
            ("method", Method::KEYS),
            ("batch", Batch::KEYS),
            ("train", Train::KEYS),
            ("optimizer", Optimizer::KEYS),
            ("elastic", Elastic::KEYS),
            ("network", Network::KEYS),
            ("checkpoint", Checkpoint::KEYS),
        ];
        sections.iter().flat_map(|(s, keys)| keys.iter().map(move |k| format!("{s}.{k}"))).collect()
    }
}
