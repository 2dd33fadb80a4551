//! A cluster that is none, and a client that speaks HTTP by hand, so that it can also do it badly.

use mcl_history::{Happening, Row, Run, Told, What};
use mcl_page::{ActError, Action, Cluster, Page, Phase, Rank, Snapshot, Worker, WorkerState};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// See the module.
pub struct Fake {
    snapshot: Mutex<Option<Snapshot>>,
    refusal: Mutex<Option<String>>,
    acted: Mutex<Vec<Action>>,
    asked: AtomicU64,
}

impl Fake {
    /// Three workers of two ranks each that train.
    pub fn training() -> Arc<Self> {
        let worker = |w: u32| Worker {
            name: format!("w{w}"),
            state: WorkerState::Training,
            silent_s: 0.25,
            address: "127.0.0.1".to_owned(),
            ranks: vec![2 * w, 2 * w + 1],
        };
        let rank = |r: u32| Rank {
            rank: r,
            worker: format!("w{}", r / 2),
            device: "cpu".to_owned(),
            first_lane: r,
            lanes: 1,
            step_s: 0.5,
            data_s: 0.1,
            forward_s: 0.15,
            backward_s: 0.2,
            collective_s: 0.05,
            straggler: false,
            last_step: 1,
        };
        let snapshot = Snapshot {
            run: Some("run".to_owned()),
            phase: Phase::Training,
            reason: "generation 1: 6 ranks".to_owned(),
            workers: (0..3).map(worker).collect(),
            ranks: (0..6).map(rank).collect(),
            ..Snapshot::default()
        };
        Arc::new(Self {
            snapshot: Mutex::new(Some(snapshot)),
            refusal: Mutex::default(),
            acted: Mutex::default(),
            asked: AtomicU64::new(0),
        })
    }

    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(self.snapshot.lock().unwrap().as_mut().unwrap());
    }

    pub fn go_away(&self) {
        *self.snapshot.lock().unwrap() = None;
    }

    pub fn refuse(&self, reason: &str) {
        *self.refusal.lock().unwrap() = Some(reason.to_owned());
    }

    pub fn allow(&self) {
        *self.refusal.lock().unwrap() = None;
    }

    pub fn acted(&self) -> Vec<Action> {
        self.acted.lock().unwrap().clone()
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

/// What a page has of it.
pub struct View(pub Arc<Fake>);

impl Cluster for View {
    async fn snapshot(&self) -> Option<Snapshot> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        self.0.snapshot.lock().unwrap().clone()
    }

    async fn act(&self, action: Action) -> Result<(), ActError> {
        if let Some(reason) = self.0.refusal.lock().unwrap().clone() {
            return Err(ActError::Refused(reason));
        }
        self.0.acted.lock().unwrap().push(action);
        Ok(())
    }

    async fn draw(&self, step: u64) -> Result<Vec<u8>, String> {
        Ok(format!("png of step {step}").into_bytes())
    }
}

/// A run of this name.
pub fn told_of(name: &str) -> Run {
    Run { name: name.to_owned(), lanes: 6, images_per_lane: 8, ..Run::default() }
}

/// A row whose loss is 10 over its step and one.
pub fn row(step: u64) -> Row {
    Row {
        step,
        epoch: 0,
        generation: 1,
        loss: Some(10.0 / (step as f64 + 1.0)),
        loss_per_level: vec![1.0, 2.0],
        lr: 0.1,
        momentum: 0.99,
        grad_norm: Some(1.5),
        images_per_s: 96.0,
        workers: 3,
        data_wait_s: 0.1,
        step_s: 0.5,
        skipped: false,
        time: 1.7e9 + step as f64,
    }
}

/// A served page, and how to reach it.
pub struct Wire {
    address: SocketAddr,
    told: mpsc::UnboundedSender<Told>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v).next()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }
}

impl Wire {
    pub async fn serve(page: Page<View>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, mut heard) = mpsc::unbounded_channel();
        let following = page.clone();
        tokio::spawn(async move {
            following.follow(futures::stream::poll_fn(move |context| heard.poll_recv(context))).await;
        });
        tokio::spawn(mcl_page::serve(page, listener, std::future::pending()));
        Self { address, told }
    }

    pub fn tell(&self, what: What) {
        self.told.send(Told::Happening(Happening { time: 1.7e9, what })).unwrap();
    }

    pub fn miss(&self) {
        self.told.send(Told::Missed).unwrap();
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub async fn write(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Sends text as it is and reads to the end.
    pub async fn raw(&self, text: &str) -> Answer {
        self.try_raw(text).await.expect("an answer")
    }

    async fn try_raw(&self, text: &str) -> Option<Answer> {
        let mut stream = self.connect().await;
        // It may be refused before all of it is read.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end");
        (!bytes.is_empty()).then(|| Answer::parse(&bytes))
    }

    fn request(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.raw(&Self::request(path)).await
    }

    /// On a connection that stays; the status.
    pub async fn ask(stream: &mut TcpStream, path: &str) -> u16 {
        Self::write(stream, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let mut bytes = Vec::new();
        loop {
            let mut some = [0; 2048];
            let read = stream.read(&mut some).await.unwrap();
            assert!(read > 0, "closed");
            bytes.extend_from_slice(&some[..read]);
            let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let answer = Answer::parse(&bytes);
            let length: usize = answer.header("content-length").unwrap().parse().unwrap();
            if bytes.len() >= end + 4 + length {
                return answer.status;
            }
        }
    }

    /// Asks until there is an answer at all.
    pub async fn until_answered(&self, path: &str) -> Answer {
        let asked = async {
            loop {
                if let Some(answer) = self.try_raw(&Self::request(path)).await {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("an answer")
    }

    /// Asks for the state until something holds of it.
    pub async fn state_where(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let asked = async {
            loop {
                let state = self.get("/api/state").await.json();
                if holds(&state) {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("the state")
    }

    pub async fn until_viewers(&self, count: usize) {
        let asked = async {
            while !self.get("/metrics").await.text().contains(&format!("mcl_page_viewers {count}")) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("viewers that left");
    }

    pub async fn watch(&self) -> Viewer {
        let mut stream = self.connect().await;
        Self::write(&mut stream, "GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next_line().await.unwrap().unwrap();
        assert!(status.contains(" 200 "), "{status}");
        Viewer { lines }
    }
}

/// Somebody who looks on.
pub struct Viewer {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Viewer {
    /// The next frame of which something holds.
    pub async fn frame_where(&mut self, holds: impl Fn(&str, &Value) -> bool) -> (String, Value) {
        let read = async {
            let mut event = String::new();
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the stream goes on");
                if let Some(name) = line.strip_prefix("event: ") {
                    event = name.to_owned();
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let data = serde_json::from_str(data).unwrap();
                    if holds(&event, &data) {
                        return (event, data);
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a frame")
    }
}
