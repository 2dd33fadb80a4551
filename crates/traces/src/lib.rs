//! What happens to a run as OpenTelemetry traces: for those whose cluster has a collector already.
//!
//! Role: a run is a trace, its generations are spans in it, and each committed step is a span in its generation; checkpoints
//! and roll backs are events of the run. Nothing is made unless the environment names a collector, as OpenTelemetry's own
//! variables do. Invariants: spans wait in a queue with a bound and are dropped where the collector does not keep up: it
//! holds nobody up. Left out: spans inside a step (the page and `GetStatus` split step times), and other processes'.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod spans;

use futures::{Stream, StreamExt};
use mcl_history::Told;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use spans::Spans;
use std::time::Duration;

/// How long the last spans may take to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// Checkpoints and roll backs of a run that are told.
const EVENTS: u32 = 4096;
/// What these spans come from.
const SERVICE: &str = "mcl-coordinator";

/// A way to a collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// To the collector that the environment names (`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, gRPC
    /// without TLS); none where it names none, or `OTEL_SDK_DISABLED` is `true`. Call it inside of a tokio runtime.
    ///
    /// # Errors
    /// When what it names cannot be one.
    pub fn from_environment() -> Result<Option<Self>, ExporterBuildError> {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let named = set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
        if !named || disabled {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().build()?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first.
        let mut resource = Resource::builder();
        if !set("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_max_events_per_span(EVENTS)
            .with_resource(resource.build())
            .build();
        Ok(Some(Self { provider }))
    }

    /// Makes spans of what happens, until that ends.
    pub async fn follow(&self, told: impl Stream<Item = Told> + Send) {
        let mut spans = Spans::new(self.provider.tracer("mcl"));
        let mut told = std::pin::pin!(told);
        while let Some(told) = told.next().await {
            match told {
                Told::Happening(happening) => spans.take(&happening),
                Told::Missed => {
                    tracing::warn!("some steps are in no trace: more happened than could be kept")
                }
            }
        }
    }

    /// Sends what is left, within a bounded time; waits for it.
    pub fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans of the trace were not sent");
        }
    }
}
