//! A connection that was let in, until its end.
//!
//! Invariants: it holds its place as long as it is open; it ends where no call begins in time.

use crate::census::Place;
use crate::limits::{Allowance, Limits};
use crate::refusals::{Refusal, Refusals};
use crate::rules::Caller;
use bytes::{Buf, Bytes};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::transport::server::Connected;

/// Who calls, from where, and how much they called: an extension of every request.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    shared: Arc<Info>,
}

#[derive(Debug)]
struct Info {
    address: SocketAddr,
    caller: Caller,
    limits: Limits,
    refusals: Refusals,
    opened: Instant,
    called: AtomicBool,
    allowance: Mutex<Allowance>,
}

impl ConnectionInfo {
    pub(crate) fn new(address: SocketAddr, caller: Caller, limits: Limits, refusals: Refusals) -> Self {
        let allowance = Mutex::new(Allowance::new(&limits));
        let called = AtomicBool::new(false);
        let opened = Instant::now();
        Self { shared: Arc::new(Info { address, caller, limits, refusals, opened, called, allowance }) }
    }

    /// Who it is.
    pub fn caller(&self) -> &Caller {
        &self.shared.caller
    }

    /// Where from.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Whether it may say of itself that it is the worker of this name.
    ///
    /// # Errors
    /// Says which name it may use.
    pub fn check_worker(&self, name: &str) -> Result<(), String> {
        match &self.shared.caller {
            Caller::Known(holder) if !holder.may_be_called(name) => {
                let own = holder.name.as_ref().map_or("", |n| n.as_str());
                Err(format!(
                    "worker `{name}` shows the certificate of `{own}`: start it with --name {own}, or issue one for \
                     `{name}`"
                ))
            }
            Caller::Known(_) | Caller::Unchecked => Ok(()),
        }
    }

    /// Counts a refusal, for this reason.
    pub fn refused_because(&self, refusal: Refusal, reason: &str) {
        self.shared.refusals.count(refusal, format_args!("{}, {reason}", self.shared.address));
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        self.shared.refusals.count(refusal, self.shared.address);
    }

    /// A call begins: whether it is not one too many.
    pub(crate) fn call(&self) -> bool {
        self.shared.called.store(true, Ordering::Relaxed);
        let now = self.shared.opened.elapsed();
        let mut allowance = self.shared.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.take(&self.shared.limits, now)
    }
}

/// What a status says of a message that could not be taken, if it says that.
pub fn unreadable(status: &Status) -> Option<Refusal> {
    let message = status.message();
    match status.code() {
        tonic::Code::OutOfRange if message.contains("message length too large") => Some(Refusal::TooLarge),
        tonic::Code::Internal
            if message.contains("failed to decode Protobuf")
                || message.contains("invalid compression flag") =>
        {
            Some(Refusal::Malformed)
        }
        _ => None,
    }
}

/// Bytes in and out.
pub(crate) enum Pipe {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// See the module.
pub struct Connection {
    pipe: Pipe,
    /// What was read to see who it is.
    early: Bytes,
    info: ConnectionInfo,
    /// Until the first call begins.
    patience: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    pub(crate) fn new(pipe: Pipe, early: Bytes, info: ConnectionInfo, place: Place) -> Self {
        let until = info.shared.opened + info.shared.limits.first_call;
        let patience = Some(Box::pin(tokio::time::sleep_until(until)));
        Self { pipe, early, info, patience, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(patience) = &mut this.patience {
            if this.info.shared.called.load(Ordering::Relaxed) {
                this.patience = None;
            } else if patience.as_mut().poll(cx).is_ready() {
                this.patience = None;
                this.info.refused(Refusal::SlowHeader);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no call began in time")));
            }
        }
        if this.early.has_remaining() {
            let part = this.early.split_to(this.early.len().min(buf.remaining()));
            buf.put_slice(&part);
            return Poll::Ready(Ok(()));
        }
        match &mut this.pipe {
            Pipe::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Pipe::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Pipe::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Pipe::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.pipe {
            Pipe::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Pipe::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.pipe {
            Pipe::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Pipe::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Pipe::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Pipe::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.pipe {
            Pipe::Plain(tcp) => tcp.is_write_vectored(),
            Pipe::Tls(tls) => tls.is_write_vectored(),
        }
    }
}
