//! Which tensors this method's network has, and when a part of it is whole.
//!
//! Invariant: what is said to be here is what `mcl-model` has, whatever the depth and the widths. A run begins with a
//! part (pyramid, projector's convolutions, projector's head, predictors) whole, or with the seed's. Left out: sizes,
//! and how many blocks a backbone has, which are a job's to say.

use std::collections::BTreeSet;

/// Levels of the feature pyramid.
pub(crate) const LEVELS: usize = 4;
/// A norm's count of the batches that it saw.
pub(crate) const COUNTER: &str = "num_batches_tracked";
/// What a norm cannot be without.
const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// A part of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A ResNet.
    Backbone,
    /// The feature pyramid.
    Pyramid,
    /// Convolutions of the projector, which a box head has too.
    Convs,
    /// The projector's head.
    Mlp,
    /// Predictors of all levels.
    Predictors,
}

/// Where parts are in a file that a run begins with: what their names begin with.
const PLACES: [(&str, Part); 13] = [
    ("backbone.", Part::Backbone),
    ("neck.", Part::Pyramid),
    ("projector.cls_convs.", Part::Convs),
    ("projector.mlp.", Part::Mlp),
    ("encoder_q.0.", Part::Backbone),
    ("encoder_q.1.", Part::Pyramid),
    ("encoder_q.2.cls_convs.", Part::Convs),
    ("encoder_q.2.mlp.", Part::Mlp),
    ("encoder_k.0.", Part::Backbone),
    ("encoder_k.1.", Part::Pyramid),
    ("encoder_k.2.cls_convs.", Part::Convs),
    ("encoder_k.2.mlp.", Part::Mlp),
    ("head.predictor.", Part::Predictors),
];

/// Where a name belongs: what its part's names begin with, the part, and the name within it.
pub(crate) fn place(name: &str) -> Option<(&'static str, Part, &str)> {
    PLACES.iter().find_map(|(prefix, part)| Some((*prefix, *part, name.strip_prefix(prefix)?)))
}

impl Part {
    /// Whether the part has a tensor of this name within it.
    pub(crate) fn has(self, inner: &str) -> bool {
        match self {
            Self::Backbone => is_backbone(inner),
            Self::Pyramid => ["lateral_convs.", "fpn_convs."]
                .iter()
                .find_map(|kind| number(inner.strip_prefix(kind)?))
                .is_some_and(|(level, rest)| level < LEVELS as u32 && is_conv_norm(rest)),
            Self::Convs => number(inner).is_some_and(|(_, rest)| is_conv_norm(rest)),
            Self::Mlp => is_mlp(inner) || inner.strip_prefix("4.").is_some_and(is_plain_norm),
            Self::Predictors => {
                number(inner).and_then(|(_, rest)| rest.strip_prefix(".mlp.")).is_some_and(is_mlp)
            }
        }
    }

    /// Whether these names within the part are all that it needs. Counters are not needed: they can begin at nought.
    /// How many blocks a backbone should have is not known here.
    pub(crate) fn is_whole(self, names: &BTreeSet<&str>) -> bool {
        let all = |needed: Vec<String>| needed.iter().all(|name| names.contains(name.as_str()));
        let several =
            names.iter().filter_map(|name| number(name)).map(|(at, _)| at).collect::<BTreeSet<_>>().len();
        match self {
            Self::Backbone => true,
            Self::Pyramid => {
                let branch = |kind| (0..LEVELS).flat_map(move |level| conv_norm(&format!("{kind}.{level}")));
                all(branch("lateral_convs").chain(branch("fpn_convs")).collect())
            }
            Self::Convs => all((0..several).flat_map(|conv| conv_norm(&conv.to_string())).collect()),
            Self::Mlp => {
                all([mlp(""), vec!["4.running_mean".to_owned(), "4.running_var".to_owned()]].concat())
            }
            Self::Predictors => all((0..several).flat_map(|level| mlp(&format!("{level}.mlp."))).collect()),
        }
    }
}

fn conv_norm(path: &str) -> Vec<String> {
    let norm = NORM.iter().map(|own| format!("{path}.bn.{own}"));
    norm.chain([format!("{path}.conv.weight")]).collect()
}

