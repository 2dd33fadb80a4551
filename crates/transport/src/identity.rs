//! A folder with a certificate, its key and the authorities that are trusted; what rustls makes of it.
//!
//! Invariants: the files are read again when they change, and what does not fit together is refused: the old ones stay.
//! Only TLS 1.3, and no session is resumed: every connection shows a certificate that is trusted now. The key goes
//! from its file to rustls, and is in no log and no `Debug`.

use crate::certificate::{Certificate, CertificateError, chain};
use crate::role::Role;
use mcl_types::Digest;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, version};

/// What names the folder where no flag does.
pub const VARIABLE: &str = "MCL_TLS";
/// Authorities that are trusted, one or several.
pub const CA_FILE: &str = "ca.pem";
/// The own certificate, and what lies between it and its authority.
pub const CERT_FILE: &str = "cert.pem";
/// Its key.
pub const KEY_FILE: &str = "key.pem";

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often a certificate that ends soon is warned of.
const WARN: Duration = Duration::from_secs(12 * 3600);
/// The only protocol: all parties are of this program.
const ALPN: &[u8] = b"h2";

/// What a folder lacks.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error(
        "cannot read {}: {source}; expected a folder with {CA_FILE}, {CERT_FILE} and {KEY_FILE}, as `mcl certs issue` makes it",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
    /// The key does not parse.
    #[error("{}: no private key in PEM is in it; `mcl certs issue` makes one", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The files do not fit together, or to this moment.
    #[error("{}: {reason}", folder.display())]
    Fit {
        /// The folder.
        folder: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
}

/// Who we are, and whom we trust. Clones share what was read.
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    loaded: Arc<Loaded>,
    /// Digest of the files that were read last, whether they were good or not.
    seen: Digest,
    looked: Instant,
    warned: Option<Instant>,
}

/// One reading of the files.
pub(crate) struct Loaded {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    own: Certificate,
    authorities: Vec<Certificate>,
}

