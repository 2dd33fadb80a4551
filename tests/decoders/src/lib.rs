//! Every decoder of bytes from outside as one function: files of checkpoints, weights, pictures and jobs, and what
//! peers say.
//!
//! Role: what `make test` tries with changed good inputs ([`seeds`]) and what fuzzers try with anything. Whatever the
//! bytes, a function returns; what its decoder accepts is consistent, and written down and read again it is the same.
//! A panic is a finding. That memory stays in proportion to the input is for the caller to watch.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "findings are panics")]

mod messages;
pub mod seeds;

use mcl_checkpoint_core::{Manifest, SliceView, write_slice};
use mcl_config::Job;
use mcl_data::dataset::{ListFormat, PictureList, TarIndex};
use mcl_data::rows::{Rows, RowsError};
use mcl_data::{Decoder, Limits, Picture};
use mcl_transport::{Certificate, Role};
use mcl_types::{SourceKind, StoreLocation};
use std::path::Path;

pub use messages::{frames, messages};

/// Pixels that a picture may have here: memory in proportion to a file needs a limit, which is the user's otherwise.
pub const PIXELS: u64 = 1 << 16;

const MIB: usize = 1 << 20;
/// The decoders' own limit of 64 MiB for tables and profiles, and pictures of 16 bits a channel, thrice.
const PICTURE: usize = 64 * MIB + 3 * 8 * PIXELS as usize;

/// A decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The fuzz target's name.
    pub name: &'static str,
    /// Decodes.
    pub run: fn(&[u8]),
    /// Inputs that are good, so that changed ones get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Memory that it may take however short the input.
    pub spare: usize,
}

/// Memory of a page that claims more than is stored of it, and of what decompresses.
const PAGE: usize = 12 * MIB;
/// Rows that are read: a file of a few bytes may have any number of empty ones.
const ROWS: u64 = 1000;

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "manifest", run: manifest, seeds: seeds::manifests, spare: MIB },
    Target { name: "slice", run: slice, seeds: seeds::slices, spare: MIB },
    Target { name: "tar_index", run: tar_index, seeds: seeds::tars, spare: MIB },
    Target { name: "list", run: list, seeds: seeds::lists, spare: MIB },
    Target { name: "parquet", run: parquet, seeds: seeds::parquets, spare: PAGE },
    Target { name: "config", run: config, seeds: seeds::jobs, spare: MIB },
    Target { name: "messages", run: messages, seeds: seeds::messages, spare: MIB },
    Target { name: "frames", run: frames, seeds: seeds::frames, spare: MIB },
    Target { name: "weights", run: weights, seeds: seeds::weights, spare: MIB },
    Target { name: "certificate", run: certificate, seeds: seeds::certificates, spare: MIB },
    Target { name: "picture", run: picture, seeds: seeds::pictures, spare: PICTURE },
];

/// A manifest, as it is and with a seal that fits: no fuzzer finds a hash.
pub fn manifest(bytes: &[u8]) {
    again(bytes);
    if let Ok(body) = std::str::from_utf8(bytes) {
        again(Manifest::seal(body).as_bytes());
    }
}

fn again(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let rendered = manifest.render().expect("what was read can be written");
        let read = Manifest::parse(rendered.as_bytes()).expect("what was written can be read");
        assert_eq!(read, manifest, "written and read again it is another");
        let _ = (manifest.slice_count(), manifest.file_bytes());
    }
}

/// One slice of a checkpoint.
pub fn slice(bytes: &[u8]) {
    let Ok(view) = SliceView::parse(bytes) else { return };
    let tensors: Vec<_> =
        view.tensors().map(|(n, t)| (n.to_owned(), t.dtype, t.shape.clone(), t.bytes)).collect();
    let all: usize = tensors.iter().map(|t| t.3.len()).sum();
    assert!(all <= bytes.len(), "{all} bytes of tensors in {} bytes", bytes.len());
    // Names that a foreign file may use and ours may not.
    let Ok(written) = write_slice(&tensors) else { return };
    let read = SliceView::parse(&written).expect("what was written can be read");
    assert!(read.tensors().eq(view.tensors()), "written and read again it is another");
}

