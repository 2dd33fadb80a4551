//! How many requests one address may make: a bucket of leaves each, refilled with time.
//!
//! Pure; the time comes in. The table has a bound: who is not in it any more has a full bucket again, and who finds no
//! room in it is refused, which takes more addresses at once than a person has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Addresses that are remembered.
const MOST_ADDRESSES: usize = 1024;

/// Leaves a second, and most that are saved up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Leaves a second.
    pub(crate) per_second: f64,
    /// Most that are saved up.
    pub(crate) burst: f64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    buckets: HashMap<IpAddr, (f64, Duration)>,
}

impl Rates {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new() }
    }

    /// Takes one leave of an address at time `now`; false: there is none.
    pub(crate) fn take(&mut self, address: IpAddr, now: Duration) -> bool {
        let left = self.left(address, now);
        if left < 1.0 || !self.make_room(address, now) {
            return false;
        }
        self.buckets.insert(address, (left - 1.0, now));
        true
    }

    /// Whether an address has one.
    pub(crate) fn has_one(&self, address: IpAddr, now: Duration) -> bool {
        self.left(address, now) >= 1.0
    }

    fn left(&self, address: IpAddr, now: Duration) -> f64 {
        self.buckets.get(&address).map_or(self.rate.burst, |(left, at)| self.refilled(*left, *at, now))
    }

    fn refilled(&self, left: f64, at: Duration, now: Duration) -> f64 {
        (left + now.saturating_sub(at).as_secs_f64() * self.rate.per_second).min(self.rate.burst)
    }

    fn make_room(&mut self, address: IpAddr, now: Duration) -> bool {
        if self.buckets.len() < MOST_ADDRESSES || self.buckets.contains_key(&address) {
            return true;
        }
        let rate = self.rate;
        self.buckets.retain(|_, (left, at)| {
            *left + now.saturating_sub(*at).as_secs_f64() * rate.per_second < rate.burst
        });
        self.buckets.len() < MOST_ADDRESSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn who_asks_too_much_waits_and_others_do_not() {
        let mut rates = Rates::new(Rate { per_second: 2.0, burst: 3.0 });
        let at = |ms| Duration::from_millis(ms);
        let taken = (0..5).map(|_| rates.take(address(1), at(0))).filter(|t| *t).count();
        assert_eq!(taken, 3);
        assert!(rates.take(address(2), at(0)));
        assert!(!rates.take(address(1), at(400)));
        assert!(rates.take(address(1), at(500)));
        assert!(!rates.has_one(address(1), at(600)));
        assert!(rates.has_one(address(1), at(10_000)));
    }

    #[test]
    fn the_table_has_a_bound() {
        let mut rates = Rates::new(Rate { per_second: 1.0, burst: 2.0 });
        for n in 0..5_000 {
            rates.take(address(n), Duration::ZERO);
        }
        assert_eq!(rates.buckets.len(), MOST_ADDRESSES);
        assert!(!rates.take(address(9_999), Duration::ZERO));
        // Those that have rested make room.
        assert!(rates.take(address(9_999), Duration::from_secs(5)));
        assert_eq!(rates.buckets.len(), 1);
    }
}
