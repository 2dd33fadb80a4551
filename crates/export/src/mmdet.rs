//! MMDetection's configuration for an exported encoder: what to put on top of a Mask R-CNN base configuration.
//!
//! Invariant: what the weights depend on (depth, widths, norms, colour order, mean and deviation) is written out.
//! Left out: datasets, schedule, and the base configuration itself, which comes with MMDetection.

use crate::architecture::Architecture;
use crate::card::quoted;

/// The configuration as Python; `weights` is the file it names.
pub(crate) fn config(a: &Architecture, weights: &str) -> String {
    let depth = a
        .depth
        .map_or_else(|| "50,  # not one of 18, 34, 50, 101: set it by hand".to_owned(), |d| format!("{d},"));
    let stages = a.stages.map(|s| s.to_string()).join(", ");
    let head = match a.projector_convs {
        4 => "type='Shared4Conv1FCBBoxHead',".to_owned(),
        convs => format!(
            "type='ConvFCBBoxHead',\n            num_shared_convs={convs},\n            num_shared_fcs=1,"
        ),
    };
    format!(
        "\
# Mask R-CNN on the exported encoder, for MMDetection 3. The base configuration comes with it; datasets and schedule
# are yours to add.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # RGB pictures in 0..255, as in pre-training.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    # Loads backbone, neck and the box head's shared convolutions.
    init_cfg=dict(type='Pretrained', checkpoint={weights}),
    backbone=dict(
        depth={depth}
        stem_channels={width},
        base_channels={width},
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        init_cfg=None),
    neck=dict(
        in_channels=[{stages}],
        out_channels={pyramid},
        norm_cfg=norm_cfg),
    rpn_head=dict(in_channels={pyramid}, feat_channels={pyramid}),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels={pyramid}),
        bbox_head=dict(
            {head}
            in_channels={pyramid},
            conv_out_channels={pyramid},
            fc_out_channels=1024,
            norm_cfg=norm_cfg),
        mask_roi_extractor=dict(out_channels={pyramid}),
        mask_head=dict(in_channels={pyramid})))
",
        width = a.width,
        pyramid = a.pyramid.unwrap_or_default(),
        weights = quoted(weights),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_and_norms_are_written_out() {
        let mut a = Architecture {
            depth: Some(18),
            width: 8,
            stages: [8, 16, 32, 64],
            pyramid: Some(24),
            projector_convs: 4,
        };
        let text = config(&a, "mcl.pth");
        for part in [
            "checkpoint=\"mcl.pth\"",
            "depth=18,",
            "base_channels=8",
            "in_channels=[8, 16, 32, 64]",
            "out_channels=24",
            "type='Shared4Conv1FCBBoxHead'",
            "type='SyncBN'",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(text.matches("norm_cfg=norm_cfg").count(), 3);
        // mmengine finds the base by `package::folder/file`, of letters, digits and underscores before the slash.
        assert!(text.contains("\n_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']\n"));
        a.projector_convs = 2;
        assert!(config(&a, "x.pth").contains("num_shared_convs=2"));
    }
}
