//! An S3 server on loopback, over a temporary folder, that can be slow, fail and drop what it answers.
//!
//! The protocol is a library's (`s3s-fs`); only the faults are ours. Faults are taken from a list, one a request,
//! so that a test says exactly which request meets which. Left out: TLS.

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const ACCESS_KEY: &str = "test-access";
const SECRET_KEY: &str = "test-secret";
const BUCKET: &str = "bucket";

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Served.
    None,
    /// Served after this long.
    Slow(Duration),
    /// Not served: "503 Slow Down".
    Refuse,
    /// Not served: the connection ends.
    DropRequest,
    /// Served, and the connection ends before the answer.
    DropAnswer,
}

#[derive(Debug, Default)]
struct Faults {
    list: Mutex<VecDeque<Fault>>,
    met: AtomicU64,
    requests: AtomicU64,
}

/// A running server; it and what it holds end with this value.
#[derive(Debug)]
pub struct S3Server {
    folder: tempfile::TempDir,
    endpoint: String,
    faults: Arc<Faults>,
    runtime: Option<Runtime>,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Not waited for: the test may be inside a runtime of its own.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl S3Server {
    /// Starts one with an empty bucket.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let faults = Arc::new(Faults::default());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(accept(listener, service, Arc::clone(&faults)));
        Self { folder, endpoint, faults, runtime: Some(runtime) }
    }

    /// What a program that uses it needs in its environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// The address of a place in it.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The bucket, and where the file behind an object of it is.
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }

    /// Files of multipart uploads that were neither completed nor aborted: a note of each, and its parts.
    pub fn left_of_uploads(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with(".upload")).collect()
    }

    /// The next requests meet these, in this order.
    pub fn meet(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.list.lock().unwrap().extend(faults);
    }

    /// No request meets a fault any more.
    pub fn forget(&self) {
        self.faults.list.lock().unwrap().clear();
    }

    /// How many requests met a fault, of those told to.
    pub fn met(&self) -> u64 {
        self.faults.met.load(Ordering::SeqCst)
    }

    /// How many requests came.
    pub fn requests(&self) -> u64 {
        self.faults.requests.load(Ordering::SeqCst)
    }
}

async fn accept(listener: std::net::TcpListener, service: S3Service, faults: Arc<Faults>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (service, faults) = (service.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            let serve = service_fn(move |request| answer(service.clone(), Arc::clone(&faults), request));
            let builder = Builder::new(TokioExecutor::new());
            // A connection that a fault ended is an error here, and meant.
            drop(builder.serve_connection(TokioIo::new(socket), serve).await);
        });
    }
}

async fn answer(
    service: S3Service,
    faults: Arc<Faults>,
    request: Request<Incoming>,
) -> io::Result<Response<s3s::Body>> {
    faults.requests.fetch_add(1, Ordering::SeqCst);
    let fault = faults.list.lock().unwrap().pop_front().unwrap_or(Fault::None);
    if fault != Fault::None {
        faults.met.fetch_add(1, Ordering::SeqCst);
    }
    let cut = || io::Error::from(io::ErrorKind::ConnectionReset);
    match fault {
        Fault::DropRequest => return Err(cut()),
        Fault::Refuse => {
            let mut refused =
                Response::new(s3s::Body::from("<Error><Code>SlowDown</Code></Error>".to_owned()));
            *refused.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(refused);
        }
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::None | Fault::DropAnswer => {}
    }
    let answer = service.call(request.map(s3s::Body::from)).await.map_err(|_| cut())?;
    if fault == Fault::DropAnswer { Err(cut()) } else { Ok(answer) }
}
