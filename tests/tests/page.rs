//! The coordinator's page in a real browser, over a real run: what it shows is what the run's files and `mcl status`
//! say, what is clicked happens, and a keyboard is enough.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::browser::Browser;
use mcl_system_tests::cluster::{free_port, status_of};
use mcl_system_tests::looking_on::{grouped, look_on};
use mcl_system_tests::{Running, Sandbox, committed};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TOKEN: &str = "a-token-of-this-test-alone";
/// Never reached: the page ends the run.
const ENDLESS: &str = "train.steps=1000000";
/// Keys, as WebDriver has them.
const TAB: &str = "\u{E004}";
const ENTER: &str = "\u{E007}";
const LEFT: &str = "\u{E012}";
const RIGHT: &str = "\u{E014}";

/// Pictures of the page: what CI keeps.
fn kept(name: &str) -> PathBuf {
    let target = mcl_system_tests::mcl();
    target.ancestors().nth(2).unwrap().join("page").join(name)
}

fn start(sandbox: &Sandbox, steps: &str, more: &[&str]) -> (Running, String) {
    let address = free_port([127, 0, 0, 1].into()).to_string();
    let mut arguments = vec!["--page", &address];
    arguments.extend(more);
    let run = sandbox.start_with("run", 2, &[steps], &arguments);
    (run, format!("http://{address}"))
}

/// The exact number under a tile.
async fn tile(browser: &Browser, id: &str) -> f64 {
    let script = format!("return document.querySelector('#tile-{id} .big').dataset.value");
    let said = browser.script(&script).await;
    said.as_str().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{id} shows {said}"))
}

async fn headline(browser: &Browser, what: &str, begins: &str) {
    let script = "return document.getElementById('headline').textContent";
    browser.until(what, script, |said| said.as_str().is_some_and(|s| s.starts_with(begins))).await;
}

/// Presses TAB until an element has the focus.
async fn tab_to(browser: &Browser, id: &str) {
    for _ in 0..60 {
        browser.press(TAB).await;
        if browser.script("return document.activeElement.id").await == id {
            return;
        }
    }
    panic!("no TAB leads to #{id}");
}

async fn until_dialog_closed(browser: &Browser) {
    browser
        .until("the dialog's end", "return document.getElementById('ask').open", |open| open == false)
        .await;
}

/// Rows of a table's body, as their cells' texts.
async fn rows(browser: &Browser, id: &str) -> Vec<Vec<String>> {
    let script = format!(
        "return [...document.querySelectorAll('#{id} tr')].map((r) => [...r.children].map((c) => c.textContent))"
    );
    serde_json::from_value(browser.script(&script).await).unwrap()
}

#[tokio::test]
async fn a_run_is_watched_and_steered_in_a_browser() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("token"), TOKEN).unwrap();
    let port = free_port([127, 0, 0, 1].into()).port();
    let grpc = format!("network.coordinator_port={port}");
    let (run, url) = start(&sandbox, ENDLESS, &["--set", &grpc, "--page-token-file", "token"]);
    let browser = Browser::start().await;
    browser.open(&url).await;
    headline(&browser, "training", "Training").await;
    browser.until("a live line", "return document.getElementById('line').textContent", |s| s == "live").await;
    let loss = "return document.querySelector('#tile-loss .big').dataset.value";
    browser.until("a loss", loss, |said| said != "").await;

    ranks_are_sorted_and_found(&browser).await;
    keys_are_enough(&browser, &url).await;
    a_sheet_is_drawn(&browser).await;
    pause(&browser).await;
    let status = status_of(&format!("http://127.0.0.1:{port}")).unwrap();
    numbers_are_those_of_the_run(&browser, &sandbox, &status).await;
    resume(&browser, &sandbox).await;
    pictures(&browser).await;

    let complaints = browser.complaints().await;
    // The one wrong token.
    assert!(complaints.len() == 1 && complaints[0].contains("401"), "{complaints:?}");
    let elsewhere: Vec<String> =
        browser.requests().await.into_iter().filter(|r| !r.starts_with(&url)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");

    browser.click("[data-action=drain]").await;
    browser.click("#ask-yes").await;
    headline(&browser, "a drain", "Drained").await;
    assert_eq!(run.end().status.code(), Some(130));
    let line = "return document.getElementById('line').textContent";
    browser.until("nobody there", line, |s| s.as_str().is_some_and(|s| s.contains("nobody answers"))).await;
    browser.end().await;
}

