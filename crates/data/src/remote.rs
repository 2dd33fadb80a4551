//! Tar shards in an object store, read through a bounded cache on the local disk; for packing, loose pictures and parquet
//! files too.
//!
//! Role: what lies at an address ([`mod@listing`]), each shard's index ([`shards`]), and any range of an object's bytes. Objects
//! are cut into blocks of equal size; a block comes by one ranged get and is kept in the cache folder, which all
//! processes of the machine share. Blocks that the loader will ask for are fetched before it does.
//!
//! Invariants: a reader gets the bytes of the version of the object that was there when the dataset was opened, or an error;
//! the cache stays within its bound; losing any of it costs time, nothing else.
//!
//! Left out: numbering, ids and digests of samples: they are those of the same shards in a folder (`dataset`).

mod blocks;
mod bucket;
mod cache;
mod client;
mod listing;
mod sealed;
mod shards;

pub(crate) use blocks::{BlockId, Remote};
pub(crate) use bucket::{Bucket, Upload};
pub(crate) use cache::{Cache, Place, walked_part};
pub(crate) use shards::{Away, OpenShard, look, storage_fault, write_indexes};

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a block: enough that a get's latency is small beside its transfer, few enough that one picture of a block
/// does not cost much.
const BLOCK_BYTES: u64 = 4 << 20;
/// Bytes kept on the disk where nothing else is said.
const CACHE_BYTES: u64 = 10_000_000_000;
/// How long a failing request is repeated; this is done anew a few times before a read fails.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// How remote shards are read.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// The folder of the cache. Processes may share it.
    pub cache_dir: PathBuf,
    /// Most bytes that are kept there.
    pub cache_bytes: u64,
    /// Bytes of one block; at least 1.
    pub block_bytes: u64,
    /// How long a failing request is repeated.
    pub retry_for: Duration,
    /// Credentials, region and endpoint, named as in the environment.
    pub settings: Vec<(String, String)>,
}

impl std::fmt::Debug for RemoteSpec {
    /// Of the settings, which hold secrets, the names alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let settings: Vec<&str> = self.settings.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RemoteSpec")
            .field("cache_dir", &self.cache_dir)
            .field("cache_bytes", &self.cache_bytes)
            .field("block_bytes", &self.block_bytes)
            .field("retry_for", &self.retry_for)
            .field("settings", &settings)
            .finish()
    }
}

impl Default for RemoteSpec {
    /// What the environment says, with a cache in the user's folder for caches.
    fn default() -> Self {
        Self {
            cache_dir: default_cache_dir(),
            cache_bytes: CACHE_BYTES,
            block_bytes: BLOCK_BYTES,
            retry_for: RETRY_FOR,
            settings: mcl_bucket::environment(),
        }
    }
}

/// `mcl/pictures` in `$XDG_CACHE_HOME`, `~/.cache`, or the folder for temporary files.
fn default_cache_dir() -> PathBuf {
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|f| f.is_absolute());
    let caches = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    caches.unwrap_or_else(std::env::temp_dir).join("mcl").join("pictures")
}

/// What an object store does not give.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    /// The store cannot be used at all.
    #[error(
        "{address} cannot be opened: {source}; check the address, and AWS_*, GOOGLE_* or AZURE_* in the environment"
    )]
    Address {
        /// The address.
        address: String,
        /// What is wrong.
        source: Arc<object_store::Error>,
    },
    /// A request failed, also when repeated.
    #[error(
        "{what} failed (tried {tries} times, each with repetitions where that may help): {source}; check the network, the store, and the credentials in the environment (AWS_*, GOOGLE_*, AZURE_*)"
    )]
    Failed {
        /// Which request.
        what: String,
        /// Times tried.
        tries: usize,
        /// The last failure.
        source: Arc<object_store::Error>,
    },
    /// The object is not the one that was listed.
    #[error(
        "{url} has changed since the dataset was opened: found {found}, expected {expected}; shards must not change under a run: put the old one back, or start again"
    )]
    Changed {
        /// The object.
        url: String,
        /// What is there now.
        found: String,
        /// What was there.
        expected: String,
    },
    /// Threads or the runtime for requests cannot be had.
    #[error("cannot start what makes requests: {source}")]
    Start {
        /// Why.
        source: Arc<io::Error>,
    },
    /// The dataset is being closed.
    #[error("the dataset is being closed")]
    Stopped,
}

impl RemoteError {
    /// Whether starting again later may help: an outage, and not a wrong address, key or shard.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Failed { source, .. } => client::may_pass(source),
            Self::Start { .. } | Self::Stopped => true,
            Self::Address { .. } | Self::Changed { .. } => false,
        }
    }
}

/// What reading from the object store came to so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Blocks that were fetched.
    pub gets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Reads that had to wait for a block.
    pub waits: u64,
}
