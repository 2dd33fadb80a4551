//! Detectron2's configuration for an exported encoder: Mask R-CNN with the settings of the official benchmark.
//!
//! Invariant: what the weights depend on (depth, widths, norms, colour order, mean and deviation, where the stride
//! is) is written out and not left to Detectron2's defaults, which differ. Left out: datasets, schedule, devices.

use crate::architecture::Architecture;
use crate::card::quoted;

/// The configuration as YAML; `weights` is the file it names.
pub(crate) fn config(a: &Architecture, weights: &str) -> String {
    let depth = a
        .depth
        .map_or_else(|| "50 # not one of 18, 34, 50, 101: set it by hand".to_owned(), |d| d.to_string());
    let [first, ..] = a.stages;
    format!(
        "\
# Mask R-CNN on the exported encoder. Datasets and schedule are yours to add.
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: {weights}
  MASK_ON: True
  # RGB pictures in 0..255, as in pre-training.
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  BACKBONE:
    NAME: build_resnet_fpn_backbone
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {depth}
    STEM_OUT_CHANNELS: {width}
    WIDTH_PER_GROUP: {width}
    RES2_OUT_CHANNELS: {first}
    OUT_FEATURES: [res2, res3, res4, res5]
    NORM: SyncBN
    # The stride is in the 3x3 convolution, as in torchvision.
    STRIDE_IN_1X1: False
  FPN:
    IN_FEATURES: [res2, res3, res4, res5]
    OUT_CHANNELS: {pyramid}
    NORM: SyncBN
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_CONV: {convs}
    CONV_DIM: {pyramid}
    NUM_FC: 1
    NORM: SyncBN
    POOLER_RESOLUTION: 7
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    NUM_CONV: 4
    POOLER_RESOLUTION: 14
INPUT:
  FORMAT: RGB
TEST:
  PRECISE_BN:
    ENABLED: True
VERSION: 2
",
        width = a.width,
        pyramid = a.pyramid.unwrap_or_default(),
        convs = a.projector_convs,
        weights = quoted(weights),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_settings_are_written_out() {
        let a = Architecture {
            depth: Some(50),
            width: 64,
            stages: [256, 512, 1024, 2048],
            pyramid: Some(256),
            projector_convs: 4,
        };
        let text = config(&a, "mcl.pkl");
        for line in [
            "WEIGHTS: \"mcl.pkl\"",
            "PIXEL_MEAN: [123.675, 116.28, 103.53]",
            "PIXEL_STD: [58.395, 57.12, 57.375]",
            "FREEZE_AT: 0",
            "DEPTH: 50",
            "RES2_OUT_CHANNELS: 256",
            "STRIDE_IN_1X1: False",
            "NUM_CONV: 4",
            "NUM_FC: 1",
            "FORMAT: RGB",
        ] {
            assert!(text.lines().any(|l| l.trim() == line), "{line}");
        }
        assert_eq!(text.matches("NORM: SyncBN").count(), 3);
        assert!(text.contains("PRECISE_BN:\n    ENABLED: True"));
    }
}
