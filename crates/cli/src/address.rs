//! The address that other machines reach this one at.

use crate::exit::Usage;
use anyhow::{Context, Result, bail};

/// What is said by hand wins, then the interface's first address (IPv4 before IPv6), then loopback.
pub(crate) fn advertised(address: Option<&str>, interface: Option<&str>) -> Result<String> {
    match (address, interface) {
        (Some(address), _) => Ok(address.to_owned()),
        (None, Some(interface)) => address_of(interface),
        (None, None) => Ok("127.0.0.1".to_owned()),
    }
}

fn address_of(interface: &str) -> Result<String> {
    let all = nix::ifaddrs::getifaddrs().context("listing network interfaces")?;
    let (mut names, mut found) = (Vec::new(), Vec::new());
    for entry in all {
        if !names.contains(&entry.interface_name) {
            names.push(entry.interface_name.clone());
        }
        let Some(address) = entry.address.filter(|_| entry.interface_name == interface) else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.push((0, v4.ip().to_string()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            found.push((1, v6.ip().to_string()));
        }
    }
    found.sort();
    match found.into_iter().next() {
        Some((_, address)) => Ok(address),
        None => bail!(Usage(format!(
            "interface `{interface}` has no address here; this machine has: {}",
            names.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_unknown_interfaces_are_named() {
        assert_eq!(advertised(None, Some("lo")).unwrap(), "127.0.0.1");
        assert_eq!(advertised(Some("10.1.2.3"), None).unwrap(), "10.1.2.3");
        assert_eq!(advertised(None, None).unwrap(), "127.0.0.1");
        let error = advertised(None, Some("nope0")).unwrap_err().to_string();
        assert!(error.contains("nope0") && error.contains("lo"), "{error}");
    }
}
