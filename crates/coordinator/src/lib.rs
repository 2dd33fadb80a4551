//! The coordinator's rim.
#![forbid(unsafe_code)]
