//! Backbone, feature pyramid and projector as one encoder, in the three modes of MCL_SPEC section 8.

use crate::blueprint::Blueprint;
use crate::fpn::{PyramidMaps, merge};
use crate::global::GlobalHead;
use crate::layer::{Sides, each};
use crate::pyramid::PyramidLayout;
use crate::spec::MAX_LEVELS;
use crate::{Backbone, ComputeMode, Fpn, ModelError, ModelSpec, Objective, Pass, Projector};

/// Index of P5, the coarsest output.
const TOP: usize = MAX_LEVELS - 1;

/// `encoder_q` or `encoder_k`.
#[derive(Debug)]
pub struct Encoder {
    backbone: Backbone,
    neck: Neck,
}

/// What follows the backbone.
#[derive(Debug)]
enum Neck {
    /// MCL's.
    Pyramid(Box<(Fpn, Projector)>),
    /// MoCo's.
    Global(GlobalHead),
}

impl Encoder {
    pub(crate) fn new(plan: &mut Blueprint, path: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let backbone = Backbone::new(plan, &format!("{path}.0"), spec)?;
        let neck = match spec.objective {
            Objective::Moco { .. } => Neck::Global(GlobalHead::new(plan, &format!("{path}.fc"), spec)?),
            Objective::Mcl | Objective::Supervised { .. } => Neck::Pyramid(Box::new((
                Fpn::new(plan, &format!("{path}.1"), spec)?,
                Projector::new(plan, &format!("{path}.2"), spec)?,
            ))),
        };
        Ok(Self { backbone, neck })
    }

    /// The ResNet.
    pub const fn backbone(&self) -> &Backbone {
        &self.backbone
    }
    /// The feature pyramid.
    ///
    /// # Errors
    /// When the objective has none.
    pub fn fpn(&self) -> Result<&Fpn, ModelError> {
        Ok(self.pyramid()?.0)
    }
    /// The projector.
    ///
    /// # Errors
    /// When the objective has none.
    pub fn projector(&self) -> Result<&Projector, ModelError> {
        Ok(self.pyramid()?.1)
    }

    fn pyramid(&self) -> Result<(&Fpn, &Projector), ModelError> {
        match &self.neck {
            Neck::Pyramid(both) => Ok((&both.0, &both.1)),
            Neck::Global(_) => Err(lacks("a feature pyramid", "a backbone under a global head (moco-v2)")),
        }
    }

    /// Embeddings of whole pictures, not normalised: by side, [n, 3, S, S] -> [n, D].
    ///
    /// # Errors
    /// When the objective has no global head, or the engine or the normaliser fails.
    pub fn global<const N: usize>(&self, pictures: &Sides<N>, pass: &Pass) -> Result<Sides<N>, ModelError> {
        let Neck::Global(head) = &self.neck else {
            return Err(lacks("a global head", "a backbone under a feature pyramid (mcl)"));
        };
        let [_, _, _, top] = self.backbone.forward(pictures, pass)?;
        head.forward(&top)
    }

    /// Projected outputs of every picture: by side, [n, 3, S, S] -> by output (P2, P3, P4, P5), from `finest` on,
    /// [n, patches, D]; the projector sees P2 first.
    ///
    /// # Errors
    /// When the engine or the normaliser fails.
    pub fn project_all<const N: usize>(
        &self,
        pictures: &Sides<N>,
        finest: usize,
        pass: &Pass,
    ) -> Result<PyramidMaps<N>, ModelError> {
        let (fpn, projector) = self.pyramid()?;
        let maps = fpn.forward(&self.backbone.forward(pictures, pass)?, finest, pass)?;
        let mut projected: PyramidMaps<N> = [None, None, None, None];
        for (out, map) in projected.iter_mut().zip(&maps) {
            *out = map.as_ref().map(|map| projector.forward(map, pass)).transpose()?;
        }
        Ok(projected)
    }

