//! Certificates as files.

use crate::authority::{Authority, Wanted};
use mcl_transport::{CA_FILE, CERT_FILE, Certificate, Identity, IdentityError, KEY_FILE};
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The authority's key. Whoever has it is the authority: it belongs on no machine of the cluster.
pub const CA_KEY_FILE: &str = "ca.key.pem";

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file is there already.
    #[error("{} is there already: give --force to replace it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The authority is not usable.
    #[error("{}: {reason}; expected a folder that `mcl certs init` made", folder.display())]
    Authority {
        /// Its folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nothing to sign.
    #[error("{0}")]
    Wanted(String),
    /// What was made is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Makes an authority in a folder.
///
/// # Errors
/// When one is there and `force` was not given, or the folder cannot be written.
pub fn init(folder: &Path, name: &str, days: u32, force: bool) -> Result<Certificate, CertsError> {
    let (ca, key) = (folder.join(CA_FILE), folder.join(CA_KEY_FILE));
    refuse_existing([&ca, &key], force)?;
    let broken = |e: &dyn std::fmt::Display| CertsError::Authority {
        folder: folder.to_owned(),
        reason: e.to_string(),
    };
    let authority = Authority::new(name, days).map_err(|e| broken(&e))?;
    create_folder(folder)?;
    write(&key, authority.key(), 0o600, force)?;
    write(&ca, authority.certificate(), 0o644, force)?;
    read_one(&ca, authority.certificate())
}

/// Issues a certificate into a folder of its own below the authority's, ready to be given as `--tls`.
///
/// # Errors
/// When one is there and `force` was not given, the authority is not usable, or what is wanted makes no sense.
pub fn issue(
    folder: &Path,
    name: &str,
    wanted: &Wanted,
    force: bool,
) -> Result<(PathBuf, Certificate), CertsError> {
    let read = |file: &str| {
        let path = folder.join(file);
        std::fs::read_to_string(&path).map_err(|source| CertsError::File { action: "read", path, source })
    };
    let broken = |reason: String| CertsError::Authority { folder: folder.to_owned(), reason };
    let (ca, ca_key) = (read(CA_FILE)?, read(CA_KEY_FILE)?);
    let authority = Authority::from_pem(&ca, &ca_key).map_err(|e| broken(e.to_string()))?;
    let own = read_one(&folder.join(CA_FILE), &ca)?;
    if own.left(SystemTime::now()) <= i64::from(wanted.days) * 24 * 3600 {
        return Err(CertsError::Wanted(format!(
            "a certificate of {} days would outlive its authority, which ends in {} days: take fewer --days, or make a new authority",
            wanted.days,
            own.days_left(SystemTime::now())
        )));
    }
    issue_from(&authority, &folder.join(name), wanted, force)
}

/// The same, of an authority that need not be on the disk, into a folder.
///
/// # Errors
/// As [`issue`].
pub fn issue_from(
    authority: &Authority,
    place: &Path,
    wanted: &Wanted,
    force: bool,
) -> Result<(PathBuf, Certificate), CertsError> {
    let files = [CA_FILE, KEY_FILE, CERT_FILE].map(|file| place.join(file));
    refuse_existing(&files, force)?;
    let issued = authority.issue(wanted).map_err(|e| CertsError::Wanted(format!("no certificate: {e}")))?;
    create_folder(place)?;
    let [ca_file, key_file, cert_file] = files;
    write(&ca_file, &trusted(&ca_file, authority.certificate()), 0o644, force)?;
    write(&key_file, &issued.key, 0o600, force)?;
    write(&cert_file, &issued.certificate, 0o644, force)?;
    let identity = Identity::open(place)?;
    Ok((place.to_owned(), identity.certificate()))
}

/// The authority, and those besides that are trusted there already: while one takes the place of another, both are.
fn trusted(path: &Path, authority: &str) -> String {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    if before.contains(authority.trim()) { before } else { format!("{authority}{before}") }
}

fn read_one(path: &Path, pem: &str) -> Result<Certificate, CertsError> {
    let broken = |reason: String| CertsError::Authority { folder: path.to_owned(), reason };
    let read = Certificate::read_pem(pem.as_bytes()).map_err(|e| broken(e.to_string()))?;
    read.into_iter().next().ok_or_else(|| broken("no certificate is in it".to_owned()))
}

fn refuse_existing<'a>(paths: impl IntoIterator<Item = &'a PathBuf>, force: bool) -> Result<(), CertsError> {
    match paths.into_iter().find(|path| !force && path.exists()) {
        Some(path) => Err(CertsError::Exists { path: path.clone() }),
        None => Ok(()),
    }
}

fn create_folder(path: &Path) -> Result<(), CertsError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| CertsError::File { action: "create", path: path.to_owned(), source })
}

/// Under another name first, with its final mode: nobody sees half a file, or a key that others may read.
fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), CertsError> {
    let failed = |source| CertsError::File { action: "write", path: path.to_owned(), source };
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(path.parent().unwrap_or(Path::new(".")))
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    let kept = if force { file.persist(path) } else { file.persist_noclobber(path) };
    match kept {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(CertsError::Exists { path: path.to_owned() })
        }
        Err(e) => Err(failed(e.error)),
    }
}
