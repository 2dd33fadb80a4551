//! `mcl doctor`: what would keep a machine from taking part, looked for before a run.
//!
//! Each check answers with what it found, and where that is wrong with what to do. Nothing is changed.

use crate::arguments::DoctorArguments;
use crate::client::{Coordinator, load_job, runtime};
use crate::exit::FAILED;
use crate::rank_program::{RankProgram, parse_devices};
use anyhow::{Context, Result, bail};
use mcl_checkpoint::CheckpointClient;
use mcl_config::Job;
use mcl_terminal::say;
use mcl_transport::Identity;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
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
    let job = a.job.as_deref().map(|path| load_job(path, &a.overrides)).transpose();
    let advertised = advertised(a, job.as_ref().ok().and_then(Option::as_ref));
    let mut findings = vec![
        Finding { what: "rank program", result: rank_program() },
        Finding { what: "devices", result: devices(&a.devices) },
        Finding { what: "address", result: advertised.as_deref().map_err(again).and_then(address) },
        Finding { what: "open files", result: open_files() },
    ];
    match job {
        Ok(None) => {}
        Ok(Some(job)) => {
            findings.push(Finding { what: "job", result: job_file(&job) });
            let at = advertised.as_deref().map_err(again);
            findings.push(Finding { what: "ports", result: at.and_then(|at| ports(&job, at, a)) });
        }
        Err(error) => findings.push(Finding { what: "job", result: Err(error) }),
    }
    let identity = a.tls.identity();
    if let Some(found) = identity.as_ref().map_err(again).and_then(|i| certificate(i.as_ref())).transpose() {
        findings.push(Finding { what: "certificate", result: found });
    }
    if let Some(url) = &a.coordinator {
        let result = identity.as_ref().map_err(again).and_then(|i| coordinator(url, i.clone()));
        findings.push(Finding { what: "coordinator", result });
    }
    if let Some(url) = &a.checkpoint {
        let result = identity.as_ref().map_err(again).and_then(|i| checkpoint_service(url, i.as_ref()));
        findings.push(Finding { what: "checkpoint service", result });
    }
    let failed = findings.iter().filter(|f| f.result.is_err()).count();
    if a.json {
        let all: Vec<_> = findings.iter().map(as_json).collect();
        say!("{}", serde_json::json!({ "good": failed == 0, "checks": all }))?;
    } else {
        for finding in &findings {
            say!("{}", as_text(finding))?;
        }
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

/// What this machine would say that it is reached at: as a worker of that coordinator, else as `mcl run`'s.
fn advertised(a: &DoctorArguments, job: Option<&Job>) -> Result<String> {
    let (mut address, mut interface) = (a.advertise.as_deref(), a.interface.as_deref());
    if let (None, None, None, Some(job)) = (address, interface, &a.coordinator, job) {
        (address, interface) = (job.network().advertise.as_deref(), job.network().interface.as_deref());
    }
    crate::address::advertised(address, interface, a.coordinator.as_deref())
}

/// The same error for a further check that it keeps from being made.
fn again(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// Others could reach this machine at the address that it would say.
fn address(advertised: &str) -> Result<String> {
    let listener = TcpListener::bind((advertised, 0)).with_context(|| {
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

/// The ports that the job asks for are free, and what else a firewall would have to let in.
fn ports(job: &Job, advertised: &str, a: &DoctorArguments) -> Result<String> {
    let mut found = vec![match job.store_ports() {
        None => "store: any".to_owned(),
        Some(ports) => {
            let free = ports.iter().filter(|port| is_free(advertised, *port)).count();
            if free == 0 {
                bail!(
                    "all of [network] store_ports = \"{ports}\" are taken at {advertised}: see who has them \
                     (ss -ltnp), or choose others"
                );
            }
            format!("store: {free} of {ports} free")
        }
    }];
    let network = job.network();
    let services =
        [("coordinator_port", network.coordinator_port), ("checkpoint_port", network.checkpoint_port)];
    // Only `mcl run` starts services with them; a coordinator that is there already has its own.
    for (key, port) in services.into_iter().filter(|_| a.coordinator.is_none()) {
        let Some(port) = port.filter(|port| *port != 0) else { continue };
        if !is_free("127.0.0.1", port) {
            bail!(
                "[network] {key} = {port} is taken: see who has it (ss -ltnp), or choose another, or 0 for any"
            );
        }
        found.push(format!("{key} {port} free"));
    }
    if let Some((first, last)) = crate::address::ephemeral_ports() {
        found.push(format!("Gloo and NCCL: any of {first}-{last} (net.ipv4.ip_local_port_range)"));
        if job.store_ports().is_some_and(|ports| ports.iter().any(|p| (first..=last).contains(&p))) {
            found.push("store_ports lie among these: any connection may take one".to_owned());
        }
    }
    Ok(found.join("; "))
}

/// Whether an address is this machine's at all, another check says.
fn is_free(address: &str, port: u16) -> bool {
    let taken = [ErrorKind::AddrInUse, ErrorKind::PermissionDenied];
    TcpListener::bind((address, port)).map_or_else(|e| !taken.contains(&e.kind()), |_| true)
}

fn job_file(job: &Job) -> Result<String> {
    let dataset = mcl_job::open_dataset(job)?;
    let plan = mcl_job::plan_spec(job, &dataset);
    let schedule = mcl_job::schedule(job, &plan)?;
    let digest = dataset.digest().to_string();
    Ok(format!(
        "{} steps; {} pictures with digest {digest:.12}: compare it with the other machines'",
        schedule.total_steps(),
        dataset.len()
    ))
}

/// It answers, and speaks our protocol.
fn coordinator(url: &str, identity: Option<Identity>) -> Result<String> {
    let status = runtime()?.block_on(async { Coordinator::connect(url, identity).await?.status().await })?;
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

/// Who this machine would be, and for how long; nothing without TLS.
fn certificate(identity: Option<&Identity>) -> Result<Option<String>> {
    let Some(identity) = identity else { return Ok(None) };
    let told = crate::certs::told(&identity.certificate());
    let warnings = identity.warnings();
    let warnings =
        if warnings.is_empty() { String::new() } else { format!("; WARNING: {}", warnings.join("; ")) };
    Ok(Some(format!("{}: {told}{warnings}", identity.folder().display())))
}

/// With a certificate: it answers, and takes ours. Without: somebody takes connections there.
fn checkpoint_service(url: &str, identity: Option<&Identity>) -> Result<String> {
    if identity.is_none() && !url.starts_with("https://") {
        return reach(url);
    }
    runtime()?.block_on(CheckpointClient::connect(url, identity, CONNECT))?;
    Ok(format!("{url} answers"))
}

/// Somebody takes connections there.
fn reach(url: &str) -> Result<String> {
    let mut last = None;
    for address in crate::address::resolve(url)? {
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
