//! What may be asked for, and what every answer carries.
//!
//! Invariants: every answer has the headers of [`HEADERS`], refusals included; nothing but `POST /api/actions/...`
//! changes anything, and that needs the token; every answer is begun within [`ANSWER`].

use crate::access::{Refused, Token, may_ask};
use crate::model::{ActError, Action, Cluster, Snapshot};
use crate::page::{Page, now};
use crate::{assets, charts, live, metrics, tables};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(10);
/// Bytes of a request's body at most.
const BODY: usize = 4096;
/// Who is asked again when all places are taken or too much was asked.
const AGAIN: &str = "10";

/// On every answer. Scripts, styles and pictures come from here or not at all.
const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=()"),
    ),
];

/// Whose request it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Everything that may be asked of a page.
pub(crate) fn router<C: Cluster>(page: Page<C>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{name}", get(asset))
        .route("/api/state", get(state::<C>))
        .route("/api/history", get(history::<C>))
        .route("/api/workers", get(workers::<C>))
        .route("/api/ranks", get(ranks::<C>))
        .route("/api/live", get(live::<C>))
        .route("/api/sheet", get(sheet::<C>))
        .route("/api/actions/{action}", post(act::<C>))
        .route("/metrics", get(scrape::<C>))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready::<C>))
        .fallback(nothing_here)
        .layer(from_fn_with_state(page.clone(), guard::<C>))
        .with_state(page)
}

/// Before and after every request.
async fn guard<C: Cluster>(State(page): State<Page<C>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|p| p.0);
    let allowed = may_ask(request.method(), request.headers(), page.config().loopback)
        .and_then(|()| peer.filter(|p| page.may_request(*p)).map(drop).ok_or(Refused::Rate));
    let mut response = match allowed {
        Ok(()) => match tokio::time::timeout(ANSWER, next.run(request)).await {
            Ok(response) => response,
            Err(_) => refusal(&page, Refused::Slow, "the answer took too long"),
        },
        Err(why) => refusal(&page, why, told(why)),
    };
    page.count_answer();
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

const fn told(why: Refused) -> &'static str {
    match why {
        Refused::ReadOnly => {
            "this page is read-only: start the coordinator with --page-token-file to act from it, or use mcl pause, resume, drain, cancel"
        }
        Refused::Token => "the token is not the one in the coordinator's --page-token-file",
        Refused::Origin => "the request comes from another site's page",
        Refused::Host => {
            "this page listens on loopback and answers to localhost, 127.0.0.1 and [::1] alone: open it under one of these"
        }
        Refused::Rate => "too many requests: wait a little",
        Refused::Viewers => "all places for viewers are taken: ask /api/state instead, or come back later",
        Refused::Connections => "all connections are taken",
        Refused::Request => "the request is not one that this page knows",
        Refused::Slow => "it took too long",
    }
}

/// Counts it, and says why.
fn refusal<C: Cluster>(page: &Page<C>, why: Refused, reason: &str) -> Response {
    page.count_refusal(why);
    let status = match why {
        Refused::ReadOnly | Refused::Origin => StatusCode::FORBIDDEN,
        Refused::Token => StatusCode::UNAUTHORIZED,
        Refused::Host => StatusCode::MISDIRECTED_REQUEST,
        Refused::Rate => StatusCode::TOO_MANY_REQUESTS,
        Refused::Viewers | Refused::Connections | Refused::Slow => StatusCode::SERVICE_UNAVAILABLE,
        Refused::Request => StatusCode::BAD_REQUEST,
    };
    let mut response = failure(status, reason);
    let headers = response.headers_mut();
    match why {
        Refused::Token => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        Refused::Rate | Refused::Viewers => {
            drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static(AGAIN)));
        }
        _ => {}
    }
    response
}

fn failure(status: StatusCode, reason: &str) -> Response {
    let mut response = json_of(&json!({ "error": reason }));
    *response.status_mut() = status;
    response
}

fn json_of(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).unwrap_or_default();
    typed("application/json", body)
}

