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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_in_no_debug() {
        let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ=";
        let settings = [
            ("AWS_REGION", "r"),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_SESSION_TOKEN", secret),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", secret),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        for url in ["s3://bucket/a", "az://container/a"] {
            let place = url.parse().unwrap();
            let store = CheckpointStore::open_with(&place, Layout::RunFolders, settings.clone()).unwrap();
            let shown = format!("{store:?}");
            assert!(shown.contains(url) && !shown.contains("secret") && !shown.contains(secret), "{shown}");
            // The key's bytes, as the library shows them.
            assert!(!shown.contains("115, 101, 99"), "{shown}");
        }
    }
}
