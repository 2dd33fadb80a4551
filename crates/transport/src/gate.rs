//! A service's gate: who comes in, how many, how fast.
//!
//! Invariants: what has not shown yet who it is takes a bounded number of places, for a bounded time, and the oldest of
//! it makes room: it cannot keep anybody else out. Whatever goes wrong with one connection ends that one alone. Left
//! out: what is called (`guard`, `rules`).

use crate::census::{Census, Place};
use crate::certificate::Certificate;
use crate::connection::{Connection, ConnectionInfo, Pipe};
use crate::guard::GuardLayer;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::refusals::{Refusal, Refusals};
use crate::rules::Caller;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_stream::Stream;
use tonic::transport::Server;
use tower_layer::Stack;

/// How every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often the log is told what was refused, and certificates are looked at while nobody comes.
const TELL: Duration = Duration::from_secs(10);
/// Pause where no connection can be accepted: out of files, for one.
const PAUSE: Duration = Duration::from_millis(50);
/// A peer that vanished, or that has stopped in the middle of a frame, is noticed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Connections taken from the listener before others get their turn.
const AT_ONCE: usize = 64;

/// See the module. Clones share counters.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    identity: Option<Identity>,
    limits: Limits,
    refusals: Refusals,
    census: Census,
}

impl Gate {
    /// With TLS where there is an identity.
    pub fn new(identity: Option<Identity>, limits: Limits) -> Self {
        Self { identity, limits, ..Self::default() }
    }

    /// What was refused.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.census.connections()
    }

    /// The service's own certificate, where it has one.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// A server within the limits and behind the rules; the caller adds its services.
    pub fn server(&self) -> Server<Stack<GuardLayer, tower_layer::Identity>> {
        Server::builder()
            .layer(GuardLayer)
            .max_concurrent_streams(self.limits.streams)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
    }

    /// The connections that are let in. Dropping it closes the listener.
    pub fn admit(&self, listener: TcpListener) -> Incoming {
        let files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let limits = files.map_or(self.limits, |(soft, _)| self.limits.within_files(soft));
        let mut tell = tokio::time::interval(TELL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Incoming {
            gate: Self { limits, ..self.clone() },
            listener,
            handshakes: JoinSet::new(),
            waiting: VecDeque::new(),
            tell,
            pause: None,
        }
    }
}

/// See [`Gate::admit`].
pub struct Incoming {
    gate: Gate,
    listener: TcpListener,
    handshakes: JoinSet<Option<Connection>>,
    /// The same in the order in which they began; some may be over.
    waiting: VecDeque<(AbortHandle, SocketAddr)>,
    tell: Interval,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while this.tell.poll_tick(cx).is_ready() {
            this.tell();
        }
        loop {
            if let Some(connection) = this.poll_handshakes(cx) {
                return Poll::Ready(Some(Ok(connection)));
            }
            if !this.poll_listener(cx) {
                return Poll::Pending;
            }
        }
    }
}

impl Incoming {
    /// Somebody whose handshake went well. Where there is nobody, the task is woken by the next that ends.
    fn poll_handshakes(&mut self, cx: &mut Context<'_>) -> Option<Connection> {
        while let Poll::Ready(Some(ended)) = self.handshakes.poll_join_next(cx) {
            match ended {
                Ok(Some(connection)) => return Some(connection),
                Ok(None) => {}
                Err(error) => told(&error),
            }
        }
        None
    }

