//! A store that fails from its n-th change on: refused, or done without being told so.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
struct Budget {
    left: AtomicI64,
    refused: AtomicUsize,
    /// The change at which it fails is done all the same.
    done_untold: AtomicBool,
}

/// What becomes of a change.
enum Fate {
    Done,
    DoneUntold,
    Refused,
}

impl Budget {
    fn spend(&self) -> Fate {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return Fate::Done;
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        if left == 0 && self.done_untold.load(Ordering::SeqCst) { Fate::DoneUntold } else { Fate::Refused }
    }
}

fn full() -> Error {
    let source = Box::new(io::Error::from(io::ErrorKind::StorageFull));
    Error::Generic { store: "faulty", source }
}

/// A change under a budget.
async fn within<T>(budget: &Budget, change: impl Future<Output = Result<T>>) -> Result<T> {
    match budget.spend() {
        Fate::Done => change.await,
        Fate::Refused => Err(full()),
        Fate::DoneUntold => {
            change.await?;
            Err(full())
        }
    }
}

#[derive(Debug)]
pub struct FaultyStore {
    inside: Arc<dyn ObjectStore>,
    budget: Arc<Budget>,
    /// What is not given, by a part of its path.
    withheld: Mutex<Option<&'static str>>,
}

impl FaultyStore {
    pub fn new(inside: Arc<dyn ObjectStore>, good_changes: i64) -> Self {
        let budget = Arc::new(Budget::default());
        budget.left.store(good_changes, Ordering::SeqCst);
        Self { inside, budget, withheld: Mutex::default() }
    }
    /// Objects with this in their path are there, and not given.
    pub fn withhold(&self, part: Option<&'static str>) {
        *self.withheld.lock().unwrap() = part;
    }
    /// The first change that fails is done, and not told so.
    pub fn done_untold(self) -> Self {
        self.budget.done_untold.store(true, Ordering::SeqCst);
        self
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
        let (put, budget) = (self.inside.put_part(data), Arc::clone(&self.budget));
        async move { within(&budget, put).await }.boxed()
    }
    fn complete<'a, 'f>(&'a mut self) -> BoxFuture<'f, Result<PutResult>>
    where
        'a: 'f,
    {
        async { within(&self.budget, self.inside.complete()).await }.boxed()
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
        async { within(&self.budget, self.inside.put_opts(location, payload, opts)).await }.boxed()
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
        let withheld = self.withheld.lock().unwrap().is_some_and(|part| location.as_ref().contains(part));
        if withheld && !options.head {
            let (path, source) = (location.to_string(), Box::new(io::Error::other("403 Forbidden")));
            return async { Err(Error::PermissionDenied { path, source }) }.boxed();
        }
        self.inside.get_opts(location, options)
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inside, budget) = (Arc::clone(&self.inside), Arc::clone(&self.budget));
        locations
            .then(move |location| {
                let (inside, budget) = (Arc::clone(&inside), Arc::clone(&budget));
                async move {
                    let location = location?;
                    within(&budget, inside.delete(&location)).await.map(|()| location)
                }
            })
            .boxed()
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
