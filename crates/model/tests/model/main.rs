//! Tests of the whole model: names, golden values, compute modes, montages, initial weights, state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod golden;
mod initial;
mod modes;
mod names;
mod pictures;
mod state;
mod support;
