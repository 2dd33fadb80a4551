//! A cluster's authority, and a service behind a gate that answers health checks.
#![allow(dead_code, reason = "each test file uses a part")]

use mcl_certs::{Authority, Wanted, issue_from};
use mcl_transport::{Dial, Gate, Identity, Limits, Refusal, Role};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An authority, and folders of what it issued.
pub struct Cluster {
    pub authority: Authority,
    pub folder: TempDir,
}

impl Cluster {
    pub fn new() -> Self {
        Self { authority: Authority::new("test", 30).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    pub fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A holder of these roles, in a folder of this name.
    pub fn issue(&self, name: &str, roles: &[Role]) -> Identity {
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        self.issue_as(name, &Wanted { roles, ..Wanted::new(Role::Viewer, 20) })
    }

    pub fn issue_as(&self, name: &str, wanted: &Wanted) -> Identity {
        issue_from(&self.authority, &self.place(name), wanted, true).unwrap();
        Identity::open(&self.place(name)).unwrap()
    }

    /// A service of this cluster.
    pub async fn serve(&self, limits: Limits) -> Service {
        let identity = self.issue("service", &[Role::Service]);
        Service::start(Gate::new(Some(identity), limits)).await
    }
}

/// A health service behind a gate.
pub struct Service {
    pub gate: Gate,
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub async fn start(gate: Gate) -> Self {
        Self::start_at(gate, "127.0.0.1:0").await
    }

    pub async fn start_at(gate: Gate, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let serving = gate.server().add_service(health);
        let incoming = gate.admit(listener);
        let task = tokio::spawn(async move { serving.serve_with_incoming(incoming).await.unwrap() });
        Self { gate, address, task }
    }

    pub async fn dial(&self, identity: Option<&Identity>) -> Result<Channel, tonic::transport::Error> {
        let dial = Dial::new(&self.address.to_string(), identity).unwrap();
        dial.with(|endpoint| endpoint.connect_timeout(PATIENCE)).connect().await
    }

    /// One call by somebody.
    pub async fn check(&self, identity: Option<&Identity>) -> Result<(), Status> {
        let channel = self.dial(identity).await.map_err(|e| Status::unavailable(chain(&e)))?;
        check(&channel).await
    }

    /// Waits until so many were refused for this reason.
    pub async fn until_refused(&self, refusal: Refusal, times: u64) {
        let counted = async {
            while self.gate.refusals().of(refusal) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let all = || format!("{:?}", self.gate.refusals().all());
        tokio::time::timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("{refusal}: {}", all()));
        assert_eq!(self.gate.refusals().of(refusal), times, "{}", all());
    }

    /// Waits until nobody is connected.
    pub async fn until_empty(&self) {
        let empty = async {
            while self.gate.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, empty).await.expect("connections end");
    }
}

pub async fn check(channel: &Channel) -> Result<(), Status> {
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel.clone()).check(request).await.map(drop)
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
