//! Who comes through a gate, over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_certs::Wanted;
use mcl_transport::{Dial, Gate, Identity, Limits, Refusal, Role};
use std::time::Duration;
use support::{Cluster, PATIENCE, Service, chain, check};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Short waits for those who let themselves be waited for.
fn impatient() -> Limits {
    let short = Duration::from_millis(200);
    Limits { handshake: short, first_call: short, ..Limits::default() }
}

/// Whether the other side hangs up, whatever it says before.
async fn hung_up(tcp: &mut TcpStream) {
    let rest = async { while matches!(tcp.read(&mut [0; 1024]).await, Ok(n) if n > 0) {} };
    tokio::time::timeout(PATIENCE, rest).await.expect("the connection ends");
}

#[tokio::test]
async fn roles_decide_over_real_connections() {
    let cluster = Cluster::new();
    let service = cluster.serve(Limits::default()).await;
    for role in Role::ALL {
        let identity = cluster.issue(role.as_str(), &[role]);
        service.check(Some(&identity)).await.unwrap_or_else(|e| panic!("{role}: {e}"));
        let mut client = HealthClient::new(service.dial(Some(&identity)).await.unwrap());
        let watched = client.watch(HealthCheckRequest { service: String::new() }).await;
        match role {
            Role::Operator | Role::Service => drop(watched.unwrap()),
            Role::Worker | Role::Viewer => {
                let refused = watched.map(drop).unwrap_err();
                assert_eq!(refused.code(), Code::PermissionDenied);
                assert!(refused.message().contains("expected operator or service"), "{refused}");
                assert!(refused.message().contains(role.as_str()), "{refused}");
            }
        }
    }
    let none = service.check(Some(&cluster.issue("none", &[]))).await.unwrap_err();
    assert_eq!(none.code(), Code::PermissionDenied);
    assert!(none.message().contains("no role"), "{none}");
    // A call that exists and is in no table.
    let operator = cluster.issue("operator", &[Role::Operator]);
    let mut unknown = tonic::client::Grpc::new(service.dial(Some(&operator)).await.unwrap());
    unknown.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/List");
    let codec = tonic_prost_codec();
    let refused = unknown.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let counted = |kind| service.gate.refusals().of(kind);
    assert_eq!((counted(Refusal::WrongRole), counted(Refusal::NoRole)), (2, 1));
    assert_eq!(counted(Refusal::UnknownCall), 1);
}

fn tonic_prost_codec() -> tonic_prost::ProstCodec<(), ()> {
    tonic_prost::ProstCodec::default()
}

#[tokio::test]
async fn whoever_is_not_of_the_cluster_does_not_come_in() {
    let cluster = Cluster::new();
    let service = cluster.serve(Limits::default()).await;
    let past = OffsetDateTime::now_utc() - time::Duration::days(9);
    // A folder with such a certificate does not open: it is made here and put beside one that does.
    let good = cluster.issue("good", &[Role::Operator]);
    let ended = Wanted { begins: past, ..Wanted::new(Role::Operator, 3) };
    let made = mcl_certs::issue_from(&cluster.authority, &cluster.place("ended"), &ended, false);
    assert!(made.is_err(), "a certificate that has ended is refused where it lies");
    let tls = told_after(&cluster, "ended", &service).await;
    assert!(tls.contains("expired") || tls.contains("CertificateExpired"), "{tls}");
    service.until_refused(Refusal::Expired, 1).await;

    // Of another authority, which trusts this one.
    let other = Cluster::new();
    let stranger = other.place("stranger");
    other.issue("stranger", &[Role::Operator]);
    let both = [cluster.authority.certificate(), other.authority.certificate()].concat();
    std::fs::write(stranger.join("ca.pem"), both).unwrap();
    let error = service.check(Some(&Identity::open(&stranger).unwrap())).await.unwrap_err();
    // The alert comes before the call or during it; it is the connection that fails either way, and no answer of a service.
    assert!(matches!(error.code(), Code::Unavailable | Code::Unknown), "{error}");
    let source = std::error::Error::source(&error).expect("a connection that broke");
    assert!(source.is::<tonic::transport::Error>(), "{source:?}");
    service.until_refused(Refusal::Untrusted, 1).await;

    // Without any, or without TLS.
    let none = told_after(&cluster, "", &service).await;
    assert!(none.to_lowercase().contains("certificate"), "{none}");
    service.until_refused(Refusal::NoCertificate, 1).await;
    assert!(service.check(None).await.is_err());
    service.until_refused(Refusal::NotTls, 1).await;
    service.check(Some(&good)).await.unwrap();
}

