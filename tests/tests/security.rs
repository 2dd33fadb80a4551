//! A cluster with certificates, as people use it: real processes, real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::cluster::{Cluster, free_port, status_with};
use mcl_system_tests::hostile::make_certs;
use mcl_system_tests::siege::besiege;
use mcl_system_tests::{Sandbox, committed, error_of};
use mcl_transport::{Dial, Identity, Role, rules};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tonic::Code;

/// A cluster whose certificates `mcl certs` made.
fn secured(sandbox: &Sandbox) -> Cluster {
    let certs = sandbox.path("certs").display().to_string();
    sandbox.ok(&["certs", "init", &certs]);
    sandbox.ok(&["certs", "issue", &certs, "--role", "service", "--host", "127.0.0.1"]);
    for role in ["worker", "operator", "viewer"] {
        sandbox.ok(&["certs", "issue", &certs, "--role", role]);
    }
    sandbox.ok(&["certs", "issue", &certs, "--role", "worker", "--name", "a"]);
    let mut cluster = Cluster::new(sandbox, "secured");
    cluster.certs = Some(sandbox.path("certs"));
    cluster
}

fn with<'a>(arguments: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    arguments.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

#[test]
fn a_cluster_with_certificates_trains_and_takes_orders_from_operators_alone() {
    let sandbox = Sandbox::new();
    let mut cluster = secured(&sandbox);
    cluster.start_services();
    let (url, checkpoint) = (cluster.url(), cluster.checkpoint_url());
    let operator = cluster.tls("operator");
    let looked = sandbox
        .json(&with(&["doctor", "--json", "--coordinator", &url, "--checkpoint", &checkpoint], &operator));
    assert_eq!(looked["good"], true, "{looked}");
    assert!(looked.to_string().contains("ends in 365"), "{looked}");
    ["a", "b"].iter().for_each(|name| cluster.start_worker(name));
    cluster.submit(&sandbox, &["train.steps=30", "checkpoint.keep=0"]);
    cluster.until_workers(2);

    // A viewer looks, and no more; so does a worker's certificate; nobody comes without one.
    let viewer = cluster.tls("viewer");
    assert!(status_with(&url, &viewer).is_some());
    for role in ["viewer", "worker"] {
        let tls = cluster.tls(role);
        let said =
            sandbox.fails(1, &["expected operator", role], &with(&["drain", "--coordinator", &url], &tls));
        assert!(!said.contains("PRIVATE"), "{said}");
    }
    sandbox.fails(2, &["--tls", "https"], &["status", "--coordinator", &url]);
    sandbox.fails(1, &["--tls"], &["status", "--coordinator", &url.replace("https", "http")]);
    let plain = url.replace("https", "http");
    sandbox.fails(2, &["https://"], &with(&["status", "--coordinator", &plain], &viewer));
    cluster.until_done();
    let run = cluster.run_dir.display().to_string();
    sandbox.exact_ledger(&run);
    for (file, text) in [("job.toml", "the job"), ("metrics.jsonl", "the metrics")] {
        let found = std::fs::read_to_string(cluster.run_dir.join(file)).unwrap();
        assert!(!found.contains("PRIVATE") && !found.contains("key.pem"), "{text}");
    }
    for name in ["coordinator", "checkpoint", "worker-a", "worker-b"] {
        assert!(!cluster.said(name).contains("PRIVATE"), "{name}");
    }

    // An operator begins a run with the weights of that one, on a worker that has served no other run directory.
    cluster.kill_all_workers();
    cluster.run_dir = sandbox.path("secured/second");
    cluster.start_coordinator();
    cluster.start_worker("c");
    let store = cluster.checkpoints();
    let arguments = ["submit", "job.toml", "--name", "second", "--coordinator", &url, "--from", &store];
    sandbox.ok(&with(&[&arguments[..], &["--set", "train.steps=3"]].concat(), &operator));
    cluster.until_done();
    assert_eq!(committed(&cluster.run_dir), 3);
}

#[test]
fn a_worker_has_the_name_of_its_certificate() {
    let sandbox = Sandbox::new();
    let mut cluster = secured(&sandbox);
    cluster.start_services();
    let (url, own) = (cluster.url(), cluster.tls("a"));
    let worker = ["worker", "--coordinator", &url, "--devices", "cpu"];
    let other = with(&[&worker[..], &["--name", "b"]].concat(), &own);
    sandbox.fails(1, &["certificate of `a`", "--name a"], &other);
    // Without a name it takes that one.
    let log = sandbox.path("worker.log");
    let mut command = sandbox.command(&with(&worker, &own));
    command.arg("--stop-with-stdin");
    let daemon = mcl_system_tests::cluster::Daemon::start(command, &log);
    cluster.until("a worker named a", |c| c.status().is_some_and(|s| s["workers"][0]["worker"] == "a"));
    daemon.kill();
    // Services and clients are told what their certificates lack.
    let worker = cluster.tls("worker");
    sandbox.fails(2, &["no role service"], &with(&["checkpoint-server", "--root", "x"], &worker));
    let both = with(&["checkpoint-server", "--root", "x", "--insecure"], &worker);
    sandbox.fails(2, &["give one of them"], &both);
    let open = ["checkpoint-server", "--root", "x", "--listen", "0.0.0.0:0"];
    sandbox.fails(2, &["--tls", "--insecure", "mcl certs"], &open);
    let mixed = ["coordinator", "--run-dir", "x", "--checkpoint", "http://127.0.0.1:1"];
    sandbox.fails(2, &["--checkpoint", "https://"], &with(&mixed, &cluster.tls("service")));
}

