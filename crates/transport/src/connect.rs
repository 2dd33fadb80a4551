//! How clients reach a service: plain over `http://`, with the own certificate over `https://`.
//!
//! Invariants: whoever has a certificate never speaks without it, and nobody speaks plainly to an `https://` address;
//! a server is believed only if its certificate is of our authority, for the host that was asked for, and says that it
//! is a service. Each new connection takes the certificates as they are then.

use crate::identity::{Identity, VARIABLE, is_service};
use http::Uri;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint, Error};

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No address of a service.
    #[error("{reason}; expected http://host:port or https://host:port")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// Encrypted, and no certificate to show.
    #[error(
        "it begins with https://: give a folder with a certificate by --tls or {VARIABLE} (`mcl certs` makes one)"
    )]
    NoIdentity,
    /// Plain, where certificates are in use.
    #[error(
        "it does not begin with https://, and a certificate is given (--tls, {VARIABLE}): write https://, or give none"
    )]
    Plain,
}

/// A service's address, and how to get there.
#[derive(Debug, Clone)]
pub struct Dial {
    endpoint: Endpoint,
    identity: Option<Identity>,
}

impl Dial {
    /// Where no scheme is given, it is `https` with an identity and `http` without.
    ///
    /// # Errors
    /// When the address makes no sense, or does not go with the identity.
    pub fn new(address: &str, identity: Option<&Identity>) -> Result<Self, AddressError> {
        let malformed = |reason: String| AddressError::Malformed { reason };
        let scheme = if identity.is_some() { "https" } else { "http" };
        let full = if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
        let uri: Uri = full.parse().map_err(|e: http::uri::InvalidUri| malformed(e.to_string()))?;
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        if authority.contains('@') {
            return Err(malformed("an address has no user or password in it".to_owned()));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(malformed("it names no host".to_owned()));
        }
        match (uri.scheme_str(), identity) {
            (Some("https"), None) => Err(AddressError::NoIdentity),
            (Some("http"), Some(_)) => Err(AddressError::Plain),
            (Some("http" | "https"), identity) => {
                Ok(Self { endpoint: Endpoint::from(uri), identity: identity.cloned() })
            }
            (other, _) => Err(malformed(format!("it begins with {}", other.unwrap_or("nothing")))),
        }
    }

    /// The same with other settings.
    #[must_use]
    pub fn with(self, change: impl FnOnce(Endpoint) -> Endpoint) -> Self {
        Self { endpoint: change(self.endpoint), ..self }
    }

    /// The address.
    pub fn uri(&self) -> &Uri {
        self.endpoint.uri()
    }

    /// Connects.
    ///
    /// # Errors
    /// When nobody answers, or not somebody to be believed.
    pub async fn connect(&self) -> Result<Channel, Error> {
        match &self.identity {
            None => self.endpoint.connect().await,
            Some(identity) => self.endpoint.connect_with_connector(Connector(identity.clone())).await,
        }
    }

    /// A channel that connects with its first call, and again whenever it has to.
    pub fn connect_lazy(&self) -> Channel {
        match &self.identity {
            None => self.endpoint.connect_lazy(),
            Some(identity) => self.endpoint.connect_with_connector_lazy(Connector(identity.clone())),
        }
    }
}

/// Opens TLS connections as whoever the identity is at that moment.
#[derive(Clone)]
struct Connector(Identity);

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("no connection: {0}")]
    Tcp(#[source] std::io::Error),
    #[error("TLS with {host}: {source}")]
    Tls { host: String, source: std::io::Error },
    #[error("`{0}` is no host name that a certificate could be for")]
    Host(String),
    #[error(
        "{host} shows a certificate without the role service: it is not the coordinator or checkpoint service of \
         this cluster"
    )]
    NoService { host: String },
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let identity = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(open(&identity, &uri).await?)) })
    }
}

/// A connection whose other side is believed. The caller's deadline is over all of it.
async fn open(identity: &Identity, uri: &Uri) -> Result<TlsStream<TcpStream>, ConnectError> {
    let host = uri.host().unwrap_or_default();
    let tcp = TcpStream::connect((bare(host), uri.port_u16().unwrap_or(443))).await;
    let tcp = tcp.map_err(ConnectError::Tcp)?;
    tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
    secure(identity, tcp, host).await
}

/// An IPv6 address without the brackets that it has in addresses of services.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn secure(
    identity: &Identity,
    tcp: TcpStream,
    host: &str,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let host = bare(host).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Host(host.clone()))?;
    let connector = TlsConnector::from(identity.current().await.client.clone());
    let stream = connector.connect(name, tcp).await;
    let stream = stream.map_err(|source| ConnectError::Tls { host: host.clone(), source })?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    if is_service(shown.map(AsRef::as_ref)) { Ok(stream) } else { Err(ConnectError::NoService { host }) }
}

impl Identity {
    /// A TLS connection over one that is open already, for those who speak HTTP/2 themselves. `host` is as in an address.
    ///
    /// # Errors
    /// When the other side is not a service of the cluster, or hangs up.
    pub async fn secure(&self, tcp: TcpStream, host: &str) -> std::io::Result<TlsStream<TcpStream>> {
        secure(self, tcp, host).await.map_err(std::io::Error::other)
    }
}
