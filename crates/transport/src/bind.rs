//! Where a service may listen: a pure decision, taken before anything listens.

use std::net::SocketAddr;

/// An address beyond this machine, without protection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "refusing to listen on {address}: other machines could reach it, and without --tls this service neither encrypts \
     nor authenticates; give --tls FOLDER (`mcl certs` makes one), listen on 127.0.0.1, or on a trusted network \
     give --insecure"
)]
pub struct ExposedError {
    address: SocketAddr,
}

/// Whether a service may listen there.
///
/// # Errors
/// When the address is not the loopback interface's, and neither is there TLS nor was `insecure` given.
pub fn check_bind(address: SocketAddr, tls: bool, insecure: bool) -> Result<(), ExposedError> {
    let inside = address.ip().to_canonical().is_loopback();
    if tls || insecure || inside { Ok(()) } else { Err(ExposedError { address }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_without_tls_or_leave() {
        for inside in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(check_bind(inside.parse().unwrap(), false, false).is_ok(), "{inside}");
        }
        for outside in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let error = check_bind(outside.parse().unwrap(), false, false).unwrap_err().to_string();
            assert!(error.contains("--insecure") && error.contains(outside), "{error}");
            assert!(check_bind(outside.parse().unwrap(), false, true).is_ok());
            assert!(check_bind(outside.parse().unwrap(), true, false).is_ok());
        }
    }
}
