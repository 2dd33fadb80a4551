//! The maps of a network that features are taken from.

/// Stages of the backbone and outputs of the pyramid, the finest of each first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    C2,
    C3,
    C4,
    C5,
    P2,
    P3,
    P4,
    P5,
}

impl Level {
    pub(super) const STAGES: [Self; 4] = [Self::C2, Self::C3, Self::C4, Self::C5];
    pub(super) const OUTPUTS: [Self; 4] = [Self::P2, Self::P3, Self::P4, Self::P5];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::C2 => "c2",
            Self::C3 => "c3",
            Self::C4 => "c4",
            Self::C5 => "c5",
            Self::P2 => "p2",
            Self::P3 => "p3",
            Self::P4 => "p4",
            Self::P5 => "p5",
        }
    }

    /// Its place among the outputs of the pyramid, where it is one.
    pub(super) fn output(self) -> Option<usize> {
        Self::OUTPUTS.iter().position(|output| *output == self)
    }

    /// Pixels that a cell covers, a side.
    pub(super) const fn stride(self) -> f64 {
        match self {
            Self::C2 | Self::P2 => 4.0,
            Self::C3 | Self::P3 => 8.0,
            Self::C4 | Self::P4 => 16.0,
            Self::C5 | Self::P5 => 32.0,
        }
    }
}

/// The pyramid's outputs behind norms that all saw data, and what is to be said of the others. `unseen` are the names of
/// norms that did not, `prefix` is how the encoder's begin.
pub(super) fn seen_outputs(unseen: &[&str], prefix: &str) -> (Vec<Level>, Option<String>) {
    let blind = |output: usize| {
        // An output adds up the laterals of its own level and of all coarser ones.
        let norms = (output..Level::OUTPUTS.len()).map(|i| format!("{prefix}1.lateral_convs.{i}.bn"));
        let mut norms = norms.chain([format!("{prefix}1.fpn_convs.{output}.bn")]);
        norms.find(|norm| unseen.contains(&norm.as_str()))
    };
    let mut seen = Vec::new();
    let mut left_out = Vec::new();
    let mut example = None;
    for (output, level) in Level::OUTPUTS.into_iter().enumerate() {
        match blind(output) {
            None => seen.push(level),
            Some(norm) => {
                left_out.push(level.name().to_uppercase());
                example.get_or_insert(norm);
            }
        }
    }
    let said =
        example.map(|norm| format!("{} left out: norms such as {norm} never saw data", left_out.join(", ")));
    (seen, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_behind_norms_without_data_are_left_out() {
        assert_eq!(seen_outputs(&[], "encoder_k."), (Level::OUTPUTS.to_vec(), None));
        let (seen, said) =
            seen_outputs(&["encoder_k.1.fpn_convs.0.bn", "encoder_q.1.fpn_convs.3.bn"], "encoder_k.");
        assert_eq!(seen, [Level::P3, Level::P4, Level::P5]);
        let said = said.unwrap();
        assert!(said.starts_with("P2 left out") && said.contains("encoder_k.1.fpn_convs.0.bn"), "{said}");
        let (seen, said) = seen_outputs(&["encoder_q.1.lateral_convs.2.bn"], "encoder_q.");
        assert_eq!(seen, [Level::P5]);
        assert!(said.unwrap().starts_with("P2, P3, P4 left out"));
    }

    #[test]
    fn outputs_know_their_place() {
        assert_eq!(Level::P2.output(), Some(0));
        assert_eq!(Level::P5.output(), Some(3));
        assert_eq!(Level::C5.output(), None);
    }
}