fn mlp(path: &str) -> Vec<String> {
    let linear = ["0.weight", "0.bias", "3.weight", "3.bias"].map(|own| format!("{path}{own}"));
    linear.into_iter().chain(NORM.map(|own| format!("{path}1.{own}"))).collect()
}

/// `.conv.weight`, `.bn.*`: no convolution of this network has a bias.
fn is_conv_norm(rest: &str) -> bool {
    rest == ".conv.weight" || rest.strip_prefix(".bn.").is_some_and(is_norm)
}

/// Two linear layers with a norm and a rectifier between them.
fn is_mlp(inner: &str) -> bool {
    matches!(inner, "0.weight" | "0.bias" | "3.weight" | "3.bias")
        || inner.strip_prefix("1.").is_some_and(is_norm)
}

fn is_norm(own: &str) -> bool {
    NORM.contains(&own) || own == COUNTER
}

/// A norm without weight and bias.
fn is_plain_norm(own: &str) -> bool {
    matches!(own, "running_mean" | "running_var" | COUNTER)
}

/// Whether a bare name is one of a ResNet's.
fn is_backbone(name: &str) -> bool {
    let conv_norm = |name: &str, layers: &[u32]| {
        let of = |kind| name.strip_prefix(kind).and_then(number).filter(|(layer, _)| layers.contains(layer));
        of("conv").is_some_and(|(_, rest)| rest == ".weight")
            || of("bn").is_some_and(|(_, rest)| rest.strip_prefix('.').is_some_and(is_norm))
    };
    let block = |name: &str| {
        let (stage, rest) = number(name.strip_prefix("layer")?)?;
        let (_, rest) = number(rest.strip_prefix('.')?)?;
        let rest = rest.strip_prefix('.').filter(|_| (1..=4).contains(&stage))?;
        let shortcut =
            rest == "downsample.0.weight" || rest.strip_prefix("downsample.1.").is_some_and(is_norm);
        Some(shortcut || conv_norm(rest, &[1, 2, 3]))
    };
    conv_norm(name, &[1]) || block(name) == Some(true)
}

/// The number that a text begins with, as it is written in names, and what follows it.
pub(crate) fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let number = digits.parse().ok().filter(|n| *n < 10_000)?;
    (digits == "0" || !digits.starts_with('0')).then_some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of `names_r50.txt`, which are the official code's.
    fn official() -> Vec<&'static str> {
        include_str!("../tests/data/names_r50.txt")
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.split('\t').next())
            .collect()
    }

    #[test]
    fn every_name_of_the_official_network_is_known_and_every_part_is_whole() {
        let names = official();
        for name in &names {
            let (_, part, inner) = place(name).unwrap();
            assert!(part.has(inner), "{name}");
        }
        for (prefix, part) in
            PLACES.iter().filter(|(p, _)| p.starts_with("encoder_q") || p.starts_with("head"))
        {
            let inner =
                || names.iter().filter_map(|n| n.strip_prefix(prefix)).filter(|n| !n.ends_with(COUNTER));
            assert!(part.is_whole(&inner().collect()), "{prefix}");
            if *part != Part::Backbone {
                for gone in inner() {
                    assert!(!part.is_whole(&inner().filter(|n| *n != gone).collect()), "{prefix}{gone}");
                }
            }
        }
    }

    #[test]
    fn names_of_other_networks_are_not() {
        for name in [
            "backbone.conv1.bias",
            "backbone.conv1.0.weight",
            "backbone.conv2.weight",
            "backbone.layer5.0.conv1.weight",
            "backbone.layer1.00.conv1.weight",
            "backbone.layer1.0.conv4.weight",
            "backbone.layer1.0.se.fc1.weight",
            "backbone.layer1.0.downsample.1.scale",
            "neck.lateral_convs.0.conv.bias",
            "neck.fpn_convs.4.conv.weight",
            "neck.fc0.weight",
            "encoder_q.1.mlp.0.weight",
            "projector.mlp.2.weight",
            "projector.mlp.4.weight",
            "projector.cls_convs.0.conv.bias",
            "head.predictor.0.mlp.4.running_mean",
            "head.predictor.fc.weight",
        ] {
            let (_, part, inner) = place(name).unwrap();
            assert!(!part.has(inner), "{name}");
        }
        for name in ["projector.fc.weight", "queue", "head.cls.weight", "conv1.weight"] {
            assert_eq!(place(name), None, "{name}");
        }
    }
}