    /// Takes some connections from the listener; whether any came.
    fn poll_listener(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.pause = None;
        }
        for came in 0..AT_ONCE {
            match self.listener.poll_accept(cx) {
                Poll::Ready(Ok((tcp, address))) => self.begin(tcp, address),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "no connection can be accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                    return true;
                }
                Poll::Pending => return came > 0,
            }
        }
        true
    }

    fn begin(&mut self, tcp: TcpStream, address: SocketAddr) {
        let place = match self.gate.census.enter(address.ip(), &self.gate.limits) {
            Ok(place) => place,
            Err(refusal) => return self.gate.refusals.count(refusal, address),
        };
        if self.handshakes.len() >= self.gate.limits.handshakes {
            self.make_room();
        }
        let handshake = shake_hands(self.gate.clone(), tcp, address, place);
        let handle = self.handshakes.spawn(handshake);
        self.waiting.push_back((handle, address));
        // What is over at the front is forgotten; behind one that waits for long the list is cut now and then.
        while self.waiting.front().is_some_and(|(handle, _)| handle.is_finished()) {
            self.waiting.pop_front();
        }
        if self.waiting.len() > 4 * self.gate.limits.handshakes.max(16) {
            self.waiting.retain(|(handle, _)| !handle.is_finished());
        }
    }

    /// Ends the oldest handshake.
    fn make_room(&mut self) {
        while let Some((handle, address)) = self.waiting.pop_front() {
            if !handle.is_finished() {
                handle.abort();
                return self.gate.refusals.count(Refusal::MadeRoom, address);
            }
        }
    }

    fn tell(&self) {
        if let Some(news) = self.gate.refusals.news() {
            tracing::warn!(
                connections = self.gate.connections(),
                refused = news,
                "connections or calls refused"
            );
        }
        if let Some(identity) = self.gate.identity.clone() {
            tokio::spawn(async move { identity.current().await });
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(news) = self.gate.refusals.news() {
            tracing::warn!(refused = news, "connections or calls refused");
        }
    }
}

fn told(error: &JoinError) {
    if !error.is_cancelled() {
        let task: Id = error.id();
        tracing::error!(%error, %task, "a handshake broke down");
    }
}

/// Finds out who it is, in time.
async fn shake_hands(gate: Gate, tcp: TcpStream, address: SocketAddr, place: Place) -> Option<Connection> {
    let found = tokio::time::timeout(gate.limits.handshake, identify(&gate, tcp)).await;
    match found.unwrap_or(Err(Refusal::SlowHandshake)) {
        Ok((pipe, caller)) => {
            let info = ConnectionInfo::new(address, caller, gate.limits, gate.refusals.clone());
            Some(Connection::new(pipe, Bytes::from_static(PREFACE), info, place))
        }
        Err(refusal) => {
            gate.refusals.count(refusal, address);
            None
        }
    }
}

async fn identify(gate: &Gate, tcp: TcpStream) -> Result<(Pipe, Caller), Refusal> {
    let _ = tcp.set_nodelay(true);
    let Some(identity) = &gate.identity else {
        let mut tcp = tcp;
        read_preface(&mut tcp).await?;
        return Ok((Pipe::Plain(tcp), Caller::Unchecked));
    };
    let acceptor = TlsAcceptor::from(identity.current().await.server.clone());
    let mut tls = acceptor.accept(tcp).await.map_err(|e| why(&e))?;
    let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = shown.ok_or(Refusal::NoCertificate)?;
    let holder = Certificate::read(shown).map_err(|_| Refusal::Untrusted)?.holder;
    read_preface(&mut tls).await?;
    Ok((Pipe::Tls(Box::new(tls)), Caller::Known(holder)))
}

async fn read_preface(from: &mut (impl AsyncRead + Unpin)) -> Result<(), Refusal> {
    let mut found = [0; PREFACE.len()];
    from.read_exact(&mut found).await.map_err(|_| Refusal::BrokenOff)?;
    if found == PREFACE { Ok(()) } else { Err(Refusal::NotHttp2) }
}

/// Why rustls refused it.
fn why(error: &io::Error) -> Refusal {
    use rustls::CertificateError as Bad;
    let Some(error) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        return Refusal::BrokenOff;
    };
    match error {
        rustls::Error::NoCertificatesPresented => Refusal::NoCertificate,
        rustls::Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        ) => Refusal::Expired,
        rustls::Error::InvalidCertificate(_) => Refusal::Untrusted,
        rustls::Error::AlertReceived(_) => Refusal::BrokenOff,
        _ => Refusal::NotTls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: rustls::Error) -> Refusal {
        why(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn what_tls_refuses_is_told_apart() {
        use rustls::{CertificateError, Error, InvalidMessage};
        assert_eq!(of(Error::NoCertificatesPresented), Refusal::NoCertificate);
        assert_eq!(of(Error::InvalidCertificate(CertificateError::Expired)), Refusal::Expired);
        assert_eq!(of(Error::InvalidCertificate(CertificateError::UnknownIssuer)), Refusal::Untrusted);
        assert_eq!(of(Error::InvalidMessage(InvalidMessage::InvalidContentType)), Refusal::NotTls);
        assert_eq!(why(&io::Error::from(io::ErrorKind::UnexpectedEof)), Refusal::BrokenOff);
    }
}
