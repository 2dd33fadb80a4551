//! Norms that never saw data, and levels of the pyramid that were never trained.
//!
//! A norm that no batch went through has mean 0 and variance 1, which are nobody's statistics. The momentum encoder runs
//! only the top of its pyramid (unless `compute = "official"`), and a job may train fewer than four levels. Left out:
//! judgement of norms that saw little.

use crate::Tensors;
use crate::naming::{Encoder, Format};
use crate::network::{COUNTER, LEVELS};
use mcl_checkpoint_core::Dtype;

/// What of an encoder was never used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// Norms that counted no batch, by their names in the encoder, such as `1.fpn_convs.0.bn`.
    pub(crate) norms: Vec<String>,
    /// Levels that no loss reached, such as `P2`.
    pub(crate) levels: Vec<String>,
}

impl Unseen {
    /// Looks at what a format takes of an encoder.
    pub(crate) fn of(state: &Tensors, format: Format, encoder: Encoder) -> Self {
        let norms = |encoder: Encoder| {
            let own = state.keys().filter_map(move |name| name.strip_prefix(encoder.prefix()));
            own.filter_map(|own| own.strip_suffix(COUNTER)?.strip_suffix('.'))
                .filter(move |norm| is_unseen(state, &format!("{}{norm}", encoder.prefix())))
        };
        let pyramid = format.takes("1.fpn_convs.0.conv.weight");
        let levels = match predictors(state) {
            _ if !pyramid => 0..0,
            // A job of L levels trains the last L outputs.
            levels @ 1.. => 0..LEVELS.saturating_sub(levels),
            0 => {
                let output =
                    |level: &usize| norms(Encoder::Online).any(|n| n == format!("1.fpn_convs.{level}.bn"));
                0..(0..LEVELS).take_while(output).count()
            }
        };
        Self {
            norms: norms(encoder).filter(|norm| format.takes(norm)).map(str::to_owned).collect(),
            levels: levels.map(|level| format!("P{}", level + 2)).collect(),
        }
    }

    /// What to say of it to whoever exports.
    pub(crate) fn notices(&self, state: &Tensors, encoder: Encoder) -> Vec<String> {
        const SHOWN: usize = 8;
        let mut notices = Vec::new();
        if !self.norms.is_empty() {
            let names: Vec<String> =
                self.norms.iter().take(SHOWN).map(|norm| format!("{}{norm}", encoder.prefix())).collect();
            let more = if self.norms.len() > SHOWN { ", ..." } else { "" };
            let advice =
                if seen_online(state, encoder, &self.norms) { "; those of --encoder online did" } else { "" };
            notices.push(format!(
                "{} norms never saw data and have mean 0 and variance 1: {}{more}{advice}",
                self.norms.len(),
                names.join(", ")
            ));
        }
        if !self.levels.is_empty() {
            let levels = self.levels.join(", ");
            notices
                .push(format!("no loss reached level {levels}: the job trains fewer than {LEVELS} levels"));
        }
        notices
    }

    /// Norms of the pyramid among them.
    pub(crate) fn of_pyramid(&self) -> Vec<String> {
        self.norms.iter().filter(|norm| norm.starts_with("1.")).cloned().collect()
    }
}

/// Whether the online encoder's norms of these names saw data, and it is not the one that is exported.
pub(crate) fn seen_online(state: &Tensors, exported: Encoder, norms: &[String]) -> bool {
    let online = Encoder::Online;
    let is_there = |norm: &String| state.contains_key(&format!("{}{norm}.{COUNTER}", online.prefix()));
    exported != online
        && norms.iter().all(|norm| is_there(norm) && !is_unseen(state, &format!("{}{norm}", online.prefix())))
}

/// Whether a norm's count is nought. A norm that keeps none is not known to be unseen.
fn is_unseen(state: &Tensors, norm: &str) -> bool {
    state
        .get(&format!("{norm}.{COUNTER}"))
        .is_some_and(|count| count.dtype == Dtype::I64 && count.bytes.iter().all(|byte| *byte == 0))
}

/// How many predictors there are, one a level.
fn predictors(state: &Tensors) -> usize {
    (0..LEVELS)
        .take_while(|level| state.contains_key(&format!("head.predictor.{level}.mlp.0.weight")))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_checkpoint_core::OwnedTensor;

    /// Counters of both encoders' pyramids, and as many predictors.
    fn state(online: [u8; 4], momentum: [u8; 4], levels: usize) -> Tensors {
        let tensor =
            |count| OwnedTensor { dtype: Dtype::I64, shape: vec![], bytes: vec![count, 0, 0, 0, 0, 0, 0, 0] };
        let mut state = Tensors::new();
        for (encoder, counts) in [("encoder_q", online), ("encoder_k", momentum)] {
            for (level, count) in counts.into_iter().enumerate() {
                state.insert(format!("{encoder}.1.fpn_convs.{level}.bn.{COUNTER}"), tensor(count));
            }
        }
        state.extend((0..levels).map(|level| (format!("head.predictor.{level}.mlp.0.weight"), tensor(1))));
        state
    }

    #[test]
    fn the_momentum_encoder_below_its_top_is_named_and_online_advised() {
        let state = state([5; 4], [0, 0, 0, 5], 4);
        let unseen = Unseen::of(&state, Format::Mmdet, Encoder::Momentum);
        assert_eq!(unseen.norms, ["1.fpn_convs.0.bn", "1.fpn_convs.1.bn", "1.fpn_convs.2.bn"]);
        assert_eq!(unseen.levels, [""; 0]);
        let said = unseen.notices(&state, Encoder::Momentum).join("\n");
        assert!(said.starts_with("3 norms") && said.contains("encoder_k.1.fpn_convs.0.bn"), "{said}");
        assert!(said.contains("--encoder online"), "{said}");
        assert_eq!(Unseen::of(&state, Format::Mmdet, Encoder::Online), Unseen::default());
        assert_eq!(Unseen::of(&state, Format::Timm, Encoder::Momentum), Unseen::default());
    }

    #[test]
    fn levels_that_no_loss_reached_are_named() {
        for levels in [3, 0] {
            let state = state([0, 5, 5, 5], [0, 0, 0, 5], levels);
            let unseen = Unseen::of(&state, Format::Detectron2, Encoder::Online);
            assert_eq!(
                (unseen.norms.as_slice(), unseen.levels.as_slice()),
                (&["1.fpn_convs.0.bn".to_owned()][..], &["P2".to_owned()][..])
            );
            let said = unseen.notices(&state, Encoder::Online);
            assert!(said[0].ends_with("encoder_q.1.fpn_convs.0.bn") && said[1].contains("P2"), "{said:?}");
        }
    }
}
