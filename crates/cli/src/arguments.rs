//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use mcl_config::Override;
use mcl_types::StoreLocation;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Distributed, elastic MCL pre-training.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub(crate) struct Arguments {
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = Log::Text)]
    pub(crate) log: Log,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a job on this machine: coordinator, checkpoint service and workers, in one command.
    Run(RunArguments),
    /// Start a coordinator.
    Coordinator(CoordinatorArguments),
    /// Start a checkpoint service.
    CheckpointServer(CheckpointServerArguments),
    /// Start a worker: one rank process a device.
    Worker(WorkerArguments),
    /// Hand a coordinator a job.
    Submit(SubmitArguments),
    /// What a coordinator is doing, and why.
    Status(ServerArguments),
    /// Finish the step in flight, checkpoint, stop.
    Drain(ServerArguments),
    /// Finish the step in flight, checkpoint, and hold: processes stay ready until `resume`.
    Pause(ServerArguments),
    /// Let a held job go on.
    Resume(ServerArguments),
    /// Stop a job for good, without a checkpoint, or take one that waits out of the queue; its run directory stays.
    Cancel(CancelArguments),
    /// Look for what would keep this machine from taking part in a run.
    Doctor(DoctorArguments),
    /// Check a job file and, where its pictures are here, that they fit.
    Validate(ValidateArguments),
    /// Pack, index, inspect, preview or generate pictures.
    #[command(subcommand)]
    Data(DataCommand),
    /// List, verify, digest, prune, pin or export checkpoints; import weights.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Check what a run really used against its plan.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Evaluate frozen features.
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Measure parts of this program on this machine.
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// How many workers a coordinator can carry: a load generator that speaks the real protocol.
    Coordinator(BenchCoordinatorArguments),
    /// What saving costs the training process, and how fast a state is durable.
    Checkpoint(BenchCheckpointArguments),
    /// What a training step costs; `mcl bench step -- --help` lists what can be set.
    Step(BenchRankArguments),
    /// What a picture costs until its views lie in a batch; `mcl bench loader -- --help` lists what can be set.
    Loader(BenchRankArguments),
}

