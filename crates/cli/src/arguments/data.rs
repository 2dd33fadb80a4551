//! Arguments of `mcl data`.

use clap::{Subcommand, ValueEnum};
use mcl_config::Override;
use mcl_types::StoreLocation;
use std::path::PathBuf;

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
