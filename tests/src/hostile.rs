//! Hostile connections of every kind, many at the same time, from many addresses of this machine.
//!
//! Left out: what a kernel is there for (packets that are no connections), and whoever holds an operator's key.

use mcl_certs::{Authority, Wanted, issue_from};
use mcl_proto::v1::{Hello, SessionRequest, session_request};
use mcl_transport::{CERT_FILE, KEY_FILE, Role};
use prost::Message;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Days of certificates here.
const DAYS: u32 = 3;
/// Addresses that attackers come from.
const ADDRESSES: usize = 250;
/// Attackers that are opening their connections at the same time.
const OPENING: usize = 200;
/// Longest try to get as far as an attack needs to.
const PATIENCE: Duration = Duration::from_secs(60);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// A HEADERS frame of 100 bytes whose rest never comes.
const HALF_HEADERS: &[u8] = &[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x82];
/// The first bytes of a TLS record, whose rest never comes.
const HALF_HELLO: &[u8] = &[22, 3, 1, 0, 200, 1, 0, 0, 196];

/// What an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Connects and says nothing.
    Silent,
    /// Says nonsense.
    Garbage,
    /// Begins a handshake and stops.
    HalfHandshake,
    /// Shows no certificate.
    NoCertificate,
    /// Shows one that has ended.
    Expired,
    /// Shows one of another authority.
    Stranger,
    /// Shows a good one and begins a header that never ends.
    SlowHeader,
    /// Says that a huge message comes.
    Oversized,
    /// A viewer that wants to stop the job.
    WrongRole,
    /// A worker that sends bytes that are no message.
    Malformed,
    /// A worker that pretends to be another.
    WrongName,
    /// Calls something that there is not.
    UnknownCall,
}

impl Kind {
    /// All of them, and the name under which each is counted when it is refused.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::Silent, "slow_handshake"),
        (Self::Garbage, "not_tls"),
        (Self::HalfHandshake, "slow_handshake"),
        (Self::NoCertificate, "no_certificate"),
        (Self::Expired, "expired"),
        (Self::Stranger, "untrusted"),
        (Self::SlowHeader, "slow_header"),
        (Self::Oversized, "too_large"),
        (Self::WrongRole, "wrong_role"),
        (Self::Malformed, "malformed"),
        (Self::WrongName, "wrong_name"),
        (Self::UnknownCall, "unknown_call"),
    ];
}

/// Makes the certificates of a cluster, by role, and those of attackers.
pub fn make_certs(folder: &Path) {
    let authority = Authority::new("cluster", 2 * DAYS).unwrap();
    for role in Role::ALL {
        issue_from(&authority, &folder.join(role.as_str()), &Wanted::new(role, DAYS), false).unwrap();
    }
    let named = Wanted { name: Some("somebody".parse().unwrap()), ..Wanted::new(Role::Worker, DAYS) };
    issue_from(&authority, &folder.join("named"), &named, false).unwrap();
    let none = Wanted { roles: Default::default(), ..Wanted::new(Role::Viewer, DAYS) };
    issue_from(&authority, &folder.join("none"), &none, false).unwrap();
    // These do not open as folders of a certificate: they are written as they are.
    let past = OffsetDateTime::now_utc() - time::Duration::days(9);
    let ended = Wanted { begins: past, ..Wanted::new(Role::Operator, DAYS) };
    let other = Authority::new("other", DAYS).unwrap();
    for (name, by, wanted) in
        [("ended", &authority, ended), ("stranger", &other, Wanted::new(Role::Operator, DAYS))]
    {
        let issued = by.issue(&wanted).unwrap();
        std::fs::create_dir(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join(CERT_FILE), issued.certificate).unwrap();
        std::fs::write(folder.join(name).join(KEY_FILE), issued.key).unwrap();
    }
    std::fs::write(folder.join("ca.pem"), authority.certificate()).unwrap();
}

/// TLS as whoever an attacker pretends to be.
pub struct Arms {
    connectors: BTreeMap<&'static str, TlsConnector>,
}

impl Arms {
    /// Of the folder that [`make_certs`] made.
    pub fn load(folder: &Path) -> Self {
        let names = ["", "ended", "stranger", "viewer", "worker", "named"];
        Self { connectors: names.into_iter().map(|name| (name, connector(folder, name))).collect() }
    }

    async fn tls(&self, name: &str, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let host = ServerName::try_from("127.0.0.1").unwrap();
        self.connectors[name].connect(host, tcp).await
    }
}

fn connector(folder: &Path, name: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let place: PathBuf = folder.join(name);
    let mut config = if name.is_empty() {
        builder.with_no_client_auth()
    } else {
        let certificate = CertificateDer::from_pem_file(place.join(CERT_FILE)).unwrap();
        let key = PrivateKeyDer::from_pem_file(place.join(KEY_FILE)).unwrap();
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// How attackers fared.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fared {
    /// Got as far as their attack needs to.
    pub attacked: usize,
    /// Did not get there: refused at the door, or hung up on.
    pub turned_away: usize,
}

/// Attacks with so many connections; they are held until `release`. `ready` is told when all have been begun.
pub async fn attack(
    target: SocketAddr,
    arms: Arc<Arms>,
    count: usize,
    ready: watch::Sender<bool>,
    release: watch::Receiver<bool>,
) -> Fared {
    let opening = Arc::new(Semaphore::new(OPENING));
    let mut tasks = tokio::task::JoinSet::new();
    let (begun, mut counted) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..count {
        let (arms, opening, release, begun) =
            (Arc::clone(&arms), Arc::clone(&opening), release.clone(), begun.clone());
        tasks.spawn(async move {
            let permit = opening.acquire().await;
            let (kind, _) = Kind::ALL[number % Kind::ALL.len()];
            let held = tokio::time::timeout(PATIENCE, strike(target, &arms, kind, number)).await;
            drop(permit);
            let held = held.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)));
            let _ = begun.send(held.is_ok());
            if let Ok(held) = held {
                held.until(release).await;
            }
        });
    }
    let mut fared = Fared::default();
    // Not until the channel ends: each keeps its end of it as long as its connection.
    for _ in 0..count {
        match counted.recv().await {
            Some(true) => fared.attacked += 1,
            Some(false) => fared.turned_away += 1,
            None => break,
        }
    }
    ready.send_replace(true);
    while tasks.join_next().await.is_some() {}
    fared
}

