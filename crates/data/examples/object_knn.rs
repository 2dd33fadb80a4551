//! How well raw pixels tell the generated classes: leave-one-out-like kNN on grey thumbnails of crops.
//! Usage: object_knn [PICTURES] [SHEET.png]
#![allow(missing_docs, clippy::unwrap_used)]

use mcl_data::Picture;
use mcl_data::crop::{crop, grey_thumbnail};
use mcl_data::generate::{Drawn, DrawnObject, GenerateSpec, PictureFormat, draw, encode};
use mcl_types::Seed;

fn main() {
    let count = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1000);
    let spec = GenerateSpec::scenes(count, Seed::new(3));
    let start = std::time::Instant::now();
    (0..count).for_each(|i| drop(draw(&spec, i)));
    println!("{count} scenes drawn in {:.2} s", start.elapsed().as_secs_f64());
    let mut items = Vec::new();
    let mut sheet = Picture::black(8 * 132, 6 * 132);
    for i in 0..count {
        let Drawn { picture, objects } = draw(&spec, i).unwrap();
        if i < 48 {
            let (x0, y0) = ((i % 8) as u32 * 132, (i / 8) as u32 * 132);
            for y in 0..128 {
                for x in 0..128 {
                    sheet.set_pixel(x0 + x, y0 + y, picture.pixel(x, y));
                }
            }
        }
        for DrawnObject { class, bbox } in objects {
            items.push((class, grey_thumbnail(&crop(&picture, bbox).unwrap(), 16).unwrap()));
        }
    }
    println!("{count} scenes, {} objects in {:.2} s", items.len(), start.elapsed().as_secs_f64());
    if let Some(path) = std::env::args().nth(2) {
        std::fs::write(path, encode(&sheet, PictureFormat::Png).unwrap()).unwrap();
    }
    let (train, test) = items.split_at(items.len() / 2);
    for k in [1, 5, 20] {
        let mut right = 0;
        for (class, t) in test {
            let mut near: Vec<(f32, usize)> =
                train.iter().map(|(c, v)| (v.iter().zip(t).map(|(a, b)| a * b).sum::<f32>(), *c)).collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut votes = [0.0; 12];
            near.iter().take(k).for_each(|(s, c)| votes[*c] += (s / 0.1).exp());
            let best = (0..12).max_by(|a, b| votes[*a].total_cmp(&votes[*b])).unwrap();
            right += usize::from(best == *class);
        }
        println!("k = {k}: {:.3}", right as f64 / test.len() as f64);
    }
}
