//! The key-value store that the ranks of a generation meet at.

use crate::group::CollectiveError;
use mcl_collective_sys as sys;
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
    /// Hosts a store on `port` (0: a free one) of all interfaces.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn host(port: u16, timeout: Duration) -> Result<Self, CollectiveError> {
        sys::Store::tcp("127.0.0.1", port, true, milliseconds(timeout)).map(|inner| Self { inner }).map_err(
            |source| CollectiveError::Store { address: format!("port {port} of this machine"), source },
        )
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
        sys::Store::tcp(host, port, false, milliseconds(timeout))
            .map(|inner| Self { inner })
            .map_err(|source| CollectiveError::Store { address: address.to_owned(), source })
    }
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
