//! One generated picture: ground, clutter, objects, noise.

use super::shape::{CLASSES, Object};
use crate::picture::Picture;
use mcl_types::SplitMix64;

/// Points of a pixel's edge that are looked at.
const SUBSAMPLES: u32 = 3;

/// Least difference in grey between ground and object, and between an object's two colours.
const CONTRAST: f64 = 45.0;

/// Range of the grain's deviation.
const NOISE: (f64, f64) = (2.0, 8.0);

/// Strongest change of light by one blotch or stroke of the ground. Low on purpose: a ground that tells
/// pictures apart by itself is a shortcut, and nothing is learned about objects.
const BLEMISH: f64 = 14.0;

/// A drawn picture and what is on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The picture.
    pub picture: Picture,
    /// Its objects; one that others cover is left out.
    pub objects: Vec<DrawnObject>,
}

/// An object on a drawn picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawnObject {
    /// Number of its class.
    pub class: usize,
    /// Left, top, width, height in pixels.
    pub bbox: [f32; 4],
}

/// What to draw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Width and height of the picture.
    pub(super) size: (u32, u32),
    /// Least and largest number of objects.
    pub(super) objects: (u32, u32),
    /// Least and largest diameter of an object.
    pub(super) diameter: (u32, u32),
}

fn grey(c: [f64; 3]) -> f64 {
    0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]
}

fn colour(random: &mut SplitMix64) -> [f64; 3] {
    [0; 3].map(|_| random.range(15.0, 240.0))
}

/// A colour whose grey is at least [`CONTRAST`] from those of `others`.
fn distinct(random: &mut SplitMix64, others: &[[f64; 3]]) -> [f64; 3] {
    let mut best = (f64::MIN, [0.0; 3]);
    for _ in 0..40 {
        let c = colour(random);
        let gap = others.iter().map(|o| (grey(*o) - grey(c)).abs()).fold(f64::MAX, f64::min);
        if gap >= CONTRAST {
            return c;
        }
        if gap > best.0 {
            best = (gap, c);
        }
    }
    best.1
}

/// The ground: a slope of light with blotches and strokes.
struct Ground {
    colour: [f64; 3],
    slope: (f64, f64),
    tint: [f64; 3],
    /// Centre, radius, strength.
    blotches: Vec<(f64, f64, f64, f64)>,
    /// Sine and cosine of the direction, offset, half width, strength.
    strokes: Vec<(f64, f64, f64, f64, f64)>,
}

impl Ground {
    fn draw(random: &mut SplitMix64, (width, height): (f64, f64)) -> Self {
        let colour = colour(random);
        let slope = (random.range(-40.0, 40.0) / width, random.range(-40.0, 40.0) / height);
        let tint = [0; 3].map(|_| random.range(0.6, 1.4));
        let blotches = (0..random.below(4)).map(|_| {
            let (x, y) = (random.range(0.0, width), random.range(0.0, height));
            (x, y, random.range(0.03, 0.14) * width.min(height), random.range(-BLEMISH, BLEMISH))
        });
        let blotches = blotches.collect();
        let strokes = (0..random.below(3)).map(|_| {
            let a = random.range(0.0, std::f64::consts::TAU);
            let (sin, cos) = (libm::sin(a), libm::cos(a));
            let through = sin * random.range(0.0, width) + cos * random.range(0.0, height);
            (sin, cos, through, random.range(0.6, 2.5), random.range(-BLEMISH, BLEMISH))
        });
        let strokes = strokes.collect();
        Self { colour, slope, tint, blotches, strokes }
    }

    fn at(&self, x: f64, y: f64, (width, height): (f64, f64)) -> [f64; 3] {
        let mut light = self.slope.0 * (x - width / 2.0) + self.slope.1 * (y - height / 2.0);
        for (bx, by, radius, strength) in &self.blotches {
            let (dx, dy) = (x - bx, y - by);
            if dx * dx + dy * dy < radius * radius {
                light += strength;
            }
        }
        for (sin, cos, through, half, strength) in &self.strokes {
            if (sin * x + cos * y - through).abs() < *half {
                light += strength;
            }
        }
        [0, 1, 2].map(|c| self.colour[c] + light * self.tint[c])
    }
}

