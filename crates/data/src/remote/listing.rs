//! What lies at an address.
//!
//! The same as in a folder: shards are what ends in `.tar` directly at the place, in byte order of the names, or the one
//! object that is named; side indexes lie beside their tars. Whoever packs may also name loose pictures at any depth, a list
//! of pictures, and parquet files.

use super::RemoteError;
use super::client::{Client, Object};
use crate::dataset::{
    CLASSES_FILE, DatasetError, EXTENSIONS, LIST_EXTENSIONS, Reading, SIDE_SUFFIX, Sight, has_extension,
    one_split,
};
use futures::TryStreamExt as _;
use mcl_types::SourceKind;
use object_store::path::Path;
use std::collections::{BTreeSet, HashMap};

/// Objects looked at, at any depth, to say what is there where it is not packed.
const LOOKED_AT: usize = 1000;

/// A shard and its side index.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) tar: Object,
    /// As it is told to people: below the address.
    pub(super) name: String,
    pub(super) side: Option<Object>,
}

/// An object below the address, and its path from there.
pub(super) type Below = (String, Object);

/// What is at an address.
#[derive(Debug)]
pub(super) enum Listing {
    /// Tar shards, and the names of their classes.
    Shards(Vec<Listed>, Option<Object>),
    /// Loose pictures in byte order of their paths.
    Loose(Vec<Below>),
    /// A list of pictures, and what is in its folder at any depth.
    List(Object, Vec<Below>),
    /// Parquet files.
    Rows(Vec<Below>),
}

/// Lists what is at the client's address; loose pictures and lists only for whoever is `packing`.
pub(super) fn list(
    client: &Client,
    kind: Option<SourceKind>,
    packing: bool,
) -> Result<Listing, DatasetError> {
    if let Some(found) = one_object(client, kind, packing)? {
        return Ok(found);
    }
    let (here, folders) = objects_in(client, &client.prefix)?;
    let here = below(client, here);
    let packed_into = folders.iter().any(|folder| folder.filename() == Some(crate::pack::PROGRESS));
    if packed_into && unfinished(client)? {
        return Err(DatasetError::Unfinished { path: client.address.clone().into() });
    }
    let mut sight = sight_of(&here);
    let mut deep = Vec::new();
    let by_itself = sight.tars.is_some() || sight.pictures.is_some() || sight.parquets.is_some();
    if packing || !by_itself {
        deep = everything(client, (!packing).then_some(LOOKED_AT))?;
        let all = sight_of(&deep);
        sight.pictures = sight.pictures.or(all.pictures);
        if sight.pictures.is_none() && sight.tars.is_none() {
            sight.parquets = sight.parquets.or(all.parquets);
        }
        sight.arrows = all.arrows;
    }
    let reading = sight.decide(kind, packing, &client.address).map_err(|error| match error {
        DatasetError::Empty { .. } => nothing(client, &deep),
        other => other,
    })?;
    match reading {
        Reading::Shards => shards(client, &here),
        Reading::Pictures => loose(client, deep, &sight, packing),
        Reading::Rows => {
            let direct = here.iter().any(|(path, _)| is(path, &["parquet"]));
            let mut files = if direct { here } else { deep };
            files.retain(|(path, _)| is(path, &["parquet"]));
            files.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            one_split(files.iter().map(|(path, _)| path.as_str()), kind, &client.address)?;
            Ok(Listing::Rows(files))
        }
    }
}