/// A tar, and a side file that claims to describe it: the first two bytes are the side file's length.
pub fn tar_index(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (side, tar) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length))));
    let name = Path::new("shard.tar");
    let plain = TarIndex::scan_as(name, tar, SourceKind::Tar);
    for index in [TarIndex::parse(name, side, tar), TarIndex::scan(name, tar), plain].into_iter().flatten() {
        for sample in &index.samples {
            let end = sample.offset.checked_add(sample.length).expect("an end");
            assert!(end <= tar.len() as u64, "`{}` ends at {end} of {}", sample.key, tar.len());
        }
        let text = serde_json::to_vec(&index).expect("an index can be written");
        // A walk follows links and long names that a spot check of headers need not accept; no panic is enough.
        let _ = TarIndex::parse(name, &text, tar);
    }
}

/// A list of pictures, in each of its forms.
pub fn list(bytes: &[u8]) {
    for format in [ListFormat::Lines, ListFormat::Tabs, ListFormat::Commas] {
        let Ok(list) = PictureList::parse(bytes, format) else { continue };
        let mut seen = std::collections::HashSet::new();
        for picture in &list.pictures {
            let path = &picture.path;
            let leaves = path.split(|b| *b == b'/').any(|part| matches!(part, b".." | b"."));
            assert!(!path.is_empty() && !leaves && !path.contains(&0), "{path:?}");
            assert!(seen.insert(path), "{path:?} twice");
            let named = |label: u32| list.classes.is_empty() || (label as usize) < list.classes.len();
            assert!(picture.label.is_none_or(named), "{picture:?} of {} classes", list.classes.len());
        }
    }
}

/// A parquet file, of which the first rows are read, from the first and from the second on.
pub fn parquet(bytes: &[u8]) {
    let Ok(rows) = Rows::of_bytes("x.parquet", bytes::Bytes::copy_from_slice(bytes)) else { return };
    let mut first = Vec::new();
    let read = rows.read::<RowsError>(0..rows.len().min(ROWS), |id, row| {
        first.push((id.to_owned(), row.is_ok(), row.map_or(0, |row| row.bytes.len())));
        Ok(())
    });
    if read.is_err() {
        return;
    }
    let mut again = first.get(..1).unwrap_or_default().to_vec();
    let read = rows.read::<RowsError>(1..rows.len().min(ROWS), |id, row| {
        again.push((id.to_owned(), row.is_ok(), row.map_or(0, |row| row.bytes.len())));
        Ok(())
    });
    if read.is_ok() {
        assert_eq!(again, first, "rows are others where the first is passed over");
    }
}

/// A job file, and addresses.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = text.parse::<StoreLocation>();
    let Ok(job) = Job::parse(text, "job.toml") else { return };
    let written = job.to_toml().expect("a job of text can be written");
    let read = Job::parse(&written, "job.toml").unwrap_or_else(|e| panic!("{e}\n{written}"));
    assert_eq!(read.to_toml().expect("again"), written, "written and read again it is another");
    assert_eq!(read.digest().expect("a digest"), job.digest().expect("a digest"));
}

/// Weights of somebody else.
pub fn weights(bytes: &[u8]) {
    let Ok(imported) = mcl_export::import(bytes) else { return };
    let Ok(file) = imported.to_safetensors() else { return };
    let read = mcl_export::import(&file).expect("what was imported can be imported");
    assert_eq!(read.tensors, imported.tensors, "written and read again they are others");
}

/// A certificate, bare and as PEM.
pub fn certificate(bytes: &[u8]) {
    let _ = Certificate::read_pem(bytes);
    let Ok(read) = Certificate::read(bytes) else { return };
    let now = std::time::SystemTime::UNIX_EPOCH;
    assert!(read.holder.roles.len() <= Role::ALL.len());
    let _ = (read.left(now), read.warning(now), read.holder.to_string());
}

/// A picture of at most [`PIXELS`]; twice with one decoder, whose memory the first must not spoil.
pub fn picture(bytes: &[u8]) {
    let limits = Limits { max_pixels: PIXELS };
    let mut decoder = Decoder::new(limits);
    let (mut first, mut second) = (Picture::default(), Picture::default());
    let found = decoder.decode_into(bytes, &mut first);
    let again = decoder.decode_into(bytes, &mut second);
    assert_eq!(found.is_ok(), again.is_ok(), "{found:?}, then {again:?}");
    if found.is_ok() {
        let pixels = u64::from(first.width()) * u64::from(first.height());
        assert!((1..=PIXELS).contains(&pixels), "{pixels} pixels");
        assert_eq!(first, second, "the same file gave two pictures");
    }
}