/// Draws a picture.
pub(super) fn draw(random: &mut SplitMix64, plan: Plan) -> Drawn {
    let size = (f64::from(plan.size.0), f64::from(plan.size.1));
    let ground = Ground::draw(random, size);
    let wanted = plan.objects.0 + below(random, plan.objects.1 - plan.objects.0 + 1);
    let objects = place(random, plan, wanted, ground.colour);
    let noise = random.range(NOISE.0, NOISE.1);
    let mut picture = Picture::black(plan.size.0, plan.size.1);
    let mut boxes: Vec<Option<[u32; 4]>> = vec![None; objects.len()];
    let mut near: Vec<usize> = Vec::new();
    for y in 0..plan.size.1 {
        for x in 0..plan.size.0 {
            let base = ground.at(f64::from(x) + 0.5, f64::from(y) + 0.5, size);
            near.clear();
            near.extend((0..objects.len()).filter(|o| objects[*o].is_near(x, y)));
            let (colour, most) = pixel(&objects, &near, x, y, base);
            if let Some(o) = most {
                let [x0, y0, x1, y1] = boxes[o].unwrap_or([x, y, x, y]);
                boxes[o] = Some([x0.min(x), y0.min(y), x1.max(x), y1.max(y)]);
            }
            let grain = bell(random) * noise;
            picture.set_pixel(x, y, colour.map(|c| to_byte(c + grain + bell(random) * noise * 0.4)));
        }
    }
    let found = objects.iter().zip(boxes);
    let objects =
        found.filter_map(|(o, b)| Some(DrawnObject { class: o.class, bbox: corners(b?) })).collect();
    Drawn { picture, objects }
}

/// A pixel's colour, and the object that covers more than half of it.
fn pixel(objects: &[Object], near: &[usize], x: u32, y: u32, base: [f64; 3]) -> ([f64; 3], Option<usize>) {
    if near.is_empty() {
        return (base, None);
    }
    let step = |k: u32| (f64::from(k) + 0.5) / f64::from(SUBSAMPLES);
    let mut sum = [0.0; 3];
    let mut half = None;
    let mut covered = vec![0_u32; near.len()];
    for i in 0..SUBSAMPLES * SUBSAMPLES {
        let (px, py) = (f64::from(x) + step(i % SUBSAMPLES), f64::from(y) + step(i / SUBSAMPLES));
        // Later objects lie on top.
        let top = near.iter().enumerate().rev().find_map(|(n, o)| Some((n, objects[*o].at(px, py)?)));
        if let Some((n, _)) = top {
            covered[n] += 1;
            if covered[n] * 2 > SUBSAMPLES * SUBSAMPLES {
                half = Some(near[n]);
            }
        }
        let c = top.map_or(base, |(_, c)| c);
        (0..3).for_each(|k| sum[k] += c[k]);
    }
    (sum.map(|s| s / f64::from(SUBSAMPLES * SUBSAMPLES)), half)
}

/// Objects whose circles do not overlap much, each inside the picture.
fn place(random: &mut SplitMix64, plan: Plan, wanted: u32, ground: [f64; 3]) -> Vec<Object> {
    let (width, height) = (f64::from(plan.size.0), f64::from(plan.size.1));
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    let mut objects = Vec::new();
    for _ in 0..wanted {
        for _ in 0..60 {
            let radius = random.range(f64::from(plan.diameter.0), f64::from(plan.diameter.1)) / 2.0;
            let radius = radius.min(width.min(height) / 2.0 - 1.0);
            let (x, y) = (random.range(radius, width - radius), random.range(radius, height - radius));
            let free = taken.iter().all(|(ox, oy, or)| {
                let (dx, dy, least) = (x - ox, y - oy, 0.92 * (radius + or));
                dx * dx + dy * dy >= least * least
            });
            if !free {
                continue;
            }
            taken.push((x, y, radius));
            let class = below(random, CLASSES as u32) as usize;
            let first = distinct(random, &[ground]);
            let second = distinct(random, &[ground, first]);
            objects.push(Object::draw(random, class, (x, y), radius, [first, second]));
            break;
        }
    }
    objects
}

#[expect(clippy::cast_possible_truncation, reason = "below a u32")]
fn below(random: &mut SplitMix64, n: u32) -> u32 {
    random.below(u64::from(n)) as u32
}

/// Nearly normal noise of deviation 1 from sums alone: the same bits on every machine.
fn bell(random: &mut SplitMix64) -> f64 {
    let sum: f64 = (0..3).map(|_| random.uniform()).sum();
    (sum - 1.5) * 2.0
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn to_byte(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

#[expect(clippy::cast_precision_loss, reason = "pixel coordinates")]
fn corners([x0, y0, x1, y1]: [u32; 4]) -> [f32; 4] {
    [x0 as f32, y0 as f32, (x1 - x0 + 1) as f32, (y1 - y0 + 1) as f32]
}
