//! `coordinator.json` in a run directory, or in a folder of them: which coordinator has it and where that listens, or how
//! the last one ended. For those who are given the folder alone.

use anyhow::Result;
use mcl_coordinator::Progress;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Its name.
pub(crate) const FILE: &str = "coordinator.json";

#[derive(Debug, Serialize, Deserialize)]
struct Whereabouts {
    url: String,
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
    /// Nothing: none had it, or the one that had it is gone without a word.
    Nothing,
    /// It may be here.
    At(String),
    /// It ended in order.
    Ended(Ended),
}

/// Where the coordinator of a folder listens, for as long as it has it.
#[derive(Debug)]
pub(crate) struct Told<'a> {
    folder: &'a Path,
    whereabouts: Whereabouts,
}

impl<'a> Told<'a> {
    /// Writes down that this process has the folder.
    pub(crate) fn tell(folder: &'a Path, scheme: &str, mut address: SocketAddr) -> Self {
        // Everywhere is no place to speak to.
        if address.ip().is_unspecified() {
            let here =
                if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            address.set_ip(here);
        }
        let url = format!("{scheme}://{address}");
        let told = Self {
            folder,
            whereabouts: Whereabouts { url, host: host(), pid: std::process::id(), ended: None },
        };
        told.write();
        told
    }

    /// Writes down how it ended.
    pub(crate) fn end(mut self, last: &Progress) {
        self.whereabouts.ended = Some(Ended { phase: last.phase.to_string(), reason: last.reason.clone() });
        self.write();
    }

    fn write(&self) {
        let write = || -> Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(self.folder)?;
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

/// What the folder's file says; of a process of this machine that is gone, only how it ended.
pub(crate) fn of(folder: &Path) -> Known {
    let text = std::fs::read(folder.join(FILE));
    let Some(found) = text.ok().and_then(|t| serde_json::from_slice::<Whereabouts>(&t).ok()) else {
        return Known::Nothing;
    };
    let gone = found.host == host() && !Path::new("/proc").join(found.pid.to_string()).exists();
    match found.ended {
        Some(ended) => Known::Ended(ended),
        None if gone => Known::Nothing,
        None => Known::At(found.url),
    }
}

fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| String::new(), |h| h.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_gone_is_not_told_but_for_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(of(folder.path()), Known::Nothing);
        let told = Told::tell(folder.path(), "https", "0.0.0.0:70".parse().unwrap());
        assert_eq!(of(folder.path()), Known::At("https://127.0.0.1:70".to_owned()));
        let wrote = |host: &str, more: &str| {
            let text = format!(r#"{{"url":"http://x:1","host":"{host}","pid":{}{more}}}"#, u32::MAX);
            std::fs::write(folder.path().join(FILE), text).unwrap();
            of(folder.path())
        };
        assert_eq!(wrote(&host(), ""), Known::Nothing);
        assert_eq!(wrote("another machine", ""), Known::At("http://x:1".to_owned()));
        let ended = Ended { phase: "failed".to_owned(), reason: "why".to_owned() };
        assert_eq!(wrote(&host(), r#","ended":{"phase":"failed","reason":"why"}"#), Known::Ended(ended));
        told.write();
        assert_eq!(of(folder.path()), Known::At("https://127.0.0.1:70".to_owned()));
    }
}
