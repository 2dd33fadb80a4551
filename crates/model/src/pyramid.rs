//! The image pyramid (MCL_SPEC section 2): montages of ever smaller copies, and which target each tile meets.
//!
//! A rank's batch is level-major, then lane: [level 0 of every lane, level 1 of every lane, ...]. A lane's
//! pictures, tiles and labels never depend on which rank carries it.

use crate::arrival::numbers_on_device;
use crate::error::check_shape;
use crate::{ModelError, ModelSpec};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Mean of the training pictures' channels, 0..1 (MCL_SPEC section 5).
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Their standard deviation.
const STD: [f64; 3] = [0.229, 0.224, 0.225];
/// Pictures that a montage of level 1..3 stands for, as published: N / 4, N / 16, N / 32 montages.
const PICTURES_PER_MONTAGE: [i64; 4] = [1, 4, 16, 32];

/// How many pictures and tiles of each level a rank's batch holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PyramidLayout {
    side: i64,
    images_per_lane: i64,
    lanes: Range<u32>,
    /// Montages a lane, by level.
    montages: Vec<i64>,
}

impl PyramidLayout {
    /// N = `images_per_lane` pictures in each of `lanes` (global numbers, contiguous); ceil(N / [1, 4, 16, 32])
    /// montages a lane, so that every picture is on every level.
    ///
    /// # Errors
    /// When there is no lane or no picture.
    pub fn new(spec: &ModelSpec, images_per_lane: u32, lanes: Range<u32>) -> Result<Self, ModelError> {
        let n = i64::from(images_per_lane);
        let montages: Vec<i64> =
            PICTURES_PER_MONTAGE.iter().take(spec.levels).map(|m| (n + m - 1) / m).collect();
        Self::with_montages(spec, images_per_lane, lanes, montages)
    }

    /// As [`PyramidLayout::new`], with the number of montages a lane given for each level.
    ///
    /// # Errors
    /// Also when a level has no montage, or level 0 has not N pictures.
    pub fn with_montages(
        spec: &ModelSpec,
        images_per_lane: u32,
        lanes: Range<u32>,
        montages: Vec<i64>,
    ) -> Result<Self, ModelError> {
        let n = i64::from(images_per_lane);
        let fits = montages.len() == spec.levels && montages.iter().all(|b| *b > 0) && montages[0] == n;
        if !fits || lanes.is_empty() {
            return Err(ModelError::Batch {
                what: "pyramid of a rank".to_owned(),
                found: format!("lanes {lanes:?}, montages {montages:?}"),
                expected: format!("at least one lane; {} levels, the first of {n} pictures", spec.levels),
            });
        }
        Ok(Self { side: spec.image_size, images_per_lane: n, lanes, montages })
    }

    /// Levels L.
    pub const fn levels(&self) -> usize {
        self.montages.len()
    }
    /// N.
    pub const fn images_per_lane(&self) -> i64 {
        self.images_per_lane
    }
    /// Global numbers of the lanes that the rank carries.
    pub fn lanes(&self) -> Range<u32> {
        self.lanes.clone()
    }
    /// How many they are.
    pub fn lane_count(&self) -> i64 {
        i64::from(self.lanes.end - self.lanes.start)
    }
    /// Full-size pictures of the rank: N a lane, the rows of its targets.
    pub fn full_pictures(&self) -> i64 {
        self.images_per_lane * self.lane_count()
    }
    /// Tiles of one lane on `level`: length of its permutation, rows of its loss.
    pub fn tiles(&self, level: usize) -> i64 {
        self.montages.get(level).map_or(0, |b| b * ModelSpec::ratio(level) * ModelSpec::ratio(level))
    }
    /// Place of `level` in the rank's batch: (first picture, pictures).
    pub fn group(&self, level: usize) -> (i64, i64) {
        let before: i64 = self.montages.iter().take(level).sum();
        let own = self.montages.get(level).copied().unwrap_or(0);
        (before * self.lane_count(), own * self.lane_count())
    }
    /// Pictures of the rank's batch over all levels.
    pub fn pictures(&self) -> i64 {
        self.montages.iter().sum::<i64>() * self.lane_count()
    }
}