#[test]
fn every_call_is_judged_by_role_over_real_connections() {
    let sandbox = Sandbox::new();
    let certs = sandbox.path("certs");
    std::fs::create_dir(&certs).unwrap();
    make_certs(&certs);
    let mut cluster = Cluster::new(&sandbox, "judged");
    cluster.certs = Some(certs.clone());
    cluster.keep_many_runs();
    cluster.start_services();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for name in Role::ALL.map(Role::as_str).into_iter().chain(["none"]) {
            let identity = Identity::open(&certs.join(name)).unwrap();
            for (call, roles) in rules::RULES {
                let url = if call.contains("Checkpoint") { cluster.checkpoint_url() } else { cluster.url() };
                let channel = Dial::new(&url, Some(&identity)).unwrap().connect().await.unwrap();
                let denied = denied(channel, call).await;
                let expected = !roles.iter().any(|role| role.as_str() == name);
                assert_eq!(denied, expected, "{call} as {name}");
            }
        }
    });
    assert!(cluster.status().is_some(), "it serves on");
}

/// Whether a call with an empty message is refused for who makes it.
async fn denied(channel: tonic::transport::Channel, call: &'static str) -> bool {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(call);
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let answer = client.server_streaming(tonic::Request::new(()), path, codec).await;
    matches!(answer, Err(status) if status.code() == Code::PermissionDenied)
}

#[test]
fn a_private_run_is_its_owners() {
    let sandbox = Sandbox::new();
    let port = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST)).port();
    let fixed = format!("network.coordinator_port={port}");
    let arguments = ["run", "job.toml", "--private", "--json", "--devices", "cpu", "--run-dir", "mine"];
    let more = ["--workers", "2", "--set", &fixed, "--set", "train.steps=60"];
    let child =
        sandbox.command(&[&arguments[..], &more].concat()).stdout(std::process::Stdio::piped()).spawn();
    let child = child.unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let operator = ["--tls".to_owned(), sandbox.path("mine/tls/operator").display().to_string()];
    let begun = std::time::Instant::now();
    while status_with(&url, &operator).is_none_or(|s| s["phase"] != "training") {
        assert!(begun.elapsed() < Duration::from_secs(100), "the run does not train");
        std::thread::sleep(Duration::from_millis(20));
    }
    sandbox.fails(1, &["--tls"], &["status", "--coordinator", &url.replace("https", "http")]);
    let key = std::fs::metadata(sandbox.path("mine/tls/operator/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", error_of(&output));
    sandbox.exact_ledger("mine");
    // Certificates change nothing of what is trained; another start makes new ones.
    let before = std::fs::read(sandbox.path("mine/tls/worker/cert.pem")).unwrap();
    sandbox.ok(&[&arguments[..], &["--set", "train.steps=61"]].concat());
    assert_ne!(std::fs::read(sandbox.path("mine/tls/worker/cert.pem")).unwrap(), before);
}

#[test]
fn certificates_are_shown_and_their_end_is_seen_coming() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["certs", "init", "ca", "--days", "400"]);
    sandbox.ok(&[
        "certs", "issue", "ca", "--role", "service", "--name", "head", "--host", "10.0.0.1", "--days", "10",
    ]);
    sandbox.ok(&["certs", "issue", "ca", "--role", "operator", "--role", "worker"]);
    let shown = sandbox.json(&["certs", "show", "ca", "--json"]);
    let all = shown["certificates"].as_array().unwrap();
    assert_eq!(all.len(), 3, "{shown}");
    let head = all.iter().find(|c| c["name"] == "head").unwrap();
    assert_eq!(head["roles"], serde_json::json!(["service"]));
    assert!(head["warning"].as_str().unwrap().contains("ends in 10 days"), "{head}");
    let text = sandbox.ok(&["certs", "show", "ca/operator-worker"]);
    assert!(text.contains("operator, worker") && text.contains("ends in 365 days"), "{text}");
    let doctor = sandbox.run(&["doctor", "--tls", "ca/head"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("WARNING") && said.contains("ends in 10 days"), "{said}");
    sandbox.fails(2, &["ca/ca.pem", "--force"], &["certs", "init", "ca"]);
    sandbox.fails(2, &["--host"], &["certs", "issue", "ca", "--role", "service"]);
    sandbox.fails(2, &["admin", "viewer"], &["certs", "issue", "ca", "--role", "admin"]);
    sandbox.fails(2, &["../x"], &["certs", "issue", "ca", "--role", "worker", "--name", "../x"]);
    sandbox.fails(2, &["no certificate"], &["certs", "show", "job.toml"]);
}

#[test]
fn a_siege_leaves_the_coordinator_serving_and_training_unharmed() {
    let sandbox = Sandbox::new();
    let told = besiege(&sandbox, 500, Duration::from_secs(12));
    println!("{told:#}");
    let memory = |when: &str| told["memory_kib"][when].as_u64().unwrap();
    assert!(memory("peak") < memory("before") + (128 << 10), "{told}");
}
