//! Where a rendezvous store listens: at one address, on ports that were asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_collective::{CollectiveError, Lifeline, Store};
use mcl_types::PortRange;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);
const HERE: &str = "127.0.0.1";

/// Two ports in a row that nobody has, below those that the kernel gives away.
fn two_ports(from: u16) -> PortRange {
    let free = |port| TcpListener::bind((HERE, port)).is_ok();
    let start = from + u16::try_from(std::process::id() % 1000).unwrap() * 2;
    let first = (start..start + 4000).step_by(2).find(|p| free(*p) && free(p + 1)).expect("free ports");
    format!("{first}-{}", first + 1).parse().unwrap()
}

fn reaches(store: &Store, key: &str) {
    let client = Store::connect(&format!("{HERE}:{}", store.port().unwrap()), TIMEOUT).unwrap();
    client.set(key, b"x").unwrap();
    assert_eq!(store.get(key).unwrap(), b"x");
}

#[test]
fn ports_are_tried_in_order_and_are_free_again_right_after_their_store() {
    let ports = two_ports(20_000);
    let [first, second] = [0, 1].map(|n| ports.iter().nth(n).unwrap());
    for round in 0..5 {
        let one = Store::host(HERE, Some(ports), TIMEOUT).unwrap();
        let other = Store::host(HERE, Some(ports), TIMEOUT).unwrap();
        assert_eq!((one.port().unwrap(), other.port().unwrap()), (first, second), "round {round}");
        // Connections that the hosts close first, so that theirs are the ends that linger.
        let clients = [first, second].map(|p| Store::connect(&format!("{HERE}:{p}"), TIMEOUT).unwrap());
        reaches(&one, "key");
        reaches(&other, "key");
        let error = Store::host(HERE, Some(ports), TIMEOUT).unwrap_err();
        assert!(matches!(error, CollectiveError::PortsTaken { .. }) && error.is_peer_loss(), "{error}");
        let text = error.to_string();
        assert!(text.contains(&ports.to_string()) && text.contains("store_ports"), "{text}");
        drop((one, other));
        drop(clients);
    }
}

#[test]
fn a_port_that_is_about_to_be_free_is_waited_for_until_told_to_leave() {
    let ports: PortRange = two_ports(24_000).iter().next().unwrap().to_string().parse().unwrap();
    let old = Store::host(HERE, Some(ports), TIMEOUT).unwrap();
    let lifeline = Lifeline::new(&[]).unwrap();
    let control = lifeline.clone();
    let waits = std::thread::spawn(move || control.host(HERE, Some(ports), TIMEOUT, TIMEOUT));
    lifeline.abort();
    let error = waits.join().unwrap().unwrap_err();
    assert!(matches!(error, CollectiveError::PortsTaken { .. }), "{error}");
    lifeline.close();

    let lifeline = Lifeline::new(&[]).unwrap();
    let waits = std::thread::spawn(move || lifeline.host(HERE, Some(ports), TIMEOUT, TIMEOUT));
    drop(old);
    reaches(&waits.join().unwrap().unwrap(), "key");
}

#[test]
fn a_store_listens_at_its_address_alone() {
    let store = Store::host(HERE, None, TIMEOUT).unwrap();
    let port = store.port().unwrap();
    assert!(TcpStream::connect((HERE, port)).is_ok());
    assert!(TcpStream::connect(("127.0.0.2", port)).is_err(), "it listens at other addresses too");
    // An address that is kept for documentation (RFC 5737).
    let error = Store::host("203.0.113.7", None, TIMEOUT).unwrap_err().to_string();
    assert!(error.contains("203.0.113.7") && error.contains("--advertise"), "{error}");
}

#[test]
fn a_store_at_an_ipv6_address_is_reached_in_brackets() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("no IPv6 here");
        return;
    }
    let store = Store::host("::1", None, TIMEOUT).unwrap();
    let address = format!("[::1]:{}", store.port().unwrap());
    let client = Lifeline::new(&[]).unwrap().connect(&address, TIMEOUT).unwrap();
    client.set("key", b"x").unwrap();
    assert_eq!(store.get("key").unwrap(), b"x");
}
