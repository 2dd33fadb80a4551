//! Certificates that are replaced while a service and its clients run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_transport::{Identity, Limits, Refusal, Role};
use std::time::Duration;
use support::{Cluster, PATIENCE, Service, check};

/// Asks until it goes as expected: files are looked at once a second.
async fn until(service: &Service, identity: &Identity, good: bool) {
    let asked = async {
        while service.check(Some(identity)).await.is_ok() != good {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{identity:?} good: {good}"));
}

#[tokio::test]
async fn authorities_are_replaced_while_a_session_lives() {
    let (old, new) = (Cluster::new(), Cluster::new());
    let service = old.serve(Limits::default()).await;
    let client = old.issue("operator", &[Role::Operator]);
    let session = service.dial(Some(&client)).await.unwrap();
    check(&session).await.unwrap();

    // First everybody trusts both, then everybody gets a new certificate, then the old authority goes.
    let place = old.place("service");
    let both = [old.authority.certificate(), new.authority.certificate()].concat();
    for folder in ["service", "operator"] {
        std::fs::write(old.place(folder).join("ca.pem"), &both).unwrap();
    }
    new.issue("operator", &[Role::Operator]);
    std::fs::write(new.place("operator/ca.pem"), &both).unwrap();
    let newcomer = Identity::open(&new.place("operator")).unwrap();
    until(&service, &newcomer, true).await;
    let renewed = new.issue("renewed", &[Role::Service]);
    for file in ["key.pem", "cert.pem"] {
        std::fs::copy(renewed.folder().join(file), place.join(file)).unwrap();
    }
    std::fs::write(place.join("ca.pem"), new.authority.certificate()).unwrap();
    until(&service, &client, false).await;
    assert!(service.gate.refusals().of(Refusal::Untrusted) > 0);
    until(&service, &newcomer, true).await;
    // What was let in stays.
    check(&session).await.unwrap();

    // The client's own files are replaced too: it takes them with its next connection.
    let theirs = new.issue("theirs", &[Role::Operator]);
    for file in ["key.pem", "cert.pem", "ca.pem"] {
        std::fs::copy(theirs.folder().join(file), client.folder().join(file)).unwrap();
    }
    until(&service, &client, true).await;
}

#[tokio::test]
async fn broken_files_are_refused_and_the_old_ones_stay() {
    let cluster = Cluster::new();
    let service = cluster.serve(Limits::default()).await;
    let client = cluster.issue("operator", &[Role::Operator]);
    let before = service.gate.identity().unwrap().certificate();
    let other = Cluster::new();
    let foreign = other.issue("service", &[Role::Service]);
    let place = cluster.place("service");
    let foreign_cert = std::fs::read(foreign.folder().join("cert.pem")).unwrap();
    let (cert, key, ca) = (place.join("cert.pem"), place.join("key.pem"), place.join("ca.pem"));
    for (file, bytes) in
        [(&cert, b"nonsense".to_vec()), (&cert, foreign_cert), (&key, vec![]), (&ca, b"x".to_vec())]
    {
        let good = std::fs::read(file).unwrap();
        std::fs::write(file, bytes).unwrap();
        // Two looks, a second apart each.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1100)).await;
            service.check(Some(&client)).await.unwrap();
        }
        assert_eq!(service.gate.identity().unwrap().certificate(), before);
        std::fs::write(file, good).unwrap();
    }
    std::fs::remove_file(&key).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    service.check(Some(&client)).await.unwrap();
    assert!(Identity::open(&place).is_err(), "who starts now is told");
}
