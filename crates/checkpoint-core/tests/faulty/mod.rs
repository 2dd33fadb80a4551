//! A local store whose disk is full after a number of writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

#[derive(Debug, Default)]
struct Budget {
    left: AtomicI64,
    refused: AtomicUsize,
}

impl Budget {
    fn spend(&self) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        let source = Box::new(io::Error::from(io::ErrorKind::StorageFull));
        Err(Error::Generic { store: "faulty", source })
    }
}

#[derive(Debug)]
pub struct FaultyStore {
    inside: LocalFileSystem,
    budget: Arc<Budget>,
}

impl FaultyStore {
    pub fn new(root: &std::path::Path, good_writes: i64) -> Self {
        let budget = Arc::new(Budget::default());
        budget.left.store(good_writes, Ordering::SeqCst);
        Self { inside: LocalFileSystem::new_with_prefix(root).unwrap(), budget }
    }
    pub fn heal(&self) {
        self.budget.left.store(i64::MAX, Ordering::SeqCst);
    }
    pub fn refused(&self) -> usize {
        self.budget.refused.load(Ordering::SeqCst)
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty store")
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inside: Box<dyn MultipartUpload>,
    budget: Arc<Budget>,
}

impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.budget.spend() {
            Ok(()) => self.inside.put_part(data),
            Err(e) => futures::future::ready(Err(e)).boxed(),
        }
    }
    fn complete<'a, 'f>(&'a mut self) -> BoxFuture<'f, Result<PutResult>>
    where
        'a: 'f,
    {
        async { self.inside.complete().await }.boxed()
    }
    fn abort<'a, 'f>(&'a mut self) -> BoxFuture<'f, Result<()>>
    where
        'a: 'f,
    {
        async { self.inside.abort().await }.boxed()
    }
}

impl ObjectStore for FaultyStore {
    fn put_opts<'a, 'b, 'f>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> BoxFuture<'f, Result<PutResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        async {
            self.budget.spend()?;
            self.inside.put_opts(location, payload, opts).await
        }
        .boxed()
    }
    fn put_multipart_opts<'a, 'b, 'f>(
        &'a self,
        location: &'b Path,
        opts: PutMultipartOptions,
    ) -> BoxFuture<'f, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'f,
        'b: 'f,
    {
        async {
            let inside = self.inside.put_multipart_opts(location, opts).await?;
            let budget = Arc::clone(&self.budget);
            Ok(Box::new(FaultyUpload { inside, budget }) as Box<dyn MultipartUpload>)
        }
        .boxed()
    }
    fn get_opts<'a, 'b, 'f>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'f, Result<GetResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.inside.get_opts(location, options)
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inside.delete_stream(locations).boxed()
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inside.list(prefix)
    }
    fn list_with_delimiter<'a, 'b, 'f>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'f, Result<ListResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.inside.list_with_delimiter(prefix)
    }
    fn copy_opts<'a, 'b, 'c, 'f>(
        &'a self,
        from: &'b Path,
        to: &'c Path,
        options: CopyOptions,
    ) -> BoxFuture<'f, Result<()>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
    {
        self.inside.copy_opts(from, to, options)
    }
}
