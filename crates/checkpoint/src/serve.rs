//! Listening, answering, draining.

use crate::fence::Fence;
use crate::lock::{LockError, lock};
use crate::service::{Closing, Service};
use crate::tiers::Tiers;
use mcl_checkpoint_core::{CheckpointStore, Layout, StoreError};
use mcl_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use mcl_transport::Gate;
use mcl_types::StoreLocation;
use std::time::Duration;
use tokio::net::TcpListener;

/// Uploads in flight get this long to end once shutdown is asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// Broken-off uploads get this long to be ended in the store once nobody is served any more.
const ENDING: Duration = Duration::from_secs(3);
/// Flow-control window of a stream: a few chunks, so that a fast network is not kept waiting.
const WINDOW_BYTES: u32 = 4 << 20;

/// Snapshots in memory take this much unless told otherwise: two states of a large backbone.
pub const MEMORY_BYTES: u64 = 4 << 30;

/// What the service is to serve.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Where checkpoints are kept; a folder is created where it is missing.
    pub root: StoreLocation,
    /// Whether runs have folders below it.
    pub layout: Layout,
    /// Largest slice taken, in bytes.
    pub max_slice_bytes: u64,
    /// Most bytes of snapshots kept in memory.
    pub memory_bytes: u64,
    /// An upload that sends nothing for this long is given up.
    pub stall: Duration,
    /// Who is let in.
    pub gate: Gate,
}

impl ServeConfig {
    /// A folder or an object store with the default limits.
    pub fn new(root: impl Into<StoreLocation>, layout: Layout) -> Self {
        let limits = mcl_checkpoint_core::Limits::default();
        Self {
            root: root.into(),
            layout,
            max_slice_bytes: limits.slice_bytes,
            memory_bytes: MEMORY_BYTES,
            stall: Duration::from_secs(30),
            gate: Gate::default(),
        }
    }
}

/// The service did not start or broke down.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its folder or object store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another service has its folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The listener failed.
    #[error("checkpoint service stopped listening: {0}; check the network, then start it again")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves checkpoints on `listener` until `shutdown`, then lets requests in flight end.
///
/// # Errors
/// When the folder cannot be opened or the listener fails.
pub async fn serve(
    listener: TcpListener,
    config: ServeConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let store = CheckpointStore::open(&config.root, config.layout)?;
    serve_store(listener, store, &config, shutdown).await
}

/// The same over a store that is open, whatever the configuration says of its root.
pub(crate) async fn serve_store(
    listener: TcpListener,
    store: CheckpointStore,
    config: &ServeConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let limits = mcl_checkpoint_core::Limits { slice_bytes: config.max_slice_bytes };
    let store = store.with_limits(limits);
    let _locked = match config.root.folder() {
        Some(folder) if store.is_local() => lock(folder).await?,
        _ => None,
    };
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
    tracing::info!(address, root = store.name(), "checkpoint service listening");

    let tiers = Tiers::new(store.clone(), limits, config.memory_bytes);
    let closing = Closing::default();
    let service = Service::new(tiers, Fence::new(store), config.stall, Closing::clone(&closing));
    let service = CheckpointServiceServer::new(service);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CheckpointServiceServer<Service>>().await;

    let asked = tokio::sync::Notify::new();
    let until_asked = async {
        asked.notified().await;
    };
    let gate = &config.gate;
    let serving = gate
        .server()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(gate.admit(listener), until_asked);
    let give_up = async {
        shutdown.await;
        // Watchers of the health service never end by themselves: tell them, then do not wait for ever.
        health.set_not_serving::<CheckpointServiceServer<Service>>().await;
        asked.notify_one();
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => served?,
        () = give_up => tracing::warn!(seconds = DRAIN.as_secs(), "checkpoint service left requests behind"),
    }
    closing.send_replace(true);
    if tokio::time::timeout(ENDING, closing.closed()).await.is_err() {
        tracing::warn!("uploads not ended: parts of them may be left in the store");
    }
    Ok(())
}
