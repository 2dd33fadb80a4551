//! The validated description of a model: every size that the method leaves open (MCL_SPEC section 1).

use crate::ModelError;
use std::ops::Deref;

/// Pyramid levels that the method knows: ratios 1, 2, 4, 8.
pub const MAX_LEVELS: usize = 4;
/// Coarsest stride of the backbone: picture sizes are multiples of it.
pub const MAX_STRIDE: i64 = 32;

/// The residual networks of arXiv 1512.03385.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Basic blocks 2, 2, 2, 2.
    R18,
    /// Basic blocks 3, 4, 6, 3.
    R34,
    /// Bottlenecks 3, 4, 6, 3.
    R50,
    /// Bottlenecks 3, 4, 23, 3.
    R101,
}

impl Depth {
    /// Blocks of layer1..layer4.
    pub const fn blocks(self) -> [usize; 4] {
        match self {
            Self::R18 => [2, 2, 2, 2],
            Self::R34 | Self::R50 => [3, 4, 6, 3],
            Self::R101 => [3, 4, 23, 3],
        }
    }

    /// Output channels of a block over its width: 1 (basic) or 4 (bottleneck).
    pub const fn expansion(self) -> i64 {
        match self {
            Self::R18 | Self::R34 => 1,
            Self::R50 | Self::R101 => 4,
        }
    }
}

impl TryFrom<u32> for Depth {
    type Error = ModelError;
    fn try_from(depth: u32) -> Result<Self, ModelError> {
        match depth {
            18 => Ok(Self::R18),
            34 => Ok(Self::R34),
            50 => Ok(Self::R50),
            101 => Ok(Self::R101),
            other => Err(refuse("depth", other, "18, 34, 50 or 101")),
        }
    }
}

/// How much of the official computation is carried out (MCL_SPEC section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeMode {
    /// A: everything, as published.
    Official,
    /// B: as published, less what cannot change a loss or a gradient.
    #[default]
    Exact,
    /// E: every picture only at the level that reads it; batch statistics differ from the paper's.
    Selective,
}

/// What is learned, as far as it decides which networks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Objective {
    /// Multi-level contrastive learning: pyramid, projector, a predictor a level.
    #[default]
    Mcl,
    /// The same with labels: besides, a classifier a level of so many classes.
    Supervised {
        /// Classes, at least 2.
        classes: i64,
    },
    /// MoCo v2 (arXiv 2003.04297): pooled features, a perceptron, a queue of so many keys.
    Moco {
        /// Keys, at least 1.
        queue: i64,
    },
}

/// The open sizes, unchecked. [`ModelConfig::default`] is the published R50 model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// ResNet depth: 18, 34, 50 or 101.
    pub depth: u32,
    /// Channels of the stem and of layer1's blocks; 64 as published, 16 is a quarter.
    pub width: i64,
    /// Side S of a picture in pixels: a multiple of 32.
    pub image_size: i64,
    /// Channels of the feature pyramid.
    pub fpn_channels: i64,
    /// 3x3 convolutions of the projector.
    pub projector_convs: usize,
    /// Channels of those convolutions; as the pyramid's when `None`.
    pub projector_channels: Option<i64>,
    /// Hidden width of the projector's perceptron.
    pub projector_hidden: i64,
    /// Size D of an embedding.
    pub embedding: i64,
    /// Hidden width of a predictor.
    pub predictor_hidden: i64,
    /// Pyramid levels L, 1..=4: level i has ratio 2^i and reads pyramid output 3 - i.
    pub levels: usize,
    /// Temperature T of the contrastive losses.
    pub temperature: f64,
    /// Weight of each level's losses.
    pub level_weights: Vec<f64>,
    /// What is learned.
    pub objective: Objective,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            depth: 50,
            width: 64,
            image_size: 224,
            fpn_channels: 256,
            projector_convs: 4,
            projector_channels: None,
            projector_hidden: 2048,
            embedding: 256,
            predictor_hidden: 2048,
            levels: 4,
            temperature: 1.0,
            level_weights: vec![0.5, 0.25, 0.125, 0.125],
            objective: Objective::Mcl,
        }
    }
}