/// Lists the objects of these names below the client's address; `text` is what stands for them.
pub(super) fn named(client: &Client, names: &[String], text: &str) -> Result<Listing, DatasetError> {
    let wrong = |wrong: String| DatasetError::Named { place: text.to_owned(), count: names.len(), wrong };
    let all = |extension: &str| names.iter().all(|name| is(name, &[extension]));
    let (tars, parquets) = (all("tar"), all("parquet"));
    if !tars && !parquets {
        return Err(wrong("expected all of them to end in .tar, or all in .parquet".to_owned()));
    }
    let folders: BTreeSet<&str> =
        names.iter().map(|name| name.rsplit_once('/').map_or("", |(f, _)| f)).collect();
    let mut found = HashMap::new();
    for folder in folders {
        let place = Path::parse(format!("{}/{folder}", client.prefix).trim_matches('/')).unwrap_or_default();
        found.extend(below(client, objects_in(client, &place)?.0));
    }
    let missing: Vec<&String> = names.iter().filter(|name| !found.contains_key(*name)).collect();
    if let Some(first) = missing.first() {
        return Err(wrong(format!("{} of them are not there, such as {first}", missing.len())));
    }
    let object = |name: &String| Some((name.clone(), found.get(name)?.clone()));
    if parquets {
        return Ok(Listing::Rows(names.iter().filter_map(object).collect()));
    }
    let with_side = |name: &String| {
        let tar = tagged(client, found.get(name)?);
        let side = found.get(&format!("{name}{SIDE_SUFFIX}")).map(|side| tagged(client, side)).transpose();
        let listed = |(tar, side)| Listed { tar, name: name.clone(), side };
        Some(tar.and_then(|tar| side.map(|side| listed((tar, side)))))
    };
    let shards: Result<Vec<Listed>, RemoteError> = names.iter().filter_map(with_side).collect();
    Ok(Listing::Shards(shards?, found.get(CLASSES_FILE).cloned()))
}

/// The object that the address names, where it is of a kind that is one object.
fn one_object(
    client: &Client,
    kind: Option<SourceKind>,
    packing: bool,
) -> Result<Option<Listing>, DatasetError> {
    let prefix = client.prefix.as_ref();
    let by_name = if is(prefix, &["tar"]) {
        Some(SourceKind::WebDataset)
    } else if is(prefix, &LIST_EXTENSIONS) {
        Some(SourceKind::List)
    } else {
        is(prefix, &["parquet"]).then_some(SourceKind::Parquet)
    };
    let Some(kind) = kind.or(by_name).filter(|kind| *kind != SourceKind::Folder) else { return Ok(None) };
    let Some(object) = client.head(&client.prefix)? else { return Ok(None) };
    let name = name(&object).to_owned();
    Ok(Some(match kind {
        SourceKind::List if !packing => {
            let what = "lists loose pictures, which are not read one by one from an object store".to_owned();
            return Err(DatasetError::PackFirst { source_name: client.address.clone(), what });
        }
        SourceKind::List => {
            let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
            let folder = Path::parse(folder).unwrap_or_default();
            let inside = everything_in(client, &folder, None)?;
            Listing::List(object, inside)
        }
        SourceKind::Parquet => Listing::Rows(vec![(name, object)]),
        SourceKind::WebDataset | SourceKind::Tar | SourceKind::Folder => {
            let side = client.head(&beside(&client.prefix))?;
            Listing::Shards(vec![Listed { tar: object, name, side }], None)
        }
    }))
}

fn shards(client: &Client, here: &[Below]) -> Result<Listing, DatasetError> {
    let by_path: HashMap<&str, &Object> = here.iter().map(|(path, o)| (path.as_str(), o)).collect();
    let mut found = Vec::new();
    for (path, tar) in here.iter().filter(|(path, _)| is(path, &["tar"])) {
        let side = by_path.get(format!("{path}{SIDE_SUFFIX}").as_str());
        let side = side.map(|side| tagged(client, side)).transpose()?;
        found.push(Listed { tar: tagged(client, tar)?, name: path.clone(), side });
    }
    found.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    Ok(Listing::Shards(found, by_path.get(CLASSES_FILE).map(|o| (*o).clone())))
}

fn loose(
    client: &Client,
    mut deep: Vec<Below>,
    sight: &Sight,
    packing: bool,
) -> Result<Listing, DatasetError> {
    if !packing {
        let example = sight.pictures.clone().unwrap_or_default();
        let what = format!(
            "holds loose pictures (such as {example}), which are not read one by one from an object store"
        );
        return Err(DatasetError::PackFirst { source_name: client.address.clone(), what });
    }
    deep.retain(|(path, _)| is(path, &EXTENSIONS));
    deep.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    Ok(Listing::Loose(deep))
}

