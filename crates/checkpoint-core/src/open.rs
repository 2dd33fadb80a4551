//! From an address to a store of checkpoints: a folder of this machine, or a bucket with a prefix.

use crate::error::StoreError;
use crate::layout::Layout;
use crate::store::CheckpointStore;
use mcl_types::StoreLocation;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use std::sync::Arc;

impl CheckpointStore {
    /// A store at a place: a folder, which is created, or an object store, which is not reached yet.
    ///
    /// # Errors
    /// When the folder cannot be made, or the environment holds settings that contradict each other.
    pub fn open(location: &StoreLocation, layout: Layout) -> Result<Self, StoreError> {
        Self::open_with(location, layout, mcl_bucket::environment())
    }

    /// The same with settings of the object store that do not come from the environment, named as there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        location: &StoreLocation,
        layout: Layout,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StoreError> {
        let url = match location {
            StoreLocation::Folder(folder) => return Self::local(folder, layout),
            StoreLocation::Object(url) => url,
        };
        let opened = mcl_bucket::open(url, settings, RetryConfig::default());
        let (objects, prefix) = opened.map_err(|source| StoreError::Open { url: url.clone(), source })?;
        let objects: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(objects, prefix));
        Ok(Self::at(objects, url.clone(), layout))
    }
}