async fn ranks_are_sorted_and_found(browser: &Browser) {
    browser.click("#tab-ranks").await;
    let first = "return document.querySelector('#ranks-body tr th')?.textContent";
    let count = "return document.querySelectorAll('#ranks-body tr').length";
    browser.until("two ranks", count, |n| n == 2).await;
    browser.click("#panel-ranks [data-sort=rank]").await;
    browser.until("rank 0 first", first, |s| s == "0").await;
    browser.click("#panel-ranks [data-sort=rank]").await;
    browser.until("rank 1 first", first, |s| s == "1").await;
    let sorted = "return document.querySelector('#panel-ranks [aria-sort]')?.getAttribute('aria-sort')";
    assert_eq!(browser.script(sorted).await, "descending");
    browser.find("#ranks-find").await.send_keys("worker-0").await.unwrap();
    browser.until("one rank", count, |n| n == 1).await;
    assert_eq!(rows(browser, "ranks-body").await[0][1], "worker-0");
    browser.find("#ranks-find").await.clear().await.unwrap();
    browser.until("two ranks again", count, |n| n == 2).await;
}

/// From the top of the page, with keys alone.
async fn keys_are_enough(browser: &Browser, url: &str) {
    browser.open(url).await;
    headline(browser, "training", "Training").await;
    browser.press(TAB).await;
    assert_eq!(browser.script("return document.activeElement.className").await, "skip");
    browser.press(ENTER).await;
    assert_eq!(browser.script("return document.activeElement.id").await, "main");
    tab_to(browser, "cursor").await;
    let steps = "return [Number(document.getElementById('cursor').max), document.getElementById('cursor-text').textContent]";
    let before = browser.until("a chart of steps", steps, |s| s[0].as_u64() > Some(3)).await;
    browser.press(LEFT).await;
    browser.press(LEFT).await;
    browser.until("another step under the cursor", steps, |s| s[1] != before[1]).await;
    tab_to(browser, "tab-workers").await;
    browser.press(RIGHT).await;
    browser.press(RIGHT).await;
    assert_eq!(browser.script("return document.activeElement.id").await, "tab-generations");
    let shown = "return [...document.querySelectorAll('[role=tabpanel]:not([hidden])')].map((p) => p.id)";
    assert_eq!(browser.script(shown).await, serde_json::json!(["panel-generations"]));
    let generations = rows(browser, "generations").await;
    assert!(generations.last().unwrap()[1].contains("the job began"), "{generations:?}");
    // The focus is seen.
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.script(outline).await, "solid");
}

async fn a_sheet_is_drawn(browser: &Browser) {
    browser.click("#tab-montages").await;
    let size = "const i = document.getElementById('sheet'); return [i.naturalWidth, i.naturalHeight]";
    let size = browser.until("a sheet", size, |s| s[0].as_u64() > Some(0)).await;
    // Eight montages across and two sides of three levels, each of 32 pixels, with 6 between.
    assert_eq!(size, serde_json::json!([6 + 8 * 38, 6 + 6 * 38]));
    assert!(browser.text("#sheet-text").await.contains("Lane 0 in step"));
    browser.picture(&kept("montages.png")).await;
}

