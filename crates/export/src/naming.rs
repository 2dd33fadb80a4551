//! What the parts of the network are called: in a state, in an export, and by others.
//!
//! An encoder's names are the official ones: `0.` backbone, `1.` feature pyramid, `2.` projector. Invariant: for every
//! format that is copied bit for bit, taking an exported name back gives the name in the encoder. Left out: folded
//! norms, which have no way back.

use crate::network::{COUNTER, number, place};

/// Parts of an exported encoder, and what they are called in a state's encoder.
pub const PARTS: [(&str, &str); 3] = [("backbone.", "0."), ("neck.", "1."), ("projector.", "2.")];

/// Where MMDetection's box head has its convolutions.
const MMDET_HEAD: &str = "roi_head.bbox_head.shared_convs.";
/// Where the projector has them.
const PROJECTOR_CONVS: &str = "2.cls_convs.";

/// What an export looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// safetensors, `backbone.*`, `neck.*`, `projector.*` with the official names inside.
    Safetensors,
    /// torchvision's ResNet.
    Torchvision,
    /// torchvision's `resnet_fpn_backbone`, norms of the pyramid folded.
    TorchvisionFpn,
    /// Detectron2's model zoo.
    Detectron2,
    /// MMDetection 3.
    Mmdet,
    /// timm's ResNet.
    Timm,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Safetensors,
        Self::Torchvision,
        Self::TorchvisionFpn,
        Self::Detectron2,
        Self::Mmdet,
        Self::Timm,
    ];

    /// Its name on the command line and in a card.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Torchvision => "torchvision",
            Self::TorchvisionFpn => "torchvision-fpn",
            Self::Detectron2 => "detectron2",
            Self::Mmdet => "mmdet",
            Self::Timm => "timm",
        }
    }

    /// The encoder that is exported where none is named. For what detectors take, with a pyramid, the online one, as in
    /// the official converter: the momentum encoder runs only the pyramid's top, so the norms below it see no data.
    pub const fn default_encoder(self) -> Encoder {
        match self {
            Self::TorchvisionFpn | Self::Detectron2 | Self::Mmdet => Encoder::Online,
            Self::Safetensors | Self::Torchvision | Self::Timm => Encoder::Momentum,
        }
    }

    /// Whether the format holds an encoder's tensor, or norm, of this name, as it is or folded.
    pub(crate) fn takes(self, own: &str) -> bool {
        let folds = self == Self::TorchvisionFpn && own.starts_with("1.");
        // Names of norms are told by what a norm has.
        folds || [own.to_owned(), format!("{own}.weight")].iter().any(|name| self.name_of(name).is_some())
    }

    /// The name that an encoder's tensor has in this format, or nothing where the format has no place for it, or not
    /// for it alone.
    pub(crate) fn name_of(self, own: &str) -> Option<String> {
        match self {
            Self::Safetensors => {
                PARTS.iter().find_map(|(part, number)| Some(format!("{part}{}", own.strip_prefix(number)?)))
            }
            Self::Torchvision | Self::Timm => own.strip_prefix("0.").map(str::to_owned),
            // Frozen norms keep no count.
            Self::TorchvisionFpn => {
                own.strip_prefix("0.").filter(|n| !n.ends_with(COUNTER)).map(|n| format!("body.{n}"))
            }
            Self::Detectron2 => detectron2(own),
            Self::Mmdet => own
                .strip_prefix(PROJECTOR_CONVS)
                .map(|rest| format!("{MMDET_HEAD}{rest}"))
                .or_else(|| Self::Safetensors.name_of(own).filter(|n| !n.starts_with("projector."))),
        }
    }
}

/// Which of the two encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// The moving average.
    Momentum,
    /// The one that is trained.
    Online,
}

impl Encoder {
    /// What its tensors' names begin with in a state.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Momentum => "encoder_k.",
            Self::Online => "encoder_q.",
        }
    }

    /// Its name on the command line and in a card.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Momentum => "momentum",
            Self::Online => "online",
        }
    }
}

