//! `mcl-measure`: what failures cost on this machine; wiring only.
#![forbid(unsafe_code)]

use clap::Parser;
use mcl_system_tests::Sandbox;
use mcl_system_tests::looking_on::look_on;
use mcl_system_tests::measure::{Amount, measure};
use mcl_system_tests::siege::besiege;
use std::time::Duration;

/// Kill and stop parts of a small cluster, one at a time, and tell how long it takes to go on, as one JSON object. To
/// be run on a machine that does nothing else.
#[derive(Debug, Parser)]
struct Arguments {
    /// Failures of each kind; 0: none.
    #[arg(long, default_value_t = 15)]
    times: usize,
    /// Minutes that the coordinator stays away in one piece; 0: not at all.
    #[arg(long, default_value_t = 10.0)]
    outage_minutes: f64,
    /// Instead: so many hostile connections to a coordinator with certificates that trains meanwhile.
    #[arg(long, value_name = "CONNECTIONS")]
    hostile: Option<usize>,
    /// Instead: the page of a coordinator with so many played workers, in a browser, for 30 s.
    #[arg(long, value_name = "WORKERS")]
    page: Option<u32>,
}

/// How long hostile connections are held: longer than a handshake may take.
const HOLD: Duration = Duration::from_secs(20);

/// How long the cost of looking on is measured.
const LOOKED_ON: Duration = Duration::from_secs(30);

fn main() {
    let arguments = Arguments::parse();
    if let Some(connections) = arguments.hostile {
        mcl_system_tests::siege::allow_connections();
        return println!("{:#}", besiege(&Sandbox::new(), connections, HOLD));
    }
    if let Some(workers) = arguments.page {
        return println!("{:#}", look_on(&Sandbox::new(), workers, LOOKED_ON));
    }
    let outage = Duration::from_secs_f64(arguments.outage_minutes * 60.0);
    println!("{:#}", measure(Amount { times: arguments.times, outage }));
}
