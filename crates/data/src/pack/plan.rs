//! What a pack is, and what of it is done: both are kept beside the shards.
//!
//! Shard `i` holds the readable ones of the source's pictures from `i * samples_per_shard` on, whoever writes it and when. So
//! shards can be written side by side, and one that is there need not be written again.

use super::{PackError, PackSpec, Shrink};
use mcl_types::Digest;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Raised where the same source and settings give other bytes than before.
const VERSION: u32 = 1;

/// A pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    version: u32,
    /// Of the source: ids, lengths, labels, and when its files were written.
    source: Digest,
    samples: u64,
    samples_per_shard: u64,
    shrink: Option<Shrink>,
}

impl Plan {
    pub(super) const fn new(source: Digest, samples: u64, spec: &PackSpec) -> Self {
        let PackSpec { samples_per_shard, shrink, .. } = *spec;
        Self { version: VERSION, source, samples, samples_per_shard, shrink }
    }

    pub(super) const fn samples(&self) -> u64 {
        self.samples
    }

    pub(super) const fn shrink(&self) -> Option<Shrink> {
        self.shrink
    }

    /// Number of shards.
    pub(super) const fn shards(&self) -> u64 {
        self.samples.div_ceil(self.samples_per_shard)
    }

    /// The pictures of a shard.
    pub(super) fn range(&self, shard: u64) -> Range<u64> {
        let first = shard.saturating_mul(self.samples_per_shard).min(self.samples);
        first..first.saturating_add(self.samples_per_shard).min(self.samples)
    }

    /// Refuses to go on in `target` with what was begun there, where that is another pack.
    pub(super) fn is_same_as(&self, begun: &Self, target: &str, finished: bool) -> Result<(), PackError> {
        let other = begun.difference(self);
        other.map_or(Ok(()), |difference| {
            Err(PackError::OtherPlan { target: target.to_owned(), finished, difference })
        })
    }

    /// How another plan for the same target differs, in words; `None` where it does not.
    fn difference(&self, other: &Self) -> Option<String> {
        let shrink = |plan: &Self| match plan.shrink {
            Some(Shrink { short_side, quality }) => {
                format!("a shorter side of {short_side} at quality {quality}")
            }
            None => "pictures as they are".to_owned(),
        };
        if self.version != other.version {
            Some(format!("another version of this program ({} and {})", self.version, other.version))
        } else if self.samples_per_shard != other.samples_per_shard {
            Some(format!("{} pictures a shard, and not {}", self.samples_per_shard, other.samples_per_shard))
        } else if self.shrink != other.shrink {
            Some(format!("{}, and not {}", shrink(self), shrink(other)))
        } else if (self.source, self.samples) != (other.source, other.samples) {
            Some(format!(
                "another source, of {} pictures and not {}, or one that has changed",
                self.samples, other.samples
            ))
        } else {
            None
        }
    }
}

/// The file name of a shard.
pub(super) fn shard_name(shard: u64) -> String {
    format!("shard-{shard:06}.tar")
}

/// A pack that came to its end: stays beside the shards, so that the same command given once more finds nothing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) plan: Plan,
    pub(super) shards: Vec<Record>,
}

/// A shard that is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The files; none where no picture of the shard could be read.
    pub(super) made: Option<Made>,
    /// Pictures in it.
    pub(super) samples: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Those that were shrunk.
    pub(super) shrunk: u64,
    /// What was left out.
    pub(super) skipped: Complaints,
    /// What was packed and is no picture that can be decoded.
    pub(super) ill_formed: Complaints,
}

/// Complaints of one pack that are listed, beyond those of the shards under way: a source may have any number of empty rows.
const LISTED: u64 = 200_000;

impl Record {
    /// Drops the lists where very many complaints are `listed` already.
    pub(super) fn shorten(&mut self, listed: &AtomicU64) {
        let more = (self.skipped.listed.len() + self.ill_formed.listed.len()) as u64;
        if listed.fetch_add(more, Ordering::Relaxed) > LISTED {
            self.skipped.listed = Vec::new();
            self.ill_formed.listed = Vec::new();
        }
    }
}

/// Pictures with something wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Complaints {
    /// All of them.
    pub(super) count: u64,
    /// Ids and reasons.
    pub(super) listed: Vec<(String, String)>,
}

impl Complaints {
    pub(super) fn add(&mut self, id: &str, reason: String) {
        self.count += 1;
        self.listed.push((id.to_owned(), reason));
    }
}

/// By what the files of a shard are known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// Bytes of the tar.
    pub(super) bytes: u64,
    /// Hash of the tar; an object store has its own word for it in `version`.
    pub(super) tar: Digest,
    /// Hash of its side index.
    pub(super) index: Digest,
    /// What an object store says that tar and index are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(samples: u64, samples_per_shard: u64) -> Plan {
        Plan::new(Digest::of(b"x"), samples, &PackSpec { samples_per_shard, ..PackSpec::default() })
    }

    #[test]
    fn shards_divide_the_samples() {
        let plan = plan(10, 4);
        assert_eq!(plan.shards(), 3);
        let ranges: Vec<_> = (0..4).map(|shard| plan.range(shard)).collect();
        assert_eq!(ranges, [0..4, 4..8, 8..10, 10..10]);
    }

    #[test]
    fn plans_that_differ_say_how() {
        let one = plan(10, 4);
        assert_eq!(one.difference(&one.clone()), None);
        let said = |other: &Plan| one.difference(other).unwrap();
        assert!(said(&plan(10, 5)).contains("4 pictures a shard, and not 5"));
        assert!(said(&plan(11, 4)).contains("another source"));
        let small = Some(Shrink { short_side: 9, quality: 80 });
        assert!(said(&Plan { shrink: small, ..one }).contains("shorter side of 9 at quality 80"));
        assert!(said(&Plan { version: 2, ..one }).contains("version"));
    }
}
