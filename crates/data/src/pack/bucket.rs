//! Shards into an object store: what [`super::folder`] does, by requests.
//!
//! A shard that an earlier try made is known again by what the store says that it is: its tag and length. Two processes that
//! pack the same into one place write the same bytes; nothing keeps them apart, as no lock is to be had there.

use super::PackError;
use super::plan::{Made, Plan, Record, shard_name};
use super::shard::Written;
use super::{Begun, DONE, PLAN, PROGRESS};
use crate::dataset::{CLASSES_FILE, SIDE_SUFFIX, has_extension};
use crate::remote::{Bucket, RemoteError, RemoteSpec, Upload};
use mcl_types::Digest;
use std::collections::HashSet;
use std::path::Path;

/// The target.
#[derive(Debug)]
pub(super) struct BucketTarget {
    bucket: Bucket,
    /// Names of the records that an earlier try left.
    records: HashSet<String>,
}

fn record_name(shard: u64) -> String {
    format!("{shard:06}.json")
}

fn index_name(shard: u64) -> String {
    format!("{}{SIDE_SUFFIX}", shard_name(shard))
}

impl BucketTarget {
    /// Reads what an earlier pack noted at the place.
    pub(super) fn open(address: &str, spec: &RemoteSpec) -> Result<(Self, Begun), PackError> {
        let bucket = Bucket::open(address, spec)?;
        let begun =
            Begun { plan: bucket.get(PLAN)?.map(Into::into), done: bucket.get(DONE)?.map(Into::into) };
        let is_packed = begun.plan.is_some() || begun.done.is_some();
        let is_tar = |name: &String| has_extension(Path::new(name), &["tar"]);
        if !is_packed && bucket.names("")?.iter().any(is_tar) {
            return Err(PackError::NotEmpty { target: address.to_owned() });
        }
        let records = match &begun.plan {
            Some(_) => bucket.names(PROGRESS)?.into_iter().collect(),
            None => HashSet::new(),
        };
        Ok((Self { bucket, records }, begun))
    }

    /// From here on the place is no data set.
    pub(super) fn begin(&self, plan: &Plan) -> Result<(), PackError> {
        Ok(self.bucket.put(PLAN, super::to_json(plan)?)?)
    }

    /// What an earlier try noted of a shard.
    pub(super) fn record(&self, shard: u64) -> Result<Option<Record>, PackError> {
        let name = record_name(shard);
        if !self.records.contains(&name) {
            return Ok(None);
        }
        let text = self.bucket.get(&format!("{PROGRESS}/{name}"))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Whether the objects of a shard are there and what they were.
    pub(super) fn has(&self, shard: u64, made: &Made) -> Result<bool, PackError> {
        let now = self.version(shard)?;
        Ok(now.is_some() && now == made.version)
    }

    /// What the store says that tar and index of a shard are.
    fn version(&self, shard: u64) -> Result<Option<(String, String)>, RemoteError> {
        let (tar, index) =
            (self.bucket.version(&shard_name(shard))?, self.bucket.version(&index_name(shard))?);
        Ok(tar.zip(index))
    }

    pub(super) fn create(&self, shard: u64) -> Upload<'_> {
        self.bucket.upload(&shard_name(shard))
    }

    pub(super) fn finish_shard(&self, shard: u64, written: Written<Upload<'_>>) -> Result<Made, PackError> {
        let Written { sink, bytes, hash, index } = written;
        let index_hash = Digest::of(&index);
        self.bucket.put(&index_name(shard), index)?;
        sink.finish()?;
        Ok(Made { bytes, tar: hash, index: index_hash, version: self.version(shard)? })
    }

    pub(super) fn keep(&self, shard: u64, record: &Record) -> Result<(), PackError> {
        Ok(self.bucket.put(&format!("{PROGRESS}/{}", record_name(shard)), super::to_json(record)?)?)
    }

    /// All shards are there: the place is a data set from here on.
    pub(super) fn end(&self, finished: Vec<u8>, shards: u64, classes: &[u8]) -> Result<(), PackError> {
        if !classes.is_empty() {
            self.bucket.put(CLASSES_FILE, classes.to_vec())?;
        }
        self.bucket.put(DONE, finished)?;
        self.bucket.remove(PLAN)?;
        for shard in 0..shards {
            self.bucket.remove(&format!("{PROGRESS}/{}", record_name(shard)))?;
        }
        Ok(())
    }

    pub(super) fn place_of(&self, shard: u64) -> String {
        self.bucket.url(&shard_name(shard))
    }
}