/// One side (q or k) of one lane, before assembly.
#[derive(Debug)]
pub struct LaneSide {
    /// By level: [N, 3, S/r, S/r].
    pub views: Vec<Tensor>,
    /// By level from 1 on: the drawn order of the tiles, a permutation of 0..r r B.
    pub permutations: Vec<Vec<i64>>,
}

/// One side of a rank's batch, ready for the encoders.
#[derive(Debug)]
pub struct Pyramid {
    /// [P, 3, S, S], level-major, then lane.
    pub pictures: Tensor,
    /// By level: [lanes * tiles], i64, the row of the gathered targets ([K N, D]) that each tile belongs
    /// to, N * lane + picture; rows in (lane, montage, row, column) order.
    pub labels: Vec<Tensor>,
}

impl Pyramid {
    /// Lays the tiles of every lane out. Views may be bytes or numbers, on any device; labels follow them.
    ///
    /// # Errors
    /// When lanes, views or permutations are not as `layout` says.
    pub fn assemble(layout: &PyramidLayout, sides: &[LaneSide]) -> Result<Self, ModelError> {
        check_shape("lanes of a batch", &[len(sides)], &[layout.lane_count()])?;
        let order = tile_order(layout, sides)?;
        let device = sides.first().and_then(|s| s.views.first()).map_or(Device::Cpu, Tensor::device);
        let order = numbers_on_device(&order, device)?;
        let mut pictures = Vec::with_capacity(layout.levels());
        let mut labels = Vec::with_capacity(layout.levels());
        let mut at = 0;
        for level in 0..layout.levels() {
            let rows = layout.tiles(level) * layout.lane_count();
            let chosen = order.f_narrow(0, at, rows)?;
            at += rows;
            let views = stack_views(layout, sides, level)?;
            pictures.push(if level == 0 {
                views
            } else {
                montages(&views, &chosen, ModelSpec::ratio(level))?
            });
            labels.push(chosen.f_add_scalar(i64::from(layout.lanes.start) * layout.images_per_lane)?);
        }
        Ok(Self { pictures: Tensor::f_cat(&pictures, 0)?, labels })
    }
}

/// Picture of each tile: the drawn order modulo N.
pub fn tile_pictures(permutation: &[i64], images: i64) -> Vec<i64> {
    permutation.iter().map(|p| p.rem_euclid(images.max(1))).collect()
}

/// Every `ratio`-th pixel from the top left, no smoothing: [.., S, S] -> [.., S/ratio, S/ratio].
///
/// # Errors
/// When the tensor has fewer than two dimensions.
pub fn decimate(pictures: &Tensor, ratio: i64) -> Result<Tensor, ModelError> {
    Ok(pictures.f_slice(-2, None, None, ratio)?.f_slice(-1, None, None, ratio)?)
}

/// Views of one side at their level's size, from full-size ones: [N, L, 3, S, S] -> L x [N, 3, S/r, S/r].
///
/// # Errors
/// When the tensor has another number of dimensions.
pub fn level_views(full: &Tensor) -> Result<Vec<Tensor>, ModelError> {
    check_shape("full-size views", &full.size(), &[-1, -1, 3, -1, -1])?;
    let levels = full.size().get(1).copied().unwrap_or(0);
    (0_i64..levels)
        .zip(0_usize..)
        .map(|(place, level)| decimate(&full.f_select(1, place)?, ModelSpec::ratio(level)))
        .collect()
}

/// Small pictures chosen by `order` (length r r B), tiled r x r: [n, 3, s, s] -> [B, 3, r s, r s].
///
/// # Errors
/// When the length of `order` is no multiple of r r, or it points outside.
pub fn montages(small: &Tensor, order: &Tensor, ratio: i64) -> Result<Tensor, ModelError> {
    let (_, channels, height, width) = small.size4()?;
    let tiles = small.f_index_select(0, order)?;
    let grid = tiles.f_reshape([-1, ratio, ratio, channels, height, width])?.f_permute([0, 3, 1, 4, 2, 5])?;
    Ok(grid.f_reshape([-1, channels, ratio * height, ratio * width])?)
}

