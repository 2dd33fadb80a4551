//! Arguments of `mcl data`.

use clap::{Subcommand, ValueEnum};
use mcl_config::Override;
use mcl_types::{SourceKind, StoreLocation};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Pack pictures of any source into tar shards with an index: what cannot be trained from directly, and what is slow
    /// there. One that was interrupted goes on when it is given again.
    Pack {
        /// Folder of pictures, list (.txt, .tsv, .csv), tar shards (also of others, also in braces as shard-{000..099}.tar) or
        /// parquet files; here or in an object store: s3://bucket/prefix.
        source: StoreLocation,
        /// Folder or address (s3://bucket/prefix) for the shards.
        #[arg(value_name = "OUT", required_unless_present = "out_flag")]
        out: Option<StoreLocation>,
        /// The same.
        #[arg(long = "out", id = "out_flag", value_name = "OUT", conflicts_with = "out")]
        out_flag: Option<StoreLocation>,
        /// How to read the source, where what is there does not tell: folder, webdataset, tar, list or parquet.
        #[arg(long)]
        kind: Option<SourceKind>,
        /// The column of pictures in parquet files, where there are several.
        #[arg(long)]
        column: Option<String>,
        /// Pictures of the source a shard.
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
        samples_per_shard: u64,
        /// Threads, each at a shard of its own; default: one a core. The shards are the same whatever the number.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
        threads: Option<u16>,
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
        /// A shard, a folder of shards, or their names in braces; also in an object store, where the indexes go too:
        /// s3://bucket/prefix.
        source: StoreLocation,
        /// How to read the tars: webdataset, or tar for one in which every picture is a sample.
        #[arg(long)]
        kind: Option<SourceKind>,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look at every picture of a source: count, formats, sizes, what cannot be decoded and why.
    Inspect {
        /// What `mcl data pack` takes: folder, list, shards, parquet files; here or in an object store: s3://bucket/prefix.
        source: StoreLocation,
        /// How to read the source, where what is there does not tell: folder, webdataset, tar, list or parquet.
        #[arg(long)]
        kind: Option<SourceKind>,
        /// The column of pictures in parquet files, where there are several.
        #[arg(long)]
        column: Option<String>,
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
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
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
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One object a picture.
    Objects,
    /// Several objects a picture.
    Scenes,
}

/// `64`, or `500x375`.
fn picture_size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    match (width.parse(), height.parse()) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err("expected a side in pixels, or WIDTHxHEIGHT".to_owned()),
    }
}
