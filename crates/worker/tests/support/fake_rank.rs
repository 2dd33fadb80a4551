//! A rank without a model: it does what the job text of its configuration says.
//!
//! Every mode but `unborn N` (which leaves with that status at once) answers the configuration with Prepared and
//! each Join with Ready, whose store address is its process id, and leaves when its stdin closes. It says Alive
//! five times within `lost_after`. Modes: `train` follows commands; `stubborn` does not leave when asked; and once
//! it has joined: `die N` leaves with that status after a step report and last words; `abort` is killed by a
//! signal; `garbage` and `text` write something else than frames.
#![forbid(unsafe_code)]

use mcl_proto::v1::{
    Alive, Broken, Configure, Drained, FencingToken, Paused, Prepared, RankCommand, RankEvent, Ready,
    Recounted, Staged, StepReport, Training, rank_command::Command, rank_event::Event,
};
use mcl_worker::{FrameError, read_frame, write_frame};
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::Mutex;

struct Rank {
    stdin: BufReader<File>,
    stdout: Arc<Mutex<File>>,
    mode: String,
    token: Option<FencingToken>,
    rank: u32,
    next_step: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match train().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fake rank: {error}");
            ExitCode::from(101)
        }
    }
}

async fn train() -> Result<ExitCode, Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() != Some("train") {
        return Err("expected the verb `train`".into());
    }
    let mut stdin = BufReader::new(pipe(io::stdin())?);
    let first = read_frame::<RankCommand, _>(&mut stdin).await?;
    let Some(Command::Configure(configure)) = first.and_then(|f| f.command) else {
        return Err("expected the configuration as first command".into());
    };
    if let Some(code) = configure.job_toml.strip_prefix("unborn ") {
        return Ok(ExitCode::from(code.parse::<u8>()?));
    }
    let stdout = Arc::new(Mutex::new(pipe(io::stdout())?));
    tokio::spawn(live(Arc::clone(&stdout), configure.clone()));
    let mode = configure.job_toml;
    let mut rank = Rank { stdin, stdout, mode, token: None, rank: 0, next_step: 0 };
    rank.say(Event::Prepared(Prepared {})).await?;
    rank.obey().await
}

/// What a control thread does.
async fn live(stdout: Arc<Mutex<File>>, configure: Configure) {
    let Some(often) = Duration::from_millis(configure.lost_after_ms).checked_div(5).filter(|d| !d.is_zero())
    else {
        return;
    };
    loop {
        let alive = Alive { step: Some(17), activity: "backward".into(), seconds: 1.2 };
        let event = RankEvent { event: Some(Event::Alive(alive)), ..RankEvent::default() };
        if write_frame(&mut *stdout.lock().await, &event).await.is_err() {
            return;
        }
        tokio::time::sleep(often).await;
    }
}

fn pipe(end: impl AsFd) -> io::Result<File> {
    Ok(File::from_std(std::fs::File::from(end.as_fd().try_clone_to_owned()?)))
}

impl Rank {
    async fn say(&mut self, event: Event) -> Result<(), FrameError> {
        let event =
            RankEvent { token: self.token, rank: self.rank, event: Some(event), ..RankEvent::default() };
        write_frame(&mut *self.stdout.lock().await, &event).await
    }

    async fn report(&mut self) -> Result<(), FrameError> {
        let step = self.next_step;
        self.next_step += 1;
        self.say(Event::Step(StepReport { step, ..StepReport::default() })).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = self.stdout.lock().await;
        stdout.write_all(bytes).await?;
        stdout.flush().await
    }

    async fn die(&mut self, code: u8) -> Result<ExitCode, Box<dyn std::error::Error>> {
        self.report().await?;
        for line in 0..50 {
            eprintln!("line {line}");
        }
        eprintln!("I see a {}", std::env::var("FAKE_RANK_SEES").unwrap_or_default());
        Ok(ExitCode::from(code))
    }

    async fn joined(&mut self) -> Result<Option<ExitCode>, Box<dyn std::error::Error>> {
        let store_address = format!("{}", std::process::id());
        self.say(Event::Ready(Ready { store_address, ..Ready::default() })).await?;
        let mode = self.mode.clone();
        match mode.split_once(' ').unwrap_or((&mode, "")) {
            ("die", code) => return Ok(Some(self.die(code.parse()?).await?)),
            ("abort", _) => std::process::abort(),
            ("garbage", _) => self.write(&[0xff; 64]).await?,
            ("text", _) => self.write("a library says hello\n".repeat(20).as_bytes()).await?,
            _ => {}
        }
        Ok(None)
    }

    async fn obey(&mut self) -> Result<ExitCode, Box<dyn std::error::Error>> {
        while let Some(command) = read_frame::<RankCommand, _>(&mut self.stdin).await? {
            match command.command {
                Some(Command::Join(join)) => {
                    (self.token, self.rank) = (join.token, join.rank);
                    if let Some(code) = self.joined().await? {
                        return Ok(code);
                    }
                }
                Some(Command::Start(start)) => {
                    self.say(Event::Training(Training { next_step: start.first_step })).await?;
                }
                Some(Command::EpochGrant(grant)) => {
                    for _ in 0..grant.steps {
                        self.report().await?;
                    }
                }
                Some(Command::CheckpointCommitted(c)) => {
                    self.say(Event::Staged(Staged { step: c.step + 1, slices: 1, ..Staged::default() }))
                        .await?;
                }
                Some(Command::Drain(_)) => self.say(Event::Drained(Drained { step: self.next_step })).await?,
                Some(Command::Pause(_)) => self.say(Event::Paused(Paused { step: self.next_step })).await?,
                Some(Command::Break(_)) => self.say(Event::Broken(Broken::default())).await?,
                Some(Command::Recount(_)) => self.say(Event::Recounted(Recounted::default())).await?,
                Some(Command::Stop(_)) if self.mode != "stubborn" => return Ok(ExitCode::SUCCESS),
                _ => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
