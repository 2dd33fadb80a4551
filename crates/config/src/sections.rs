//! The job file's sections and keys, with their defaults: the paper's settings where it has one.

use mcl_types::{Retention, SourceKind, StoreLocation};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A key as the reference tells of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// Lines of its documentation.
    pub(crate) meaning: &'static [&'static str],
    /// What the default is called, where its value does not say it.
    pub(crate) default: Option<&'static str>,
}

/// A section: its keys, each with what the reference (docs/config.md) says of it, its default, and what that is called
/// there where the value does not say it.
macro_rules! section {
    (@called) => { None };
    (@called $called:literal) => { Some($called) };
    ($(#[$doc:meta])* $name:ident {
        $($(#[doc = $meaning:literal])* $(#[serde($($serde:tt)*)])? $field:ident : $kind:ty = $default:expr $(=> $called:literal)?,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[doc = $meaning])* $(#[serde($($serde)*)])? pub $field: $kind,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }
        impl $name {
            pub(crate) const KEYS: &'static [Key] = &[$(Key {
                name: stringify!($field),
                meaning: &[$($meaning),*],
                default: section!(@called $($called)?),
            },)*];
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
        /// The same pretext with labels.
        MclSupervised = "mcl-supervised",
        /// MoCo v2.
        MocoV2 = "moco-v2",
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
choice!(
    /// By what frozen features are judged.
    Probes {
        /// 20 nearest neighbours.
        Knn = "knn",
        /// A linear probe.
        Linear = "linear",
        /// Both.
        Both = "both",
    }
);
choice!(
    /// Whose features are judged.
    Judged {
        /// The momentum encoder's.
        Momentum = "momentum",
        /// The online encoder's.
        Online = "online",
    }
);

section!(
    /// `[data]`: where pictures come from.
    Data {
        /// Folder of pictures (nested at will), a list of pictures (`.txt`, `.tsv`, `.csv`), a `.tar` shard, a folder of
        /// `.tar` shards or their names in braces (`shard-{000..099}.tar`). Or such shards in an object store:
        /// `s3://bucket/prefix`, `gs://...`, `az://...`, where the prefix is that of the shards or of one shard.
        /// [data.md](data.md) tells of each.
        #[serde(with = "crate::source")]
        source: StoreLocation = StoreLocation::Folder(PathBuf::new()) => "required",
        /// How the source is read, where what is there can be read in several ways: `folder`, `webdataset`, `tar` (every
        /// picture of a tar is a sample) or `list`. `parquet` is not trained from.
        kind: Option<SourceKind> = None => "by what is there",
        /// How an epoch is mixed. `global`: over the whole dataset. `windowed`: shards permuted, dealt to lanes,
        /// samples mixed inside windows of at most 8 shards.
        shuffle: Option<Shuffle> = None => "`\"windowed\"` for tar shards, else `\"global\"`",
        /// `exact`: every view at full size, then decimated for its level, as in the official pipeline. `level`:
        /// cropped straight to the level's size.
        views: Views = Views::Exact,
        /// Threads that decode and augment, a rank; at least 1.
        loader_threads: u32 = 1,
        /// Lane batches made ahead of time, a rank; at least 1.
        queue: u32 = 4,
        /// Where parts of shards in an object store are kept, on each machine, and what lies where in tars that have no
        /// index; all ranks of a machine share it, and runs may.
        cache_dir: Option<PathBuf> = None => "`mcl/pictures` in `$XDG_CACHE_HOME`, else in `~/.cache`, else in the folder for temporary files",
        /// Most gigabytes (10^9 bytes) that are kept there by all who share it, at least 0.05; the least recently used
        /// goes first.
        cache_gb: Option<f64> = None => "10",
    }
);
section!(
    /// `[augment]`: strengths of the augmentations; defaults are the paper's.
    Augment {
        /// Share of the picture's area that a crop takes, 0 < low <= high <= 1.
        crop_scale: [f64; 2] = [0.2, 1.0],
        /// Probability of a horizontal flip.
        flip: f64 = 0.5,
        /// Probability of colour jitter.
        jitter_p: f64 = 0.8,
        /// Strengths of the colour jitter.
        jitter: Jitter = Jitter::default(),
        /// Probability of turning grey.
        grey_p: f64 = 0.2,
        /// Probability of blur on a q view.
        blur_p_q: f64 = 1.0,
        /// Probability of blur on a k view.
        blur_p_k: f64 = 0.1,
        /// Radius of the blur as Pillow counts it, 0 <= low <= high <= 16.
        blur_sigma: [f64; 2] = [0.1, 2.0],
        /// Probability of solarising a q view.
        solarize_p_q: f64 = 0.0,
        /// Probability of solarising a k view.
        solarize_p_k: f64 = 0.2,
        /// Probability of permuting the colour channels; not in the paper.
        channel_permutation_p: f64 = 0.0,
        /// Probability of inverting the picture; not in the paper.
        invert_p: f64 = 0.0,
        /// Probability of a turn by 90, 180 or 270 degrees, each as likely; not in the paper.
        #[serde(skip_serializing_if = "is_nothing")]
        quarter_turn_p: f64 = 0.0 => "0.0",
    }
);
section!(
    /// `[augment.jitter]`: each factor is drawn from 1 - x .. 1 + x, the hue shift from -x .. x turns.
    Jitter {
        /// Strength of the change of brightness, 0 to 1.
        brightness: f64 = 0.4,
        /// ... of contrast, 0 to 1.
        contrast: f64 = 0.4,
        /// ... of saturation, 0 to 1.
        saturation: f64 = 0.2,
        /// ... of the hue, 0 to 0.5.
        hue: f64 = 0.1,
    }
);
section!(
    /// `[model]`: the network's shape; defaults are the paper's ResNet-50.
    Model {
        /// ResNet of 18, 34, 50 or 101 layers.
        depth: u32 = 50,
        /// Channels of the first stage; 64 is the usual ResNet.
        width: u32 = 64,
        /// Side of a full view in pixels, a multiple of 32 up to 4096.
        image_size: u32 = 224,
        /// Channels of the feature pyramid and of the projector's convolutions.
        fpn_channels: u32 = 256,
        /// Convolutions of the projector, at least 1.
        projector_convs: u32 = 4,
        /// Hidden width of the projector's MLP.
        projector_hidden: u32 = 2048,
        /// Width of the embedding.
        embedding: u32 = 256,
        /// Hidden width of the predictors.
        predictor_hidden: u32 = 2048,
    }
);
/// As published (arXiv 1911.05722, section 4).
const USUAL_QUEUE: u64 = 65_536;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_usual_queue(queue: &u64) -> bool {
    *queue == USUAL_QUEUE
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_nothing(share: &f64) -> bool {
    *share <= 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_whole(share: &f64) -> bool {
    share.to_bits() == 1_f64.to_bits()
}

impl Method {
    /// Keys that the objective does not look at as if they were not set.
    pub(crate) fn forget_what_is_not_used(&mut self) {
        let usual = Self::default();
        if self.objective != Objective::MocoV2 {
            self.queue = usual.queue;
        }
        if self.objective != Objective::MclSupervised {
            (self.contrastive_share, self.classifier_share) =
                (usual.contrastive_share, usual.classifier_share);
        }
    }
}

section!(
    /// `[method]`: what is learned and how it is computed.
    Method {
        /// `mcl`: multi-level contrastive learning. `mcl-supervised`: the same with labels: a tile meets the targets of all
        /// pictures of its class, and a classifier a level tells the class. `moco-v2`: pooled features, a queue of keys, no
        /// pyramid; `levels` is `[1]`. Defaults of other keys that an objective has of its own stand
        /// [below](#defaults-of-an-objective).
        objective: Objective = Objective::Mcl,
        /// Keys that `moco-v2` remembers, a multiple of the global batch; every checkpoint holds them.
        #[serde(skip_serializing_if = "is_usual_queue")]
        queue: u64 = USUAL_QUEUE => "65536",
        /// Share of the contrastive loss in that of `mcl-supervised`, 0 or more; not both 0.
        #[serde(skip_serializing_if = "is_whole")]
        contrastive_share: f64 = 1.0 => "1.0",
        /// Share of the cross entropy of classes.
        #[serde(skip_serializing_if = "is_whole")]
        classifier_share: f64 = 1.0 => "1.0",
        /// `official`: the whole graph. `exact`: less what cannot change loss or gradients; some running statistics of
        /// the momentum encoder, which training does not use, differ. `selective`: only the rows that reach the loss,
        /// so batch statistics are formed over fewer rows.
        compute: Compute = Compute::Exact,
        /// `sync`: batch statistics over all lanes, as in the paper; ranks exchange them in every norm. `lane`: each
        /// lane for itself; norms exchange none (ranks average running statistics once a step), and a rank computes its
        /// lanes one after another in the memory of one. Running statistics are then the mean over lanes.
        norm: Norm = Norm::Sync,
        /// Temperature of the losses, above 0.
        temperature: f64 = 1.0,
        /// Down-sampling ratios: `[1]`, `[1, 2]`, `[1, 2, 4]` or `[1, 2, 4, 8]`.
        levels: Vec<u32> = vec![1, 2, 4, 8],
        /// Weight of each level's loss, above 0, one a level.
        level_weights: Vec<f64> = vec![0.5, 0.25, 0.125, 0.125],
        /// Momentum of the momentum encoder at the first step, 0 to 1.
        base_momentum: f64 = 0.99,
        /// ... and at the end of the schedule; a cosine between.
        end_momentum: f64 = 1.0,
    }
);
section!(
    /// `[batch]`: the global batch, lanes x images_per_lane.
    Batch {
        /// K, the logical ranks, 1 to 65536. At most so many ranks take part; further devices are spares.
        lanes: u32 = 1,
        /// N, pictures a lane and step, 1 to 65536. K x N must be at least 2, with `norm = "lane"` N.
        images_per_lane: u32 = 128,
    }
);
section!(
    /// `[train]`: how long, and with which numbers.
    Train {
        /// Epochs to train; exactly one of `epochs` and `steps` is set.
        epochs: Option<u64> = None => "unset",
        /// Steps to train.
        steps: Option<u64> = None => "unset",
        /// Length of the schedules in steps, where it is not the length of the run; at least `steps`. A run that stops
        /// early in a long schedule sets it.
        schedule_steps: Option<u64> = None => "length of the run",
        /// Seed of everything random.
        seed: u64 = 0,
        /// Threads of a rank's tensor operations, 1 to 1024; part of what decides the bits.
        threads_per_rank: u32 = 1,
        /// `f32`; `bf16`: convolutions and matrix products in bf16, while weights, batch statistics, losses, updates
        /// and checkpoints stay in f32; `f64` for parity checks.
        precision: Precision = Precision::F32,
    }
);
section!(
    /// `[optimizer]`: the update; defaults are the paper's.
    Optimizer {
        /// `lars`, `sgd` (momentum; lr outside the momentum buffer) or `adamw`.
        kind: OptimizerKind = OptimizerKind::Lars,
        /// Learning rate after warm-up, above 0.
        lr: f64 = 16.0,
        /// Learning rate at the end of the cosine, 0 to `lr`.
        min_lr: f64 = 1e-4,
        /// Steps of linear warm-up, multiplied onto the running cosine.
        warmup_steps: u64 = 3127,
        /// Share of the learning rate at the first step, 0 to 1.
        warmup_ratio: f64 = 1e-4,
        /// Weight decay. LARS excludes parameters by the official name pattern, which misses the scales named
        /// `downsample.1` and `mlp.1`; SGD and AdamW decay only tensors of more than one dimension.
        weight_decay: f64 = 1e-5,
        /// Momentum of LARS and SGD, 0 to 1.
        momentum: f64 = 0.9,
        /// Trust coefficient of LARS.
        eta: f64 = 1e-3,
        /// Decay rates of AdamW's moments, 0 to below 1.
        betas: [f64; 2] = [0.9, 0.999],
        /// AdamW's epsilon.
        eps: f64 = 1e-8,
        /// Gradients are scaled down to this total norm after averaging; 0 switches it off.
        clip_norm: f64 = 500.0,
    }
);
section!(
    /// `[elastic]`: who must be there.
    Elastic {
        /// Workers with a ready process without which training waits, 1 to `lanes`. With as many as there are workers a
        /// lost one is waited for; with fewer the others go on at once and take it in when it is back.
        min_workers: u32 = 1,
        /// Most lanes one rank may carry; bounds its memory. With fewer devices than that needs, the job waits and says
        /// so.
        max_lanes_per_rank: Option<u32> = None => "unset",
        /// Silence after which a worker is lost, and a rank process is killed by its worker; at least `"100ms"`.
        /// Written as a number and a unit.
        #[serde(with = "humantime_serde")]
        lost_after: Duration = Duration::from_secs(10),
    }
);
section!(
    /// `[network]`: addresses others reach this machine at, and ports for those behind firewalls.
    Network {
        /// Address that the workers of `mcl run` advertise. A worker started by hand has `--advertise`; without it, it
        /// advertises the address that it has towards the coordinator.
        advertise: Option<String> = None => "loopback",
        /// Network interface whose address to advertise, where `advertise` is not set; `--interface` by hand.
        interface: Option<String> = None => "unset",
        /// Port or range of ports for the store that ranks meet at, as in `"29500"` or `"29500-29509"`; tried in order.
        store_ports: Option<String> = None => "any",
        /// Port of `mcl run`'s coordinator on 127.0.0.1. A coordinator started by hand has `--listen`.
        coordinator_port: Option<u16> = None => "0: any",
        /// The same for its checkpoint service.
        checkpoint_port: Option<u16> = None => "0: any",
    }
);
section!(
    /// `[checkpoint]`: how often, how many.
    Checkpoint {
        /// Steps between checkpoints, at least 1; the end and a drain always make one. Where an upload takes longer
        /// than these steps, the snapshot is taken late. A failure costs at most the steps since the last visible one.
        every_steps: u64 = 500,
        /// Steps between snapshots that are kept in the checkpoint service's memory: as fast as the network, gone with
        /// the service. Where all ranks are lost at once, the run goes back to the newest one of both kinds. Of a run's
        /// one is kept, until a later checkpoint is durable; the one before goes when a new one is whole, so `mcl
        /// checkpoint-server --memory` is to be two states. What does not fit is refused, with a warning; but snapshots
        /// of other runs that neither wrote nor read any for two minutes (cancelled ones) go first, least recently used
        /// before others.
        memory_every_steps: u64 = 0 => "0: none",
        /// Visible checkpoints to keep; 0 keeps all.
        keep: u32 = 3,
        /// Besides, checkpoints stay whose step is a multiple of this. Pinned ones (`mcl checkpoint pin`) always do.
        keep_every: u64 = 0 => "0: none",
        /// Where `mcl run` keeps checkpoints: a folder, or `s3://bucket/prefix`, `gs://bucket/prefix`,
        /// `az://container/prefix`; each run gets a folder of its name in it. A service started by hand has `--root`,
        /// which takes the same.
        store: Option<StoreLocation> = None => "`checkpoints` in the run directory",
    }
);

section!(
    /// `[evaluation]`: what the features are worth while the run goes on.
    Evaluation {
        /// Epochs between evaluations. After each such epoch, and after the last step, a checkpoint is made and its frozen
        /// features are judged as `mcl eval` does it, beside random weights and raw pixels. This is done on the
        /// coordinator's machine, which then needs libtorch and these pictures, one at a time and at low priority;
        /// training does not wait for it.
        every_epochs: u64 = 0 => "0: none",
        /// Objects to learn from: a folder with `annotations.json` (each box is one), or folders of classes, shards or a
        /// list with labels (each picture is one).
        train: Option<PathBuf> = None => "required with `every_epochs`",
        /// Objects to classify.
        test: Option<PathBuf> = None => "required with `every_epochs`",
        /// Folder of scenes with `annotations.json`: even pictures are learned from, odd ones classified, box by box.
        scenes: Option<PathBuf> = None => "unset",
        /// Shorter side in pixels that scenes are scaled to, 32 to 4096.
        short_side: Option<u32> = None => "as they are",
        /// `knn`: 20 nearest neighbours. `linear`: a linear probe. `both`.
        probes: Probes = Probes::Knn => "`\"knn\"`",
        /// Whose features: `momentum` or `online` encoder.
        encoder: Judged = Judged::Momentum => "`\"momentum\"`",
    }
);

impl Evaluation {
    /// Whether there is to be any.
    pub const fn is_on(&self) -> bool {
        self.every_epochs > 0
    }

    /// Whether it says nothing.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

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
    /// `[evaluation]`
    #[serde(skip_serializing_if = "Evaluation::is_default")]
    pub evaluation: Evaluation,
}

impl JobFile {
    /// Every section's name and keys, in the file's order.
    pub(crate) const SECTIONS: [(&'static str, &'static [Key]); 12] = [
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
        ("evaluation", Evaluation::KEYS),
    ];

    /// Every key as `section.key`.
    pub(crate) fn known_keys() -> Vec<String> {
        let keys = |(section, keys): &(&str, &[Key])| -> Vec<String> {
            keys.iter().map(|key| format!("{section}.{}", key.name)).collect()
        };
        Self::SECTIONS.iter().flat_map(keys).collect()
    }
}
