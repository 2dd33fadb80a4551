//! Arguments about the coordinator's web page.

use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct PageArguments {
    /// Address of the web page and of the metrics for Prometheus; default: a free port on 127.0.0.1, and none where
    /// there are certificates, since whoever reaches it can read it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) page: Option<SocketAddr>,
    /// Allow the page at an address beyond loopback: it is not encrypted, and whoever reaches it can read it.
    #[arg(long, requires = "page")]
    pub(crate) page_insecure: bool,
    /// No web page and no metrics.
    #[arg(long, conflicts_with_all = ["page", "page_token_file"])]
    pub(crate) no_page: bool,
    /// Let whoever shows the secret in this file pause, resume, drain and cancel from the page; else it is read-only.
    #[arg(long, value_name = "FILE")]
    pub(crate) page_token_file: Option<PathBuf>,
}

impl PageArguments {
    /// Where the page is to listen, if there is to be one; `secured`: the services want certificates.
    pub(crate) fn address(&self, secured: bool) -> Option<SocketAddr> {
        let wanted = self.page.is_some() || self.page_token_file.is_some();
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        (wanted || !secured && !self.no_page).then(|| self.page.unwrap_or(anywhere))
    }
}
