//! What tests of several crates share. Never linked into a program.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod s3;

pub use s3::{Fault, S3Server};
