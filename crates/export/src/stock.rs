//! Whether a tool can build the network, so that a card promises nothing that does not hold.
//!
//! A run may have any width; tools' own modules have those of the papers, or take some of them as settings. Left out:
//! modules that somebody would write himself, which any of the files serves.

use crate::architecture::Architecture;
use crate::naming::Format;

/// Width of the usual networks' first convolution.
const WIDTH: usize = 64;
/// Channels of torchvision's feature pyramid.
const PYRAMID: usize = 256;

/// Why the format's tool cannot build this network, or nothing where it can.
pub(crate) fn obstacle(format: Format, a: &Architecture) -> Option<String> {
    let tool = match format {
        Format::Safetensors => return None,
        Format::Torchvision | Format::TorchvisionFpn => "torchvision",
        Format::Timm => "timm",
        Format::Detectron2 => "Detectron2",
        Format::Mmdet => "MMDetection",
    };
    let Some(depth) = a.depth else {
        return Some(format!("{tool} has no ResNet of these numbers of blocks"));
    };
    match format {
        Format::Torchvision | Format::TorchvisionFpn | Format::Timm if a.width != WIDTH => Some(format!(
            "{tool}'s resnet{depth} is {WIDTH} channels wide after the first convolution, this network {}",
            a.width
        )),
        Format::TorchvisionFpn if a.pyramid != Some(PYRAMID) => Some(format!(
            "{tool}'s resnet_fpn_backbone has {PYRAMID} channels in its pyramid, this network {}",
            a.pyramid.unwrap_or_default()
        )),
        Format::Detectron2 if depth < 50 && a.width != WIDTH => Some(format!(
            "{tool} builds ResNet-{depth} only with {WIDTH} channels after the first convolution, this network has {}",
            a.width
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_build_and_what_they_do_not() {
        let usual = Architecture {
            depth: Some(50),
            width: 64,
            stages: [256, 512, 1024, 2048],
            pyramid: Some(256),
            projector_convs: 4,
        };
        for format in Format::ALL {
            assert_eq!(obstacle(format, &usual), None, "{format:?}");
            let odd = obstacle(format, &Architecture { depth: None, ..usual });
            assert_eq!(odd.is_some(), format != Format::Safetensors, "{format:?}");
        }
        let thin = Architecture { depth: Some(18), width: 16, pyramid: Some(64), ..usual };
        let opens = |format| obstacle(format, &thin).is_none();
        let [safetensors, torchvision, fpn, detectron2, mmdet, timm] = Format::ALL.map(opens);
        assert_eq!((safetensors, mmdet), (true, true), "widths are settings there");
        assert_eq!((torchvision, fpn, detectron2, timm), (false, false, false, false));
        let narrow = Architecture { pyramid: Some(64), ..usual };
        assert!(obstacle(Format::TorchvisionFpn, &narrow).unwrap().contains("256"));
        assert_eq!(obstacle(Format::Detectron2, &narrow), None);
        // Detectron2 takes any width of the deeper ones.
        assert_eq!(obstacle(Format::Detectron2, &Architecture { width: 16, ..usual }), None);
    }
}
