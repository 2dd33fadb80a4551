//! Connections: how many, how slow, how long.
//!
//! Invariants: connections, their buffers and the time that a request's head may take have bounds; whoever does not
//! read what it is sent is cut off; nothing here can hold up anything but the page.

use crate::access::Refused;
use crate::model::Cluster;
use crate::page::Page;
use crate::routes::{Peer, VIEWERS, router};
use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

/// Connections at once: every viewer's, and those of some requests besides.
const CONNECTIONS: usize = 3 * VIEWERS;
/// How long the head of a request may take, and how long a connection may stay without one.
const HEAD: Duration = Duration::from_secs(10);
/// How long one that is written to may read nothing.
const UNREAD: Duration = Duration::from_secs(20);
/// Lines of a head.
const HEAD_LINES: usize = 64;
/// Bytes of a head, and of what waits to be sent.
const BUFFER: usize = 32 << 10;
/// After an accept that failed: usually for want of files.
const PAUSE: Duration = Duration::from_millis(200);
/// How long last words may take to reach viewers.
const FAREWELL: Duration = Duration::from_millis(300);

/// Serves the page at a listener until `shutdown`, and tells viewers what changes.
pub async fn serve<C: Cluster>(
    page: Page<C>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) {
    let routes = router(page.clone());
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let (mut shutdown, mut ticks) = (pin!(shutdown), pin!(page.tick()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ticks => continue,
            () = &mut shutdown => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let (page, routes) = (page.clone(), routes.clone());
                    connections.spawn(async move {
                        connection(&page, routes, stream, from.ip()).await;
                        drop(place);
                    });
                }
                Err(_) => page.count_refusal(Refused::Connections),
            },
            Err(error) => {
                tracing::warn!(%error, "the page cannot take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tokio::time::sleep(FAREWELL).await;
}

async fn connection<C: Cluster>(page: &Page<C>, routes: Router, stream: TcpStream, from: IpAddr) {
    // Answers are small and complete: waiting for more of them helps nobody.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(from));
        routes.clone().oneshot(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(HEAD_LINES)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .await;
    let Err(error) = served else { return };
    tracing::debug!(%from, %error, "page connection");
    if error.is_timeout() {
        page.count_refusal(Refused::Slow);
    } else if error.is_parse() {
        page.count_refusal(Refused::Request);
    }
}
