//! Arguments of whoever listens, and of whoever speaks to those who do.

use crate::exit::Usage;
use anyhow::{Result, bail};
use clap::Args;
use mcl_transport::{Gate, Identity, Limits};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub(crate) struct TlsArguments {
    /// Folder with ca.pem, cert.pem and key.pem, as `mcl certs issue` makes it: encrypts, and says who we are.
    #[arg(long, env = mcl_transport::VARIABLE, value_name = "FOLDER")]
    tls: Option<PathBuf>,
}

impl TlsArguments {
    /// What is in the folder, where one is given.
    pub(crate) fn identity(&self) -> Result<Option<Identity>> {
        let folder = self.tls.as_ref().filter(|folder| !folder.as_os_str().is_empty());
        let opened =
            folder.map(|folder| Identity::open(&std::path::absolute(folder)?).map_err(anyhow::Error::from));
        opened.transpose().map_err(|e| Usage(format!("--tls: {e:#}")).into())
    }

    /// The folder, where one is given.
    pub(crate) fn folder(&self) -> Option<&PathBuf> {
        self.tls.as_ref()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Address to listen at; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// Allow an address beyond loopback without --tls: nothing is encrypted or authenticated then.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Connections that are let in at the same time.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// ... from one address, or from one /64 of IPv6: more where many machines share one.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_per_address)]
    max_connections_per_address: usize,
    /// Stop when standard input closes: for daemons that another program started.
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

impl Listen {
    /// Who is let in, and where that is allowed.
    pub(crate) fn gate(&self) -> Result<Gate> {
        let identity = self.tls.identity()?;
        if identity.is_some() && self.insecure {
            bail!(Usage("--tls and --insecure (or MCL_TLS in the environment): give one of them".to_owned()));
        }
        mcl_transport::check_bind(self.listen, identity.is_some(), self.insecure)
            .map_err(|e| Usage(e.to_string()))?;
        if let Some(identity) = identity.as_ref().filter(|i| !i.is_service()) {
            bail!(Usage(format!(
                "--tls {}: this certificate has no role service ({}): clients would refuse it; `mcl certs issue \
                 --role service --host NAME_OR_ADDRESS` makes one",
                identity.folder().display(),
                identity.certificate().holder
            )));
        }
        let limits = Limits {
            connections: self.max_connections,
            connections_per_address: self.max_connections_per_address,
            ..Limits::default()
        };
        Ok(Gate::new(identity, limits))
    }
}