/// With a wrong token first.
async fn pause(browser: &Browser) {
    browser.click("[data-action=pause]").await;
    browser.press("not-the-token-of-this-test").await;
    browser.press(ENTER).await;
    let error = "return document.getElementById('ask-error').textContent";
    browser.until("a refusal", error, |s| s.as_str().is_some_and(|s| s.contains("not the one"))).await;
    browser.picture(&kept("token.png")).await;
    browser.find("#token").await.clear().await.unwrap();
    browser.find("#token").await.send_keys(TOKEN).await.unwrap();
    browser.press(ENTER).await;
    until_dialog_closed(browser).await;
    headline(browser, "a pause", "Paused").await;
}

async fn numbers_are_those_of_the_run(browser: &Browser, sandbox: &Sandbox, status: &Value) {
    let metrics = sandbox.metrics("run");
    let last = metrics.last().unwrap();
    assert_eq!(status["committed_steps"], metrics.len() as u64, "paused: nothing is committed");
    let step = "return document.getElementById('progress-text').textContent";
    let steps = grouped(u32::try_from(metrics.len()).unwrap());
    browser
        .until("every step", step, |s| {
            s.as_str().is_some_and(|s| s.starts_with(&format!("{steps} of 1,000,000")))
        })
        .await;
    for (id, field) in [
        ("loss", "loss"),
        ("lr", "lr"),
        ("momentum", "momentum"),
        ("grad_norm", "grad_norm"),
        ("images_per_s", "images_per_s"),
        ("step_s", "step_s"),
    ] {
        assert_eq!(Some(tile(browser, id).await), last[field].as_f64(), "{id}");
    }
    assert_eq!(Some(tile(browser, "data_wait").await), status["data_wait_share"].as_f64());
    assert_eq!(Some(tile(browser, "generation").await), status["generation"].as_f64());
    assert_eq!(Some(tile(browser, "checkpoint").await), status["last_checkpoint"].as_f64());
    assert_eq!(tile(browser, "workers").await, 2.0);
    browser.click("#tab-workers").await;
    let names = "return [...document.querySelectorAll('#workers-body tr')].map((r) => [r.children[0].textContent, r.children[1].textContent])";
    let workers = status["workers"].as_array().unwrap();
    let expected: Value = workers.iter().map(|w| serde_json::json!([w["worker"], w["state"]])).collect();
    browser.until("the workers of mcl status", names, |said| *said == expected).await;
    browser.click("#tab-checkpoints").await;
    let newest =
        format!("step {}", grouped(u32::try_from(status["last_checkpoint"].as_u64().unwrap()).unwrap()));
    assert_eq!(rows(browser, "checkpoints").await[0][0], newest);
    // The charts end with the newest row.
    browser.click("#numbers summary").await;
    let newest = "return [...document.querySelectorAll('#numbers-body tr')].map((r) => [r.children[0].textContent, r.children[1].textContent])";
    let numbers = browser.until("numbers", newest, |s| s.as_array().is_some_and(|a| a.len() > 5)).await;
    let of = |name: &str| {
        let row =
            numbers.as_array().unwrap().iter().find(|r| r[0] == name).unwrap_or_else(|| panic!("{numbers}"));
        row[1].as_str().unwrap().replace(',', "").parse::<f64>().unwrap()
    };
    for (name, value) in [
        ("loss", &last["loss"]),
        ("loss, 1/2 size", &last["loss_per_level"][1]),
        ("gradient norm", &last["grad_norm"]),
    ] {
        let (shown, exact) = (of(name), value.as_f64().unwrap());
        assert!((shown - exact).abs() <= 1e-3 * exact.abs(), "{name}: {shown}, not {exact}");
    }
    let drawn = "return [...document.querySelectorAll('#charts figure')].map((f) => f.querySelector('path.mean')?.getAttribute('d').length ?? 0)";
    let drawn = browser.script(drawn).await;
    assert!(drawn.as_array().unwrap().iter().all(|n| n.as_u64() > Some(20)), "{drawn}");
    browser.click("#numbers summary").await;
}

