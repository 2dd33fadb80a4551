//! How parties of a cluster reach each other, and who may do what.
//!
//! Role: for servers a [`Gate`] (TLS, limits, counters, and the rules that every call passes), for clients a [`Dial`].
//! Both take an [`Identity`]: a folder with a certificate, its key, and the authorities that are trusted, read again
//! when it changes. Roles are in certificates; [`rules`] has the one table of calls and roles.
//!
//! Invariants: deny by default; whoever has shown nothing yet holds a bounded part of a service for a bounded time; a
//! key is in no log. Left out: what ranks say to each other (Gloo, NCCL), and making certificates (`mcl-certs`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bind;
mod census;
mod certificate;
mod connect;
mod connection;
mod gate;
mod guard;
mod identity;
mod limits;
mod refusals;
mod role;
pub mod rules;

pub use bind::{ExposedError, check_bind};
pub use certificate::{Certificate, CertificateError, ENDS_SOON};
pub use connect::{AddressError, Dial};
pub use connection::{Connection, ConnectionInfo, unreadable};
pub use gate::{Gate, Incoming};
pub use guard::{Guard, GuardLayer};
pub use identity::{CA_FILE, CERT_FILE, Identity, IdentityError, KEY_FILE, VARIABLE};
pub use limits::Limits;
pub use refusals::{Refusal, Refusals};
pub use role::{Holder, HolderName, HolderNameError, Role, RoleError, name_uri};
pub use rules::Caller;
