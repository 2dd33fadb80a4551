//! Generated data: reproducible, well annotated, and not too easy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_data::crop::{crop, grey_thumbnail};
use mcl_data::generate::{GenerateSpec, PictureFormat, class_names, draw, generate};
use mcl_data::inspect::inspect;
use mcl_data::{Annotations, Dataset, Format, Limits, LoaderSpec, decode, preview};
use mcl_types::{SampleIndex, Seed};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    all.insert("annotations.json".to_owned(), fs::read(root.join("annotations.json")).unwrap());
    for entry in fs::read_dir(root.join("images")).unwrap() {
        let entry = entry.unwrap();
        all.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    all
}

#[test]
fn the_same_spec_gives_the_same_bytes() {
    for spec in [
        GenerateSpec::objects(12, Seed::new(5)),
        GenerateSpec { format: PictureFormat::Png, ..GenerateSpec::scenes(6, Seed::new(5)) },
    ] {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        generate(one.path(), &spec, &mut |_, _| ()).unwrap();
        generate(two.path(), &spec, &mut |_, _| ()).unwrap();
        assert_eq!(files(one.path()), files(two.path()));
        let other = tempfile::tempdir().unwrap();
        generate(other.path(), &GenerateSpec { seed: Seed::new(6), ..spec }, &mut |_, _| ()).unwrap();
        assert_ne!(files(one.path()), files(other.path()));
    }
}

#[test]
fn what_is_written_opens_as_a_dataset_with_its_boxes() {
    let dir = tempfile::tempdir().unwrap();
    let spec = GenerateSpec::scenes(20, Seed::new(1));
    let mut heard = 0;
    let written = generate(dir.path(), &spec, &mut |done, all| heard = done.max(all)).unwrap();
    let read = Annotations::load(&dir.path().join("annotations.json")).unwrap();
    assert_eq!((&read, heard), (&written, 20));
    assert_eq!(read.categories.iter().map(|c| c.name.clone()).collect::<Vec<_>>(), class_names());
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!((dataset.len(), dataset.label(SampleIndex::new(0))), (20, None));
    assert_eq!(dataset.id(SampleIndex::new(3)).unwrap(), "images/00003.jpg");
    for a in &read.annotations {
        let [x, y, w, h] = a.bbox;
        assert!(x >= 0.0 && y >= 0.0 && x + w <= 128.0 && y + h <= 128.0, "{a:?}");
        assert!(w >= 7.0 && h >= 7.0 && w <= 49.0 && h <= 49.0, "{a:?}");
    }
    let counts: Vec<usize> = read.by_image().values().map(Vec::len).collect();
    assert!(counts.len() == 20 && counts.iter().all(|c| (2..=6).contains(c)), "{counts:?}");
    let summary =
        inspect(&Dataset::open(dir.path()).unwrap().into(), Limits::default(), 2, &|_, _| ()).unwrap();
    assert_eq!((summary.count, summary.formats[&Format::Jpeg], summary.largest), (20, 20, (128, 128)));
    assert!(summary.undecodable.is_empty() && summary.digest == dataset.digest());
}

#[test]
fn a_preview_shows_every_level_twice() {
    let dir = tempfile::tempdir().unwrap();
    generate(dir.path(), &GenerateSpec::objects(10, Seed::new(2)), &mut |_, _| ()).unwrap();
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let spec = LoaderSpec { image_size: 64, levels: vec![1, 2, 4], threads: 2, ..LoaderSpec::default() };
    let (png, batch) = preview(&dataset, spec.clone(), 8).unwrap();
    assert_eq!((batch.fed.len(), Format::of(&png).unwrap()), (8, Format::Png));
    let sheet = decode(&png, Limits::default()).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (6 + 8 * 70, 6 + 6 * 70));
    assert_eq!(preview(&dataset, spec, 8).unwrap().0, png);
}

#[test]
fn impossible_specs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = GenerateSpec::objects(3, Seed::new(1));
    for bad in [
        GenerateSpec { count: 0, ..good },
        GenerateSpec { diameter: (48, 24), ..good },
        GenerateSpec { diameter: (24, 100), ..good },
        GenerateSpec { objects: (0, 1), ..good },
        GenerateSpec { format: PictureFormat::Jpeg(0), ..good },
    ] {
        assert!(generate(dir.path(), &bad, &mut |_, _| ()).is_err(), "{bad:?}");
        assert!(draw(&bad, 0).is_err());
    }
}

#[test]
fn an_inspection_names_every_bad_picture() {
    let odd = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/odd-inputs");
    let odd = Dataset::open(&odd).unwrap().into();
    let one = inspect(&odd, Limits::default(), 1, &|_, _| ()).unwrap();
    assert_eq!(one, inspect(&odd, Limits::default(), 4, &|_, _| ()).unwrap());
    let bad: Vec<&str> = one.undecodable.iter().map(|c| c.id.as_str()).collect();
    assert!(bad.contains(&"html_error.jpg") && bad.contains(&"bomb_60000.png"), "{bad:?}");
    assert_eq!(one.damaged.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["corrupt_huffman.jpg"]);
    assert_eq!(one.formats.values().sum::<u64>() + bad.len() as u64, one.count);
    assert_eq!((one.smallest, one.largest), ((1, 1), (10_000, 4000)));
}

/// Raw pixels must be of some use and far from enough: else the pictures could not show that
/// pre-training helps.
#[test]
fn raw_pixels_tell_the_classes_only_modestly() {
    let spec = GenerateSpec::scenes(260, Seed::new(3));
    let mut items = Vec::new();
    for i in 0..spec.count {
        let drawn = draw(&spec, i).unwrap();
        for o in drawn.objects {
            items.push((o.class, grey_thumbnail(&crop(&drawn.picture, o.bbox).unwrap(), 16).unwrap()));
        }
    }
    let (train, test) = items.split_at(items.len() * 3 / 4);
    let nearest = |t: &[f32]| {
        let score = |v: &[f32]| v.iter().zip(t).map(|(a, b)| a * b).sum::<f32>();
        train.iter().max_by(|a, b| score(&a.1).total_cmp(&score(&b.1))).unwrap().0
    };
    let right = test.iter().filter(|(class, t)| nearest(t) == *class).count();
    let share = right as f64 / test.len() as f64;
    println!("{share:.3} of {} objects", test.len());
    assert!((0.25..0.45).contains(&share), "{share}");
}