/// The file name of an object.
fn name(object: &Object) -> &str {
    object.path.filename().unwrap_or_default()
}

/// Where the side index of a tar lies.
pub(super) fn beside(tar: &Path) -> Path {
    // Only a suffix without anything that is special in a path is added.
    Path::parse(format!("{tar}{SIDE_SUFFIX}")).unwrap_or_default()
}

fn is(path: &str, extensions: &[&str]) -> bool {
    has_extension(std::path::Path::new(path), extensions)
}

fn sight_of(objects: &[Below]) -> Sight {
    let first =
        |extensions: &[&str]| objects.iter().map(|(path, _)| path).find(|path| is(path, extensions)).cloned();
    Sight {
        pictures: first(&EXTENSIONS),
        tars: first(&["tar"]),
        parquets: first(&["parquet"]),
        arrows: first(&["arrow"]),
    }
}

/// With its tag, which some servers leave out of their lists.
fn tagged(client: &Client, object: &Object) -> Result<Object, RemoteError> {
    if object.is_tagged() {
        return Ok(object.clone());
    }
    Ok(client.head(&object.path)?.unwrap_or_else(|| object.clone()))
}

/// By their paths below the client's address.
fn below(client: &Client, objects: Vec<Object>) -> Vec<Below> {
    below_path(&client.prefix, objects)
}

fn below_path(folder: &Path, objects: Vec<Object>) -> Vec<Below> {
    let prefix = folder.as_ref();
    let relative = |object: Object| {
        let path = object.path.as_ref();
        let path = path.strip_prefix(prefix).unwrap_or(path).trim_start_matches('/').to_owned();
        (path, object)
    };
    objects.into_iter().map(relative).filter(|(path, _)| !path.is_empty()).collect()
}

/// What lies directly at a place: objects, and folders.
fn objects_in(client: &Client, place: &Path) -> Result<(Vec<Object>, Vec<Path>), RemoteError> {
    let listed = client.ask(
        || format!("listing {}", client.url(place)),
        |store| {
            let prefix = place.clone();
            async move { store.list_with_delimiter(Some(&prefix)).await }
        },
    )?;
    Ok((listed.objects.iter().map(Object::of).collect(), listed.common_prefixes))
}

/// Whether a pack into this place did not come to its end.
fn unfinished(client: &Client) -> Result<bool, RemoteError> {
    let plan = Path::parse(format!("{}/{}", client.prefix, crate::pack::PLAN).trim_matches('/'));
    client.head(&plan.unwrap_or_default()).map(|found| found.is_some())
}

/// What lies at the address at any depth, or so much of it.
fn everything(client: &Client, most: Option<usize>) -> Result<Vec<Below>, RemoteError> {
    everything_in(client, &client.prefix, most)
}

fn everything_in(client: &Client, folder: &Path, most: Option<usize>) -> Result<Vec<Below>, RemoteError> {
    let objects = client.ask(
        || format!("listing {}", client.url(folder)),
        |store| {
            let prefix = folder.clone();
            async move {
                let mut listing = store.list(Some(&prefix));
                let mut objects = Vec::new();
                while most.is_none_or(|most| objects.len() < most)
                    && let Some(object) = listing.try_next().await?
                {
                    objects.push(Object::of(&object));
                }
                Ok(objects)
            }
        },
    )?;
    Ok(below_path(folder, objects))
}

/// Why there is nothing to read, as well as a look at what is there can tell.
fn nothing(client: &Client, deep: &[Below]) -> DatasetError {
    let address = client.address.clone();
    let found = match deep.iter().find(|(path, _)| is(path, &["tar"])) {
        Some((_, deeper)) => format!("there is {}: give the prefix that holds it", client.url(&deeper.path)),
        None => match deep.first() {
            None => "nothing is there".to_owned(),
            Some((_, first)) => format!("there is {}", client.url(&first.path)),
        },
    };
    DatasetError::NoShards { address, found }
}