/// What a client that checks nothing of its own is told; with the certificate of a folder, or none.
async fn told_after(cluster: &Cluster, name: &str, service: &Service) -> String {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(cluster.authority.certificate().as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = if name.is_empty() {
        builder.with_no_client_auth()
    } else {
        let cert = CertificateDer::from_pem_file(cluster.place(name).join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(cluster.place(name).join("key.pem")).unwrap();
        builder.with_client_auth_cert(vec![cert], key).unwrap()
    };
    let tcp = TcpStream::connect(service.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let host = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = connector.connect(host, tcp).await.unwrap();
    // With TLS 1.3 the server's judgement comes with the first bytes.
    tls.read_exact(&mut [0; 1]).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_server_that_is_no_service_is_not_believed() {
    let cluster = Cluster::new();
    let client = cluster.issue("client", &[Role::Operator]);
    // A worker's certificate is good for nothing that listens.
    let worker = cluster.issue("worker", &[Role::Worker]);
    let fake = Service::start(Gate::new(Some(worker), Limits::default())).await;
    let error = chain(&fake.dial(Some(&client)).await.unwrap_err());
    assert!(error.contains("certificate"), "{error}");
    // Another host's.
    let service = cluster.issue("service", &[Role::Service]);
    let elsewhere =
        Service::start_at(Gate::new(Some(service.clone()), Limits::default()), "127.0.0.2:0").await;
    let error = chain(&elsewhere.dial(Some(&client)).await.unwrap_err());
    assert!(error.contains("not valid for name"), "{error}");
    let real = Service::start(Gate::new(Some(service), Limits::default())).await;
    real.check(Some(&client)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_good_for_a_server_needs_the_role_too() {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
    // As other authorities often issue them: for both sides, for this host, and with the role of a worker.
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let identity = |name: &str, role: Role| {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(role.uri().try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let place = folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("ca.pem"), &ca).unwrap();
        std::fs::write(place.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(place.join("cert.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        Identity::open(&place).unwrap()
    };
    let client = identity("client", Role::Viewer);
    let fake = Service::start(Gate::new(Some(identity("worker", Role::Worker)), Limits::default())).await;
    let error = chain(&fake.dial(Some(&client)).await.unwrap_err());
    assert!(error.contains("without the role service"), "{error}");
    let real = Service::start(Gate::new(Some(identity("service", Role::Service)), Limits::default())).await;
    real.check(Some(&client)).await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_or_takes_too_long_ends() {
    let cluster = Cluster::new();
    let service = cluster.serve(impatient()).await;
    let connect = || TcpStream::connect(service.address);
    let mut garbage = connect().await.unwrap();
    garbage.write_all(&[0x80; 64]).await.unwrap();
    hung_up(&mut garbage).await;
    service.until_refused(Refusal::NotTls, 1).await;
    // Half of a handshake's first record, and nothing more.
    let mut half = connect().await.unwrap();
    half.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    hung_up(&mut half).await;
    service.until_refused(Refusal::SlowHandshake, 1).await;
    drop(connect().await.unwrap());
    service.until_refused(Refusal::BrokenOff, 1).await;
    service.until_empty().await;
}

#[tokio::test]
async fn without_tls_too_nobody_may_keep_silent_or_speak_something_else() {
    let service = Service::start(Gate::new(None, impatient())).await;
    let connect = || TcpStream::connect(service.address);
    let mut web = connect().await.unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    hung_up(&mut web).await;
    service.until_refused(Refusal::NotHttp2, 1).await;
    let mut silent = connect().await.unwrap();
    hung_up(&mut silent).await;
    service.until_refused(Refusal::SlowHandshake, 1).await;
    // HTTP/2 begins, a header never ends.
    let mut slow = connect().await.unwrap();
    slow.write_all(PREFACE).await.unwrap();
    slow.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    slow.write_all(&[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x82]).await.unwrap();
    hung_up(&mut slow).await;
    service.until_refused(Refusal::SlowHeader, 1).await;
    service.until_empty().await;
    // Those who call in time stay.
    let channel = service.dial(None).await.unwrap();
    check(&channel).await.unwrap();
    service.until_refused(Refusal::SlowHeader, 1).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    check(&channel).await.unwrap();
    assert_eq!(service.gate.connections(), 1);
}

#[tokio::test]
async fn silent_connections_make_room_for_others() {
    let cluster = Cluster::new();
    let service = cluster.serve(Limits { handshakes: 4, ..Limits::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(service.address).await.unwrap());
    }
    service.until_refused(Refusal::MadeRoom, 16).await;
    let operator = cluster.issue("operator", &[Role::Operator]);
    service.check(Some(&operator)).await.unwrap();
    hung_up(&mut silent[0]).await;
}

#[tokio::test]
async fn connections_are_bounded_in_all_and_from_one_address() {
    let few = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
    let service = Service::start(Gate::new(None, few)).await;
    let (first, _second) = (service.dial(None).await.unwrap(), service.dial(None).await.unwrap());
    check(&first).await.unwrap();
    let mut third = TcpStream::connect(service.address).await.unwrap();
    hung_up(&mut third).await;
    service.until_refused(Refusal::TooManyFromAddress, 1).await;
    let from = |address: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        socket.connect(service.address)
    };
    let other = from("127.0.0.2").await.unwrap();
    let mut one_too_many = from("127.0.0.3").await.unwrap();
    hung_up(&mut one_too_many).await;
    service.until_refused(Refusal::TooManyConnections, 1).await;
    drop(other);
    drop(first);
    // Places come back.
    let came = async {
        while service.check(None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, came).await.unwrap();
}

#[tokio::test]
async fn calls_too_fast_are_refused_and_the_connection_stays() {
    let limits = Limits { calls_at_once: 5, calls_per_second: 1, ..Limits::default() };
    let service = Service::start(Gate::new(None, limits)).await;
    let channel = service.dial(None).await.unwrap();
    let mut refused = 0;
    for _ in 0..50 {
        if let Err(status) = check(&channel).await {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().contains("too many calls"), "{status}");
            refused += 1;
        }
    }
    assert!(refused > 0, "fifty calls at once");
    assert_eq!(service.gate.refusals().of(Refusal::TooFast), refused);
    service.check(None).await.unwrap();
}

#[tokio::test]
async fn addresses_go_with_certificates() {
    let cluster = Cluster::new();
    let identity = cluster.issue("a", &[Role::Operator]);
    let text =
        |url: &str, identity: Option<&Identity>| Dial::new(url, identity).map(drop).unwrap_err().to_string();
    assert!(text("https://h:1", None).contains("--tls"));
    assert!(text("http://h:1", Some(&identity)).contains("https://"));
    assert!(text("http://me:secret@h:1", None).contains("no user or password"));
    assert!(!text("http://me:secret@h:1", None).contains("secret"));
    assert!(text("ftp://h:1", None).contains("ftp"));
    assert!(text("http://", None).contains("expected http"));
    assert_eq!(Dial::new("h:1", Some(&identity)).unwrap().uri().scheme_str(), Some("https"));
    assert_eq!(Dial::new("h:1", None).unwrap().uri().scheme_str(), Some("http"));
}
