//! The addresses and ports that machines reach each other at.

use crate::exit::Usage;
use anyhow::{Context, Result, bail};
use nix::ifaddrs::InterfaceAddress;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// What tells NCCL which interfaces to use.
const NCCL_INTERFACE: &str = "NCCL_SOCKET_IFNAME";
/// Where the kernel keeps the ports that it gives to whoever asks for any.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// What is said by hand wins, then the interface's first address (IPv4 before IPv6), then the address that this
/// machine has towards the coordinator, then loopback.
pub(crate) fn advertised(
    address: Option<&str>,
    interface: Option<&str>,
    coordinator: Option<&str>,
) -> Result<String> {
    let found = match (address, interface, coordinator) {
        (Some(address), _, _) => address.to_owned(),
        (None, Some(interface), _) => address_of(interface)?,
        (None, None, Some(url)) => towards(url)?.to_string(),
        (None, None, None) => Ipv4Addr::LOCALHOST.to_string(),
    };
    let ip = found.parse::<IpAddr>().ok();
    if ip.is_some_and(|ip| ip.is_unspecified()) {
        bail!(Usage(format!(
            "{found} is an address to listen at, nobody reaches one there: advertise another"
        )));
    }
    if let Some(url) = coordinator.filter(|_| ip.is_some_and(|ip| ip.is_loopback()))
        && resolve(url).is_ok_and(|all| all.iter().all(|there| is_elsewhere(there.ip())))
    {
        bail!(Usage(format!(
            "{found} is reached from this machine alone, and the coordinator {url} is on another: advertise an \
             address that the other machines reach"
        )));
    }
    Ok(found)
}

fn is_elsewhere(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && interface_of(ip).is_none()
}

fn address_of(interface: &str) -> Result<String> {
    let (mut names, mut found) = (Vec::new(), Vec::new());
    for entry in interfaces()? {
        if !names.contains(&entry.interface_name) {
            names.push(entry.interface_name.clone());
        }
        if entry.interface_name == interface
            && let Some(ip) = ip_of(&entry).filter(|ip| !needs_scope(*ip))
        {
            found.push(ip);
        }
    }
    // IPv4 sorts first.
    match found.into_iter().min() {
        Some(address) => Ok(address.to_string()),
        None => bail!(Usage(format!(
            "interface `{interface}` has no address here; this machine has: {}",
            names.join(", ")
        ))),
    }
}

fn interfaces() -> Result<impl Iterator<Item = InterfaceAddress>> {
    nix::ifaddrs::getifaddrs().context("listing network interfaces")
}