/// The token is remembered, so that it is not asked for.
async fn resume(browser: &Browser, sandbox: &Sandbox) {
    let before = committed(&sandbox.path("run"));
    browser.click("[data-action=resume]").await;
    let secret = "return document.getElementById('ask-secret').hidden";
    assert_eq!(browser.script(secret).await, true);
    browser.click("#ask-yes").await;
    until_dialog_closed(browser).await;
    headline(browser, "training again", "Training").await;
    let step = "return Number(document.getElementById('progress-text').textContent.split(' ')[0].replaceAll(',', ''))";
    browser.until("new steps", step, |n| n.as_u64() > Some(before as u64 + 20)).await;
    browser.click("#tab-generations").await;
    let generations = rows(browser, "generations").await;
    assert_eq!(generations[0][1], "the job went on after a pause", "{generations:?}");
}

async fn pictures(browser: &Browser) {
    browser.script("document.activeElement.blur(); window.scrollTo(0, 0)").await;
    for kind in ["light", "dark"] {
        let button = "return document.getElementById('theme').dataset.kind";
        while browser.script(button).await != kind {
            browser.click("#theme").await;
        }
        browser.click("#tab-workers").await;
        let ground = browser.script("return getComputedStyle(document.body).backgroundColor").await;
        let expected = if kind == "light" { "rgb(246, 247, 249)" } else { "rgb(18, 21, 26)" };
        assert_eq!(ground, expected);
        browser.script("window.scrollTo(0, 0)").await;
        browser.picture(&kept(&format!("training-{kind}.png"))).await;
    }
    browser.script("localStorage.clear()").await;
}

#[tokio::test]
async fn without_a_token_a_run_is_watched_to_its_end_and_nothing_else() {
    let sandbox = Sandbox::new();
    let browser = Browser::start().await;
    let (run, url) = start(&sandbox, "train.steps=150", &[]);
    browser.open(&url).await;
    browser.until("a state", "return document.getElementById('run').textContent", |s| s == "run").await;
    let hidden = "return document.getElementById('actions').hidden";
    assert_eq!(browser.script(hidden).await, true);
    let asked = "return fetch('/api/actions/cancel', {method: 'POST', body: '{}', headers: {'Content-Type': 'application/json'}}).then((a) => a.status)";
    assert_eq!(browser.script(asked).await, 403);
    headline(&browser, "the end", "Done").await;
    assert_eq!(tile(&browser, "checkpoint").await, 150.0);
    assert_eq!(browser.text("#progress-text").await, "150 of 150 steps (100 %), epoch 14");
    browser.picture(&kept("done.png")).await;
    let output = run.end();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("page: {url}")), "{said}");
    browser.end().await;
}

#[test]
fn a_thousand_workers_are_counted_and_listed_a_page_at_a_time() {
    println!("{:#}", look_on(&Sandbox::new(), 1000, Duration::from_secs(2)));
}

#[test]
fn pages_beyond_this_machine_need_leave_and_tokens_have_to_be_tokens() {
    let sandbox = Sandbox::new();
    let coordinator = ["coordinator", "--run-dir", "none", "--checkpoint", "http://127.0.0.1:1"];
    let with = |more: &[&'static str]| [&coordinator[..], more].concat();
    sandbox.fails(2, &["0.0.0.0:0", "--page-insecure", "ssh -L"], &with(&["--page", "0.0.0.0:0"]));
    sandbox.fails(2, &["token", "expected"], &with(&["--page-token-file", "nowhere"]));
    std::fs::write(sandbox.path("short"), "abc").unwrap();
    sandbox.fails(2, &["16 to 1024"], &with(&["--page-token-file", "short"]));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = [&coordinator[..], &["--page", &address]].concat();
    sandbox.fails(1, &["the page at", &address, "--no-page"], &arguments);
    assert!(!Path::new(&sandbox.path("none/coordinator.redb")).exists(), "it began all the same");
}
