//! Every decoder on changed good inputs and on anything: no panic, and memory in proportion to the input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_decoder_tests::{PIXELS, TARGETS, Target};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Changed inputs of each decoder.
const CASES: u32 = 2_000;
/// Memory that a decoder may take for each byte of its input: parsed JSON is far larger than its text.
const GROWTH: usize = 128;

/// One change of a good input.
#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    /// A number of four bytes where lengths and offsets may lie.
    Number(Index, u32),
    Cut(Index),
    Repeat(Index, Index),
    Remove(Index, Index),
    Insert(Index, Vec<u8>),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    let number = prop_oneof![Just(0), Just(u32::MAX), Just(1 << 31), Just(1 << 24), any::<u32>()];
    prop_oneof![
        4 => (place(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, 1 << bit)),
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (place(), number).prop_map(|(at, number)| Edit::Number(at, number)),
        1 => place().prop_map(Edit::Cut),
        1 => (place(), place()).prop_map(|(a, b)| Edit::Repeat(a, b)),
        1 => (place(), place()).prop_map(|(a, b)| Edit::Remove(a, b)),
        1 => (place(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, b)| Edit::Insert(at, b)),
    ]
}

fn applied(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        let span = |a: &Index, b: &Index| {
            let (a, b) = (a.index(length), b.index(length));
            a.min(b)..a.max(b)
        };
        match edit {
            Edit::Flip(at, bit) => bytes[at.index(length)] ^= bit,
            Edit::Set(at, byte) => bytes[at.index(length)] = *byte,
            Edit::Number(at, number) => {
                let at = at.index(length);
                for (place, byte) in bytes[at..].iter_mut().zip(number.to_le_bytes()) {
                    *place = byte;
                }
            }
            Edit::Cut(at) => bytes.truncate(at.index(length)),
            Edit::Repeat(a, b) => {
                let span = span(a, b);
                let again = bytes[span.clone()].to_vec();
                bytes.splice(span.end..span.end, again);
            }
            Edit::Remove(a, b) => drop(bytes.drain(span(a, b))),
            Edit::Insert(at, more) => {
                drop(bytes.splice(at.index(length)..at.index(length), more.iter().copied()))
            }
        }
    }
    bytes
}

/// Runs a decoder and watches what it takes.
fn watched(target: &Target, input: &[u8]) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    (target.run)(input);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let limit = target.spare + GROWTH * input.len();
    assert!(taken <= limit, "{}: {taken} bytes of memory for an input of {}", target.name, input.len());
}

/// One test: the counter of memory is the process's. Every failure prints the smallest input that fails.
#[test]
fn no_input_brings_a_decoder_down() {
    // Some panics are caught and become errors: a trace of each would be memory that is counted.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}: no good input", target.name);
        for seed in &seeds {
            watched(&target, seed);
        }
        let config = Config {
            cases: CASES,
            rng_seed: RngSeed::Fixed(4),
            failure_persistence: None,
            ..Config::default()
        };
        let changed = (prop::sample::select(seeds), prop::collection::vec(edit(), 1..6));
        let input = prop_oneof![
            9 => changed.prop_map(|(seed, edits)| applied(seed, &edits)),
            1 => prop::collection::vec(any::<u8>(), 0..512),
        ];
        let run = TestRunner::new(config).run(&input, |input| {
            watched(&target, &input);
            Ok(())
        });
        if let Err(error) = run {
            panic!("{}: {error}", target.name);
        }
    }
}

/// The seeds are good: a fuzzer that begins with refused inputs finds nothing.
#[test]
fn good_inputs_are_accepted() {
    use mcl_decoder_tests::seeds;
    use std::path::Path;
    let [whole, body] = &seeds::manifests()[..] else { panic!("two manifests") };
    assert!(mcl_checkpoint_core::Manifest::parse(whole).is_ok());
    let sealed = mcl_checkpoint_core::Manifest::seal(std::str::from_utf8(body).unwrap());
    assert_eq!(sealed.as_bytes(), whole);
    for slice in seeds::slices() {
        mcl_checkpoint_core::SliceView::parse(&slice).unwrap();
    }
    let tar = &seeds::tars()[0];
    let (side, tar) = tar[2..].split_at(usize::from(u16::from_le_bytes([tar[0], tar[1]])));
    let index = mcl_data::dataset::TarIndex::parse(Path::new("shard.tar"), side, tar).unwrap();
    assert_eq!(index.samples.len(), 3);
    use mcl_data::dataset::{ListFormat, PictureList};
    let listed = seeds::lists().iter().filter(|l| PictureList::parse(l, ListFormat::Commas).is_ok()).count();
    assert!(listed >= 2, "{listed} lists");
    for file in seeds::parquets() {
        let rows = mcl_data::rows::Rows::of_bytes("x", bytes::Bytes::from(file)).unwrap();
        let mut pictures = 0;
        let read = rows.read::<mcl_data::rows::RowsError>(0..rows.len(), |_, row| {
            pictures += usize::from(row.is_ok());
            Ok(())
        });
        assert!(read.is_ok() && pictures > 0, "{pictures} pictures, {read:?}");
    }
    let imported = seeds::weights().iter().filter(|file| mcl_export::import(file).is_ok()).count();
    assert!(imported >= 5, "{imported} files of weights");
    let [bare, pem] = &seeds::certificates()[..] else { panic!("a certificate twice") };
    let read = mcl_transport::Certificate::read(bare).unwrap();
    assert_eq!(mcl_transport::Certificate::read_pem(pem).unwrap(), std::slice::from_ref(&read));
    assert_eq!((read.holder.roles.len(), read.hosts.len()), (2, 5));
    let limits = mcl_data::Limits { max_pixels: PIXELS };
    let decoded = seeds::pictures().iter().filter(|file| mcl_data::decode(file, limits).is_ok()).count();
    assert!(decoded >= 10, "{decoded} pictures");
}
