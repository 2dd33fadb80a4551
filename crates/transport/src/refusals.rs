//! What was refused and why, counted, and told to the log at a bounded rate.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

macro_rules! refusals {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// Why somebody was not served.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $kind,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// A short name, for logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

refusals! {
    /// So many connections are there already.
    TooManyConnections = "too_many_connections",
    /// So many come from this address already.
    TooManyFromAddress = "too_many_from_address",
    /// It made room for a newer connection before it had shown who it is.
    MadeRoom = "made_room",
    /// TLS or the preface took too long.
    SlowHandshake = "slow_handshake",
    /// It hung up before it had shown who it is.
    BrokenOff = "broken_off",
    /// What came is not TLS.
    NotTls = "not_tls",
    /// It showed no certificate.
    NoCertificate = "no_certificate",
    /// Its certificate has ended, or not begun.
    Expired = "expired",
    /// Its certificate is not of our authority, or not for this.
    Untrusted = "untrusted",
    /// What came is not HTTP/2.
    NotHttp2 = "not_http2",
    /// No call began in time.
    SlowHeader = "slow_header",
    /// A call that nobody may make.
    UnknownCall = "unknown_call",
    /// Its certificate carries no role.
    NoRole = "no_role",
    /// Its role is not enough for the call.
    WrongRole = "wrong_role",
    /// A stream did not begin with a hello.
    NoHello = "no_hello",
    /// A worker speaks another version of the protocol.
    WrongProtocol = "wrong_protocol",
    /// A worker said hello under another name than its certificate's.
    WrongName = "wrong_name",
    /// Calls came too fast.
    TooFast = "too_fast",
    /// A message was too large.
    TooLarge = "too_large",
    /// A message made no sense.
    Malformed = "malformed",
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const KINDS: usize = Refusal::ALL.len();

/// Counters of one service. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    counts: [AtomicU64; KINDS],
    /// What the log knows of, and the newest example.
    told: Mutex<([u64; KINDS], String)>,
}

impl Refusals {
    /// Counts one. `who` is kept as an example for the log.
    pub fn count(&self, refusal: Refusal, who: impl fmt::Display) {
        if let Some(counter) = self.shared.counts.get(refusal as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.1 = format!("{who}: {refusal}");
    }

    /// How often it happened.
    pub fn of(&self, refusal: Refusal) -> u64 {
        self.shared.counts.get(refusal as usize).map_or(0, |c| c.load(Ordering::Relaxed))
    }

    /// Every kind with its count, those that never happened included: for metrics.
    pub fn all(&self) -> Vec<(Refusal, u64)> {
        Refusal::ALL.iter().map(|kind| (*kind, self.of(*kind))).collect()
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.all().iter().map(|(_, count)| count).sum()
    }

    /// What was refused since this was asked last, as one line; none where nothing was.
    pub fn news(&self) -> Option<String> {
        let now = self.all();
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Vec::new();
        for ((kind, count), before) in now.into_iter().zip(told.0.iter_mut()) {
            if count > *before {
                parts.push(format!("{kind} {}", count - *before));
                *before = count;
            }
        }
        (!parts.is_empty()).then(|| format!("{} (last: {})", parts.join(", "), told.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_counter_and_news_are_told_once() {
        let refusals = Refusals::default();
        assert_eq!(refusals.news(), None);
        for (times, kind) in Refusal::ALL.iter().enumerate() {
            (0..times).for_each(|_| refusals.count(*kind, "10.0.0.9:1"));
        }
        for (times, kind) in Refusal::ALL.iter().enumerate() {
            assert_eq!(refusals.of(*kind), times as u64, "{kind}");
        }
        let told = refusals.clone().news().unwrap();
        assert!(told.contains("wrong_role 13") && told.contains("10.0.0.9:1"), "{told}");
        assert_eq!(refusals.news(), None);
        refusals.count(Refusal::Expired, "b");
        assert_eq!(refusals.news().unwrap(), "expired 1 (last: b: expired)");
    }
}
