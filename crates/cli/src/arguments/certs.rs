//! Arguments of `mcl certs`.

use clap::{Args, Subcommand};
use mcl_transport::{HolderName, Role};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make an authority: a folder with ca.pem, which everybody trusts, and ca.key.pem, which nobody else should see.
    Init(InitArguments),
    /// Issue a certificate into a folder of its own, FOLDER/NAME, ready to be given as --tls.
    Issue(IssueArguments),
    /// Tell roles, names and end of certificates.
    Show {
        /// A PEM file, a folder that is given as --tls, or an authority's folder.
        path: PathBuf,
        /// Answer as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// The authority's folder.
    pub(crate) folder: PathBuf,
    /// What it calls itself.
    #[arg(long, default_value = "mcl cluster authority")]
    pub(crate) name: String,
    /// Days until it ends.
    #[arg(long, default_value_t = 3650)]
    pub(crate) days: u32,
    /// Replace what is there: certificates of the old authority are no longer trusted by holders of new ones alone.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IssueArguments {
    /// The authority's folder.
    pub(crate) folder: PathBuf,
    /// What its holder may be: service (coordinator and checkpoint service), worker, operator or viewer; repeat it for
    /// several.
    #[arg(long = "role", value_name = "ROLE", required = true)]
    pub(crate) roles: Vec<Role>,
    /// Name of the holder, and of the folder: a worker may say hello under it alone. Default: the role, and any name.
    #[arg(long)]
    pub(crate) name: Option<HolderName>,
    /// Name or address that a service is reached at; repeat it for several.
    #[arg(long = "host", value_name = "NAME_OR_ADDRESS")]
    pub(crate) hosts: Vec<String>,
    /// Days until it ends.
    #[arg(long, default_value_t = 365)]
    pub(crate) days: u32,
    /// Replace the one that is there; daemons that use it take the new one while they run.
    #[arg(long)]
    pub(crate) force: bool,
}
