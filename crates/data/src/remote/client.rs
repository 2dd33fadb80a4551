//! Requests to the object store, for threads: each call waits for its answer.
//!
//! The store's library repeats what a repetition may help (timeouts, refusals, broken connections, a body that ends early)
//! with growing waits; what is left after that is tried a few times more, since a training job should outlive an outage of
//! minutes. What no repetition changes (not there, not allowed) fails at once.

use super::{RemoteError, RemoteSpec};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};

/// Waits before a request that failed for good as its library sees it is made again.
pub(super) const WAITS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// Threads that move bytes between sockets and memory.
const IO_THREADS: usize = 2;

/// An object as it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) path: Path,
    pub(super) size: u64,
    /// Changes with the content; without quotes, which some stores put around it in some answers.
    tag: Option<String>,
    /// Unix seconds: answers with a body have no finer time.
    modified: i64,
}

impl Object {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let plain = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').to_owned();
        Self {
            path: meta.location.clone(),
            size: meta.size,
            tag: meta.e_tag.as_deref().map(plain),
            modified: meta.last_modified.timestamp(),
        }
    }

    /// Whether its version is known by more than its length and age.
    pub(super) const fn is_tagged(&self) -> bool {
        self.tag.is_some()
    }

    /// Whether an answer is about the same content.
    fn is_same(&self, other: &Self) -> bool {
        let same_tag = match (&self.tag, &other.tag) {
            (Some(a), Some(b)) => a == b,
            _ => self.modified == other.modified,
        };
        self.size == other.size && same_tag
    }

    /// The version in words.
    pub(super) fn version(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{} bytes with tag {tag}", self.size),
            None => format!("{} bytes of Unix time {}", self.size, self.modified),
        }
    }

    /// Names it and its version in the cache.
    pub(super) fn key(&self, url: &str) -> String {
        let version = self.tag.clone().unwrap_or_else(|| self.modified.to_string());
        let mut hasher = blake3::Hasher::new();
        for part in [url, &self.size.to_string(), &version] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hex::encode(&hasher.finalize().as_bytes()[..16])
    }
}

/// A bucket, and how it is asked.
pub(super) struct Client {
    store: Arc<dyn ObjectStore>,
    /// Scheme and bucket.
    root: String,
    /// As it was given.
    pub(super) address: String,
    /// What the address names in the bucket.
    pub(super) prefix: Path,
    runtime: Handle,
    stopped: Mutex<bool>,
    stopping: Condvar,
}

impl std::fmt::Debug for Client {
    /// Without the store itself, which may show its credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens the store; the runtime must live as long as requests are made.
    pub(super) fn open(address: &str, spec: &RemoteSpec) -> Result<(Self, Runtime), RemoteError> {
        let retry = RetryConfig { retry_timeout: spec.retry_for, ..RetryConfig::default() };
        let opened = mcl_bucket::open(address, spec.settings.iter().cloned(), retry);
        let (store, prefix) = opened.map_err(|source| RemoteError::Address {
            address: address.to_owned(),
            source: Arc::new(source),
        })?;
        // Last of what may fail: dropping a runtime waits, which is not allowed inside another.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("mcl-remote")
            .enable_all()
            .build()
            .map_err(|source| RemoteError::Start { source: Arc::new(source) })?;
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        let root = format!("{scheme}://{}", rest.split('/').next().unwrap_or(rest));
        let client = Self {
            store,
            root,
            address: address.to_owned(),
            prefix,
            runtime: runtime.handle().clone(),
            stopped: Mutex::new(false),
            stopping: Condvar::new(),
        };
        Ok((client, runtime))
    }

    /// The address of an object.
    pub(super) fn url(&self, path: &Path) -> String {
        format!("{}/{path}", self.root)
    }