/// The six rows of the official converter: norms are named within the convolution that they follow, stages and levels
/// count from 2, convolutions of the head from 1.
fn detectron2(own: &str) -> Option<String> {
    if let Some(rest) = own.strip_prefix("0.conv1.") {
        return Some(format!("stem.conv1.{rest}"));
    }
    if let Some(rest) = own.strip_prefix("0.bn1.") {
        return Some(format!("stem.conv1.norm.{rest}"));
    }
    if let Some(rest) = own.strip_prefix("0.layer") {
        let (stage, rest) = number(rest)?;
        let (block, rest) = number(rest.strip_prefix('.')?)?;
        let inside = if let Some(rest) = rest.strip_prefix(".downsample.0.") {
            format!("shortcut.{rest}")
        } else if let Some(rest) = rest.strip_prefix(".downsample.1.") {
            format!("shortcut.norm.{rest}")
        } else if let Some(rest) = rest.strip_prefix(".bn") {
            let (layer, rest) = number(rest)?;
            format!("conv{layer}.norm{rest}")
        } else {
            rest.strip_prefix('.').filter(|r| r.starts_with("conv"))?.to_owned()
        };
        return Some(format!("res{}.{block}.{inside}", stage + 1));
    }
    let rows = [
        ("1.lateral_convs.", "fpn_lateral", 2),
        ("1.fpn_convs.", "fpn_output", 2),
        (PROJECTOR_CONVS, "box_head.conv", 1),
    ];
    rows.iter().find_map(|(theirs, name, first)| {
        let (at, rest) = number(own.strip_prefix(theirs)?)?;
        let rest = rest
            .strip_prefix(".conv.")
            .map(str::to_owned)
            .or_else(|| rest.strip_prefix(".bn.").map(|part| format!("norm.{part}")))?;
        Some(format!("{name}{}.{rest}", at + first))
    })
}