/// What an attacker keeps open.
enum Held {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Driven by a task of its own.
    Http2(Box<h2::client::SendRequest<bytes::Bytes>>, Box<h2::SendStream<bytes::Bytes>>),
}

impl Held {
    /// Until the end is told, or the other side hangs up.
    async fn until(self, mut release: watch::Receiver<bool>) {
        let released = async move { release.wait_for(|released| *released).await.is_ok() };
        let hung_up = async {
            let mut bytes = [0; 512];
            match self {
                Self::Tcp(mut tcp) => while matches!(tcp.read(&mut bytes).await, Ok(n) if n > 0) {},
                Self::Tls(mut tls) => while matches!(tls.read(&mut bytes).await, Ok(n) if n > 0) {},
                Self::Http2(_sender, _stream) => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = released => {}
            () = hung_up => {}
        }
    }
}

/// Goes as far as the attack needs.
async fn strike(target: SocketAddr, arms: &Arms, kind: Kind, number: usize) -> std::io::Result<Held> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(number % ADDRESSES).unwrap_or(0);
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, last, 1), 0)))?;
    let mut tcp = socket.connect(target).await?;
    let session = "/mcl.v1.CoordinatorService/Session";
    match kind {
        Kind::Silent => Ok(Held::Tcp(tcp)),
        Kind::Garbage => {
            tcp.write_all(&[0x99; 700]).await?;
            Ok(Held::Tcp(tcp))
        }
        Kind::HalfHandshake => {
            tcp.write_all(HALF_HELLO).await?;
            Ok(Held::Tcp(tcp))
        }
        Kind::NoCertificate => Ok(Held::Tls(Box::new(arms.tls("", tcp).await?))),
        Kind::Expired => Ok(Held::Tls(Box::new(arms.tls("ended", tcp).await?))),
        Kind::Stranger => Ok(Held::Tls(Box::new(arms.tls("stranger", tcp).await?))),
        Kind::SlowHeader => {
            let mut tls = arms.tls("viewer", tcp).await?;
            tls.write_all(&[PREFACE, SETTINGS, HALF_HEADERS].concat()).await?;
            Ok(Held::Tls(Box::new(tls)))
        }
        Kind::Oversized => {
            // 1 GiB follows, says the header.
            let head = [&[0, 0x40, 0, 0, 0][..], &[1; 64]].concat();
            call(arms.tls("worker", tcp).await?, target, session, head).await
        }
        Kind::WrongRole => {
            let drain = "/mcl.v1.CoordinatorService/DrainJob";
            call(arms.tls("viewer", tcp).await?, target, drain, vec![0; 5]).await
        }
        Kind::Malformed => {
            let nonsense = [&[0, 0, 0, 0, 9][..], &[0xff; 9]].concat();
            call(arms.tls("worker", tcp).await?, target, session, nonsense).await
        }
        Kind::WrongName => {
            let hello = Hello { worker: "a".to_owned(), protocol: mcl_proto::PROTOCOL, ..Hello::default() };
            let message = SessionRequest { message: Some(session_request::Message::Hello(hello)) };
            let body = message.encode_to_vec();
            let framed = [&[0, 0, 0, 0, u8::try_from(body.len()).unwrap_or(0)][..], &body].concat();
            call(arms.tls("named", tcp).await?, target, session, framed).await
        }
        Kind::UnknownCall => {
            call(arms.tls("viewer", tcp).await?, target, "/mcl.v1.Nothing/Call", vec![0; 5]).await
        }
    }
}

/// A call whose first bytes are sent; the stream stays open.
async fn call(
    tls: TlsStream<TcpStream>,
    target: SocketAddr,
    path: &str,
    bytes: Vec<u8>,
) -> std::io::Result<Held> {
    let failed = |e: h2::Error| std::io::Error::other(e);
    let (sender, connection) = h2::client::handshake(tls).await.map_err(failed)?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await.map_err(failed)?;
    let request = http::Request::post(format!("https://{target}{path}"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(())
        .map_err(std::io::Error::other)?;
    let (answer, mut stream) = sender.send_request(request, false).map_err(failed)?;
    // It may be refused before it has come whole.
    let _ = stream.send_data(bytes.into(), false);
    let _ = answer.await.map_err(failed)?;
    Ok(Held::Http2(Box::new(sender), Box::new(stream)))
}

/// What a coordinator's log says that it refused, by kind.
pub fn refused_in(log: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let told = log.lines().filter_map(|line| line.split_once("refused=\"")?.1.split_once(" (last"));
    for (kinds, _) in told {
        for part in kinds.split(", ") {
            if let Some((kind, count)) = part.split_once(' ') {
                *all.entry(kind.to_owned()).or_default() += count.parse::<u64>().unwrap_or(0);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_summed_up() {
        let log = "x WARN connections or calls refused connections=3 refused=\"not_tls 2, expired 1 (last: a: b)\"\n\
                   other\nrefused=\"not_tls 5 (last: c)\"\n";
        let expected = BTreeMap::from([("expired".to_owned(), 1), ("not_tls".to_owned(), 7)]);
        assert_eq!(refused_in(log), expected);
    }
}
