//! Where shards go, and what is known there of an earlier try.
//!
//! Invariants: what is noted of another pack is never gone on with, and nothing of it is overwritten; a place whose pack came to
//! its end stays a data set until a shard of it has to be packed again.

use super::bucket::BucketTarget;
use super::folder::FolderTarget;
use super::plan::{Finished, Plan, Record};
use super::{DONE, PLAN, PackError};
use crate::remote::RemoteSpec;
use mcl_types::StoreLocation;
use std::sync::{Mutex, PoisonError};

/// What an earlier pack noted at a place, as it stands there.
#[derive(Debug)]
pub(super) struct Begun {
    /// What it was to pack, where it did not come to its end.
    pub(super) plan: Option<Vec<u8>>,
    /// What it packed, where it did.
    pub(super) done: Option<Vec<u8>>,
}

impl Begun {
    /// What `plan` came to before; an error where another one was begun or ended in `place`.
    fn finished_of(&self, plan: &Plan, place: &str) -> Result<Option<Finished>, PackError> {
        if let Some(text) = &self.plan {
            plan.is_same_as(&read(place, PLAN, text)?, place, false)?;
        }
        let Some(text) = &self.done else { return Ok(None) };
        let finished: Finished = read(place, DONE, text)?;
        plan.is_same_as(&finished.plan, place, true)?;
        Ok(Some(finished))
    }
}

/// A folder of this machine, or a place in an object store.
#[derive(Debug)]
pub(super) enum Place {
    Folder(FolderTarget),
    Bucket(Box<BucketTarget>),
}

/// The place of one pack.
#[derive(Debug)]
pub(super) struct Target<'a> {
    place: Place,
    plan: &'a Plan,
    /// What the same pack came to before.
    finished: Option<Finished>,
    /// Whether it is noted that the place is being packed into.
    open: Mutex<bool>,
    /// Whether what is noted of shards is of this pack: without its plan it may be of any.
    resumed: bool,
}

impl<'a> Target<'a> {
    /// Begins a pack, or goes on with the same one.
    pub(super) fn begin(place: &StoreLocation, plan: &'a Plan, spec: &RemoteSpec) -> Result<Self, PackError> {
        let name = place.to_string();
        let (place, begun) = match place {
            StoreLocation::Folder(out) => {
                let (folder, begun) = FolderTarget::open(out)?;
                (Place::Folder(folder), begun)
            }
            StoreLocation::Object(address) => {
                let (bucket, begun) = BucketTarget::open(address, spec)?;
                (Place::Bucket(Box::new(bucket)), begun)
            }
        };
        let is_open = begun.plan.is_some();
        let finished = match (begun.finished_of(plan, &name), &place) {
            (Err(error), Place::Folder(folder)) if !is_open => {
                // It is left as it was found; a lock that cannot be removed is no harm.
                let _ = folder.leave();
                return Err(error);
            }
            (other, _) => other?,
        };
        let target = Self { place, plan, finished, open: Mutex::new(is_open), resumed: is_open };
        if target.finished.is_none() {
            target.reopen()?;
        }
        Ok(target)
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Notes that the place is being packed into, where that is not noted: it is no data set until the end.
    pub(super) fn reopen(&self) -> Result<(), PackError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            match &self.place {
                Place::Folder(folder) => folder.begin(self.plan)?,
                Place::Bucket(bucket) => bucket.begin(self.plan)?,
            }
            *open = true;
        }
        Ok(())
    }

    /// What an earlier try made of a shard, where all of it is there and is what it was.
    pub(super) fn kept(&self, shard: u64) -> Result<Option<Record>, PackError> {
        let noted = match &self.place {
            _ if !self.resumed => None,
            Place::Folder(folder) => folder.record(shard)?,
            Place::Bucket(bucket) => bucket.record(shard)?,
        };
        let before = || self.finished.as_ref()?.shards.get(usize::try_from(shard).ok()?).cloned();
        let Some(record) = noted.or_else(before) else { return Ok(None) };
        let sound = match (&record.made, &self.place) {
            (None, _) => true,
            (Some(made), Place::Folder(folder)) => folder.has(shard, made),
            (Some(made), Place::Bucket(bucket)) => bucket.has(shard, made)?,
        };
        if !sound {
            let shard = self.place_of(shard);
            tracing::warn!(shard, "a shard of an earlier try is not what it was: it is packed again");
        }
        Ok(Some(record).filter(|_| sound))
    }

    /// Notes that a shard is done.
    pub(super) fn keep(&self, shard: u64, record: &Record) -> Result<(), PackError> {
        match &self.place {
            Place::Folder(folder) => folder.keep(shard, record),
            Place::Bucket(bucket) => bucket.keep(shard, record),
        }
    }

    /// All shards are there: the place is a data set from here on.
    pub(super) fn end(&self, finished: &Finished, classes: &[u8]) -> Result<(), PackError> {
        let is_open = *self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let shards = self.plan.shards();
        match &self.place {
            Place::Folder(folder) if is_open => folder.end(&super::to_json(finished)?, shards, classes),
            Place::Bucket(bucket) if is_open => bucket.end(super::to_json(finished)?, shards, classes),
            Place::Folder(folder) => folder.leave(),
            Place::Bucket(_) => Ok(()),
        }
    }

    /// Where a shard is.
    pub(super) fn place_of(&self, shard: u64) -> String {
        match &self.place {
            Place::Folder(folder) => folder.place_of(shard),
            Place::Bucket(bucket) => bucket.place_of(shard),
        }
    }
}

/// What is noted in a file of the place.
fn read<T: serde::de::DeserializeOwned>(place: &str, file: &str, text: &[u8]) -> Result<T, PackError> {
    let path = || format!("{}/{file}", place.trim_end_matches('/')).into();
    serde_json::from_slice(text).map_err(|e| PackError::Progress { path: path(), source: e.into() })
}
