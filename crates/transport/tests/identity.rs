//! Folders that open and those that do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_certs::Wanted;
use mcl_transport::{HolderName, Identity, Role};
use support::Cluster;
use time::OffsetDateTime;

fn error(cluster: &Cluster, name: &str) -> String {
    Identity::open(&cluster.place(name)).unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_together_is_named() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    assert!(error(&cluster, "nowhere").contains("mcl certs issue"));
    for name in ["a", "b"] {
        cluster.issue(name, &[Role::Worker]);
        other.issue(name, &[Role::Worker]);
    }
    let put =
        |from: &Cluster, file: &str| std::fs::copy(from.place("b").join(file), cluster.place("a").join(file));
    put(&cluster, "key.pem").unwrap();
    assert!(error(&cluster, "a").contains("key.pem is not the key of cert.pem"), "{}", error(&cluster, "a"));
    put(&other, "key.pem").unwrap();
    put(&other, "cert.pem").unwrap();
    assert!(error(&cluster, "a").contains("vouch"), "{}", error(&cluster, "a"));
    std::fs::write(cluster.place("a/key.pem"), "-----BEGIN NOTHING-----").unwrap();
    assert!(error(&cluster, "a").contains("no private key"), "{}", error(&cluster, "a"));
    std::fs::write(cluster.place("a/cert.pem"), "").unwrap();
    assert!(error(&cluster, "a").contains("cert.pem: no certificate"), "{}", error(&cluster, "a"));
}

#[test]
fn keys_are_in_no_debug_and_no_error() {
    let cluster = Cluster::new();
    let identity = cluster.issue("a", &[Role::Worker]);
    let key = std::fs::read_to_string(cluster.place("a/key.pem")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(secret.len() > 20);
    let issued = cluster.authority.issue(&Wanted::new(Role::Worker, 1)).unwrap();
    let shown = format!("{identity:?} {:?} {issued:?} {:?}", cluster.authority, identity.certificate());
    assert!(!shown.contains(secret) && !shown.contains("PRIVATE"), "{shown}");
    assert!(!shown.contains(issued.key.lines().nth(1).unwrap()));
    std::fs::write(cluster.place("a/cert.pem"), &key).unwrap();
    let told = error(&cluster, "a");
    assert!(!told.contains(secret), "{told}");
}

#[test]
fn the_end_is_seen_coming() {
    let cluster = Cluster::new();
    let name: HolderName = "w7".parse().unwrap();
    let soon = cluster.issue_as("soon", &Wanted { name: Some(name), ..Wanted::new(Role::Worker, 10) });
    let warnings = soon.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("w7") && warnings[0].contains("ends in 10 days"),
        "{warnings:?}"
    );
    assert_eq!(cluster.issue("late", &[Role::Worker]).warnings(), Vec::<String>::new());
    let past = OffsetDateTime::now_utc() - time::Duration::days(9);
    let ended = Wanted { begins: past, ..Wanted::new(Role::Worker, 3) };
    let made = mcl_certs::issue_from(&cluster.authority, &cluster.place("ended"), &ended, false);
    assert!(made.unwrap_err().to_string().contains("has ended"));
}
