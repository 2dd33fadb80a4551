//! Shards into an object store: what [`super::folder`] does, by requests.
//!
//! A shard that an earlier try made is known again by what the store says that it is: its tag and length. Two processes that
//! pack the same into one place write the same bytes; nothing keeps them apart, as no lock is to be had there.

use super::PackError;
use super::plan::{Made, Plan, Record, shard_name};
use super::shard::Written;
use super::{PLAN, PROGRESS};
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
    /// Begins a pack, or goes on with the same one.
    pub(super) fn begin(address: &str, plan: &Plan, spec: &RemoteSpec) -> Result<Self, PackError> {
        let bucket = Bucket::open(address, spec)?;
        match bucket.get(PLAN)? {
            Some(text) => {
                super::same_plan(plan, &text, address)?;
                let records = bucket.names(PROGRESS)?.into_iter().collect();
                return Ok(Self { bucket, records });
            }
            None if bucket.names("")?.iter().any(|name| has_extension(Path::new(name), &["tar"])) => {
                return Err(PackError::NotEmpty { target: address.to_owned() });
            }
            None => bucket.put(PLAN, super::to_json(plan)?)?,
        }
        Ok(Self { bucket, records: HashSet::new() })
    }

    pub(super) fn kept(&self, shard: u64) -> Result<Option<Record>, PackError> {
        let name = record_name(shard);
        if !self.records.contains(&name) {
            return Ok(None);
        }
        let Some(text) = self.bucket.get(&format!("{PROGRESS}/{name}"))? else { return Ok(None) };
        let Ok(record) = serde_json::from_slice::<Record>(&text) else { return Ok(None) };
        let Some(made) = &record.made else { return Ok(Some(record)) };
        let now = self.version(shard)?;
        let sound = now.is_some() && now == made.version;
        if !sound {
            let shard = self.place_of(shard);
            tracing::warn!(shard, "a shard of an earlier try is not what it was: it is packed again");
        }
        Ok(Some(record).filter(|_| sound))
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
    pub(super) fn end(&self, plan: &Plan, classes: &[u8]) -> Result<(), PackError> {
        if !classes.is_empty() {
            self.bucket.put(CLASSES_FILE, classes.to_vec())?;
        }
        self.bucket.remove(PLAN)?;
        for shard in 0..plan.shards() {
            self.bucket.remove(&format!("{PROGRESS}/{}", record_name(shard)))?;
        }
        Ok(())
    }

    pub(super) fn place_of(&self, shard: u64) -> String {
        self.bucket.url(&shard_name(shard))
    }
}