/// A checked [`ModelConfig`]; its fields are read through `Deref`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    config: ModelConfig,
    depth: Depth,
}

impl ModelSpec {
    /// Checks `config`.
    ///
    /// # Errors
    /// Names the first key that does not fit, what it holds and what would do.
    pub fn new(config: ModelConfig) -> Result<Self, ModelError> {
        let depth = Depth::try_from(config.depth)?;
        check_sizes(&config)?;
        check_levels(&config)?;
        check_objective(&config)?;
        Ok(Self { config, depth })
    }

    /// The ResNet.
    pub const fn resnet(&self) -> Depth {
        self.depth
    }

    /// A = S / 32: side of a projector patch, in cells of its level.
    pub fn patch_side(&self) -> i64 {
        self.image_size / MAX_STRIDE
    }

    /// r = 2^level: a montage of this level has r x r tiles.
    pub const fn ratio(level: usize) -> i64 {
        1 << level
    }

    /// Index among (P2, P3, P4, P5) of the pyramid output that `level` reads.
    pub const fn output_of(level: usize) -> usize {
        MAX_LEVELS - 1 - level
    }

    /// Channels of C2..C5.
    pub fn backbone_channels(&self) -> [i64; 4] {
        [1, 2, 4, 8].map(|m| m * self.width * self.depth.expansion())
    }

    /// Channels of the projector's convolutions.
    pub fn projector_width(&self) -> i64 {
        self.projector_channels.unwrap_or(self.fpn_channels)
    }

    /// Loss of a model that knows nothing, `targets` = K*N rows: 4 T sum(w) ln(KN).
    #[expect(clippy::cast_precision_loss, reason = "a number of pictures, far below 2^53")]
    pub fn chance_loss(&self, targets: u64) -> f64 {
        self.loss_scale() * (targets as f64).ln()
    }

    /// Least loss that n = `targets` rows allow, reached when they form a regular simplex and every row
    /// meets its target: 4 T sum(w) [ln(e^(1/T) + (n-1) e^(-1/(T(n-1)))) - 1/T]; 0 for one row.
    #[expect(clippy::cast_precision_loss, reason = "a number of pictures, far below 2^53")]
    pub fn floor_loss(&self, targets: u64) -> f64 {
        if targets < 2 {
            return 0.0;
        }
        let others = (targets - 1) as f64;
        let gap = -(1.0 + 1.0 / others) / self.temperature;
        self.loss_scale() * (others * gap.exp()).ln_1p()
    }

    /// 4 T sum(w): two directions, each with the factor 2 T.
    fn loss_scale(&self) -> f64 {
        4.0 * self.temperature * self.level_weights.iter().sum::<f64>()
    }
}

impl Deref for ModelSpec {
    type Target = ModelConfig;
    fn deref(&self) -> &ModelConfig {
        &self.config
    }
}

fn refuse(key: &'static str, found: impl ToString, expected: impl Into<String>) -> ModelError {
    ModelError::Spec { key, found: found.to_string(), expected: expected.into() }
}

fn check_sizes(config: &ModelConfig) -> Result<(), ModelError> {
    let sizes = [
        ("width", config.width),
        ("fpn_channels", config.fpn_channels),
        ("projector_channels", config.projector_channels.unwrap_or(1)),
        ("projector_hidden", config.projector_hidden),
        ("embedding", config.embedding),
        ("predictor_hidden", config.predictor_hidden),
    ];
    for (key, size) in sizes {
        // 2^20 is no limit of the method: it keeps products of two widths inside an i64.
        if !(1..=1 << 20).contains(&size) {
            return Err(refuse(key, size, "1 to 1048576"));
        }
    }
    if config.projector_convs > 64 {
        return Err(refuse("projector_convs", config.projector_convs, "0 to 64"));
    }
    let side = config.image_size;
    if !(MAX_STRIDE..=1 << 14).contains(&side) || side % MAX_STRIDE != 0 {
        let below = (side.clamp(MAX_STRIDE, 1 << 14) / MAX_STRIDE) * MAX_STRIDE;
        return Err(refuse(
            "image_size",
            side,
            format!("a multiple of {MAX_STRIDE} from {MAX_STRIDE} to 16384, such as {below}"),
        ));
    }
    Ok(())
}

