//! A small certificate authority for one cluster: a folder with the authority, and one folder a certificate.
//!
//! Role: what `mcl certs` and tests make certificates with (`rcgen`). Invariants: a private key is readable by its owner
//! alone from its first byte on; nothing is overwritten unless this is asked for; a file is there whole or not at all.
//! Left out: whether a certificate is to be trusted (`mcl-transport`), and taking one back: a certificate is good until
//! it ends or its authority is no longer trusted.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod authority;
mod files;

pub use authority::{Authority, Issued, Wanted};
pub use files::{CA_KEY_FILE, CertsError, init, issue, issue_from};
