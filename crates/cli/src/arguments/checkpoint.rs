//! Arguments of `mcl checkpoint`.

use clap::{Args, Subcommand, ValueEnum};
use mcl_types::StoreLocation;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// What is there, oldest first: manifests and sizes of files are looked at.
    List {
        /// Run directory, its checkpoints folder, one checkpoint, or s3://bucket/prefix/run.
        path: StoreLocation,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Check every byte of all that is there, or of one checkpoint; fails where there is none.
    Verify {
        /// Run directory, its checkpoints folder, one checkpoint, or s3://bucket/prefix/run.
        path: StoreLocation,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Digest of the whole state, whatever the slicing.
    Digest {
        /// Run directory (its newest good checkpoint), one checkpoint, or s3://bucket/prefix/run.
        path: StoreLocation,
        /// Also every tensor's digest.
        #[arg(long)]
        tensors: bool,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Remove older checkpoints, but no pinned, damaged or staged ones; safe beside a service that is writing new ones.
    Prune {
        /// Run directory, its checkpoints folder, or s3://bucket/prefix/run; not one checkpoint.
        path: StoreLocation,
        /// Newest good checkpoints to keep, at least 1.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        /// Besides, those whose step is a multiple of this; 0: none.
        #[arg(long, default_value_t = 0)]
        keep_every: u64,
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Have a checkpoint stay whatever `keep` and `keep_every` say.
    Pin {
        /// Run directory (its newest good checkpoint), one checkpoint, or the same in a store.
        path: StoreLocation,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Have it no longer stay.
    Unpin {
        /// One checkpoint (`.../step-0000000500`), or the same in a store.
        path: StoreLocation,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write an encoder for other tools, with a model card beside it.
    Export(ExportArguments),
    /// Read weights of other tools, or of the official code, into a file that `--from` takes.
    ///
    /// FILE is a checkpoint of torch (.pth), a pickle of numpy arrays (.pkl) or a safetensors file, with names of the
    /// official code (encoder_q.*, encoder_k.*, head.*), of `mcl checkpoint export`, torchvision, timm, MMDetection or
    /// Detectron2. It is read without running any of it. What is not taken is listed with the reason.
    Import(ImportArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// Run directory (its newest good checkpoint), one checkpoint, or s3://bucket/prefix/run.
    pub(crate) path: StoreLocation,
    /// The file to write; beside it FILE.card.json and FILE.card.md, and for detectron2 and mmdet a configuration.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// What the file looks like.
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    pub(crate) format: Format,
    /// Which encoder; default: online for torchvision-fpn, detectron2 and mmdet, momentum for the others.
    #[arg(long, value_enum)]
    pub(crate) encoder: Option<Encoder>,
    /// Replace a .yaml or .py beside FILE that was edited.
    #[arg(long)]
    pub(crate) force: bool,
    /// Answer as one JSON object: the files written, and what to know of them.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The file to read.
    pub(crate) file: PathBuf,
    /// The safetensors file to write, or a folder for one of the same name.
    #[arg(long, value_name = "FILE_OR_FOLDER")]
    pub(crate) out: PathBuf,
    /// Answer as one JSON object: the file written, how many tensors it holds, what was left out.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// backbone.*, neck.*, projector.* with the official names inside (.safetensors).
    Safetensors,
    /// torchvision's ResNet, without a classifier (.pth or .safetensors).
    Torchvision,
    /// torchvision's resnet_fpn_backbone, the pyramid's norms folded into its convolutions (.pth or .safetensors).
    TorchvisionFpn,
    /// Detectron2's Mask R-CNN R-FPN: backbone, pyramid, box head (.pkl), and a .yaml.
    Detectron2,
    /// MMDetection 3's Mask R-CNN R-FPN: backbone, neck, box head (.pth), and a .py.
    Mmdet,
    /// timm's ResNet, without a classifier (.pth or .safetensors).
    Timm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Encoder {
    /// The momentum encoder.
    Momentum,
    /// The online encoder.
    Online,
}
