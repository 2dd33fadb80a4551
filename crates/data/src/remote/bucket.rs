//! A place in an object store that is written to.
//!
//! Invariants: an object appears under its name when all of it is there, or not at all; a large one goes up in parts, of which
//! one is in memory; one that is given up is ended in the store.

use super::client::{Client, WAITS};
use super::{RemoteError, RemoteSpec};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload};
use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Bytes of a part: at least 5 MiB is asked for, and ten thousand parts are to hold any shard.
const PART: usize = 16 << 20;

/// The place.
#[derive(Debug)]
pub(crate) struct Bucket {
    client: Client,
    /// Set until the end: shut down without waiting, since that may happen inside another runtime.
    runtime: Option<Runtime>,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.client.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bucket {
    pub(crate) fn open(address: &str, spec: &RemoteSpec) -> Result<Self, RemoteError> {
        let (client, runtime) = Client::open(address, spec)?;
        Ok(Self { client, runtime: Some(runtime) })
    }

    fn path(&self, name: &str) -> Path {
        Path::parse(format!("{}/{name}", self.client.prefix).trim_start_matches('/')).unwrap_or_default()
    }

    /// The address of an object.
    pub(crate) fn url(&self, name: &str) -> String {
        self.client.url(&self.path(name))
    }

    /// File names of the objects directly at the place, or at a place below it.
    pub(crate) fn names(&self, below: &str) -> Result<Vec<String>, RemoteError> {
        let place = self.path(below);
        let listed = self.client.ask(
            || format!("listing {}", self.client.url(&place)),
            |store| {
                let place = place.clone();
                async move { store.list_with_delimiter(Some(&place)).await }
            },
        )?;
        let names = listed.objects.iter().filter_map(|object| object.location.filename());
        Ok(names.map(str::to_owned).collect())
    }

    /// A small object, where there is one.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Bytes>, RemoteError> {
        let Some(object) = self.client.head(&self.path(name))? else { return Ok(None) };
        self.client.get(&object, 0..object.size).map(Some)
    }

    /// Writes a small object.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), RemoteError> {
        self.client.put(&self.path(name), &Bytes::from(bytes))
    }

    /// Removes an object; one that is not there is no error.
    pub(crate) fn remove(&self, name: &str) -> Result<(), RemoteError> {
        let path = self.path(name);
        self.client.ask(
            || format!("removing {}", self.client.url(&path)),
            |store| {
                let path = path.clone();
                async move {
                    match store.delete(&path).await {
                        Err(object_store::Error::NotFound { .. }) => Ok(()),
                        other => other,
                    }
                }
            },
        )
    }

    /// What the store says that an object is, which is another word when it is another one; `None` where there is none.
    pub(crate) fn version(&self, name: &str) -> Result<Option<String>, RemoteError> {
        Ok(self.client.head(&self.path(name))?.map(|object| object.version()))
    }

    /// Begins to write an object.
    pub(crate) fn upload(&self, name: &str) -> Upload<'_> {
        Upload { bucket: self, path: self.path(name), buffer: Vec::new(), parts: None }
    }
}

/// An object that is being written.
#[derive(Debug)]
pub(crate) struct Upload<'a> {
    bucket: &'a Bucket,
    path: Path,
    buffer: Vec<u8>,
    /// Set where it goes up in parts.
    parts: Option<Box<dyn MultipartUpload>>,
}

impl Upload<'_> {
    /// Makes the object appear.
    pub(crate) fn finish(mut self) -> Result<(), RemoteError> {
        if self.parts.is_none() {
            return self.bucket.client.put(&self.path, &Bytes::from(mem::take(&mut self.buffer)));
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        self.with_parts("ending the upload of", |mut parts| async move {
            let done = parts.complete().await;
            (parts, done.map(drop))
        })?;
        self.parts = None;
        Ok(())
    }

    /// Sends what is in the buffer as a part.
    fn send(&mut self) -> Result<(), RemoteError> {
        if self.parts.is_none() {
            let (client, path) = (&self.bucket.client, self.path.clone());
            let begin = |store: Arc<dyn ObjectStore>| {
                let path = path.clone();
                async move { store.put_multipart(&path).await }
            };
            self.parts = Some(client.ask(|| format!("beginning to write {}", client.url(&path)), begin)?);
        }
        let part = PutPayload::from(Bytes::from(mem::take(&mut self.buffer)));
        self.with_parts("writing a part of", |mut parts| async move {
            let sent = parts.put_part(part).await;
            (parts, sent)
        })
    }

    /// One request about the parts. It is not made again here: a part that was asked for twice would count twice.
    fn with_parts<F>(
        &mut self,
        what: &str,
        request: impl FnOnce(Box<dyn MultipartUpload>) -> F,
    ) -> Result<(), RemoteError>
    where
        F: Future<Output = (Box<dyn MultipartUpload>, Result<(), object_store::Error>)> + Send + 'static,
    {
        let Some(parts) = self.parts.take() else { return Ok(()) };
        let request = request(parts);
        let (parts, done) = self.bucket.client.run(request)?;
        self.parts = Some(parts);
        done.map_err(|source| RemoteError::Failed {
            what: format!("{what} {}", self.bucket.client.url(&self.path)),
            tries: 1,
            source: Arc::new(source),
        })
    }
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PART - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PART {
            self.send().map_err(io::Error::other)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        // Parts of an upload that nobody ends are kept, and paid for. Not tried for long: the store may be away.
        let mut waits = WAITS.iter();
        loop {
            let ended = self.with_parts("giving up", |mut parts| async move {
                let done = parts.abort().await;
                (parts, done)
            });
            let Err(error) = ended else { return };
            if !waits.next().is_some_and(|wait| self.bucket.client.sleep(*wait)) {
                tracing::warn!(%error, "an upload that was given up may be left in the store");
                return;
            }
        }
    }
}