#[derive(Debug, Args)]
pub(crate) struct BenchRankArguments {
    /// Passed on to the measuring rank process.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCheckpointArguments {
    /// Folder on the disk to measure; what is written there is removed again.
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Snapshots to take.
    #[arg(long, default_value_t = 30)]
    pub(crate) snapshots: u32,
    /// Uploads, each beside a plain copy.
    #[arg(long, default_value_t = 7)]
    pub(crate) uploads: u32,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCoordinatorArguments {
    /// Workers to play, default 1000; with --curve the most that are tried, default 16000.
    #[arg(long)]
    pub(crate) agents: Option<u32>,
    /// Rank processes of each.
    #[arg(long, default_value_t = 1)]
    pub(crate) ranks_per_agent: u32,
    /// Heartbeats of one worker in a second; default: what the coordinator assigns.
    #[arg(long)]
    pub(crate) hz: Option<f64>,
    /// Steps that every rank reports in a second.
    #[arg(long, default_value_t = 1.0, conflicts_with = "heartbeats_only")]
    pub(crate) steps_per_second: f64,
    /// No job: heartbeats alone.
    #[arg(long)]
    pub(crate) heartbeats_only: bool,
    /// How long is measured after everybody has joined.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Double the workers until the coordinator does not hold, and say what the limit is.
    #[arg(long)]
    pub(crate) curve: bool,
    /// Workers that share a TCP connection; real ones have one each.
    #[arg(long, default_value_t = 1)]
    pub(crate) agents_per_connection: u32,
    /// A coordinator that runs on this machine; default: one of its own.
    #[arg(long)]
    pub(crate) coordinator: Option<String>,
    /// Its process, to look at its CPU time and memory.
    #[arg(long, requires = "coordinator")]
    pub(crate) pid: Option<u32>,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The job file.
    pub(crate) job: PathBuf,
    /// Worker daemons to start.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: u32,
    /// What ranks run on: auto, cpu, or a list such as cuda:0,cuda:1 (dealt to the workers in turn).
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// Run directory; default runs/<job file's name>. An existing one is resumed.
    #[arg(long)]
    pub(crate) run_dir: Option<PathBuf>,
    /// Begin a new run with the weights of another run, a checkpoint, or an exported or imported safetensors file.
    #[arg(long)]
    pub(crate) from: Option<StoreLocation>,
    /// Override of a job key, as in train.steps=20.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<Override>,
    /// End with a summary as one JSON object on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Address to listen at; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Allow an address beyond loopback: nothing is encrypted or authenticated yet.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Stop when standard input closes: for daemons that another program started.
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CoordinatorArguments {
    #[command(flatten)]
    pub(crate) home: Home,
    /// URL of the checkpoint service.
    #[arg(long)]
    pub(crate) checkpoint: String,
    /// Job file to submit at once; else wait for `mcl submit`.
    #[arg(long)]
    pub(crate) job: Option<PathBuf>,
    /// Override of a job key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "job")]
    pub(crate) overrides: Vec<Override>,
    /// Where another coordinator has the run directory: wait until it is gone, then take over.
    #[arg(long)]
    pub(crate) standby: bool,
    /// Wait a moment for so many workers before the first generation.
    #[arg(long)]
    pub(crate) expected_workers: Option<u32>,
    #[command(flatten)]
    pub(crate) listen: Listen,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Home {
    /// Run directory, owned by this coordinator: one run, after which it ends.
    #[arg(long)]
    pub(crate) run_dir: Option<PathBuf>,
    /// Folder of run directories, owned by this coordinator: jobs are run one after another, each in a directory of its
    /// name; those handed in meanwhile wait in a queue.
    #[arg(long)]
    pub(crate) runs: Option<PathBuf>,
}

impl Home {
    /// The directory, whichever it is.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.run_dir.as_ref().or(self.runs.as_ref())
    }
}

#[derive(Debug, Args)]
pub(crate) struct CheckpointServerArguments {
    /// Where to keep checkpoints: a folder, or s3://bucket/prefix, gs://..., az://...
    #[arg(long)]
    pub(crate) root: StoreLocation,
    /// All checkpoints belong to one run: leave its name out of the paths.
    #[arg(long)]
    pub(crate) flat: bool,
    /// MiB of memory for snapshots between checkpoints (`[checkpoint] memory_every_steps`): two states of each run that
    /// is active. Those of runs that were idle for two minutes make room for others.
    #[arg(long, default_value_t = mcl_checkpoint::MEMORY_BYTES >> 20)]
    pub(crate) memory: u64,
    #[command(flatten)]
    pub(crate) listen: Listen,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    /// URL of the coordinator.
    #[arg(long)]
    pub(crate) coordinator: String,
    /// Name, unique in the cluster; default: host name and process number.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What ranks run on: auto, or a list of cpu (once a process) and cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// Address that other ranks reach this machine at; default: the one it has towards the coordinator.
    #[arg(long, conflicts_with = "interface")]
    pub(crate) advertise: Option<String>,
    /// Network interface whose address others reach this machine at.
    #[arg(long)]
    pub(crate) interface: Option<String>,
    /// Folder for the highest fencing token seen.
    #[arg(long)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Seconds to keep trying to reach the coordinator at start.
    #[arg(long, default_value_t = 30)]
    pub(crate) connect_timeout: u64,
    /// Stop when standard input closes: for daemons that another program started.
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArguments {
    /// The job file.
    pub(crate) job: PathBuf,
    /// Override of a job key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<Override>,
    /// Name of the run; default: the job file's name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Begin a new run with the weights of another run (its directory), a checkpoint, or a file that `mcl checkpoint
    /// export` or `import` wrote.
    #[arg(long)]
    pub(crate) from: Option<StoreLocation>,
    /// Checkpoint service, as this machine reaches it, for --from; default: as the coordinator names it.
    #[arg(long, requires = "from")]
    pub(crate) checkpoint: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// Name of a run; default: the one that is run.
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// A job to check: its file, and that its pictures are here.
    pub(crate) job: Option<PathBuf>,
    /// Override of a job key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "job")]
    pub(crate) overrides: Vec<Override>,
    /// What ranks would run on.
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// Address that other ranks would reach this machine at.
    #[arg(long, conflicts_with = "interface")]
    pub(crate) advertise: Option<String>,
    /// Network interface whose address it would be.
    #[arg(long)]
    pub(crate) interface: Option<String>,
    /// Coordinator to reach.
    #[arg(long, env = "MCL_COORDINATOR")]
    pub(crate) coordinator: Option<String>,
    /// Checkpoint service to reach.
    #[arg(long)]
    pub(crate) checkpoint: Option<String>,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// URL of the coordinator.
    #[arg(long, env = "MCL_COORDINATOR")]
    pub(crate) coordinator: String,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArguments {
    /// The job file.
    pub(crate) job: PathBuf,
    /// Override of a job key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<Override>,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Pack a folder of pictures into tar shards with an index.
    Pack {
        /// Folder of pictures, or shards anywhere.
        source: StoreLocation,
        /// Folder for the shards.
        #[arg(long)]
        out: PathBuf,
        /// Pictures a shard.
        #[arg(long, default_value_t = 1024)]
        samples_per_shard: u64,
        /// Shrink pictures to this shorter side in pixels and store them as JPEG: loading then costs far less, and
        /// crops that would have been taken from the full picture lose detail.
        #[arg(long, value_name = "PIXELS")]
        short_side: Option<u32>,
        /// Quality of pictures stored anew, 1 to 100.
        #[arg(long, default_value_t = 90, requires = "short_side", value_parser = clap::value_parser!(u8).range(1..=100))]
        quality: u8,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write the side index of tar shards.
    Index {
        /// A shard, or a folder of shards; also in an object store, where the indexes go too: s3://bucket/prefix.
        source: StoreLocation,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look at every picture of a source: count, formats, sizes, what cannot be decoded and why.
    Inspect {
        /// Folder, shard, folder of shards, or shards in an object store: s3://bucket/prefix.
        source: StoreLocation,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Draw a sheet of montages with their labels.
    Preview {
        /// The job file.
        job: PathBuf,
        /// The PNG to write.
        #[arg(long)]
        out: PathBuf,
        /// Which step of the plan.
        #[arg(long, default_value_t = 0)]
        step: u64,
        /// Which lane.
        #[arg(long, default_value_t = 0)]
        lane: u32,
        /// Override of a job key.
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        overrides: Vec<Override>,
    },
    /// Make pictures with boxes and classes: single objects, or scenes of several.
    Generate {
        /// What to make.
        #[arg(value_enum)]
        kind: Kind,
        /// Folder for `images/` and `annotations.json`.
        #[arg(long)]
        out: PathBuf,
        /// How many pictures.
        #[arg(long)]
        count: u64,
        /// Side in pixels, or WIDTHxHEIGHT; default 64 for objects, 128 for scenes.
        #[arg(long, value_parser = picture_size)]
        size: Option<(u32, u32)>,
        /// Quality of the JPEGs, 1 to 100.
        #[arg(long, default_value_t = 92, value_parser = clap::value_parser!(u8).range(1..=100))]
        quality: u8,
        /// Seed: the same seed makes the same bytes.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One object a picture.
    Objects,
    /// Several objects a picture.
    Scenes,
}

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
    },
    /// Have it no longer stay.
    Unpin {
        /// One checkpoint (`.../step-0000000500`), or the same in a store.
        path: StoreLocation,
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

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Recompute the plan and compare: every planned picture once, none twice, none foreign.
    Verify {
        /// The run directory.
        run_dir: PathBuf,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// k nearest neighbours on object crops and scene boxes, with random weights and raw pixels beside.
    Knn(KnnArguments),
    /// The feature maps C2..C5 and P2..P5 of one picture, as a safetensors file.
    Features(FeaturesArguments),
}

/// Whose weights are looked at.
#[derive(Debug, Args)]
pub(crate) struct FrozenArguments {
    /// Run directory (its newest good checkpoint) or one checkpoint.
    pub(crate) path: PathBuf,
    /// Which encoder.
    #[arg(long, value_enum, default_value_t = Encoder::Momentum)]
    pub(crate) encoder: Encoder,
    /// The job file, where none lies in or above the checkpoint.
    #[arg(long)]
    pub(crate) job: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct KnnArguments {
    #[command(flatten)]
    pub(crate) weights: FrozenArguments,
    /// Folder of generated objects: neighbours are looked for among these ...
    #[arg(long)]
    pub(crate) train: PathBuf,
    /// ... for each of these.
    #[arg(long)]
    pub(crate) test: PathBuf,
    /// Folder of generated scenes, for the boxes.
    #[arg(long)]
    pub(crate) scenes: Option<PathBuf>,
    /// Neighbours.
    #[arg(long, default_value_t = 20)]
    pub(crate) k: u32,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FeaturesArguments {
    #[command(flatten)]
    pub(crate) weights: FrozenArguments,
    /// The picture; its sides are rounded up to whole cells of the coarsest map (32 pixels).
    #[arg(long)]
    pub(crate) picture: PathBuf,
    /// The file to write: `picture` as the network saw it, `c2` .. `c5`, `p2` .. `p5`.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

/// `64`, or `500x375`.
fn picture_size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    match (width.parse(), height.parse()) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err("expected a side in pixels, or WIDTHxHEIGHT".to_owned()),
    }
}
