//! Arguments about the coordinator's web page.

use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct PageArguments {
    /// Address of the web page and of the metrics for Prometheus; default: a free port on 127.0.0.1.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) page: Option<SocketAddr>,
    /// No web page and no metrics.
    #[arg(long, conflicts_with_all = ["page", "page_token_file"])]
    pub(crate) no_page: bool,
    /// Let whoever shows the secret in this file pause, resume, drain and cancel from the page; else it is read-only.
    #[arg(long, value_name = "FILE")]
    pub(crate) page_token_file: Option<PathBuf>,
}
