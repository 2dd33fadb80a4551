//! A real browser without a window: Chromium, driven over WebDriver.
//!
//! Invariants: it looks up no name and reaches nothing but this machine; it and its driver end with the test. Left out:
//! what is looked at (`tests/page.rs`).

use crate::cluster::free_port;
use fantoccini::elements::Element;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the page may take to show something.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What the browser is called, and its driver.
const PROGRAMS: [&str; 2] = ["chromium", "chromedriver"];

/// See the module.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    driver: Driver,
}

/// The driver's process, and the browser's folder.
#[derive(Debug)]
struct Driver {
    child: Child,
    _profile: tempfile::TempDir,
}

impl Drop for Driver {
    fn drop(&mut self) {
        crate::processes::kill_family(i32::try_from(self.child.id()).unwrap());
        let _ = self.child.wait();
    }
}

/// A command that fantoccini does not have: what the browser logged.
#[derive(Debug)]
struct Log(&'static str);

impl WebDriverCompatibleCommand for Log {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": self.0 }).to_string()))
    }
}

impl Browser {
    /// Starts one.
    pub async fn start() -> Self {
        let [_, driver] = PROGRAMS.map(program);
        let profile = tempfile::tempdir().unwrap();
        let port = free_port([127, 0, 0, 1].into()).port();
        let log = profile.path().join("chromedriver.log");
        let child = Command::new(driver)
            .args([format!("--port={port}"), format!("--log-path={}", log.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let driver = Driver { child, _profile: profile };
        let folder = driver._profile.path().join("profile");
        let client = connect(port, &folder).await;
        Self { client, driver }
    }

    /// Opens a page that may not be there yet.
    pub async fn open(&self, url: &str) {
        until("the page", || async { self.client.goto(url).await.ok() }).await;
    }

    /// What a script says.
    pub async fn script(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// The first element of a selector.
    pub async fn find(&self, css: &str) -> Element {
        self.client.find(Locator::Css(css)).await.unwrap_or_else(|e| panic!("{css}: {e}"))
    }

    /// Clicks it.
    pub async fn click(&self, css: &str) {
        self.find(css).await.click().await.unwrap_or_else(|e| panic!("{css}: {e}"));
    }

    /// Its text, as a person sees it.
    pub async fn text(&self, css: &str) -> String {
        self.find(css).await.text().await.unwrap()
    }

    /// Types into what has the focus.
    pub async fn press(&self, keys: &str) {
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Waits until a script says something that holds; what it said.
    pub async fn until(&self, what: &str, script: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let last = std::sync::Mutex::new(Value::Null);
        let looked = || async {
            let said = self.client.execute(script, Vec::new()).await.ok()?;
            let good = holds(&said);
            *last.lock().unwrap() = said.clone();
            good.then_some(said)
        };
        let begun = Instant::now();
        loop {
            if let Some(said) = looked().await {
                return said;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} did not come to pass: {}", last.lock().unwrap());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Keeps a picture of what is seen.
    pub async fn picture(&self, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, self.client.screenshot().await.unwrap()).unwrap();
    }

    /// What the console says since it was asked last: everything that is a warning or worse.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.client.issue_cmd(Log("browser")).await.unwrap();
        let bad = |e: &&Value| matches!(e["level"].as_str(), Some("SEVERE" | "WARNING"));
        entries.as_array().unwrap().iter().filter(bad).map(|e| e["message"].to_string()).collect()
    }

    /// Every address on a network that was asked for since it was asked last; not the browser's own pages.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.client.issue_cmd(Log("performance")).await.unwrap();
        let sent = |e: &Value| -> Option<String> {
            let event: Value = serde_json::from_str(e["message"].as_str()?).ok()?;
            let event = &event["message"];
            let url = event["params"]["request"]["url"].as_str()?;
            let asked = event["method"] == "Network.requestWillBeSent";
            (asked && !["chrome", "data:", "about:"].iter().any(|own| url.starts_with(own)))
                .then(|| url.to_owned())
        };
        entries.as_array().unwrap().iter().filter_map(sent).collect()
    }

    /// Ends it in order.
    pub async fn end(self) {
        let Self { client, driver } = self;
        let _ = client.close().await;
        drop(driver);
    }
}

async fn connect(port: u16, profile: &Path) -> Client {
    let arguments = [
        "--headless=new",
        // Tests run as root in containers, where the sandbox does not start.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1400,1250",
        "--force-color-profile=srgb",
        &format!("--user-data-dir={}", profile.display()),
    ];
    let wanted = json!({
        "browserName": "chrome",
        "goog:chromeOptions": { "args": arguments, "binary": program("chromium") },
        "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
    });
    let Value::Object(wanted) = wanted else { unreachable!() };
    let at = format!("http://127.0.0.1:{port}");
    let builder = ClientBuilder::new(HttpConnector::new());
    until("a browser", || {
        let (mut builder, wanted, at) = (builder.clone(), wanted.clone(), at.clone());
        async move { builder.capabilities(wanted).connect(&at).await.ok() }
    })
    .await
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come up within {} s", PATIENCE.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a program is; without it nothing here can be tested, and nothing is passed over in silence.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{name} is not installed: the page is tested in a real browser. `make tools` installs it where it runs as \
             root on Debian; else: apt-get install {}",
            ["chromium", "chromium-driver"].join(" ")
        )
    })
}
