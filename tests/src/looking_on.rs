//! The page of a coordinator with many workers that a load generator plays: how soon it is seen, what looking on costs.

use crate::Sandbox;
use crate::browser::Browser;
use crate::cluster::{Cluster, Daemon, free_port};
use crate::processes::{self, ProcessId};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Milliseconds from asking for the page until something of it was painted.
const PAINTED: &str = "return performance.getEntriesByType('paint').find((p) => p.name === 'first-contentful-paint')?.startTime";
/// Milliseconds since then; how many workers it counts, and how many it lists.
const LISTED: &str = "return [performance.now(), document.getElementById('count-workers').textContent, \
                      document.querySelectorAll('#workers-body tr').length]";

/// Has so many workers played, looks at the page in a browser, and measures for so long without and with the browser.
/// That the page counts them all and lists one page of them is asserted; times are not.
pub fn look_on(sandbox: &Sandbox, workers: u32, measured: Duration) -> Value {
    let mut cluster = Cluster::new(sandbox, "many");
    let page = free_port([127, 0, 0, 1].into());
    cluster.page = Some(page);
    cluster.start_services();
    let _load = play(sandbox, &cluster, workers, measured);
    cluster.until("all workers", |c| {
        c.status().is_some_and(|s| s["workers"].as_array().is_some_and(|w| w.len() == workers as usize))
    });
    cluster.until("a step", |c| c.status().is_some_and(|s| s["committed_steps"].as_u64() > Some(0)));
    let pid = cluster.coordinator.as_ref().unwrap().pid();
    let alone = cpu_ms_a_second(pid, measured);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (paint, listed, watched) = runtime.block_on(async {
        let browser = Browser::start().await;
        browser.open(&format!("http://{page}")).await;
        let count = grouped(workers);
        let seen = browser
            .until("every worker", LISTED, |said| said[1] == count.as_str() && said[2].as_u64() > Some(0))
            .await;
        assert_eq!(seen[2], workers.min(50), "one page of the table");
        let paint = browser.script(PAINTED).await;
        let watched = tokio::task::spawn_blocking(move || cpu_ms_a_second(pid, measured)).await.unwrap();
        browser.find("#workers-find").await.send_keys(&format!("-{}", workers - 1)).await.unwrap();
        let rows = "return document.querySelectorAll('#workers-body tr').length";
        browser.until("one worker", rows, |n| n == 1).await;
        browser.end().await;
        (paint, seen[0].clone(), watched)
    });
    json!({
        "workers": workers, "measured_s": measured.as_secs_f64(),
        "first_paint_ms": paint, "all_listed_ms": listed,
        "cpu_ms_a_second": { "nobody_looks": alone, "one_looks": watched, "looking": watched - alone },
    })
}

/// The load generator, for longer than is measured.
fn play(sandbox: &Sandbox, cluster: &Cluster, workers: u32, measured: Duration) -> Daemon {
    let (agents, seconds) = (workers.to_string(), (300 + 4 * measured.as_secs()).to_string());
    let url = cluster.url();
    let mut arguments = vec!["bench", "coordinator", "--coordinator", &url, "--agents", &agents];
    // One address may not have a connection for each.
    arguments.extend(["--agents-per-connection", "10", "--hz", "1", "--seconds", &seconds]);
    Daemon::start(sandbox.command(&arguments), &cluster.log("load"))
}

/// Processor time of a process in milliseconds a second.
fn cpu_ms_a_second(pid: ProcessId, measured: Duration) -> f64 {
    let (begun, before) = (Instant::now(), processes::cpu_seconds(pid).unwrap());
    std::thread::sleep(measured);
    let used = processes::cpu_seconds(pid).unwrap() - before;
    1e3 * used / begun.elapsed().as_secs_f64()
}

/// 1234 as 1,234.
pub fn grouped(n: u32) -> String {
    let digits = n.to_string();
    let places = digits
        .chars()
        .rev()
        .enumerate()
        .flat_map(|(at, c)| (at > 0 && at % 3 == 0).then_some(',').into_iter().chain(std::iter::once(c)));
    places.collect::<Vec<char>>().into_iter().rev().collect()
}
