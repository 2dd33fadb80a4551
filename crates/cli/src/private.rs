//! `mcl run --private`: certificates for one start of one run.
//!
//! Its authority is never written: nobody can issue another certificate once these are made.

use anyhow::{Context, Result};
use mcl_certs::{Authority, Wanted, issue_from};
use mcl_transport::{Identity, Role};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Longer than any run takes.
const DAYS: u32 = 3650;
/// The folder in the run directory.
const FOLDER: &str = "tls";

/// Folders of the processes of a run, where they speak TLS.
#[derive(Debug, Default)]
pub(crate) struct Private {
    folder: Option<PathBuf>,
}

impl Private {
    /// Certificates in the run directory; those of an earlier start go.
    pub(crate) fn make(run_dir: &Path) -> Result<Self> {
        let folder = run_dir.join(FOLDER);
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", folder.display()));
            }
            _ => {}
        }
        let authority = Authority::new("mcl run", DAYS).context("making an authority for this run")?;
        for role in [Role::Service, Role::Worker, Role::Operator] {
            issue_from(&authority, &folder.join(role.as_str()), &Wanted::new(role, DAYS), false)?;
        }
        Ok(Self { folder: Some(folder) })
    }

    /// What a process of that role is started with.
    pub(crate) fn arguments(&self, role: Role) -> Vec<OsString> {
        let folder = self.folder.as_ref().map(|folder| folder.join(role.as_str()));
        folder.map_or_else(Vec::new, |folder| vec!["--tls".into(), folder.into()])
    }

    /// As whom somebody speaks who may read the directory of such a run.
    pub(crate) fn operator_of(run_dir: &Path) -> Option<Identity> {
        Identity::open(&run_dir.join(FOLDER).join(Role::Operator.as_str())).ok()
    }

    /// As whom `mcl run` itself speaks.
    pub(crate) fn operator(&self) -> Result<Option<Identity>> {
        let folder = self.folder.as_ref().map(|folder| folder.join(Role::Operator.as_str()));
        Ok(folder.map(|folder| Identity::open(&folder)).transpose()?)
    }
}
