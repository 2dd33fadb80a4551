//! `mcl doctor`: what would keep a machine from taking part, looked for before a run.
//!
//! Each check answers with what it found, and where that is wrong with what to do. Nothing is changed.

use crate::arguments::DoctorArguments;
use crate::client::{Coordinator, load_job, runtime};
use crate::exit::FAILED;
use crate::rank_program::{RankProgram, parse_devices};
use anyhow::{Context, Result, bail};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// Open files that a worker with a few ranks, or a coordinator of a small cluster, needs.
const OPEN_FILES: u64 = 1024;
/// For a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// One thing looked at.
struct Finding {
    what: &'static str,
    result: Result<String>,
}

pub(crate) fn doctor(a: &DoctorArguments) -> Result<ExitCode> {
    let mut findings = vec![
        Finding { what: "rank program", result: rank_program() },
        Finding { what: "devices", result: devices(&a.devices) },
        Finding { what: "address", result: address(a) },
        Finding { what: "open files", result: open_files() },
    ];
    if let Some(job) = &a.job {
        findings.push(Finding { what: "job", result: job_file(job, a) });
    }
    if let Some(url) = &a.coordinator {
        findings.push(Finding { what: "coordinator", result: coordinator(url) });
    }
    if let Some(url) = &a.checkpoint {
        findings.push(Finding { what: "checkpoint service", result: reach(url) });
    }
    let failed = findings.iter().filter(|f| f.result.is_err()).count();
    if a.json {
        let all: Vec<_> = findings.iter().map(as_json).collect();
        println!("{}", serde_json::json!({ "good": failed == 0, "checks": all }));
    } else {
        findings.iter().for_each(|f| println!("{}", as_text(f)));
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn as_json(f: &Finding) -> serde_json::Value {
    let (good, found) = match &f.result {
        Ok(found) => (true, found.clone()),
        Err(error) => (false, format!("{error:#}")),
    };
    serde_json::json!({ "check": f.what, "good": good, "found": found })
}

fn as_text(f: &Finding) -> String {
    match &f.result {
        Ok(found) => format!("good  {:<18} {found}", f.what),
        Err(error) => format!("BAD   {:<18} {error:#}", f.what),
    }
}

/// `mcl-rank` starts and finds libtorch.
fn rank_program() -> Result<String> {
    let program = RankProgram::find(1)?;
    let engine = program.engine()?;
    let text =
        |key: &str| engine.get(key).and_then(serde_json::Value::as_str).unwrap_or("unknown").to_owned();
    Ok(format!("{} with libtorch {}; CUDA: {}", program.path.display(), text("libtorch"), text("cuda")))
}

fn devices(asked: &str) -> Result<String> {
    let program = RankProgram::find(1)?;
    let devices = parse_devices(asked, &program)?;
    let engine = program.engine()?;
    let gpus = engine.get("cuda_devices").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let missing = devices.iter().find(|d| {
        d.strip_prefix("cuda:").and_then(|n| n.parse::<u64>().ok()).is_some_and(|number| number >= gpus)
    });
    if let Some(device) = missing {
        bail!("{device} is asked for, libtorch finds {gpus} GPUs here: name others, or use cpu");
    }
    Ok(devices.join(", "))
}

/// Others could reach this machine at the address that it would say.
fn address(a: &DoctorArguments) -> Result<String> {
    let advertised = crate::address::advertised(a.advertise.as_deref(), a.interface.as_deref())?;
    let listener = TcpListener::bind((advertised.as_str(), 0)).with_context(|| {
        format!("{advertised} is not an address of this machine: give --advertise or --interface another one")
    })?;
    let at = listener.local_addr()?;
    TcpStream::connect_timeout(&at, CONNECT)
        .with_context(|| format!("{at} does not take connections: look at this machine's firewall"))?;
    let note = if at.ip().is_loopback() { " (loopback: this machine only)" } else { "" };
    Ok(format!("{advertised}{note}"))
}

fn open_files() -> Result<String> {
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    if hard < OPEN_FILES {
        bail!("at most {hard} may be open, expected {OPEN_FILES} or more: raise the hard limit (ulimit -Hn)");
    }
    Ok(format!("{soft}, at most {hard}"))
}

fn job_file(path: &std::path::Path, a: &DoctorArguments) -> Result<String> {
    let job = load_job(path, &a.overrides)?;
    let dataset = mcl_data::Dataset::open(&job.data().source)?;
    let plan = mcl_job::plan_spec(&job, &dataset);
    let schedule = mcl_job::schedule(&job, &plan)?;
    let digest = dataset.digest().to_string();
    Ok(format!(
        "{} steps; {} pictures with digest {digest:.12}: compare it with the other machines'",
        schedule.total_steps(),
        dataset.len()
    ))
}

/// It answers, and speaks our protocol.
fn coordinator(url: &str) -> Result<String> {
    let status = runtime()?.block_on(async { Coordinator::connect(url).await?.status().await })?;
    let ours = mcl_proto::PROTOCOL;
    if status.protocol != ours {
        bail!(
            "it speaks protocol {} (mcl {}), this program speaks {ours} (mcl {}): install the same version on both",
            status.protocol,
            status.build,
            env!("CARGO_PKG_VERSION")
        );
    }
    Ok(format!("mcl {}, protocol {ours}; {}: {}", status.build, status.phase, status.reason))
}

/// Somebody takes connections there.
fn reach(url: &str) -> Result<String> {
    let host = url.rsplit("://").next().unwrap_or(url).split('/').next().unwrap_or(url);
    let addresses: Vec<SocketAddr> =
        host.to_socket_addrs().with_context(|| format!("{url}: expected http://host:port"))?.collect();
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(format!("{address} takes connections")),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => bail!("{url}: {error}: is it running, and is this its address?"),
        None => bail!("{url}: the name has no address"),
    }
}
