//! What a collector of OpenTelemetry is told of a run, over the protocol that collectors speak.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::cluster::free_port;
use mcl_system_tests::{Sandbox, error_of};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

/// A collector that keeps what it is told.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn spans(&self, name: &str) -> Vec<Span> {
        let told = self.0.lock().unwrap();
        let all =
            told.iter().flat_map(|r| &r.resource_spans).flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
        all.filter(|s| s.name == name).cloned().collect()
    }
}

fn number(span: &Span, key: &str) -> Option<i64> {
    let found = span.attributes.iter().find(|a| a.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

#[test]
fn a_run_is_a_trace_of_generations_and_steps_and_a_collector_that_is_away_is_no_harm() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone());
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
    let sandbox = Sandbox::new();
    let start = |run_dir: &str, endpoint: &str| {
        let arguments = ["run", "job.toml", "--devices", "cpu", "--workers", "2", "--run-dir", run_dir];
        sandbox.command(&arguments).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).output().unwrap()
    };
    let run = |run_dir: &str, endpoint: String| {
        let output = start(run_dir, &endpoint);
        assert!(output.status.success(), "{}", error_of(&output));
        sandbox.exact_ledger(run_dir);
    };
    run("first", format!("http://{address}"));
    let ([run_span], [generation]) = (&collector.spans("run")[..], &collector.spans("generation")[..]) else {
        panic!("{:?}", collector.0);
    };
    let mut steps = collector.spans("step");
    steps.sort_by_key(|s| s.start_time_unix_nano);
    let numbers: Vec<Option<i64>> = steps.iter().map(|s| number(s, "mcl.step")).collect();
    assert_eq!(numbers, (0..20).map(Some).collect::<Vec<_>>());
    assert!(steps.iter().all(|s| s.parent_span_id == generation.span_id && s.trace_id == run_span.trace_id));
    assert_eq!(generation.parent_span_id, run_span.span_id);
    assert_eq!((number(generation, "mcl.workers"), number(generation, "mcl.ranks")), (Some(2), Some(2)));
    let checkpoints = run_span.events.iter().filter(|e| e.name == "checkpoint").count();
    assert!(checkpoints >= 1, "{run_span:?}");
    let told = collector.0.lock().unwrap().len();
    run("second", format!("http://{}", free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))));
    assert_eq!(collector.0.lock().unwrap().len(), told);
    let untold = start("third", "no address");
    assert!(untold.status.success(), "{untold:?}");
    assert!(error_of(&untold).contains("no traces: OTEL_EXPORTER_OTLP_ENDPOINT"), "{untold:?}");
}