/// The files as they are.
struct Files {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(folder: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| IdentityError::Read { path, source })
        };
        Ok(Self { ca: read(CA_FILE)?, cert: read(CERT_FILE)?, key: read(KEY_FILE)? })
    }

    fn digest(&self) -> Digest {
        let parts = [&self.ca, &self.cert, &self.key].map(|bytes| *Digest::of(bytes).as_bytes());
        Digest::of(&parts.concat())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads a folder.
    ///
    /// # Errors
    /// When a file is missing or broken, or they do not fit together.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let files = Files::read(folder)?;
        let loaded = Arc::new(load(folder, &files, SystemTime::now())?);
        if is_open_to_others(&folder.join(KEY_FILE)) {
            tracing::warn!(file = %folder.join(KEY_FILE).display(), "others on this machine may read the key: chmod 600");
        }
        let state = State { loaded, seen: files.digest(), looked: Instant::now(), warned: None };
        let shared = Shared { folder: folder.to_owned(), state: Mutex::new(state) };
        let identity = Self { shared: Arc::new(shared) };
        identity.warn_of_the_end();
        Ok(identity)
    }

    /// The one that the environment names, if it names one.
    ///
    /// # Errors
    /// As [`Identity::open`].
    pub fn from_environment() -> Result<Option<Self>, IdentityError> {
        let folder = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty());
        folder.map(|folder| Self::open(Path::new(&folder))).transpose()
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The certificate that is shown to others.
    pub fn certificate(&self) -> Certificate {
        self.state().loaded.own.clone()
    }

    /// Whether clients would believe whoever shows it to be a service.
    pub fn is_service(&self) -> bool {
        self.certificate().holder.roles.contains(&Role::Service)
    }

    /// Warnings about the time of the own certificate and the authorities.
    pub fn warnings(&self) -> Vec<String> {
        self.state().loaded.warnings(SystemTime::now())
    }

    /// Looks whether the files have changed, at most once a second, and takes them where they are good.
    pub(crate) async fn current(&self) -> Arc<Loaded> {
        let due = {
            let mut state = self.state();
            let due = state.looked.elapsed() >= LOOK;
            if due {
                state.looked = Instant::now();
            }
            due
        };
        if due {
            let this = self.clone();
            // Small files, but on who knows what disk. The task ends early only where the runtime does.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
        Arc::clone(&self.state().loaded)
    }

    /// Reads the files, whenever they were read last.
    fn look(&self) {
        let folder = &self.shared.folder;
        let files = Files::read(folder);
        let digest = files.as_ref().map_or_else(|e| Digest::of(e.to_string().as_bytes()), Files::digest);
        let news = { std::mem::replace(&mut self.state().seen, digest) != digest };
        if news {
            match files.and_then(|files| load(folder, &files, SystemTime::now())) {
                Ok(loaded) => {
                    tracing::info!(folder = %folder.display(), own = %loaded.own.holder, "certificates taken");
                    let mut state = self.state();
                    (state.loaded, state.warned) = (Arc::new(loaded), None);
                }
                Err(error) => {
                    tracing::error!(%error, "certificates changed and are not usable: those from before stay");
                }
            }
        }
        self.warn_of_the_end();
    }

    fn warn_of_the_end(&self) {
        let mut state = self.state();
        if state.warned.is_some_and(|at| at.elapsed() < WARN) {
            return;
        }
        let warnings = state.loaded.warnings(SystemTime::now());
        if !warnings.is_empty() {
            state.warned = Some(Instant::now());
        }
        drop(state);
        for warning in warnings {
            tracing::warn!(folder = %self.shared.folder.display(), "{warning}");
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loaded {
    fn warnings(&self, now: SystemTime) -> Vec<String> {
        std::iter::once(&self.own).chain(&self.authorities).filter_map(|c| c.warning(now)).collect()
    }
}

/// Mode bits of a key that others may read.
fn is_open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

/// Whether the files fit together and to this moment, and what rustls needs of them.
fn load(folder: &Path, files: &Files, now: SystemTime) -> Result<Loaded, IdentityError> {
    let fit = |reason: String| IdentityError::Fit { folder: folder.to_owned(), reason };
    let read = |name: &str, pem: &[u8]| {
        let broken = |source| IdentityError::Certificate { path: folder.join(name), source };
        let ders = chain(pem).map_err(broken)?;
        let read: Result<Vec<_>, _> = ders.iter().map(|der| Certificate::read(der)).collect();
        Ok::<_, IdentityError>((ders, read.map_err(broken)?))
    };
    let (ca_ders, authorities) = read(CA_FILE, &files.ca)?;
    let (cert_ders, certificates) = read(CERT_FILE, &files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&files.key);
    let key = key.map_err(|_| IdentityError::Key { path: folder.join(KEY_FILE) })?;
    let mut roots = RootCertStore::empty();
    for der in ca_ders {
        roots.add(der).map_err(|e| fit(format!("{CA_FILE}: not an authority that can be trusted: {e}")))?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|e| fit(format!("{CA_FILE}: {e}")))?;
    let [leaf, between @ ..] = cert_ders.as_slice() else {
        return Err(fit(format!("{CERT_FILE}: empty")));
    };
    let own = certificates.into_iter().next().ok_or_else(|| fit(format!("{CERT_FILE}: empty")))?;
    if own.left(now) < 0 {
        return Err(fit(format!("{CERT_FILE}: {}", own.warning(now).unwrap_or_default())));
    }
    // Whoever trusts the same authorities would refuse us: said here, where it can be mended.
    verifier.verify_client_cert(leaf, between, UnixTime::now()).map_err(|e| {
        fit(format!("{CERT_FILE} is not one that the authorities of {CA_FILE} vouch for: {e}"))
    })?;
    let mismatch = |e: rustls::Error| fit(format!("{KEY_FILE} is not the key of {CERT_FILE}: {e}"));
    let server = server_config(&provider, verifier)
        .and_then(|builder| builder.with_single_cert(cert_ders.clone(), key.clone_key()))
        .map_err(mismatch)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .and_then(|b| b.with_root_certificates(roots).with_client_auth_cert(cert_ders, key))
        .map_err(mismatch)?;
    Ok(Loaded {
        server: Arc::new(finish_server(server)),
        client: Arc::new(finish_client(client)),
        own,
        authorities,
    })
}

type ServerBuilder = rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>;

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
) -> Result<ServerBuilder, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
    Ok(builder.with_protocol_versions(&[&version::TLS13])?.with_client_cert_verifier(verifier))
}

fn finish_server(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is resumed would show no certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn finish_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Whether the other side of a connection is a service of the cluster.
pub(crate) fn is_service(der: Option<&[u8]>) -> bool {
    der.and_then(|der| Certificate::read(der).ok()).is_some_and(|c| c.holder.roles.contains(&Role::Service))
}
