//! How many connections there are, in all and from where.

use crate::limits::{Limits, source};
use crate::refusals::Refusal;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Census {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Only sources that have one.
    by_source: HashMap<IpAddr, usize>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    census: Census,
    source: IpAddr,
}

impl Census {
    /// A place for a connection from there, where there is one.
    pub(crate) fn enter(&self, from: IpAddr, limits: &Limits) -> Result<Place, Refusal> {
        let source = source(from);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= limits.connections {
            return Err(Refusal::TooManyConnections);
        }
        let here = counts.by_source.get(&source).copied().unwrap_or(0);
        if here >= limits.connections_per_address {
            return Err(Refusal::TooManyFromAddress);
        }
        counts.all += 1;
        counts.by_source.insert(source, here + 1);
        Ok(Place { census: self.clone(), source })
    }

    /// Connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.census.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        let left = counts.by_source.get(&self.source).map_or(0, |n| n.saturating_sub(1));
        if left == 0 {
            counts.by_source.remove(&self.source);
        } else {
            counts.by_source.insert(self.source, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_and_come_back() {
        let limits = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
        let (census, a, b) = (Census::default(), IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = census.enter(a, &limits).unwrap();
        let _second = census.enter(a, &limits).unwrap();
        assert_eq!(census.enter(a, &limits).unwrap_err(), Refusal::TooManyFromAddress);
        let third = census.enter(b, &limits).unwrap();
        assert_eq!(census.enter(b, &limits).unwrap_err(), Refusal::TooManyConnections);
        drop(first);
        let fourth = census.enter(a, &limits).unwrap();
        drop((third, fourth));
        assert_eq!((census.connections(), census.counts.lock().unwrap().by_source.len()), (1, 1));
    }
}
