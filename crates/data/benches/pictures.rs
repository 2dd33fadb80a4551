//! What the parts of one picture's way into its views cost: `cargo bench -p mcl-data`.
//!
//! Pictures are generated scenes of 500 x 375 at a quality that makes files of about 110 kB, as photographs of that size
//! have.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use mcl_data::augment::{AugmentSpec, Augmenter, Jitter, Scratch, ViewMode, Views};
use mcl_data::decode::Decoder;
use mcl_data::generate::{GenerateSpec, PictureFormat, draw, encode};
use mcl_data::{Limits, Picture};
use mcl_types::{Digest, Epoch, SampleIndex, Seed};
use std::hint::black_box;

const SIZE: (u32, u32) = (500, 375);
const PICTURES: u64 = 8;

fn files(quality: u8) -> Vec<Vec<u8>> {
    let spec = GenerateSpec { size: SIZE, ..GenerateSpec::scenes(PICTURES, Seed::new(1)) };
    (0..PICTURES)
        .map(|i| encode(&draw(&spec, i).unwrap().picture, PictureFormat::Jpeg(quality)).unwrap())
        .collect()
}

fn decoding(c: &mut Criterion) {
    for quality in [90, 97] {
        let files = files(quality);
        let size: usize = files.iter().map(Vec::len).sum::<usize>() / files.len() / 1000;
        let (mut decoder, mut picture, mut at) = (Decoder::new(Limits::default()), Picture::default(), 0);
        c.bench_function(&format!("decode a JPEG of {size} kB"), |b| {
            b.iter(|| {
                at = (at + 1) % files.len();
                decoder.decode_into(black_box(&files[at]), &mut picture).unwrap();
            });
        });
        c.bench_function(&format!("hash {size} kB"), |b| b.iter(|| Digest::of(black_box(&files[0]))));
    }
}

/// All eight views, and the same less some stages: what a stage costs is the difference.
fn views(c: &mut Criterion) {
    let spec = GenerateSpec { size: SIZE, ..GenerateSpec::scenes(1, Seed::new(1)) };
    let picture = draw(&spec, 0).unwrap().picture;
    let all = AugmentSpec::default();
    let still = Jitter { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
    let no_blur = AugmentSpec { blur_p_q: 0.0, blur_p_k: 0.0, ..all };
    let no_colour = AugmentSpec { jitter_p: 0.0, jitter: still, grey_p: 0.0, solarize_p_k: 0.0, ..no_blur };
    let variants = [("all stages", all), ("without blur", no_blur), ("without blur and colour", no_colour)];
    for (mode, name) in [(ViewMode::Exact, "exact"), (ViewMode::Level, "level")] {
        for (what, spec) in variants {
            let augmenter = Augmenter::new(spec, 224, &[1, 2, 4, 8], mode, Seed::new(1)).unwrap();
            let (mut out, mut scratch, mut sample) = (Views::default(), Scratch::default(), 0);
            c.bench_function(&format!("views, {name}, {what}"), |b| {
                b.iter_batched(
                    || {
                        sample += 1;
                        SampleIndex::new(sample)
                    },
                    |sample| {
                        augmenter.views(&picture, Epoch::new(0), sample, &mut out, &mut scratch).unwrap()
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

criterion_group!(benches, decoding, views);
criterion_main!(benches);