/// The same rows, back.
fn from_detectron2(name: &str) -> Option<String> {
    let name = ["backbone.bottom_up.", "backbone.", "roi_heads."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    if let Some(rest) = name.strip_prefix("stem.conv1.norm.") {
        return Some(format!("0.bn1.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("stem.conv1.") {
        return Some(format!("0.conv1.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("res") {
        let (stage, rest) = number(rest)?;
        let (block, rest) = number(rest.strip_prefix('.')?)?;
        let inside = if let Some(rest) = rest.strip_prefix(".shortcut.norm.") {
            format!("downsample.1.{rest}")
        } else if let Some(rest) = rest.strip_prefix(".shortcut.") {
            format!("downsample.0.{rest}")
        } else {
            let (layer, rest) = number(rest.strip_prefix(".conv")?)?;
            match rest.strip_prefix(".norm.") {
                Some(part) => format!("bn{layer}.{part}"),
                None => format!("conv{layer}{rest}"),
            }
        };
        return Some(format!("0.layer{}.{block}.{inside}", stage.checked_sub(1)?));
    }
    let rows = [
        ("fpn_lateral", "1.lateral_convs.", 2),
        ("fpn_output", "1.fpn_convs.", 2),
        ("box_head.conv", PROJECTOR_CONVS, 1),
    ];
    rows.iter().find_map(|(theirs, own, first)| {
        let (at, rest) = number(name.strip_prefix(theirs)?)?;
        let rest = match rest.strip_prefix(".norm.") {
            Some(part) => format!("bn.{part}"),
            None => format!("conv{rest}"),
        };
        Some(format!("{own}{}.{rest}", at.checked_sub(*first)?))
    })
}

/// How the tensors of a file are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The official code's: both encoders and the predictors.
    Official,
    /// Ours, and MMDetection's: the same names for backbone and pyramid.
    Parts,
    /// torchvision's and timm's ResNet.
    Torchvision,
    /// torchvision's `resnet_fpn_backbone`.
    TorchvisionFpn,
    /// Detectron2's.
    Detectron2,
}

/// What becomes of a tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Taken under this name.
    Take(String),
    /// No tensor of this method's network. Where it lies in one of its parts, that part is another network's.
    Foreign(Option<&'static str>),
    /// Left out, and why.
    Leave(&'static str),
}

impl Naming {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Official => "official (encoder_q, encoder_k, head)",
            Self::Parts => "mcl or MMDetection (backbone, neck)",
            Self::Torchvision => "torchvision or timm ResNet",
            Self::TorchvisionFpn => "torchvision resnet_fpn_backbone",
            Self::Detectron2 => "Detectron2",
        }
    }

    /// Tells by the first convolution's name.
    pub(crate) fn detect<'a>(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let of = |name: &str| match name {
            "encoder_q.0.conv1.weight" | "encoder_k.0.conv1.weight" => Some((0, Self::Official)),
            "stem.conv1.weight" | "backbone.bottom_up.stem.conv1.weight" => Some((1, Self::Detectron2)),
            "body.conv1.weight" | "backbone.body.conv1.weight" => Some((2, Self::TorchvisionFpn)),
            "backbone.conv1.weight" => Some((3, Self::Parts)),
            "conv1.weight" => Some((4, Self::Torchvision)),
            _ => None,
        };
        let mut best: Option<(u8, Self)> = None;
        for name in names {
            if let Some(found) = of(name)
                && best.is_none_or(|(rank, _)| found.0 < rank)
            {
                best = Some(found);
            }
        }
        best.map(|(_, naming)| naming)
    }

    /// What becomes of a tensor: names of the official code stay, others become those of an export of ours. What is not
    /// this network's is left out, whatever its part is called.
    pub(crate) fn fate(self, name: &str) -> Fate {
        let renamed = match self.renamed(name) {
            Ok(renamed) => renamed,
            Err(why) => return Fate::Leave(why),
        };
        match renamed.as_deref().and_then(place) {
            Some((_, part, inner)) if part.has(inner) => Fate::Take(renamed.unwrap_or_default()),
            Some((of, ..)) => Fate::Foreign(Some(of)),
            None => Fate::Foreign(None),
        }
    }

    /// What a tensor would be called in an export of ours, or in the official code; an error says why it has no place.
    fn renamed(self, name: &str) -> Result<Option<String>, &'static str> {
        let part = |own: Option<String>| own.and_then(|own| Format::Safetensors.name_of(&own));
        Ok(match self {
            Self::Official if name.starts_with("backbone.") => return Err("the same tensors as encoder_q.0"),
            Self::Official => {
                let known = ["encoder_q.", "encoder_k.", "head.predictor."];
                known.iter().any(|p| name.starts_with(p)).then(|| name.to_owned())
            }
            Self::Parts => match name.strip_prefix(MMDET_HEAD) {
                Some(rest) => Some(format!("projector.cls_convs.{rest}")),
                None => PARTS.iter().any(|(p, _)| name.starts_with(p)).then(|| name.to_owned()),
            },
            Self::Torchvision if name.starts_with("fc.") => {
                return Err("a classifier, which this method has none of");
            }
            Self::Torchvision => part(Some(format!("0.{name}"))),
            Self::TorchvisionFpn => {
                let name = name.strip_prefix("backbone.").unwrap_or(name);
                match name.strip_prefix("body.") {
                    Some(rest) => part(Some(format!("0.{rest}"))),
                    None if name.starts_with("fpn.") => {
                        return Err("its norms are folded into its convolutions, which cannot be undone");
                    }
                    None => None,
                }
            }
            Self::Detectron2 => part(from_detectron2(name)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_six_rows_of_the_official_converter() {
        for (own, theirs) in [
            ("0.conv1.weight", "stem.conv1.weight"),
            ("0.bn1.running_var", "stem.conv1.norm.running_var"),
            ("0.layer1.0.conv1.weight", "res2.0.conv1.weight"),
            ("0.layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
            ("0.layer3.0.downsample.0.weight", "res4.0.shortcut.weight"),
            ("0.layer3.0.downsample.1.num_batches_tracked", "res4.0.shortcut.norm.num_batches_tracked"),
            ("1.lateral_convs.0.conv.weight", "fpn_lateral2.weight"),
            ("1.lateral_convs.3.bn.weight", "fpn_lateral5.norm.weight"),
            ("1.fpn_convs.1.conv.weight", "fpn_output3.weight"),
            ("1.fpn_convs.1.bn.running_mean", "fpn_output3.norm.running_mean"),
            ("2.cls_convs.0.conv.weight", "box_head.conv1.weight"),
            ("2.cls_convs.3.bn.bias", "box_head.conv4.norm.bias"),
        ] {
            assert_eq!(detectron2(own).as_deref(), Some(theirs));
            assert_eq!(from_detectron2(theirs).as_deref(), Some(own));
        }
        assert_eq!(detectron2("2.mlp.0.weight"), None);
        assert_eq!(
            from_detectron2("backbone.bottom_up.res2.0.conv1.weight").unwrap(),
            "0.layer1.0.conv1.weight"
        );
        assert_eq!(from_detectron2("roi_heads.box_head.conv2.norm.bias").unwrap(), "2.cls_convs.1.bn.bias");
        for odd in ["res0.0.conv1.weight", "fpn_lateral1.weight", "box_head.fc1.weight", "res99999999999.0.x"]
        {
            assert_eq!(from_detectron2(odd), None, "{odd}");
        }
    }

    #[test]
    fn formats_take_one_part_or_all() {
        let name = |format: Format, own| format.name_of(own);
        assert_eq!(name(Format::Safetensors, "2.mlp.0.bias").unwrap(), "projector.mlp.0.bias");
        assert_eq!(name(Format::Timm, "0.layer1.0.bn1.weight").unwrap(), "layer1.0.bn1.weight");
        assert_eq!(name(Format::Torchvision, "1.fpn_convs.0.conv.weight"), None);
        assert_eq!(name(Format::TorchvisionFpn, "0.bn1.num_batches_tracked"), None);
        assert_eq!(name(Format::Mmdet, "1.fpn_convs.0.bn.weight").unwrap(), "neck.fpn_convs.0.bn.weight");
        assert_eq!(
            name(Format::Mmdet, "2.cls_convs.0.bn.weight").unwrap(),
            "roi_head.bbox_head.shared_convs.0.bn.weight"
        );
        assert_eq!(name(Format::Mmdet, "2.mlp.0.bias"), None);
    }

    #[test]
    fn the_naming_is_told_by_the_first_convolution() {
        let of = |names: &[&str]| Naming::detect(names.iter().copied());
        assert_eq!(of(&["backbone.conv1.weight", "encoder_q.0.conv1.weight"]), Some(Naming::Official));
        assert_eq!(of(&["backbone.conv1.weight", "neck.x"]), Some(Naming::Parts));
        assert_eq!(of(&["conv1.weight", "fc.weight"]), Some(Naming::Torchvision));
        assert_eq!(of(&["backbone.body.conv1.weight"]), Some(Naming::TorchvisionFpn));
        assert_eq!(of(&["stem.conv1.weight"]), Some(Naming::Detectron2));
        assert_eq!(of(&["cls_token"]), None);
    }

    #[test]
    fn what_is_left_out_has_a_reason() {
        assert!(
            matches!(Naming::Torchvision.fate("fc.weight"), Fate::Leave(why) if why.contains("classifier"))
        );
        assert!(
            matches!(Naming::Official.fate("backbone.conv1.weight"), Fate::Leave(why) if why.contains("encoder_q"))
        );
        assert!(
            matches!(Naming::TorchvisionFpn.fate("fpn.layer_blocks.0.0.bias"), Fate::Leave(why) if why.contains("folded"))
        );
        assert_eq!(
            Naming::Official.fate("head.predictor.0.mlp.0.bias"),
            Fate::Take("head.predictor.0.mlp.0.bias".into())
        );
        assert_eq!(Naming::Torchvision.fate("layer7.0.conv1.weight"), Fate::Foreign(Some("backbone.")));
        assert_eq!(Naming::Torchvision.fate("head.fc.weight"), Fate::Foreign(Some("backbone.")));
        assert_eq!(Naming::Official.fate("encoder_q.1.mlp.0.weight"), Fate::Foreign(Some("encoder_q.1.")));
        assert_eq!(Naming::Official.fate("queue"), Fate::Foreign(None));
        assert_eq!(Naming::Official.fate("neck.lateral_convs.0.conv.weight"), Fate::Foreign(None));
        assert_eq!(Naming::Detectron2.fate("backbone.fpn_lateral2.bias"), Fate::Foreign(Some("neck.")));
    }
}
