//! The key-value store that the ranks of a generation meet at.

use crate::group::CollectiveError;
use mcl_collective_sys as sys;
use mcl_types::PortRange;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

/// A rendezvous store: rank 0's process hosts it, the others connect.
#[derive(Debug)]
pub struct Store {
    pub(crate) inner: sys::Store,
}

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// Hosts a store at `address`, one of this machine's (nobody reaches it at another), on the first of `ports` that
    /// is free; on any port where none are given. A port is free again as soon as the store that had it is gone.
    ///
    /// # Errors
    /// When the address is not this machine's, or all ports are taken.
    pub fn host(address: &str, ports: Option<PortRange>, timeout: Duration) -> Result<Self, CollectiveError> {
        let failed = |source| CollectiveError::Store { address: format!("{address} (this machine)"), source };
        sys::Store::host(listen(address, ports)?, milliseconds(timeout))
            .map(|inner| Self { inner })
            .map_err(failed)
    }

    /// The port it listens at.
    ///
    /// # Errors
    /// For a store this process does not host.
    pub fn port(&self) -> Result<u16, CollectiveError> {
        self.inner
            .port()
            .map_err(|source| CollectiveError::Store { address: "this process".to_owned(), source })
    }

    /// Connects to `host:port`.
    ///
    /// # Errors
    /// When the address does not parse or nothing answers there in time.
    pub fn connect(address: &str, timeout: Duration) -> Result<Self, CollectiveError> {
        let bad = |reason: &str| CollectiveError::Address {
            address: address.to_owned(),
            reason: reason.to_owned(),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        let port: u16 = port.parse().map_err(|_| bad("the port is no number up to 65535"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        sys::Store::connect(host, port, milliseconds(timeout))
            .map(|inner| Self { inner })
            .map_err(|source| CollectiveError::Store { address: address.to_owned(), source })
    }
}

/// Binds the first free port. The standard library sets `SO_REUSEADDR`: connections of an older store that wait for
/// their last packets do not keep a port busy, a store that is still there does.
fn listen(address: &str, ports: Option<PortRange>) -> Result<TcpListener, CollectiveError> {
    let cannot = |source| CollectiveError::Listen { address: address.to_owned(), source };
    let resolved: Vec<SocketAddr> = (address, 0).to_socket_addrs().map_err(cannot)?.collect();
    let bind = |port| {
        let at: Vec<_> = resolved.iter().map(|a| SocketAddr::new(a.ip(), port)).collect();
        TcpListener::bind(at.as_slice())
    };
    let Some(ports) = ports else { return bind(0).map_err(cannot) };
    for port in ports.iter() {
        match bind(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map_err(cannot),
        }
    }
    Err(CollectiveError::PortsTaken { address: address.to_owned(), ports })
}

impl Store {
    /// Bounds later waits for keys.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> Result<(), CollectiveError> {
        self.inner
            .set_timeout(milliseconds(timeout))
            .map_err(|source| CollectiveError::Store { address: "its timeout".to_owned(), source })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// When the store's host is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        self.inner
            .set(key, value)
            .map_err(|source| CollectiveError::Store { address: format!("key {key}"), source })
    }

    /// Waits for a key, at most the store's timeout.
    ///
    /// # Errors
    /// When it does not come.
    pub fn get(&self, key: &str) -> Result<Vec<u8>, CollectiveError> {
        self.inner.get(key).map_err(|source| CollectiveError::Store { address: format!("key {key}"), source })
    }
}
