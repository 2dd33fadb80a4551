//! From an address to a store: a folder of this machine, or a bucket with a prefix.
//!
//! Credentials, region and endpoint come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`), never from a
//! job file. Left out: what is kept there.

use crate::error::StoreError;
use crate::layout::Layout;
use crate::store::CheckpointStore;
use mcl_types::StoreLocation;
use object_store::ObjectStore;
use object_store::prefix::PrefixStore;
use std::sync::Arc;
use url::Url;

/// How variables begin that say something of an object store.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl CheckpointStore {
    /// A store at a place: a folder, which is created, or an object store, which is not reached yet.
    ///
    /// # Errors
    /// When the folder cannot be made, or the environment holds settings that contradict each other.
    pub fn open(location: &StoreLocation, layout: Layout) -> Result<Self, StoreError> {
        let environment = std::env::vars_os().filter_map(|(key, value)| {
            let (key, value) = (key.into_string().ok()?, value.into_string().ok()?);
            PREFIXES.iter().any(|p| key.starts_with(p)).then_some((key, value))
        });
        Self::open_with(location, layout, environment)
    }

    /// The same with settings in the place of the environment, named as there.
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
        let failed = |source| StoreError::Open { url: url.clone(), source };
        let parsed = Url::parse(url)
            .map_err(|e| failed(object_store::Error::Generic { store: "address", source: Box::new(e) }))?;
        let (objects, prefix) = object_store::parse_url_opts(&parsed, settings).map_err(failed)?;
        let objects: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(objects, prefix));
        Ok(Self::at(objects, url.clone(), layout))
    }
}