    /// Embeddings that the losses read: by side, [P, 3, S, S] -> by level, [lanes * tiles, D].
    ///
    /// # Errors
    /// When the batch is not as `layout` says, or the engine or the normaliser fails.
    pub fn online<const N: usize>(
        &self,
        pictures: &Sides<N>,
        layout: &PyramidLayout,
        mode: ComputeMode,
        pass: &Pass,
    ) -> Result<Vec<Sides<N>>, ModelError> {
        let finest = match mode {
            ComputeMode::Official => 0,
            ComputeMode::Exact => ModelSpec::output_of(layout.levels() - 1),
            ComputeMode::Selective => return self.online_selective(pictures, layout, pass),
        };
        let projected = self.project_all(pictures, finest, pass)?;
        (0..layout.levels())
            .map(|level| {
                let output = projected.get(ModelSpec::output_of(level)).and_then(Option::as_ref);
                let output = output.ok_or_else(|| not_computed(level))?;
                let (first, count) = layout.group(level);
                flat_rows(&part(output, first, count)?)
            })
            .collect()
    }

    /// Mode E: backbone and the coarsest lateral once over all pictures, each finer lateral only over the
    /// groups that need it, output convolution and projector only over the group that reads the output.
    fn online_selective<const N: usize>(
        &self,
        pictures: &Sides<N>,
        layout: &PyramidLayout,
        pass: &Pass,
    ) -> Result<Vec<Sides<N>>, ModelError> {
        let (fpn, projector) = self.pyramid()?;
        let features = self.backbone.forward(pictures, pass)?;
        let mut merged: Option<Sides<N>> = None;
        let mut maps = Vec::with_capacity(layout.levels());
        for level in 0..layout.levels() {
            let index = ModelSpec::output_of(level);
            let (first, count) = layout.group(level);
            let rest = layout.pictures() - first;
            let lateral = fpn.lateral(index, &part(&features[index], first, rest)?, pass)?;
            // What was merged so far begins with the group of the level above; this level's laterals do not.
            let here = match merged {
                None => lateral,
                Some(above) => {
                    let skip = layout.group(level - 1).1;
                    merge(&lateral, &part(&above, skip, rest)?)?
                }
            };
            maps.push(fpn.output(index, &part(&here, 0, count)?, pass)?);
            merged = Some(here);
        }
        // P2 goes first through the shared projector, as in the other modes.
        let mut rows = Vec::with_capacity(maps.len());
        for map in maps.iter().rev() {
            rows.push(flat_rows(&projector.forward(map, pass)?)?);
        }
        rows.reverse();
        Ok(rows)
    }

    /// P5 embeddings of the full-size pictures, neither normalised nor cut from the graph:
    /// by side, [P, 3, S, S] -> [lanes * N, D].
    ///
    /// # Errors
    /// When the batch is not as `layout` says, or the engine or the normaliser fails.
    pub fn top<const N: usize>(
        &self,
        pictures: &Sides<N>,
        layout: &PyramidLayout,
        mode: ComputeMode,
        pass: &Pass,
    ) -> Result<Sides<N>, ModelError> {
        let full = layout.full_pictures();
        let projected = match mode {
            ComputeMode::Official => self.project_all(pictures, 0, pass)?,
            ComputeMode::Exact => self.project_all(pictures, TOP, pass)?,
            ComputeMode::Selective => self.project_all(&part(pictures, 0, full)?, TOP, pass)?,
        };
        let top = projected[TOP].as_ref().ok_or_else(|| not_computed(0))?;
        flat_rows(&part(top, 0, full)?)
    }
}

/// `count` pictures of every side.
fn part<const N: usize>(x: &Sides<N>, first: i64, count: i64) -> Result<Sides<N>, ModelError> {
    each(x, |x| Ok(x.f_narrow(0, first, count)?))
}

/// [n, patches, D] -> [n * patches, D] a side.
fn flat_rows<const N: usize>(output: &Sides<N>) -> Result<Sides<N>, ModelError> {
    each(output, |output| {
        let (pictures, patches, size) = output.size3()?;
        Ok(output.f_reshape([pictures * patches, size])?)
    })
}

fn lacks(expected: &str, found: &str) -> ModelError {
    ModelError::Batch { what: "encoder".to_owned(), found: found.to_owned(), expected: expected.to_owned() }
}

fn not_computed(level: usize) -> ModelError {
    ModelError::Batch {
        what: format!("pyramid output of level {level}"),
        found: "not computed".to_owned(),
        expected: "an output that the mode computes".to_owned(),
    }
}
