//! The command line.

mod bench;
mod certs;
mod checkpoint;
mod data;
mod eval;
mod page;
mod tls;

pub(crate) use bench::{
    BenchCheckpointArguments, BenchCommand, BenchCoordinatorArguments, BenchRankArguments,
};
pub(crate) use certs::{CertsCommand, InitArguments, IssueArguments};
pub(crate) use checkpoint::{CheckpointCommand, Encoder, ExportArguments, Format, ImportArguments};
pub(crate) use data::{DataCommand, Kind};
pub(crate) use eval::{EvalCommand, FrozenArguments, JudgedArguments, NeighboursArguments, ProbeArguments};
pub(crate) use page::PageArguments;
pub(crate) use tls::{Listen, TlsArguments};

use clap::{Args, Parser, Subcommand, ValueEnum};
use mcl_config::Override;
use mcl_types::StoreLocation;
use std::path::PathBuf;

/// Distributed, elastic MCL pre-training.
#[derive(Debug, Parser)]
#[command(name = "mcl", version, about, propagate_version = true)]
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
    /// A run as it goes, full screen; where there is no terminal, a line for every change.
    Watch(WatchArguments),
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
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one for each verb.
    Man(ManArguments),
    /// Make a small certificate authority for a cluster, and certificates of it.
    #[command(subcommand)]
    Certs(CertsCommand),
}

#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    /// Run directory on this machine, whether a coordinator has it now or not.
    pub(crate) run_dir: Option<PathBuf>,
    /// URL of the coordinator, where no run directory is named.
    #[arg(long, env = "MCL_COORDINATOR")]
    pub(crate) coordinator: Option<String>,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// One JSON object a line, a line for every change.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Folder for mcl.1, mcl-run.1 and so on; `man -l FOLDER/mcl.1` shows one.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
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
    /// Encrypt between the processes of this run, and let nobody else speak to them: certificates are made for each
    /// start, in RUN_DIR/tls; `mcl status --tls RUN_DIR/tls/operator` looks at it.
    #[arg(long)]
    pub(crate) private: bool,
    #[command(flatten)]
    pub(crate) page: PageArguments,
    /// End with a summary as one JSON object on standard output.
    #[arg(long)]
    pub(crate) json: bool,
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
    pub(crate) page: PageArguments,
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
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
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
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// URL of the coordinator.
    #[arg(long, env = "MCL_COORDINATOR")]
    pub(crate) coordinator: String,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Verbs that are no queries, and why they take no --json.
    const WITHOUT_JSON: [(&str, &str); 9] = [
        ("mcl coordinator", "a daemon: --log json"),
        ("mcl checkpoint-server", "a daemon: --log json"),
        ("mcl worker", "a daemon: --log json"),
        ("mcl bench step", "passes its arguments on: those after -- choose what it prints"),
        ("mcl bench loader", "passes its arguments on: those after -- choose what it prints"),
        ("mcl certs init", "writes files: `mcl certs show --json` tells what is in them"),
        ("mcl certs issue", "writes files: `mcl certs show --json` tells what is in them"),
        ("mcl completions", "prints a script"),
        ("mcl man", "writes files for man"),
    ];

    /// Every verb that does something, by its full name.
    fn verbs(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        let below: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
        if below.is_empty() {
            found.push((name.to_owned(), command.clone()));
        }
        below.into_iter().for_each(|c| verbs(c, &format!("{name} {}", c.get_name()), found));
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_query_answers_json() {
        let mut found = Vec::new();
        verbs(&Arguments::command(), "mcl", &mut found);
        assert!(found.len() > 30, "{}", found.len());
        for (name, command) in &found {
            let has = command.get_arguments().any(|a| a.get_long() == Some("json"));
            let excused = WITHOUT_JSON.iter().find(|(verb, _)| verb == name);
            match excused {
                Some((_, why)) => assert!(!has, "`{name}` takes --json, yet: {why}"),
                None => assert!(has, "`{name}` takes no --json: give it one, or say here why not"),
            }
        }
        for (verb, _) in WITHOUT_JSON {
            assert!(found.iter().any(|(name, _)| name == verb), "there is no `{verb}`");
        }
    }
}