fn check_levels(config: &ModelConfig) -> Result<(), ModelError> {
    if !(1..=MAX_LEVELS).contains(&config.levels) {
        return Err(refuse("levels", config.levels, format!("1 to {MAX_LEVELS}")));
    }
    let temperature = config.temperature;
    if !temperature.is_finite() || temperature <= 0.0 {
        return Err(refuse("temperature", temperature, "a positive number"));
    }
    let weights = &config.level_weights;
    if weights.len() != config.levels || weights.iter().any(|w| !w.is_finite() || *w < 0.0) {
        return Err(refuse(
            "level_weights",
            format!("{weights:?}"),
            format!("{} numbers, none negative: one a level", config.levels),
        ));
    }
    Ok(())
}

fn check_objective(config: &ModelConfig) -> Result<(), ModelError> {
    match config.objective {
        Objective::Mcl => Ok(()),
        Objective::Supervised { classes: 2..=1_048_576 } => Ok(()),
        Objective::Supervised { classes } => {
            Err(refuse("classes", classes, "2 to 1048576: pictures with labels, as in one folder a class"))
        }
        Objective::Moco { .. } if config.levels != 1 => {
            Err(refuse("levels", config.levels, "1: MoCo v2 has no pyramid"))
        }
        Objective::Moco { queue: 1..=16_777_216 } => Ok(()),
        Objective::Moco { queue } => Err(refuse("queue", queue, "1 to 16777216 keys")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_model_fits() {
        let spec = ModelSpec::new(ModelConfig::default()).unwrap();
        assert_eq!((spec.patch_side(), spec.backbone_channels()), (7, [256, 512, 1024, 2048]));
        assert_eq!((0..4).map(ModelSpec::ratio).collect::<Vec<_>>(), [1, 2, 4, 8]);
        assert_eq!((0..4).map(ModelSpec::output_of).collect::<Vec<_>>(), [3, 2, 1, 0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let named = |change: &dyn Fn(&mut ModelConfig)| {
            let mut config = ModelConfig::default();
            change(&mut config);
            ModelSpec::new(config).unwrap_err().to_string()
        };
        let told = named(&|c| c.image_size = 200);
        assert!(told.contains("image_size = 200") && told.contains("such as 192"), "{told}");
        for (key, change) in [
            ("depth", (|c| c.depth = 20) as fn(&mut ModelConfig)),
            ("image_size", |c| c.image_size = 0),
            ("width", |c| c.width = 0),
            ("projector_channels", |c| c.projector_channels = Some(-1)),
            ("levels", |c| c.levels = 5),
            ("temperature", |c| c.temperature = 0.0),
            ("temperature", |c| c.temperature = f64::NAN),
            ("level_weights", |c| c.level_weights = vec![1.0]),
            ("level_weights", |c| c.level_weights[3] = -1.0),
        ] {
            let told = named(&change);
            assert!(told.contains(key), "{key}: {told}");
        }
    }

    #[test]
    fn chance_and_floor_are_the_formulas() {
        let spec = ModelSpec::new(ModelConfig::default()).unwrap();
        assert!((spec.chance_loss(8) - 4.0 * 8_f64.ln()).abs() < 1e-12);
        let n = 8.0_f64;
        let naive = 4.0 * ((1_f64.exp() + (n - 1.0) * (-1.0 / (n - 1.0)).exp()).ln() - 1.0);
        assert!((spec.floor_loss(8) - naive).abs() < 1e-12);
        assert!(spec.floor_loss(8) < spec.chance_loss(8));
        assert!(spec.floor_loss(1).abs() < 1e-300);
        let sharp = ModelConfig { temperature: 0.1, ..ModelConfig::default() };
        let sharp = ModelSpec::new(sharp).unwrap();
        let t = 0.1_f64;
        let naive = 4.0 * t * (((1.0 / t).exp() + 7.0 * (-1.0 / (t * 7.0)).exp()).ln() - 1.0 / t);
        assert!((sharp.floor_loss(8) - naive).abs() < 1e-12);
    }
}
