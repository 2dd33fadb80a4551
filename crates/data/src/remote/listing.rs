//! Which shards lie at an address.
//!
//! The same ones as in a folder: what ends in `.tar` directly at the place, in byte order of the names; or the one object
//! that is named. Side indexes lie beside their tars.

use super::RemoteError;
use super::client::{Client, Object};
use crate::dataset::{DatasetError, EXTENSIONS, SIDE_SUFFIX, has_extension};
use futures::TryStreamExt as _;
use object_store::path::Path;
use std::collections::HashMap;

/// Objects looked at, at any depth, to say what is there instead of shards.
const LOOKED_AT: usize = 1000;

/// A shard and its side index.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) tar: Object,
    pub(super) side: Option<Object>,
}

/// Lists the shards.
pub(super) fn list(client: &Client) -> Result<Vec<Listed>, DatasetError> {
    if is_tar(&client.prefix)
        && let Some(tar) = client.head(&client.prefix)?
    {
        let side = client.head(&beside(&client.prefix))?;
        return Ok(vec![Listed { tar, side }]);
    }
    let here = objects_in(client)?;
    let loose = here.iter().find(|o| has_extension(as_file(&o.path), &EXTENSIONS));
    if let Some(loose) = loose {
        let example = loose.path.filename().unwrap_or_default().to_owned();
        return Err(DatasetError::Loose { address: client.address.clone(), example });
    }
    let by_path: HashMap<&str, &Object> = here.iter().map(|o| (o.path.as_ref(), o)).collect();
    let mut found = Vec::new();
    for tar in here.iter().filter(|o| is_tar(&o.path)) {
        let side = by_path.get(beside(&tar.path).as_ref());
        let side = side.map(|side| tagged(client, side)).transpose()?;
        found.push(Listed { tar: tagged(client, tar)?, side });
    }
    if found.is_empty() {
        return Err(nothing(client)?);
    }
    found.sort_unstable_by(|a, b| name(&a.tar).as_bytes().cmp(name(&b.tar).as_bytes()));
    Ok(found)
}

/// The file name of an object.
pub(super) fn name(object: &Object) -> &str {
    object.path.filename().unwrap_or_default()
}

/// Where the side index of a tar lies.
pub(super) fn beside(tar: &Path) -> Path {
    // Only a suffix without anything that is special in a path is added.
    Path::parse(format!("{tar}{SIDE_SUFFIX}")).unwrap_or_default()
}

fn as_file(path: &Path) -> &std::path::Path {
    std::path::Path::new(path.filename().unwrap_or_default())
}

fn is_tar(path: &Path) -> bool {
    has_extension(as_file(path), &["tar"])
}

/// With its tag, which some servers leave out of their lists.
fn tagged(client: &Client, object: &Object) -> Result<Object, RemoteError> {
    if object.is_tagged() {
        return Ok(object.clone());
    }
    Ok(client.head(&object.path)?.unwrap_or_else(|| object.clone()))
}

fn objects_in(client: &Client) -> Result<Vec<Object>, RemoteError> {
    let listed = client.ask(
        || format!("listing {}", client.address),
        |store| {
            let prefix = client.prefix.clone();
            async move { store.list_with_delimiter(Some(&prefix)).await }
        },
    )?;
    Ok(listed.objects.iter().map(Object::of).collect())
}

/// Why there are no shards, as well as a look at what is there can tell.
fn nothing(client: &Client) -> Result<DatasetError, RemoteError> {
    let below = client.ask(
        || format!("listing {}", client.address),
        |store| {
            let prefix = client.prefix.clone();
            async move {
                let mut listing = store.list(Some(&prefix));
                let mut names = Vec::new();
                while names.len() < LOOKED_AT
                    && let Some(object) = listing.try_next().await?
                {
                    names.push(object.location);
                }
                Ok(names)
            }
        },
    )?;
    let address = client.address.clone();
    if let Some(loose) = below.iter().find(|path| has_extension(as_file(path), &EXTENSIONS)) {
        return Ok(DatasetError::Loose { address, example: client.url(loose) });
    }
    let found = match below.iter().find(|path| is_tar(path)) {
        Some(deeper) => format!("there is {}: give the prefix that holds it", client.url(deeper)),
        None if below.is_empty() => "nothing is there".to_owned(),
        None => format!("there is {}", client.url(&below[0])),
    };
    Ok(DatasetError::NoShards { address, found })
}
