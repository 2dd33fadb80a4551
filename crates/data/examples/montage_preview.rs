//! Draws the montages of a few pictures of a source.
//! Usage: montage_preview SOURCE OUT.png [PICTURES] [SIZE]
#![allow(missing_docs, clippy::unwrap_used)]

use mcl_data::{Dataset, LoaderSpec, preview};
use std::sync::Arc;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize, or: u32| arguments.get(at).and_then(|a| a.parse().ok()).unwrap_or(or);
    let dataset = Arc::new(Dataset::open(arguments[1].as_ref()).unwrap());
    let spec = LoaderSpec { image_size: number(4, 128), ..LoaderSpec::default() };
    let (png, batch) = preview(&dataset, spec, number(3, 8) as usize).unwrap();
    std::fs::write(&arguments[2], png).unwrap();
    for (slot, fed) in batch.fed.iter().enumerate() {
        println!("{slot}: {} {:?}", fed.id, fed.replaced);
    }
}
