//! `mcl certs`: a small certificate authority.

use crate::arguments::{CertsCommand, InitArguments, IssueArguments};
use crate::exit::Usage;
use anyhow::{Context, Result, bail};
use mcl_certs::{CA_KEY_FILE, Wanted};
use mcl_terminal::say;
use mcl_transport::{CA_FILE, CERT_FILE, Certificate, Role};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

pub(crate) fn certs(command: &CertsCommand) -> Result<ExitCode> {
    match command {
        CertsCommand::Init(a) => init(a),
        CertsCommand::Issue(a) => issue(a),
        CertsCommand::Show { path, json } => show(path, *json),
    }
}

fn init(a: &InitArguments) -> Result<ExitCode> {
    let made = mcl_certs::init(&a.folder, &a.name, days(a.days)?, a.force).map_err(as_usage)?;
    say!("{}: {}", a.folder.join(CA_FILE).display(), told(&made))?;
    say!("keep {} where only you can read it", a.folder.join(CA_KEY_FILE).display())?;
    Ok(ExitCode::SUCCESS)
}

fn issue(a: &IssueArguments) -> Result<ExitCode> {
    let roles: BTreeSet<Role> = a.roles.iter().copied().collect();
    if roles.contains(&Role::Service) && a.hosts.is_empty() {
        bail!(Usage(
            "--role service: give --host NAME_OR_ADDRESS for each name or address that others reach it at; a client \
             believes a service only under those (and on its own machine under localhost)"
                .to_owned()
        ));
    }
    let folder = match &a.name {
        Some(name) => name.to_string(),
        None => roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join("-"),
    };
    let wanted = Wanted {
        roles,
        name: a.name.clone(),
        hosts: a.hosts.clone(),
        ..Wanted::new(Role::Viewer, days(a.days)?)
    };
    let (place, made) = mcl_certs::issue(&a.folder, &folder, &wanted, a.force).map_err(as_usage)?;
    say!("{}: {}", place.display(), told(&made))?;
    Ok(ExitCode::SUCCESS)
}

fn days(days: u32) -> Result<u32> {
    if (1..=36_500).contains(&days) {
        Ok(days)
    } else {
        bail!(Usage(format!("--days {days}: expected 1 to 36500")))
    }
}

/// All that can go wrong here is what was asked for or where.
fn as_usage(error: mcl_certs::CertsError) -> anyhow::Error {
    Usage(error.to_string()).into()
}

fn show(path: &Path, json: bool) -> Result<ExitCode> {
    let mut found = Vec::new();
    for file in files(path)? {
        let pem = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let read = Certificate::read_pem(&pem).map_err(|e| Usage(format!("{}: {e}", file.display())))?;
        found.extend(read.into_iter().map(|certificate| (file.clone(), certificate)));
    }
    if json {
        let all: Vec<_> = found.iter().map(|(file, c)| as_json(file, c)).collect();
        say!("{}", serde_json::json!({ "certificates": all }))?;
    } else {
        for (file, c) in &found {
            say!("{}: {}", file.display(), told(c))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The file itself; of a folder what is known by name, and what was issued below it.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    let mut issued: Vec<_> =
        entries.flatten().map(|e| e.path().join(CERT_FILE)).filter(|f| f.is_file()).collect();
    issued.sort();
    let own = [CERT_FILE, CA_FILE].map(|file| path.join(file));
    let all: Vec<PathBuf> = own.into_iter().filter(|f| f.is_file()).chain(issued).collect();
    if all.is_empty() {
        bail!(Usage(format!("{}: neither {CERT_FILE} nor {CA_FILE} is in it", path.display())));
    }
    Ok(all)
}

fn as_json(file: &Path, c: &Certificate) -> serde_json::Value {
    serde_json::json!({
        "file": file, "subject": c.subject, "issuer": c.issuer, "authority": c.authority,
        "roles": c.holder.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>(),
        "name": c.holder.name.as_ref().map(ToString::to_string), "hosts": c.hosts,
        "begins": c.begins, "ends": c.ends, "days_left": c.days_left(SystemTime::now()),
        "warning": c.warning(SystemTime::now()),
    })
}

/// A certificate in one line.
pub(crate) fn told(c: &Certificate) -> String {
    let what = if c.authority { format!("authority {}", c.subject) } else { c.holder.to_string() };
    let hosts = if c.hosts.is_empty() { String::new() } else { format!(" at {}", c.hosts.join(", ")) };
    let now = SystemTime::now();
    let end = if c.left(now) < 0 { "ENDED".to_owned() } else { format!("ends in {} days", c.days_left(now)) };
    format!("{what}{hosts}, {end}")
}
