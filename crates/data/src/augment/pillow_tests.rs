//! Every stage against what Pillow made of the same input (tests/pil/make.py).

use super::*;
use serde::Deserialize;
use std::fs;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Stored {
    width: u32,
    height: u32,
    at: usize,
}

#[derive(Deserialize)]
struct Stage {
    stage: String,
    parameter: f64,
    input: Stored,
    output: Stored,
}

#[derive(Deserialize)]
struct Resize {
    crop: [u32; 4],
    input: Stored,
    output: Stored,
}

#[derive(Deserialize)]
struct Sheet {
    stages: Vec<Stage>,
    resizes: Vec<Resize>,
}

fn stored() -> (Sheet, Vec<u8>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pil");
    let sheet = serde_json::from_slice(&fs::read(folder.join("stages.json")).unwrap()).unwrap();
    (sheet, fs::read(folder.join("stages.bin")).unwrap())
}

fn rgb<'a>(blob: &'a [u8], s: &Stored) -> &'a [u8] {
    &blob[s.at..s.at + (s.width * s.height * 3) as usize]
}

fn planar(blob: &[u8], s: &Stored) -> Vec<u8> {
    let mut planes = vec![0; (s.width * s.height * 3) as usize];
    let [r, g, b] = split(&mut planes);
    colour::planes(rgb(blob, s), r, g, b);
    planes
}

fn apply(stage: &str, parameter: f64, width: usize, planes: &mut [u8]) {
    match stage {
        "brightness" => jitter(planes, &[JitterPart::Brightness(parameter)]),
        "contrast" => jitter(planes, &[JitterPart::Contrast(parameter)]),
        "saturation" => jitter(planes, &[JitterPart::Saturation(parameter)]),
        "hue" => jitter(planes, &[JitterPart::Hue(parameter)]),
        "grey" => {
            let [r, g, b] = split(planes);
            colour::grey(r, g, b);
        }
        "solarize" => colour::solarise(planes, SOLARIZE_THRESHOLD),
        "invert" => colour::invert(planes),
        "blur" => {
            let mut blur = Blur::default();
            split(planes).into_iter().for_each(|p| blur.whole(p, width, single(parameter)));
        }
        other => panic!("unknown stage {other}"),
    }
}

#[test]
fn every_stage_is_bit_equal_to_pillow() {
    let (sheet, blob) = stored();
    assert!(sheet.stages.len() > 250);
    let mut wrong = Vec::new();
    for s in &sheet.stages {
        let mut planes = planar(&blob, &s.input);
        apply(&s.stage, s.parameter, s.input.width as usize, &mut planes);
        let wanted = planar(&blob, &s.output);
        let off = planes.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        if off > 0 {
            wrong.push(format!("{} {} {}x{}: {off}", s.stage, s.parameter, s.input.width, s.input.height));
        }
    }
    assert!(wrong.is_empty(), "bytes that differ:\n{}", wrong.join("\n"));
}

#[test]
fn resizes_are_within_one_level_of_pillow() {
    let (sheet, blob) = stored();
    for r in &sheet.resizes {
        let picture =
            Picture::from_rgb(r.input.width, r.input.height, rgb(&blob, &r.input).to_vec()).unwrap();
        let [left, top, width, height] = r.crop;
        let crop = CropBox { left, top, width, height };
        let mut out = Vec::new();
        let wanted = (r.output.width, r.output.height);
        resize_into(&mut fast_image_resize::Resizer::new(), &picture, crop, wanted, &mut out).unwrap();
        let most = out.iter().zip(rgb(&blob, &r.output)).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(most <= 1, "{crop:?} to {wanted:?} differs by {most}");
    }
}

fn scene(width: u32, height: u32) -> Picture {
    let mut random = mcl_types::SplitMix64::new(u64::from(width * 7 + height));
    let pixels =
        (0..width * height * 3).map(|i| ((i / 40) as u8).wrapping_add(random.below(90) as u8)).collect();
    Picture::from_rgb(width, height, pixels).unwrap()
}

/// The official order of things without any shortcut: everything at full size, then decimation.
fn slow_exact(picture: &Picture, params: &ViewParams, size: u32, ratio: u32) -> Vec<u8> {
    let mut full = vec![0; (3 * size * size) as usize];
    Scratch::default().direct(picture, params, size, 1, &mut full).unwrap();
    let (s, r) = (size as usize, ratio as usize);
    let mut out = Vec::new();
    for plane in full.chunks(s * s) {
        for y in (0..s).step_by(r) {
            out.extend((0..s).step_by(r).map(|x| plane[y * s + x]));
        }
    }
    out
}