    /// From now on nothing is repeated.
    pub(super) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopping.notify_all();
    }

    /// Waits, unless it is stopped meanwhile: then false.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = self.stopping.wait_timeout_while(stopped, time, |stopped| !*stopped);
        !*woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Runs `request` on the runtime and waits for it, wherever the caller's thread is from.
    pub(super) fn run<T, F>(&self, request: F) -> Result<T, RemoteError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (tell, heard) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            // Nobody may be waiting any more.
            let _ = tell.send(request.await);
        });
        // The runtime drops what it runs when it is shut down.
        heard.recv().map_err(|_| RemoteError::Stopped)
    }

    /// Makes a request until it is answered, or until no more repetitions help.
    pub(super) fn ask<T, F>(
        &self,
        what: impl Fn() -> String,
        request: impl Fn(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, RemoteError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut tries = 0;
        loop {
            let source = match self.run(request(Arc::clone(&self.store)))? {
                Ok(answer) => return Ok(answer),
                Err(e) => e,
            };
            let wait = WAITS.get(tries).filter(|_| may_pass(&source));
            tries += 1;
            match wait {
                Some(wait) => {
                    tracing::warn!(error = %source, what = what(), tries, "the object store failed; asking again");
                    if !self.sleep(*wait) {
                        return Err(RemoteError::Stopped);
                    }
                }
                None => return Err(RemoteError::Failed { what: what(), tries, source: Arc::new(source) }),
            }
        }
    }

    /// What is at `path`, if anything is.
    pub(super) fn head(&self, path: &Path) -> Result<Option<Object>, RemoteError> {
        self.ask(|| format!("asking for {}", self.url(path)), |store| look(store, path.clone()))
    }

    /// A range of an object, which must be the version that was listed.
    pub(super) fn get(&self, object: &Object, range: Range<u64>) -> Result<Bytes, RemoteError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let what = || format!("reading bytes {}-{} of {}", range.start, range.end, self.url(&object.path));
        let answer = self.ask(what, |store| {
            let (path, range) = (object.path.clone(), range.clone());
            async move {
                let expected = range.end - range.start;
                let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
                let got = store.get_opts(&path, options).await?;
                let (meta, bytes) = (got.meta.clone(), got.bytes().await?);
                let found = bytes.len() as u64;
                let about = Object::of(&meta);
                if found == expected || about.size < expected {
                    return Ok((about, bytes));
                }
                let said = format!("{found} bytes came, expected {expected}");
                Err(Error::Generic { store: "remote shard", source: said.into() })
            }
        });
        let changed = |found: String| RemoteError::Changed {
            url: self.url(&object.path),
            found,
            expected: object.version(),
        };
        match answer {
            Ok((about, bytes)) if object.is_same(&about) && bytes.len() as u64 == range.end - range.start => {
                Ok(bytes)
            }
            Ok((about, _)) => Err(changed(about.version())),
            Err(RemoteError::Stopped) => Err(RemoteError::Stopped),
            // A range beyond the end of a shorter one is refused, and what is gone is not found.
            Err(failed) => match self.run(look(Arc::clone(&self.store), object.path.clone()))? {
                Ok(None) => Err(changed("nothing".to_owned())),
                Ok(Some(now)) if !object.is_same(&now) => Err(changed(now.version())),
                Ok(Some(_)) | Err(_) => Err(failed),
            },
        }
    }

    /// Writes an object in the place of one that may be there.
    pub(super) fn put(&self, path: &Path, bytes: &Bytes) -> Result<(), RemoteError> {
        let what = || format!("writing {}", self.url(path));
        self.ask(what, |store| {
            let (path, payload) = (path.clone(), PutPayload::from_bytes(bytes.clone()));
            async move { store.put(&path, payload).await.map(drop) }
        })
    }
}

/// What is at `path`, if anything is.
async fn look(store: Arc<dyn ObjectStore>, path: Path) -> Result<Option<Object>, Error> {
    match store.head(&path).await {
        Ok(meta) => Ok(Some(Object::of(&meta))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether asking again may help.
pub(super) const fn may_pass(error: &Error) -> bool {
    !matches!(
        error,
        Error::NotFound { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. }
    )
}