/// Bytes to numbers on the device: (x - 255 mean) / (255 std), channel by channel.
#[derive(Debug)]
pub struct Normalization {
    kind: Kind,
    mean: Tensor,
    std: Tensor,
}

impl Normalization {
    /// Constants of MCL_SPEC section 5 in `kind` on `device`.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn new(kind: Kind, device: Device) -> Result<Self, ModelError> {
        let constant = |values: [f64; 3]| -> Result<Tensor, ModelError> {
            let scaled = values.map(|v| 255.0 * v);
            Ok(Tensor::f_from_slice(&scaled)?
                .f_reshape([1, 3, 1, 1])?
                .f_to_kind(kind)?
                .f_to_device(device)?)
        };
        Ok(Self { kind, mean: constant(MEAN)?, std: constant(STD)? })
    }

    /// u8 [n, 3, h, w] -> `kind` [n, 3, h, w], channels last in memory.
    ///
    /// # Errors
    /// When the pictures have not three channels or lie on another device.
    pub fn apply(&self, pictures: &Tensor) -> Result<Tensor, ModelError> {
        check_shape("pictures to normalise", &pictures.size(), &[-1, 3, -1, -1])?;
        let numbers = channels_last(pictures)?.f_to_kind(self.kind)?;
        Ok(numbers.f_sub(&self.mean)?.f_div(&self.std)?)
    }
}

/// [n, C, h, w] with the channels of a pixel side by side in memory, as convolutions like it; what lies so already is
/// not copied.
pub(crate) fn channels_last(pictures: &Tensor) -> Result<Tensor, ModelError> {
    Ok(pictures.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

/// For every level, lane and tile: place of its picture among the rank's N * lanes views.
fn tile_order(layout: &PyramidLayout, sides: &[LaneSide]) -> Result<Vec<i64>, ModelError> {
    let n = layout.images_per_lane;
    let mut order: Vec<i64> = (0..layout.full_pictures()).collect();
    for level in 1..layout.levels() {
        let tiles = layout.tiles(level);
        for (place, side) in (0_i64..).zip(sides) {
            let drawn = side.permutations.get(level - 1).map_or(&[][..], Vec::as_slice);
            check_permutation(drawn, level, tiles)?;
            order.extend(tile_pictures(drawn, n).into_iter().map(|picture| picture + n * place));
        }
    }
    Ok(order)
}

fn check_permutation(drawn: &[i64], level: usize, tiles: i64) -> Result<(), ModelError> {
    check_shape(&format!("permutation of level {level}"), &[len(drawn)], &[tiles])?;
    let mut seen = vec![false; drawn.len()];
    for value in drawn {
        let place = usize::try_from(*value).ok().and_then(|place| seen.get_mut(place));
        match place {
            Some(place) if !*place => *place = true,
            _ => {
                return Err(ModelError::Batch {
                    what: format!("permutation of level {level}"),
                    found: format!("{value}, repeated or out of range"),
                    expected: format!("each of 0..{tiles} once"),
                });
            }
        }
    }
    Ok(())
}

/// The views of one level of all lanes, one lane after another: [N * lanes, 3, S/r, S/r].
fn stack_views(layout: &PyramidLayout, sides: &[LaneSide], level: usize) -> Result<Tensor, ModelError> {
    let side = layout.side / ModelSpec::ratio(level);
    let mut views = Vec::with_capacity(sides.len());
    for lane in sides {
        let view = lane.views.get(level).ok_or_else(|| ModelError::Batch {
            what: "views of a lane".to_owned(),
            found: format!("{} levels", lane.views.len()),
            expected: format!("{} levels", layout.levels()),
        })?;
        check_shape(
            &format!("view of level {level}"),
            &view.size(),
            &[layout.images_per_lane, 3, side, side],
        )?;
        views.push(view);
    }
    Ok(Tensor::f_cat(&views, 0)?)
}

fn len<T>(items: &[T]) -> i64 {
    i64::try_from(items.len()).unwrap_or(i64::MAX)
}
