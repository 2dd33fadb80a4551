//! `coordinator.json` in a run directory, or in a folder of them: which coordinator has it and where that listens, or how
//! the last one ended. For those who are given the folder alone.

use anyhow::Result;
use mcl_coordinator::Progress;
use serde::{Deserialize, Serialize};
use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Its name.
pub(crate) const FILE: &str = "coordinator.json";
/// Who may read the folder may read this, as far as the umask lets them.
const MODE: u32 = 0o666;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Whereabouts {
    scheme: String,
    /// As it was bound.
    listen: SocketAddr,
    host: String,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The job's phase.
    pub(crate) phase: String,
    /// Why, for a person.
    pub(crate) reason: String,
}

/// What is known of a folder's coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// None had it, or the one that had it is gone without a word.
    Nothing,
    /// It may be here.
    At(String),
    /// It listens where only its own machine reaches it.
    Elsewhere(String),
    /// It ended in order.
    Ended(Ended),
    /// The file cannot be read, for this reason.
    Unreadable(String),
}

/// Where the coordinator of a folder listens, for as long as it has it.
#[derive(Debug)]
pub(crate) struct Told<'a> {
    folder: &'a Path,
    whereabouts: Whereabouts,
}

impl<'a> Told<'a> {
    /// Writes down that this process has the folder.
    pub(crate) fn tell(folder: &'a Path, scheme: &str, listen: SocketAddr) -> Self {
        let (scheme, host, pid) = (scheme.to_owned(), host(), std::process::id());
        let told = Self { folder, whereabouts: Whereabouts { scheme, listen, host, pid, ended: None } };
        told.write();
        told
    }

    /// Writes down how it ended, unless another coordinator has the folder by now.
    pub(crate) fn end(mut self, last: &Progress) {
        if read(self.folder).is_ok_and(|found| found.is_some_and(|f| f == self.whereabouts)) {
            let (phase, reason) = (last.phase.to_string(), last.reason.clone());
            self.whereabouts.ended = Some(Ended { phase, reason });
            self.write();
        }
    }

    fn write(&self) {
        let write = || -> Result<()> {
            let mut file = tempfile::Builder::new()
                .permissions(Permissions::from_mode(MODE))
                .tempfile_in(self.folder)?;
            serde_json::to_writer(&mut file, &self.whereabouts)?;
            file.persist(self.folder.join(FILE))?;
            Ok(())
        };
        if let Err(error) = write() {
            let file = self.folder.join(FILE);
            tracing::warn!(file = %file.display(), %error, "not written: `mcl watch` needs --coordinator");
        }
    }
}

fn read(folder: &Path) -> Result<Option<Whereabouts>> {
    match std::fs::read(folder.join(FILE)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the folder's file says; of a process of this machine that is gone, only how it ended.
pub(crate) fn of(folder: &Path) -> Known {
    let found = match read(folder) {
        Ok(Some(found)) => found,
        Ok(None) => return Known::Nothing,
        Err(error) => return Known::Unreadable(format!("{}: {error}", folder.join(FILE).display())),
    };
    let is_here = found.host == host();
    let ip = found.listen.ip().to_canonical();
    match found.ended {
        Some(ended) => Known::Ended(ended),
        None if is_here && !Path::new("/proc").join(found.pid.to_string()).exists() => Known::Nothing,
        None if !is_here && ip.is_loopback() => Known::Elsewhere(found.host),
        // Everywhere is no place to speak to.
        None if ip.is_unspecified() && !is_here => {
            Known::At(format!("{}://{}:{}", found.scheme, found.host, found.listen.port()))
        }
        None => {
            let mut at = found.listen;
            if ip.is_unspecified() {
                at.set_ip(if at.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
            }
            Known::At(format!("{}://{at}", found.scheme))
        }
    }
}

fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| String::new(), |h| h.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_coordinator::Phase;

    fn last(phase: Phase) -> Progress {
        Progress {
            run_id: None,
            phase,
            reason: "why".to_owned(),
            step: 1,
            total: 2,
            steps_per_epoch: 1,
            loss: None,
            images_per_s: 0.0,
            data_wait_share: 0.0,
            generation: 1,
            workers: 0,
            last_checkpoint: None,
        }
    }

    #[test]
    fn one_that_is_gone_is_not_told_but_for_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(of(folder.path()), Known::Nothing);
        let told = Told::tell(folder.path(), "https", "0.0.0.0:70".parse().unwrap());
        assert_eq!(of(folder.path()), Known::At("https://127.0.0.1:70".to_owned()));
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o600, 0o600);
        let wrote = |host: &str, listen: &str| {
            let text =
                format!(r#"{{"scheme":"http","listen":"{listen}","host":"{host}","pid":{}}}"#, u32::MAX);
            std::fs::write(folder.path().join(FILE), text).unwrap();
            of(folder.path())
        };
        assert_eq!(wrote(&host(), "10.0.0.1:1"), Known::Nothing);
        assert_eq!(wrote("other", "10.0.0.1:1"), Known::At("http://10.0.0.1:1".to_owned()));
        assert_eq!(wrote("other", "[::]:1"), Known::At("http://other:1".to_owned()));
        assert_eq!(wrote("other", "127.0.0.1:1"), Known::Elsewhere("other".to_owned()));
        // Another one has the folder by now: its word stays.
        told.end(&last(Phase::Done));
        assert_eq!(of(folder.path()), Known::Elsewhere("other".to_owned()));
        Told::tell(folder.path(), "http", "127.0.0.1:1".parse().unwrap()).end(&last(Phase::Failed));
        let ended = Ended { phase: "failed".to_owned(), reason: "why".to_owned() };
        assert_eq!(of(folder.path()), Known::Ended(ended));
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(matches!(of(folder.path()), Known::Unreadable(_)));
    }
}
