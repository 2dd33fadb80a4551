//! What every call passes: the rate of its connection, the rules, and the count of what cannot be read.

use crate::connection::{ConnectionInfo, unreadable};
use crate::refusals::Refusal;
use crate::rules::{Caller, Denied, judge};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuardLayer;

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner }
    }
}

/// A service behind the rules.
#[derive(Debug, Clone)]
pub struct Guard<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        if let Err(status) = look_at(request.uri().path(), info.as_ref()) {
            return Box::pin(async move { Ok(status.into_http()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            if let Some((info, refusal)) = info.zip(unreadable_request(&response)) {
                info.refused(refusal);
            }
            Ok(response)
        })
    }
}

/// Whether a call may be made.
fn look_at(call: &str, info: Option<&ConnectionInfo>) -> Result<(), Status> {
    // Without the connection nobody knows who calls: this service is not served through a gate.
    let info = info.ok_or_else(|| Status::internal("the connection is not known"))?;
    if !info.call() {
        info.refused(Refusal::TooFast);
        // As a service that is away: clients try again after a pause.
        return Err(Status::unavailable("too many calls on this connection: wait before the next one"));
    }
    judge(call, info.caller()).map_err(|denied| {
        info.refused(match denied {
            Denied::UnknownCall => Refusal::UnknownCall,
            Denied::NoRole => Refusal::NoRole,
            Denied::WrongRole(_) => Refusal::WrongRole,
        });
        let who = match info.caller() {
            Caller::Known(holder) => format!(" ({holder})"),
            Caller::Unchecked => String::new(),
        };
        let name = call.rsplit('/').next().unwrap_or(call);
        Status::permission_denied(format!("{name}: {denied}{who}"))
    })
}

/// Whether the answer says that the request could not be read. Such an answer has its status in its headers.
fn unreadable_request(response: &http::Response<Body>) -> Option<Refusal> {
    let status = Status::from_header_map(response.headers())?;
    unreadable(&status)
}