fn ip_of(entry: &InterfaceAddress) -> Option<IpAddr> {
    let address = entry.address?;
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// Link-local IPv6 means nothing without the name of an interface, which differs on the other side.
const fn needs_scope(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The address that packets to a service leave from. None is sent.
fn towards(url: &str) -> Result<IpAddr> {
    let what = || format!("this machine's address towards {url}: give --advertise or --interface");
    let socket = |any: IpAddr| UdpSocket::bind((any, 0));
    let mut last = std::io::Error::other("the name has no address");
    for there in resolve(url).with_context(what)? {
        let any: IpAddr =
            if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        match socket(any).and_then(|s| s.connect(there).and_then(|()| s.local_addr())) {
            Ok(own) => return Ok(own.ip()),
            Err(error) => last = error,
        }
    }
    Err(last).with_context(what)
}

/// Host and port of a URL.
fn authority(url: &str) -> &str {
    url.rsplit("://").next().unwrap_or(url).split('/').next().unwrap_or(url)
}

/// Where a URL's service is.
pub(crate) fn resolve(url: &str) -> Result<Vec<SocketAddr>> {
    let found =
        authority(url).to_socket_addrs().with_context(|| format!("{url}: expected http://host:port"))?;
    Ok(found.collect())
}

/// The coordinator hands the checkpoint service's URL to all ranks: it has to mean the same everywhere.
pub(crate) fn check_shared(url: &str, listen: SocketAddr) -> Result<()> {
    let Ok(at) = authority(url).parse::<SocketAddr>() else { return Ok(()) };
    if at.ip().is_unspecified() {
        bail!(Usage(format!(
            "--checkpoint {url}: {} is an address to listen at; give the one that ranks reach the service at",
            at.ip()
        )));
    }
    if at.ip().is_loopback() && !listen.ip().is_loopback() {
        tracing::warn!(
            checkpoint = url,
            "ranks on other machines cannot reach a checkpoint service at a loopback address"
        );
    }
    Ok(())
}

/// What ranks need in their environment so that NCCL listens at the advertised address too; nothing where the user
/// has set it, or where the address is not found on an interface (a name, for one).
pub(crate) fn nccl_interface(advertised: &str, interface: Option<&str>) -> Option<(String, String)> {
    if std::env::var_os(NCCL_INTERFACE).is_some() {
        return None;
    }
    let name = match interface {
        Some(name) => name.to_owned(),
        None => interface_of(advertised.parse().ok()?)?,
    };
    // Without the sign `eth1` would also mean `eth10`.
    Some((NCCL_INTERFACE.to_owned(), format!("={name}")))
}

fn interface_of(address: IpAddr) -> Option<String> {
    interfaces().ok()?.find(|entry| ip_of(entry) == Some(address)).map(|entry| entry.interface_name)
}

/// The ports that Gloo's and NCCL's data connections, among others, are given: first and last.
pub(crate) fn ephemeral_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string(EPHEMERAL).ok()?;
    let mut numbers = text.split_whitespace().map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_unknown_interfaces_are_named() {
        assert_eq!(advertised(None, Some("lo"), None).unwrap(), "127.0.0.1");
        assert_eq!(advertised(Some("10.1.2.3"), None, None).unwrap(), "10.1.2.3");
        assert_eq!(advertised(None, None, None).unwrap(), "127.0.0.1");
        let error = advertised(None, Some("nope0"), None).unwrap_err().to_string();
        assert!(error.contains("nope0") && error.contains("lo"), "{error}");
        let error = advertised(Some("0.0.0.0"), None, None).unwrap_err().to_string();
        assert!(error.contains("0.0.0.0"), "{error}");
        // An address that is kept for documentation (RFC 5737).
        let error =
            advertised(Some("127.0.0.1"), None, Some("http://203.0.113.7:7070")).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1") && error.contains("203.0.113.7"), "{error}");
    }

    #[test]
    fn where_nothing_is_said_the_way_to_the_coordinator_says_it() {
        assert_eq!(advertised(None, None, Some("http://127.0.0.1:7070")).unwrap(), "127.0.0.1");
        let error =
            format!("{:#}", advertised(None, None, Some("http://no.such.host.invalid:1")).unwrap_err());
        assert!(error.contains("no.such.host.invalid") && error.contains("--advertise"), "{error}");
    }

    #[test]
    fn nccl_is_told_the_interface_by_its_whole_name() {
        let told = |address, interface| nccl_interface(address, interface).map(|(_, value)| value);
        assert_eq!(told("10.1.2.3", Some("eth1")).as_deref(), Some("=eth1"));
        assert_eq!(told("127.0.0.1", None).as_deref(), Some("=lo"));
        assert_eq!(told("a-name", None), None);
        assert_eq!(told("203.0.113.7", None), None);
    }

    #[test]
    fn a_checkpoint_service_at_an_address_to_listen_at_is_refused() {
        let listen: SocketAddr = "10.0.0.1:7070".parse().unwrap();
        for good in ["http://10.0.0.1:7071", "http://127.0.0.1:7071", "http://store:7071/x"] {
            check_shared(good, listen).unwrap();
        }
        for bad in ["http://0.0.0.0:7071", "http://[::]:7071"] {
            assert!(check_shared(bad, listen).unwrap_err().to_string().contains(bad));
        }
    }
}
