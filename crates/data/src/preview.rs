//! One lane's batch of a source as it would be trained on, drawn as a sheet.

use crate::augment::Side;
use crate::dataset::Dataset;
use crate::loader::{BatchRequest, LaneBatch, Loader, LoaderError, LoaderSpec, Substitute};
use crate::montage::{MontageError, MontageLayout};
use crate::sheet::{SheetError, montage_sheet};
use mcl_types::{Epoch, Lane, Purpose, SampleIndex, Step};
use std::sync::Arc;

/// A preview that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// Loading.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The layout.
    #[error(transparent)]
    Montage(#[from] MontageError),
    /// Drawing.
    #[error(transparent)]
    Sheet(#[from] SheetError),
    /// No batch came.
    #[error("the loader gave no batch")]
    Nothing,
}

/// Loads `pictures` samples spread over the dataset and draws their montages: the PNG file, and the
/// batch that it shows.
///
/// # Errors
/// See [`PreviewError`].
pub fn preview(
    dataset: &Arc<Dataset>,
    spec: LoaderSpec,
    pictures: usize,
) -> Result<(Vec<u8>, LaneBatch), PreviewError> {
    let layout = MontageLayout::official(pictures, &spec.levels)?;
    let at = (Epoch::new(0), Step::new(0), Lane::new(0));
    let (seed, size, len) = (spec.seed, spec.image_size, dataset.len());
    let spread = |slot: u64| SampleIndex::new(slot.saturating_mul(len) / (pictures as u64).max(1) % len);
    let samples = (0..pictures as u64).map(spread).collect();
    let request = BatchRequest { epoch: at.0, step: at.1, lane: at.2, samples };
    let substitute: Substitute = Arc::new(move |_, _, _, slot, attempt| {
        let numbers = [u64::from(slot.get()), u64::from(attempt)];
        SampleIndex::new(seed.stream(Purpose::Substitute, &numbers).below(len))
    });
    let mut loader = Loader::start(Arc::clone(dataset), spec, [request], substitute)?;
    let batch = loader.next()?.ok_or(PreviewError::Nothing)?;
    let views = [Side::Q, Side::K].into_iter().flat_map(|s| (0..layout.levels()).map(move |l| (l, s)));
    let permutations: Vec<Vec<usize>> =
        views.map(|(level, side)| layout.permutation(seed, at, level, side)).collect();
    Ok((montage_sheet(&batch, size, &layout, &permutations)?, batch))
}
