//! From the address of a bucket (`s3://bucket/prefix`, `gs://`, `az://`) to its object store.
//!
//! Role: the one place that knows how an address and the environment become a store, for checkpoints and for pictures.
//! Credentials, region and endpoint come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`), never from a job file.
//! Left out: what is kept there. Nothing is reached yet when a store is opened.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreScheme, RetryConfig};
use std::sync::Arc;
use url::Url;

/// How variables begin that say something of an object store.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// The store of a bucket, and the place in it that the address names.
pub type Opened = (Arc<dyn ObjectStore>, Path);

/// What the environment says of object stores.
pub fn environment() -> Vec<(String, String)> {
    let text = std::env::vars_os().filter_map(|(key, value)| {
        let (key, value) = (key.into_string().ok()?, value.into_string().ok()?);
        PREFIXES.iter().any(|p| key.starts_with(p)).then_some((key, value))
    });
    text.collect()
}

/// The store at `url` with the given settings, named as in the environment; failing requests are repeated as `retry` says.
///
/// # Errors
/// When the address is of no store that is known, or the settings contradict each other.
pub fn open(
    url: &str,
    settings: impl IntoIterator<Item = (String, String)>,
    retry: RetryConfig,
) -> Result<Opened, Error> {
    // The builders have no trait in common. Settings of other stores are passed over.
    macro_rules! build {
        ($builder:ty) => {
            Arc::new(
                settings
                    .into_iter()
                    .fold(<$builder>::new().with_url(url), |builder, (key, value)| {
                        match key.to_ascii_lowercase().parse() {
                            Ok(key) => builder.with_config(key, value),
                            Err(_) => builder,
                        }
                    })
                    .with_retry(retry)
                    .build()?,
            )
        };
    }
    let parsed = Url::parse(url).map_err(|e| Error::Generic { store: "address", source: Box::new(e) })?;
    let (scheme, path) = ObjectStoreScheme::parse(&parsed)?;
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
        other => {
            let said = format!("{url} is of the kind {other:?}, expected s3://, gs:// or az://");
            return Err(Error::Generic { store: "address", source: said.into() });
        }
    };
    Ok((store, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_kind_of_store_opens_at_its_prefix() {
        let all = settings(&[
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5"),
        ]);
        for url in ["s3://bucket/a/b", "gs://bucket/a/b", "az://container/a/b"] {
            let (store, path) = open(url, all.clone(), RetryConfig::default()).unwrap();
            assert_eq!(path.as_ref(), "a/b", "{store}");
        }
    }

    #[test]
    fn encoded_dots_and_slashes_do_not_climb() {
        let region = || settings(&[("AWS_REGION", "r")]);
        for url in ["s3://bucket/a/%2e%2e/b", "s3://bucket/a/..%2fb", "s3://bucket/%2e%2e%2f%2e%2e%2fetc"] {
            // Whatever becomes of it, no part of the key means "one up".
            if let Ok((_, path)) = open(url, region(), RetryConfig::default()) {
                assert!(path.parts().all(|part| part.as_ref() != ".."), "{url}: {path}");
            }
        }
    }

    #[test]
    fn what_is_no_bucket_is_an_error() {
        for url in ["https://example.com/a", "not an address", "memory:///a"] {
            assert!(open(url, [], RetryConfig::default()).is_err(), "{url}");
        }
    }
}
