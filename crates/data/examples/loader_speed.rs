//! Milliseconds per picture of decoding and augmenting on one core.
//! Usage: loader_speed FOLDER [PICTURES]
#![allow(missing_docs, clippy::unwrap_used)]

use mcl_data::{AugmentSpec, Augmenter, Dataset, Decoder, Limits, Picture, Scratch, ViewMode, Views};
use mcl_types::{Epoch, SampleIndex, Seed};
use std::time::Instant;

fn main() {
    let folder = std::env::args().nth(1).unwrap();
    let most: u64 = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(200);
    let dataset = Dataset::open(folder.as_ref()).unwrap();
    let n = dataset.len().min(most);
    let bytes: Vec<_> = (0..n).map(|i| dataset.read(SampleIndex::new(i)).unwrap()).collect();
    let mut decoder = Decoder::new(Limits::default());
    let mut picture = Picture::default();
    let mut pixels = 0;
    let start = Instant::now();
    for b in &bytes {
        if decoder.decode_into(b, &mut picture).is_ok() {
            pixels += picture.width() as usize * picture.height() as usize;
        }
    }
    let decode = start.elapsed().as_secs_f64() * 1e3 / n as f64;
    println!("{n} pictures, {:.0} pixels each: decode {decode:.2} ms", pixels as f64 / n as f64);
    for mode in [ViewMode::Exact, ViewMode::Level] {
        let augmenter =
            Augmenter::new(AugmentSpec::default(), 224, &[1, 2, 4, 8], mode, Seed::new(1)).unwrap();
        let (mut views, mut scratch) = (Views::default(), Scratch::default());
        let start = Instant::now();
        for (i, b) in bytes.iter().enumerate() {
            if decoder.decode_into(b, &mut picture).is_ok() {
                let sample = SampleIndex::new(i as u64);
                augmenter.views(&picture, Epoch::new(0), sample, &mut views, &mut scratch).unwrap();
            }
        }
        let all = start.elapsed().as_secs_f64() * 1e3 / n as f64;
        println!("{mode:?} views: {all:.2} ms with decoding, {:.2} without", all - decode);
    }
}
