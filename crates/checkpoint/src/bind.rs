//! Who may reach the service: a pure decision, taken before anything listens.

use std::net::SocketAddr;

/// An address beyond this machine, without leave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "refusing to listen on {address}: other machines could reach it, and this service neither encrypts nor \
     authenticates; listen on 127.0.0.1, or on a trusted network give --insecure (`mcl checkpoint-server \
     --insecure`)"
)]
pub struct ExposedError {
    address: SocketAddr,
}

/// Whether the service may listen there.
///
/// # Errors
/// When the address is not the loopback interface's and `insecure` was not given.
pub fn check_bind(address: SocketAddr, insecure: bool) -> Result<(), ExposedError> {
    if insecure || address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(ExposedError { address }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_without_leave() {
        for inside in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(check_bind(inside.parse().unwrap(), false).is_ok(), "{inside}");
        }
        for outside in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let error = check_bind(outside.parse().unwrap(), false).unwrap_err().to_string();
            assert!(error.contains("--insecure") && error.contains(outside), "{error}");
            assert!(check_bind(outside.parse().unwrap(), true).is_ok());
        }
    }
}
