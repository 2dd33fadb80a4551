//! How much a service takes from whom, and how that is counted.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Bounds of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all. Each costs some tens of KiB.
    pub connections: usize,
    /// Connections from one address, or from one /64 of IPv6: a machine of eight ranks needs about ten.
    pub connections_per_address: usize,
    /// Connections that have not shown yet who they are; the oldest of them makes room for a new one.
    pub handshakes: usize,
    /// Time for all that comes before the first call: TLS and HTTP/2's preface.
    pub handshake: Duration,
    /// Time for the first call of a connection to begin.
    pub first_call: Duration,
    /// Calls under way on one connection.
    pub streams: u32,
    /// Calls a second on one connection, in the long run.
    pub calls_per_second: u32,
    /// Calls at once on one connection.
    pub calls_at_once: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_address: 512,
            handshakes: 1024,
            handshake: Duration::from_secs(10),
            first_call: Duration::from_secs(10),
            streams: 200,
            calls_per_second: 100,
            calls_at_once: 400,
        }
    }
}

/// Files that a service needs besides its connections: journal, ledger, slices that are written.
const OTHER_FILES: u64 = 128;

impl Limits {
    /// The same with no more connections than the process may have files open, so that the service can still write.
    #[must_use]
    pub fn within_files(self, open_files: u64) -> Self {
        let room = open_files.saturating_sub(OTHER_FILES).max(open_files / 2);
        let connections = self.connections.min(usize::try_from(room).unwrap_or(usize::MAX));
        Self { connections, ..self }
    }
}

/// Whom a connection is counted for: who has an IPv6 network of its own has 2^64 addresses in it.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

/// Calls that a connection may make: so many at once, refilled over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Allowance {
    left: f64,
    /// Of the clock that `take` is given.
    at: Duration,
}

impl Allowance {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { left: f64::from(limits.calls_at_once), at: Duration::ZERO }
    }

    /// Takes one call, where one is left.
    pub(crate) fn take(&mut self, limits: &Limits, now: Duration) -> bool {
        let refill = now.saturating_sub(self.at).as_secs_f64() * f64::from(limits.calls_per_second);
        self.left = (self.left + refill).min(f64::from(limits.calls_at_once));
        self.at = self.at.max(now);
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_spent_and_comes_back() {
        let limits = Limits { calls_per_second: 10, calls_at_once: 3, ..Limits::default() };
        let mut allowance = Allowance::new(&limits);
        let at = Duration::from_millis;
        let taken = (0..5).filter(|_| allowance.take(&limits, at(0))).count();
        assert_eq!(taken, 3);
        assert!(!allowance.take(&limits, at(99)));
        assert!(allowance.take(&limits, at(199)));
        // A clock that goes back gives nothing.
        let mut other = allowance;
        assert!(!other.take(&limits, at(0)));
        let later = (0..9).filter(|_| allowance.take(&limits, at(60_000))).count();
        assert_eq!(later, 3, "never more than at once");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_ipv4_as_itself() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    #[test]
    fn connections_leave_files_for_the_rest() {
        let at = |files| Limits::default().within_files(files).connections;
        assert_eq!((at(1 << 20), at(1024), at(100)), (16_384, 896, 50));
    }
}