#[test]
fn exact_views_equal_decimated_full_views() {
    let spec =
        AugmentSpec { blur_p_k: 0.4, channel_permutation_p: 0.3, invert_p: 0.3, ..AugmentSpec::default() };
    let spec = AugmentSpec { quarter_turn_p: 0.5, ..spec };
    let augmenter = Augmenter::new(spec, 64, &[1, 2, 4, 8], ViewMode::Exact, Seed::new(9)).unwrap();
    let (mut views, mut scratch) = (Views::default(), Scratch::default());
    for (i, (w, h)) in [(97, 71), (64, 64), (1, 1), (3, 200), (200, 3), (131, 260)].into_iter().enumerate() {
        let picture = scene(w, h);
        for sample in 0..6 {
            let (epoch, sample) = (Epoch::new(i as u64), SampleIndex::new(sample));
            augmenter.views(&picture, epoch, sample, &mut views, &mut scratch).unwrap();
            for (v, found) in views.buffers.iter().enumerate() {
                let params = augmenter.params(w, h, epoch, sample, v);
                let ratio = [1, 2, 4, 8][v % 4];
                assert_eq!(found, &slow_exact(&picture, &params, 64, ratio), "{w}x{h} view {v} {params:?}");
            }
        }
    }
}

#[test]
fn a_turned_view_is_the_view_turned() {
    let still = AugmentSpec { blur_p_q: 0.0, ..AugmentSpec::default() };
    let turned = AugmentSpec { quarter_turn_p: 1.0, ..still };
    let picture = scene(90, 50);
    let make = |spec| {
        let augmenter = Augmenter::new(spec, 32, &[1], ViewMode::Level, Seed::new(3)).unwrap();
        let views = (0..40).map(|sample| {
            let (mut views, sample) = (Views::default(), SampleIndex::new(sample));
            let mut scratch = Scratch::default();
            augmenter.views(&picture, Epoch::new(0), sample, &mut views, &mut scratch).unwrap();
            let turns = augmenter.params(90, 50, Epoch::new(0), sample, 0).quarter_turns;
            (views.buffers.swap_remove(0), turns)
        });
        views.collect::<Vec<_>>()
    };
    let mut seen = [0; 4];
    for ((mut view, none), (found, turns)) in make(still).into_iter().zip(make(turned)) {
        assert_eq!(none, 0);
        seen[turns as usize] += 1;
        for _ in 0..turns {
            // Against the clock: the last column becomes the first row.
            let planes = view.chunks(32 * 32);
            view = planes.flat_map(|p| (0..32 * 32).map(|i| p[(i % 32) * 32 + 31 - i / 32])).collect();
        }
        assert_eq!(found, view, "{turns} turns");
    }
    assert!(seen[0] == 0 && seen[1..].iter().all(|n| *n > 3), "{seen:?}");
}

#[test]
fn level_views_have_their_sizes_and_scaled_blur() {
    let augmenter =
        Augmenter::new(AugmentSpec::default(), 64, &[1, 2, 4, 8], ViewMode::Level, Seed::new(9)).unwrap();
    let (mut views, mut scratch) = (Views::default(), Scratch::default());
    augmenter.views(&scene(90, 50), Epoch::new(0), SampleIndex::new(4), &mut views, &mut scratch).unwrap();
    let edges: Vec<usize> = views.buffers.iter().map(|b| ((b.len() / 3) as f64).sqrt() as usize).collect();
    assert_eq!(edges, [64, 32, 16, 8, 64, 32, 16, 8]);
    // The first level is the same in both modes.
    let exact = Augmenter { mode: ViewMode::Exact, ..augmenter };
    let level = views.clone();
    exact.views(&scene(90, 50), Epoch::new(0), SampleIndex::new(4), &mut views, &mut scratch).unwrap();
    assert_eq!((&views.buffers[0], &views.buffers[4]), (&level.buffers[0], &level.buffers[4]));
    assert_ne!(views.buffers[1], level.buffers[1]);
}

#[test]
fn views_depend_on_seed_epoch_sample_and_view_only() {
    let make = |seed, epoch, sample| {
        let a =
            Augmenter::new(AugmentSpec::default(), 32, &[1, 2], ViewMode::Exact, Seed::new(seed)).unwrap();
        let mut views = Views::default();
        let (epoch, sample) = (Epoch::new(epoch), SampleIndex::new(sample));
        a.views(&scene(40, 40), epoch, sample, &mut views, &mut Scratch::default()).unwrap();
        views
    };
    assert_eq!(make(1, 2, 3), make(1, 2, 3));
    assert_ne!(make(1, 2, 3), make(2, 2, 3));
    assert_ne!(make(1, 2, 3), make(1, 3, 3));
    assert_ne!(make(1, 2, 3), make(1, 2, 4));
}

#[test]
fn sizes_that_levels_do_not_divide_are_refused() {
    let make = |size, levels: &[u32]| {
        Augmenter::new(AugmentSpec::default(), size, levels, ViewMode::Exact, Seed::new(0)).map(|_| ())
    };
    assert!(make(100, &[1, 8]).unwrap_err().to_string().contains("ratio 8"));
    assert!(make(64, &[]).is_err());
    assert!(make(64, &[0]).is_err());
    assert!(make(0, &[1]).is_err());
    make(224, &[1, 2, 4, 8]).unwrap();
}
