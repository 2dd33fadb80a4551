//! Pictures into tensors.
//!
//! Role: list the pictures of a folder or of tar shards, here or in an object store ([`Dataset`]), decode them as Pillow does
//! ([`mod@decode`]), make the 2L augmented views of each ([`Augmenter`]), do all of that ahead of time on
//! background threads ([`Loader`]), and say where each view goes in a montage ([`montage`]). Besides:
//! the tools that pack (also parquet files, [`rows`]), inspect, generate and preview data.
//!
//! Invariants: what is fed depends on (seed, epoch, sample, view) and on the bytes of the pictures, never on
//! threads, time or who asks; nothing a picture file holds can bring the process down; every unsafe
//! line is in one module of one call (`dataset/mapping.rs`).
//!
//! Left out: which sample goes where (the plan's business), tensors and normalisation (training's).
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod annotations;
pub mod augment;
pub mod crop;
pub mod dataset;
pub mod decode;
pub mod generate;
pub mod inspect;
mod intake;
pub mod loader;
pub mod montage;
pub mod pack;
mod picture;
mod preview;
mod remote;
pub mod rows;
mod sheet;

pub use annotations::Annotations;
pub use augment::{AugmentError, AugmentSpec, Augmenter, Jitter, Scratch, ViewMode, Views};
pub use dataset::{Dataset, DatasetError, Encoded, ReadError, ShardInfo};
pub use decode::{DecodeError, Decoder, Format, Limits, decode};
pub use intake::{Intake, IntakeError};
pub use loader::{
    BatchRequest, FedSample, LaneBatch, Loader, LoaderError, LoaderSpec, LoaderStats, Replaced,
    Stopper as LoaderStopper,
};
pub use montage::MontageLayout;
pub use picture::Picture;
pub use preview::{PreviewError, preview};
pub use remote::{RemoteError, RemoteSpec, Traffic};
pub use sheet::{SheetError, draw_sheet, montage_sheet};
