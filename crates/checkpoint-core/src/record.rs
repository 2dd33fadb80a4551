//! Small files beside the checkpoints that change: read, and replaced only where nobody else did meanwhile.
//!
//! Invariant: a write that returns is durable; where the store can compare, a write over a version that is no
//! longer there is refused. A local folder cannot compare: one service a folder. Left out: what is in them.

use crate::error::StoreError;
use crate::store::CheckpointStore;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};

/// Longest record read.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// A record as it was read.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its bytes.
    pub bytes: Bytes,
    version: UpdateVersion,
}

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Somebody else wrote it since it was read: read again.
    #[error("{path} was changed by somebody else; read it again")]
    Changed {
        /// Where it lies.
        path: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CheckpointStore {
    /// A record beside the runs; nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be read or is far too long.
    pub async fn read_record(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let path = Path::from(name);
        let got = match self.inner.objects.get(&path).await {
            Ok(got) => got,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.inner.read_error(&path, e)),
        };
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        if got.meta.size > MAX_RECORD_BYTES {
            let limit = MAX_RECORD_BYTES;
            return Err(StoreError::TooLarge { path: self.inner.shown(&path), found: got.meta.size, limit });
        }
        let bytes = got.bytes().await.map_err(|e| self.inner.read_error(&path, e))?;
        Ok(Some(Record { bytes, version }))
    }

    /// Writes a record in the place of `before`, as it was read; nothing: it must not be there yet.
    ///
    /// # Errors
    /// [`RecordError::Changed`] where the store can tell that it is no longer `before`; when the store fails.
    pub async fn write_record(
        &self,
        name: &str,
        bytes: Bytes,
        before: Option<&Record>,
    ) -> Result<(), RecordError> {
        let path = Path::from(name);
        let mode = match before {
            // Written by rename: whole, and without a comparison.
            _ if self.inner.local.is_some() => PutMode::Overwrite,
            Some(record) => PutMode::Update(record.version.clone()),
            None => PutMode::Create,
        };
        match self.inner.objects.put_opts(&path, PutPayload::from_bytes(bytes), mode.into()).await {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Err(RecordError::Changed { path: self.inner.shown(&path) })
            }
            Err(e) => Err(self.inner.write_error(&path, e).into()),
        }
    }
}
