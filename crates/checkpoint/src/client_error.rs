//! What a client can be told, by kind.

use std::time::Duration;
use tonic::{Code, Status};

/// A call that failed. Every kind names the service's address and the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address does not parse.
    #[error("`{url}` is no address of a checkpoint service: {reason}; expected e.g. http://127.0.0.1:7002")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answered, for all the patience there was.
    #[error(
        "checkpoint service at {url} did not answer {call} for {:.1} s: {reason}; check that `mcl \
         checkpoint-server` runs there and that the network reaches it", waited.as_secs_f64()
    )]
    Unreachable {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// How long it was tried.
        waited: Duration,
        /// What the last try met.
        reason: String,
    },
    /// The token is not the highest any more: whoever holds it must stop.
    #[error("checkpoint service at {url} refused {call}: {reason}")]
    Fenced {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// There is no such checkpoint.
    #[error("checkpoint service at {url}, {call}: {reason}")]
    NotFound {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// There is one, but its bytes are not what was written.
    #[error("checkpoint service at {url}, {call}: {reason}")]
    Damaged {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// Slices are not staged, or not as they were sent: stage them, then try again.
    #[error("checkpoint service at {url}, {call}: {reason}")]
    NotStaged {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// The step is visible with other content.
    #[error("checkpoint service at {url}, {call}: {reason}")]
    Conflict {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// Its disk is full.
    #[error("checkpoint service at {url}, {call}: {reason}")]
    Full {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// Any other refusal.
    #[error("checkpoint service at {url} refused {call}: {reason} ({code:?})")]
    Refused {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What it said.
        reason: String,
        /// The kind it gave.
        code: Code,
    },
    /// An answer that makes no sense.
    #[error(
        "checkpoint service at {url} answered {call} with nonsense: {reason}; check that both sides run one version"
    )]
    Answer {
        /// Its address.
        url: String,
        /// What was asked.
        call: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// The error that a final status stands for.
    pub(crate) fn from_status(url: &str, call: &'static str, status: &Status) -> Self {
        let (url, reason) = (url.to_owned(), status.message().to_owned());
        match status.code() {
            Code::FailedPrecondition => Self::Fenced { url, call, reason },
            Code::NotFound => Self::NotFound { url, call, reason },
            Code::DataLoss => Self::Damaged { url, call, reason },
            Code::Aborted => Self::NotStaged { url, call, reason },
            Code::AlreadyExists => Self::Conflict { url, call, reason },
            Code::ResourceExhausted => Self::Full { url, call, reason },
            code => Self::Refused { url, call, reason, code },
        }
    }

    /// Whether trying again cannot help: what was asked is at fault, not the service, the way there or the moment.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Url { .. } | Self::Conflict { .. } | Self::Answer { .. } => true,
            Self::Refused { code, .. } => matches!(
                code,
                Code::InvalidArgument
                    | Code::OutOfRange
                    | Code::Unimplemented
                    | Code::PermissionDenied
                    | Code::Unauthenticated
            ),
            Self::Unreachable { .. }
            | Self::Fenced { .. }
            | Self::NotFound { .. }
            | Self::Damaged { .. }
            | Self::NotStaged { .. }
            | Self::Full { .. } => false,
        }
    }
}

/// Whether a status speaks of the way there rather than of the request.
pub(crate) fn is_transport(status: &Status) -> bool {
    // What a server says has no source; a broken connection has the transport's error as one.
    let broken = std::error::Error::source(status).is_some();
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => broken,
        _ => false,
    }
}

/// A status and what lies behind it, for people.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_wrongly_is_told_from_what_goes_wrong() {
        let of = |code| ClientError::from_status("http://h:1", "PutSlice", &Status::new(code, "why"));
        for code in [Code::AlreadyExists, Code::InvalidArgument, Code::Unimplemented, Code::Unauthenticated] {
            assert!(of(code).is_final(), "{code:?}");
        }
        for code in [Code::Internal, Code::ResourceExhausted, Code::Aborted, Code::DataLoss, Code::Unknown] {
            assert!(!of(code).is_final(), "{code:?}");
        }
        // The token's, not the request's: a later term may come.
        assert!(!of(Code::FailedPrecondition).is_final());
    }
}
