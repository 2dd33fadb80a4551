//! The page over real connections: what every answer carries, who is refused, what is bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_precision_loss, missing_docs)]

mod cluster;

use cluster::{Fake, View, Wire, row, told_of};
use mcl_history::{Chronicle, What};
use mcl_page::{Action, Config, Page, Phase};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

const TOKEN: &str = "correct-horse-battery-staple";

/// A page with a token.
async fn with_token(fake: &Arc<Fake>) -> (Wire, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, TOKEN).unwrap();
    let config = Config { token_file: Some(path), loopback: true };
    (Wire::serve(Page::new(View(Arc::clone(fake)), Chronicle::default(), config)).await, dir)
}

async fn read_only(fake: &Arc<Fake>) -> Wire {
    Wire::serve(Page::new(
        View(Arc::clone(fake)),
        Chronicle::default(),
        Config { token_file: None, loopback: true },
    ))
    .await
}

fn action(name: &str, body: &str, headers: &[(&str, &str)]) -> String {
    let mut head =
        format!("POST /api/actions/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    head.push_str("Content-Type: application/json\r\nConnection: close\r\n");
    headers.iter().for_each(|(k, v)| head.push_str(&format!("{k}: {v}\r\n")));
    format!("{head}\r\n{body}")
}

#[tokio::test]
async fn every_answer_has_the_safe_headers() {
    let wire = read_only(&Fake::training()).await;
    for path in [
        "/",
        "/assets/page.js",
        "/api/state",
        "/api/history",
        "/api/workers",
        "/metrics",
        "/healthz",
        "/nothing",
    ] {
        let answer = wire.get(path).await;
        assert!(answer.header("content-security-policy").unwrap().contains("default-src 'none'"), "{path}");
        assert!(!answer.header("content-security-policy").unwrap().contains("unsafe"), "{path}");
        assert!(
            answer.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{path}");
        let cached = if path == "/" || path.starts_with("/assets") { "no-cache" } else { "no-store" };
        assert_eq!(answer.header("cache-control"), Some(cached), "{path}");
    }
    // Refusals too.
    let refused = wire.raw("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!((refused.status, refused.header("x-frame-options")), (421, Some("DENY")));
}

#[tokio::test]
async fn the_state_is_what_the_cluster_says() {
    let fake = Fake::training();
    let wire = read_only(&fake).await;
    wire.tell(What::Committed(Box::new(row(0))));
    wire.tell(What::Committed(Box::new(row(1))));
    let state = wire.state_where(|s| s["last"]["step"] == 1).await;
    assert_eq!(state["phase"], "training");
    assert_eq!((&state["last"]["loss"], &state["last"]["lr"]), (&json!(5.0), &json!(0.1)));
    assert_eq!((&state["workers"]["known"], &state["ranks"]["count"]), (&json!(3), &json!(6)));
    assert_eq!(state["actions"], false);
    assert!(state["now"].as_f64().unwrap() > 1e9);
    let history: Value = wire.get("/api/history?points=10").await.json();
    assert_eq!(history["series"]["loss"]["mean"], json!([10.0, 5.0]));
    let workers: Value = wire.get("/api/workers?rows=2&sort=name&desc=true").await.json();
    assert_eq!((&workers["all"], &workers["rows"][0]["name"]), (&json!(3), &json!("w2")));
    let ranks: Value = wire.get("/api/ranks?q=w1").await.json();
    assert_eq!(ranks["found"], 2);
    let metrics = wire.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.text().contains("mcl_loss 5"), "{}", metrics.text());
}

#[tokio::test]
async fn rows_of_earlier_steps_are_read_once_and_missed_ones_again() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = dir.path().join("metrics.jsonl");
    let line = |step| serde_json::to_string(&row(step)).unwrap() + "\n";
    std::fs::write(&metrics, (0..100).map(line).collect::<String>()).unwrap();
    let wire = read_only(&Fake::training()).await;
    wire.tell(What::Began {
        run: Box::new(told_of("r")),
        metrics: metrics.clone(),
        committed: 100,
        checkpoint: None,
    });
    wire.tell(What::Committed(Box::new(row(100))));
    wire.state_where(|s| s["last"]["step"] == 100 && s["history"]["reading"] == false).await;
    let steps = |h: &Value| h["first"].as_array().unwrap().len();
    assert_eq!(steps(&wire.get("/api/history").await.json()), 101);
    // Steps 101 to 199 are missed by who looks on, not by the file.
    std::fs::write(&metrics, (0..201).map(line).collect::<String>()).unwrap();
    wire.miss();
    wire.tell(What::Committed(Box::new(row(200))));
    wire.state_where(|s| s["last"]["step"] == 200).await;
    assert_eq!(steps(&wire.get("/api/history").await.json()), 201);
}

#[tokio::test]
async fn without_a_token_file_nobody_acts() {
    let fake = Fake::training();
    let wire = read_only(&fake).await;
    let answer =
        wire.raw(&action("pause", "{}", &[("Authorization", "Bearer whatever-it-may-be-today")])).await;
    assert_eq!(answer.status, 403);
    assert!(answer.json()["error"].as_str().unwrap().contains("--page-token-file"));
    assert!(fake.acted().is_empty());
    assert!(wire.get("/metrics").await.text().contains("mcl_page_refused_total{why=\"read_only\"} 1"));
}

#[tokio::test]
async fn who_shows_the_token_acts_and_nobody_else() {
    let fake = Fake::training();
    let (wire, dir) = with_token(&fake).await;
    let bearer = format!("Bearer {TOKEN}");
    let shown = ("Authorization", bearer.as_str());
    assert_eq!(wire.get("/api/state").await.json()["actions"], true);
    for name in ["pause", "resume", "drain", "cancel"] {
        assert_eq!(wire.raw(&action(name, "{}", &[shown])).await.status, 200, "{name}");
    }
    assert_eq!(wire.raw(&action("cancel", "{\"run\":\"other\"}", &[shown])).await.status, 200);
    let cancel = |run: Option<&str>| Action::Cancel(run.map(str::to_owned));
    let expected = [Action::Pause, Action::Resume, Action::Drain, cancel(None), cancel(Some("other"))];
    assert_eq!(fake.acted(), expected);

    let wrong =
        wire.raw(&action("pause", "{}", &[("Authorization", "Bearer correct-horse-battery-stapl")])).await;
    assert_eq!((wrong.status, wrong.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(wire.raw(&action("pause", "{}", &[])).await.status, 401);
    let foreign = wire.raw(&action("pause", "{}", &[shown, ("Origin", "http://evil.example")])).await;
    assert_eq!(foreign.status, 403);
    let in_url = wire.raw(&action(&format!("pause?token={TOKEN}"), "{}", &[])).await;
    assert_eq!(in_url.status, 401);
    assert_eq!(wire.raw(&action("explode", "{}", &[shown])).await.status, 400);
    assert_eq!(wire.raw(&action("pause", "{\"run\":\"x\"}", &[shown])).await.status, 400);
    assert_eq!(wire.raw(&action("pause", &"x".repeat(5000), &[shown])).await.status, 400);
    assert_eq!(wire.raw(&action("pause", "", &[shown])).await.status, 400);
    let get = wire.get("/api/actions/pause").await;
    assert_eq!(get.status, 405);
    assert_eq!(fake.acted().len(), expected.len());
    // The cluster's own refusal is passed on.
    fake.refuse("no job `x` is run or waits here");
    let refused = wire.raw(&action("cancel", "{\"run\":\"x\"}", &[shown])).await;
    assert_eq!(
        (refused.status, refused.json()["error"].as_str()),
        (409, Some("no job `x` is run or waits here"))
    );

    // Another token takes the place of this one without a restart.
    std::fs::write(dir.path().join("token"), "another-secret-of-length").unwrap();
    assert_eq!(wire.raw(&action("pause", "{}", &[shown])).await.status, 401);
    let other = ("Authorization", "Bearer another-secret-of-length");
    fake.allow();
    assert_eq!(wire.raw(&action("pause", "{}", &[other])).await.status, 200);
    // Who guesses is held up, even with the right one then.
    for _ in 0..5 {
        wire.raw(&action("pause", "{}", &[])).await;
    }
    let held_up = wire.raw(&action("pause", "{}", &[other])).await;
    assert_eq!((held_up.status, held_up.header("retry-after")), (429, Some("10")));
}

#[tokio::test]
async fn viewers_are_told_what_changes_and_have_a_bound() {
    let fake = Fake::training();
    let wire = read_only(&fake).await;
    let mut viewer = wire.watch().await;
    let first = viewer.frame_where(|_, _| true).await;
    assert_eq!(first.0, "state");
    assert!(first.1["verdict"].is_object(), "the first viewer's first document is whole: {}", first.1);
    fake.change(|s| s.phase = Phase::Waiting);
    wire.tell(What::Committed(Box::new(row(7))));
    let (_, patch) = viewer.frame_where(|event, data| event == "patch" && !data["points"].is_null()).await;
    assert_eq!(patch["points"]["last"], json!([7]));
    let mut viewers = vec![viewer];
    while viewers.len() < 64 {
        viewers.push(wire.watch().await);
    }
    let refused = wire.get("/api/live").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")));
    // However many look on, the cluster is asked about once a second.
    let (before, begun) = (fake.asked(), std::time::Instant::now());
    viewers[3].frame_where(|_, _| true).await;
    for step in 8..11 {
        wire.tell(What::Committed(Box::new(row(step))));
        viewers[0].frame_where(|_, data| data["points"]["last"] == json!([step])).await;
    }
    let most = begun.elapsed().as_secs() + 2;
    assert!(fake.asked() - before <= most, "{} snapshots", fake.asked() - before);
    drop(viewers);
    wire.until_viewers(0).await;
    wire.watch().await;
}

#[tokio::test]
async fn connections_have_a_bound_and_their_places_come_back() {
    let wire = read_only(&Fake::training()).await;
    let mut idle = Vec::new();
    for _ in 0..192 {
        idle.push(wire.connect().await);
    }
    // One more is closed without an answer.
    let mut refused = wire.connect().await;
    let mut nothing = Vec::new();
    let _ = refused.read_to_end(&mut nothing).await;
    assert!(nothing.is_empty());
    drop(idle);
    let metrics = wire.until_answered("/metrics").await;
    assert!(metrics.text().contains("why=\"connections\""));
    assert!(!metrics.text().contains("mcl_page_refused_total{why=\"connections\"} 0"));
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let wire = read_only(&Fake::training()).await;
    let mut slow = wire.connect().await;
    Wire::write(&mut slow, "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
    let mut rest = Vec::new();
    // Its time is 10 s; the test's own deadline is far beyond.
    let _ = slow.read_to_end(&mut rest).await;
    let text = wire.get("/metrics").await.text();
    assert!(text.contains("mcl_page_refused_total{why=\"slow\"} 1"), "{text}");
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert_eq!(wire.raw(&long).await.status, 431);
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    assert_eq!(wire.raw(&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")).await.status, 431);
    assert_eq!(wire.raw("nonsense\r\n\r\n").await.status, 400);
}

#[tokio::test]
async fn probes_tell_a_coordinator_that_answers_from_one_that_does_not() {
    let fake = Fake::training();
    let wire = read_only(&fake).await;
    assert_eq!((wire.get("/healthz").await.status, wire.get("/readyz").await.status), (200, 200));
    fake.go_away();
    let gone = async {
        while wire.get("/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("still ready");
    assert_eq!((wire.get("/healthz").await.status, wire.get("/readyz").await.status), (200, 503));
    // What was known last is still shown.
    assert_eq!(wire.get("/api/state").await.json()["phase"], "training");
    assert!(!wire.get("/metrics").await.text().contains("mcl_committed_steps"));
}

#[tokio::test]
async fn a_sheet_is_drawn_when_asked_for() {
    let fake = Fake::training();
    let wire = read_only(&fake).await;
    assert_eq!(wire.get("/api/sheet").await.status, 202);
    wire.tell(What::Began {
        run: Box::new(told_of("run")),
        metrics: "none".into(),
        committed: 0,
        checkpoint: None,
    });
    wire.tell(What::Committed(Box::new(row(3))));
    wire.state_where(|s| s["last"]["step"] == 3).await;
    assert_eq!(wire.get("/api/sheet").await.status, 202, "it is being drawn");
    wire.state_where(|s| s["sheet"]["step"] == 3).await;
    let sheet = wire.get("/api/sheet").await;
    assert_eq!(
        (sheet.status, sheet.header("content-type"), sheet.header("x-step")),
        (200, Some("image/png"), Some("3"))
    );
    assert_eq!(sheet.body, b"png of step 3");
}

#[tokio::test]
async fn too_many_requests_are_refused_for_a_while() {
    let wire = read_only(&Fake::training()).await;
    let mut connection = wire.connect().await;
    let mut statuses = Vec::new();
    for _ in 0..600 {
        statuses.push(Wire::ask(&mut connection, "/healthz").await);
    }
    assert!(statuses.iter().take(250).all(|s| *s == 200));
    assert!(statuses.contains(&429));
}
