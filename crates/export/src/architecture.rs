//! Which network an encoder is, read off its tensors' sizes.
//!
//! For configuration files of other tools and for the card. Left out: what sizes do not show (picture size, method).

use crate::Tensors;
use crate::error::ExportError;

/// A network's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// Layers of the ResNet, where it is one of the usual ones: 18, 34, 50 or 101.
    pub depth: Option<u32>,
    /// Channels of the first convolution; 64 in the usual ones.
    pub width: usize,
    /// Channels of C2, C3, C4, C5.
    pub stages: [usize; 4],
    /// Channels of P2 to P5; none where the objective has no pyramid (moco-v2).
    pub pyramid: Option<usize>,
    /// Convolutions of the projector.
    pub projector_convs: usize,
}

impl Architecture {
    /// Reads an encoder whose names begin with `prefix`.
    ///
    /// # Errors
    /// When a tensor that every encoder has is missing or has another number of dimensions.
    pub fn of(state: &Tensors, prefix: &str) -> Result<Self, ExportError> {
        let size = |own: &str, axis: usize| {
            let name = format!("{prefix}{own}");
            let tensor = state.get(&name).ok_or_else(|| ExportError::Missing { name: name.clone() })?;
            match tensor.shape.as_slice() {
                sizes @ [_, _, _, _] => Ok(sizes.get(axis).copied().unwrap_or_default()),
                found => {
                    let expected = "four dimensions, as a convolution's".to_owned();
                    Err(ExportError::Shape { name, found: found.to_vec(), expected })
                }
            }
        };
        let has = |own: &str| state.contains_key(&format!("{prefix}{own}"));
        let count = |path: &str, part: &str| (0..).take_while(|i| has(&format!("{path}{i}.{part}"))).count();
        let blocks = [1, 2, 3, 4].map(|stage| count(&format!("0.layer{stage}."), "conv1.weight"));
        let bottleneck = has("0.layer1.0.conv3.weight");
        let depth = match (blocks, bottleneck) {
            ([2, 2, 2, 2], false) => Some(18),
            ([3, 4, 6, 3], false) => Some(34),
            ([3, 4, 6, 3], true) => Some(50),
            ([3, 4, 23, 3], true) => Some(101),
            _ => None,
        };
        let mut stages = [0; 4];
        let lateral = "1.lateral_convs.0.conv.weight";
        let last = if bottleneck { 3 } else { 2 };
        for (level, channels) in stages.iter_mut().enumerate() {
            *channels = match has(lateral) {
                true => size(&format!("1.lateral_convs.{level}.conv.weight"), 1)?,
                false => size(&format!("0.layer{}.0.conv{last}.weight", level + 1), 0)?,
            };
        }
        Ok(Self {
            depth,
            width: size("0.conv1.weight", 0)?,
            stages,
            pyramid: has(lateral).then(|| size(lateral, 0)).transpose()?,
            projector_convs: count("2.cls_convs.", "conv.weight"),
        })
    }

    /// For people: `ResNet-50, width 64`.
    pub fn describe(&self) -> String {
        let depth = self.depth.map_or_else(|| "of unusual depth".to_owned(), |d| d.to_string());
        let pyramid = self.pyramid.map_or_else(
            || "no feature pyramid".to_owned(),
            |channels| format!("feature pyramid of {channels} channels"),
        );
        format!("ResNet-{depth}, width {}, {pyramid}", self.width)
    }
}
