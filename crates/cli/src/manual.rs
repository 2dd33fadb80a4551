//! What shells and `man` are told of this program: `mcl completions`, `mcl man`.

use crate::arguments::{Arguments, ManArguments};
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use mcl_terminal::say;
use std::process::ExitCode;

/// What it is called there.
const NAME: &str = "mcl";

/// Prints a shell's completion script.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut script);
    mcl_terminal::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for `mcl` and for each verb.
pub(crate) fn man(a: &ManArguments) -> Result<ExitCode> {
    let writing = || format!("writing pages to {}", a.out.display());
    std::fs::create_dir_all(&a.out).with_context(writing)?;
    clap_mangen::generate_to(Arguments::command(), &a.out).with_context(writing)?;
    say!("{}", a.out.display())?;
    Ok(ExitCode::SUCCESS)
}
