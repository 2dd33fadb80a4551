//! Montages, labels, decimation and normalisation against their plain definitions.

use super::support::{lane_pictures, permutations, side, tiny_config};
use mcl_model::{
    LaneSide, ModelSpec, Normalization, Pyramid, PyramidLayout, decimate, level_views, tile_pictures,
};
use tch::{Device, Kind, Tensor};

fn spec() -> ModelSpec {
    ModelSpec::new(tiny_config(4)).unwrap()
}

/// Pixel (c, y, x) of picture b, computed the slow way from full-size views [N, 4, 3, S, S].
fn naive_pixel(full: &Tensor, drawn: &[Vec<i64>], level: i64, [b, c, y, x]: [i64; 4]) -> f64 {
    let (n, size) = (full.size()[0], full.size()[4]);
    let ratio = 1 << level;
    let tile_side = size / ratio;
    let picture = if level == 0 {
        b
    } else {
        let tile = (b * ratio + y / tile_side) * ratio + x / tile_side;
        drawn[usize::try_from(level - 1).unwrap()][usize::try_from(tile).unwrap()] % n
    };
    full.double_value(&[picture, level, c, ratio * (y % tile_side), ratio * (x % tile_side)])
}

#[test]
fn montages_are_what_a_loop_over_pixels_makes_of_them() {
    let spec = spec();
    let layout = PyramidLayout::new(&spec, 5, 2..4).unwrap();
    let lanes: Vec<(Tensor, Vec<Vec<i64>>)> = (2..4)
        .map(|lane| {
            let full = lane_pictures(9, lane, 5, 4, 64, Kind::Double).narrow(1, 0, 4);
            (full, permutations(&layout, lane))
        })
        .collect();
    let sides: Vec<LaneSide> = lanes
        .iter()
        .map(|(full, drawn)| LaneSide { views: level_views(full).unwrap(), permutations: drawn.clone() })
        .collect();
    let pyramid = Pyramid::assemble(&layout, &sides).unwrap();
    // ceil(5 / [1, 4, 16, 32]) pictures a lane: level-major, then lane.
    let places = [(0, 0, 10), (1, 10, 4), (2, 14, 2), (3, 16, 2)];
    assert_eq!(pyramid.pictures.size(), [18, 3, 64, 64]);
    for (level, first, count) in places {
        assert_eq!(layout.group(level), (first, count));
        for place in 0..count {
            let own = count / 2;
            let (full, drawn) = &lanes[usize::try_from(place / own).unwrap()];
            for (c, y, x) in
                [(0, 0, 0), (1, 0, 63), (2, 63, 0), (0, 63, 63), (1, 17, 42), (2, 31, 32), (0, 8, 55)]
            {
                let expected =
                    naive_pixel(full, drawn, i64::try_from(level).unwrap(), [place % own, c, y, x]);
                let found = pyramid.pictures.double_value(&[first + place, c, y, x]);
                assert!((found - expected).abs() < 1e-15, "level {level} picture {place} at {y},{x}");
            }
        }
    }
    for (level, labels) in pyramid.labels.iter().enumerate() {
        let found: Vec<i64> = labels.try_into().unwrap();
        let expected = lanes.iter().zip(2..).flat_map(|((_, drawn), lane)| {
            let local = if level == 0 { (0..5).collect() } else { tile_pictures(&drawn[level - 1], 5) };
            local.into_iter().map(move |picture| picture + 5 * lane)
        });
        assert_eq!(found, expected.collect::<Vec<_>>(), "level {level}");
    }
}

#[test]
fn every_picture_is_on_every_level() {
    let spec = spec();
    for n in 1..70 {
        let layout = PyramidLayout::new(&spec, n, 0..1).unwrap();
        assert!((0..4).all(|level| layout.tiles(level) >= i64::from(n)), "{n}");
    }
    let published = PyramidLayout::new(&spec, 128, 0..1).unwrap();
    assert_eq!((0..4).map(|l| published.group(l).1).collect::<Vec<_>>(), [128, 32, 8, 4]);
    assert_eq!((published.pictures(), published.tiles(3)), (172, 256));
}

#[test]
fn decimation_keeps_the_top_left_pixel() {
    let picture = Tensor::arange(64, (Kind::Int64, Device::Cpu)).reshape([1, 8, 8]);
    let small: Vec<i64> = decimate(&picture, 4).unwrap().flatten(0, -1).try_into().unwrap();
    assert_eq!(small, [0, 4, 32, 36]);
    assert_eq!(decimate(&picture, 1).unwrap(), picture);
}

#[test]
fn bytes_are_normalised_as_published() {
    let pictures = Tensor::from_slice(&[0_u8, 128, 255]).reshape([1, 3, 1, 1]);
    let numbers = Normalization::new(Kind::Double, Device::Cpu).unwrap().apply(&pictures).unwrap();
    let found: Vec<f64> = numbers.flatten(0, -1).try_into().unwrap();
    let expected = [-123.675 / 58.395, (128.0 - 116.28) / 57.12, (255.0 - 103.53) / 57.375];
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}");
    let wrong = Tensor::zeros([1, 4, 2, 2], (Kind::Uint8, Device::Cpu));
    assert!(Normalization::new(Kind::Float, Device::Cpu).unwrap().apply(&wrong).is_err());
}

#[test]
fn bytes_make_the_same_montage_as_numbers() {
    let spec = spec();
    let layout = PyramidLayout::new(&spec, 4, 0..1).unwrap();
    let full = (lane_pictures(9, 0, 4, 4, 64, Kind::Double) * 70 + 128).to_kind(Kind::Uint8);
    let drawn = permutations(&layout, 1);
    let normal = Normalization::new(Kind::Double, Device::Cpu).unwrap();
    let bytes = Pyramid::assemble(&layout, &[side(&full, 4, false, drawn.clone())]).unwrap();
    let late = normal.apply(&bytes.pictures).unwrap();
    let mut early = side(&full, 4, false, drawn);
    early.views = early.views.iter().map(|view| normal.apply(view).unwrap()).collect();
    assert_eq!(late, Pyramid::assemble(&layout, &[early]).unwrap().pictures);
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let spec = spec();
    let layout = PyramidLayout::new(&spec, 4, 0..1).unwrap();
    let full = lane_pictures(9, 0, 4, 4, 64, Kind::Float);
    let drawn = permutations(&layout, 1);
    let told = |change: &dyn Fn(&mut LaneSide)| {
        let mut lane = side(&full, 4, false, drawn.clone());
        change(&mut lane);
        Pyramid::assemble(&layout, &[lane]).unwrap_err().to_string()
    };
    assert!(told(&|lane| lane.permutations[0][1] = lane.permutations[0][0]).contains("level 1"));
    assert!(told(&|lane| lane.permutations[2][0] = -1).contains("level 3"));
    assert!(told(&|lane| drop(lane.permutations.pop())).contains("level 3"));
    assert!(told(&|lane| drop(lane.views.pop())).contains("3 levels"));
    assert!(told(&|lane| lane.views[1] = lane.views[0].shallow_clone()).contains("level 1"));
    assert!(Pyramid::assemble(&layout, &[]).is_err());
    assert!(PyramidLayout::new(&spec, 4, 1..1).is_err());
    assert!(PyramidLayout::new(&spec, 0, 0..1).is_err());
    assert!(PyramidLayout::with_montages(&spec, 4, 0..1, vec![3, 1, 1, 1]).is_err());
}
