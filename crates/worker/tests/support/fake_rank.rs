//! A rank without a model: it does what the job text of its configuration says.
//!
//! Every mode answers the configuration with Ready, whose store address is its process id, and leaves when
//! its stdin closes. Modes: `train` follows commands; `stubborn` does not leave when asked; `die N` leaves
//! with that status after a step report and last words; `abort` is killed by a signal; `garbage` and
//! `text` write something else than frames; `deaf` reads nothing more.
#![forbid(unsafe_code)]

use mcl_proto::v1::{
    Configure, Drained, RankCommand, RankEvent, Ready, Staged, StepReport, Training, rank_command::Command,
    rank_event::Event,
};
use mcl_worker::{read_frame, write_frame};
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufReader};

struct Rank {
    stdin: BufReader<File>,
    stdout: File,
    configure: Configure,
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
    let mode = configure.job_toml.clone();
    let mut rank = Rank { stdin, stdout: pipe(io::stdout())?, configure, next_step: 0 };
    let store_address = format!("{}", std::process::id());
    rank.say(Event::Ready(Ready { store_address })).await?;
    match mode.split_once(' ').unwrap_or((&mode, "")) {
        ("die", code) => rank.die(code.parse()?).await,
        ("abort", _) => std::process::abort(),
        ("garbage", _) => {
            rank.stdout.write_all(&[0xff; 64]).await?;
            rank.stdout.flush().await?;
            rank.obey(true).await
        }
        ("text", _) => {
            rank.stdout.write_all("a library says hello\n".repeat(20).as_bytes()).await?;
            rank.stdout.flush().await?;
            rank.obey(true).await
        }
        ("deaf", _) => std::future::pending().await,
        ("stubborn", _) => rank.obey(false).await,
        _ => rank.obey(true).await,
    }
}

fn pipe(end: impl AsFd) -> io::Result<File> {
    Ok(File::from_std(std::fs::File::from(end.as_fd().try_clone_to_owned()?)))
}

impl Rank {
    async fn say(&mut self, event: Event) -> Result<(), mcl_worker::FrameError> {
        let (token, rank) = (self.configure.token, self.configure.rank);
        write_frame(&mut self.stdout, &RankEvent { token, rank, event: Some(event) }).await
    }

    async fn report(&mut self) -> Result<(), mcl_worker::FrameError> {
        let step = self.next_step;
        self.next_step += 1;
        self.say(Event::Step(StepReport { step, ..StepReport::default() })).await
    }

    async fn die(&mut self, code: u8) -> Result<ExitCode, Box<dyn std::error::Error>> {
        self.report().await?;
        for line in 0..50 {
            eprintln!("line {line}");
        }
        eprintln!("I see a {}", std::env::var("FAKE_RANK_SEES").unwrap_or_default());
        Ok(ExitCode::from(code))
    }

    async fn obey(&mut self, leaves: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
        while let Some(command) = read_frame::<RankCommand, _>(&mut self.stdin).await? {
            match command.command {
                Some(Command::Start(_)) => self.say(Event::Training(Training { next_step: 0 })).await?,
                Some(Command::EpochGrant(grant)) => {
                    for _ in 0..grant.steps {
                        self.report().await?;
                    }
                }
                Some(Command::CheckpointCommitted(c)) => {
                    self.say(Event::Staged(Staged { step: c.step + 1, slice: 0, slices: 1 })).await?;
                }
                Some(Command::Drain(_)) => {
                    let step = self.next_step;
                    self.say(Event::Drained(Drained { step })).await?;
                }
                Some(Command::Stop(_)) if leaves => return Ok(ExitCode::SUCCESS),
                _ => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