fn typed(kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn nothing_here() -> Response {
    failure(StatusCode::NOT_FOUND, "there is nothing here; the page is at /")
}

async fn index(headers: HeaderMap) -> Response {
    asset(Path("index.html".to_owned()), headers).await
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match assets::answer(&name, &headers) {
        Some(response) => response,
        None => nothing_here().await,
    }
}

fn away() -> Response {
    failure(StatusCode::SERVICE_UNAVAILABLE, "the coordinator does not answer")
}

async fn state<C: Cluster>(State(page): State<Page<C>>) -> Response {
    let Some((snapshot, _)) = page.snapshot().await else { return away() };
    let mut document = serde_json::to_value(page.state(&snapshot)).unwrap_or(Value::Null);
    if let Value::Object(map) = &mut document {
        map.insert("now".to_owned(), now().into());
    }
    json_of(&document)
}

type Asked<T> = Result<Query<T>, QueryRejection>;

async fn history<C: Cluster>(State(page): State<Page<C>>, asked: Asked<charts::Query>) -> Response {
    match asked {
        Ok(Query(query)) => json_of(&page.history(query)),
        Err(error) => refusal(&page, Refused::Request, &error.body_text()),
    }
}

async fn workers<C: Cluster>(State(page): State<Page<C>>, asked: Asked<tables::Query>) -> Response {
    table(&page, asked, tables::workers).await
}

async fn ranks<C: Cluster>(State(page): State<Page<C>>, asked: Asked<tables::Query>) -> Response {
    table(&page, asked, tables::ranks).await
}

/// A page of a table of the newest snapshot.
async fn table<C: Cluster, T: Serialize>(
    page: &Page<C>,
    asked: Asked<tables::Query>,
    rows: fn(&Snapshot, &tables::Query) -> tables::Page<T>,
) -> Response {
    let query = match asked {
        Ok(Query(query)) => query,
        Err(error) => return refusal(page, Refused::Request, &error.body_text()),
    };
    match page.snapshot().await {
        Some((snapshot, _)) => json_of(&rows(&snapshot, &query)),
        None => away(),
    }
}

async fn live<C: Cluster>(State(page): State<Page<C>>) -> Response {
    // What was published may be as old as the last viewer, or nothing yet.
    if page.snapshot().await.is_none() {
        return away();
    }
    page.renew().await;
    let Some(frames) = page.live().watch() else {
        return refusal(&page, Refused::Viewers, told(Refused::Viewers));
    };
    let mut response = typed("text/event-stream", Body::from_stream(frames.map(Ok::<_, Infallible>)));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn sheet<C: Cluster>(State(page): State<Page<C>>) -> Response {
    let Some((step, png)) = page.sheet().await else {
        // Asking has it drawn.
        let mut response = failure(StatusCode::ACCEPTED, "no sheet yet: it is drawn once there is a step");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(AGAIN));
        return response;
    };
    let mut response = typed("image/png", png);
    response.headers_mut().insert("x-step", HeaderValue::from(step));
    response
}

async fn scrape<C: Cluster>(State(page): State<Page<C>>) -> Response {
    typed(metrics::CONTENT_TYPE, page.metrics().await)
}

/// The process is there and answers.
async fn healthy() -> Response {
    typed("text/plain; charset=utf-8", "ok\n")
}

/// The coordinator's loop answers.
async fn ready<C: Cluster>(State(page): State<Page<C>>) -> Response {
    match page.snapshot().await {
        Some((_, true)) => typed("text/plain; charset=utf-8", "ready\n"),
        _ => away(),
    }
}

/// What an action's body may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wish {
    /// The run to cancel; none: the one that is run.
    run: Option<String>,
}

async fn act<C: Cluster>(
    State(page): State<Page<C>>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    if let Err(why) = authorised(&page, peer, request.headers()).await {
        tracing::warn!(%peer, action = name, why = why.name(), "action refused");
        return refusal(&page, why, told(why));
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/json") {
        return refusal(&page, Refused::Request, "expected a body of application/json, such as {}");
    }
    let Ok(body) = to_bytes(request.into_body(), BODY).await else {
        return refusal(&page, Refused::Request, "the body is too large or broke off");
    };
    let wish = match serde_json::from_slice::<Wish>(&body) {
        Ok(wish) => wish,
        Err(error) => return refusal(&page, Refused::Request, &format!("the body is no wish: {error}")),
    };
    let action = match (name.as_str(), wish.run) {
        ("pause", None) => Action::Pause,
        ("resume", None) => Action::Resume,
        ("drain", None) => Action::Drain,
        ("cancel", run) => Action::Cancel(run),
        _ => {
            let reason = format!(
                "`{name}`: expected pause, resume or drain with {{}}, or cancel with {{}} or {{\"run\": NAME}}"
            );
            return refusal(&page, Refused::Request, &reason);
        }
    };
    tracing::info!(%peer, ?action, "asked for on the page");
    match page.cluster().act(action.clone()).await {
        Ok(()) => json_of(&json!({ "told": action.name() })),
        Err(error @ ActError::Refused(_)) => failure(StatusCode::CONFLICT, &error.to_string()),
        Err(error @ ActError::Gone) => failure(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

/// Whether a request may act. The file is read each time, so that a token can be changed in place.
async fn authorised<C: Cluster>(page: &Page<C>, peer: IpAddr, headers: &HeaderMap) -> Result<(), Refused> {
    let Some(path) = page.config().token_file.clone() else { return Err(Refused::ReadOnly) };
    if !page.may_try(peer) {
        return Err(Refused::Rate);
    }
    let read = tokio::task::spawn_blocking(move || Token::read(&path)).await;
    let token = match read {
        Ok(Ok(token)) => token,
        Ok(Err(error)) => {
            tracing::error!(%error, "nobody can act from the page");
            return Err(Refused::Token);
        }
        Err(_) => return Err(Refused::Token),
    };
    if token.is_shown(headers) {
        return Ok(());
    }
    page.was_wrong(peer);
    Err(Refused::Token)
}

/// Viewers at most, for whoever sizes connections.
pub(crate) const VIEWERS: usize = live::VIEWERS;
