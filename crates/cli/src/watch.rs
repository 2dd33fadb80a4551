//! `mcl watch`: a run as it goes, from its coordinator or from the files of its directory.

mod files;

use crate::arguments::{Command, WatchArguments};
use crate::client::{Coordinator, Wish, runtime};
use crate::exit::{FAILED, INTERRUPTED, Usage};
use crate::private::Private;
use crate::whereabouts::{self, Known};
use anyhow::{Context, Result, bail};
use files::Files;
use mcl_terminal::{has_colour, has_screen};
use mcl_transport::Identity;
use mcl_watch::{Event, Link, Snapshot, Tape, View};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);
/// How long an answer may take before the coordinator counts as away.
const PATIENCE: Duration = Duration::from_secs(5);
/// Points of the curves: more than a wide terminal can tell apart.
const POINTS: u32 = 512;

pub(crate) fn watch(a: &WatchArguments) -> Result<ExitCode> {
    let source = Source::of(a)?;
    runtime()?.block_on(async {
        if !a.json && has_screen() { screen(source).await } else { lines(source, a.json).await }
    })
}

/// Whether a command takes the whole terminal.
pub(crate) fn is_full_screen(command: &Command) -> bool {
    matches!(command, Command::Watch(a) if !a.json) && has_screen()
}

async fn screen(source: Source) -> Result<ExitCode> {
    let (say, events) = mpsc::channel(8);
    let (wishes, wished) = mpsc::channel(1);
    let looking = tokio::spawn(look_again_and_again(source, say, wished));
    let view = View::new(now(), has_colour(true));
    let shown = mcl_watch::show(view, events, wishes).await;
    looking.abort();
    shown.context("showing the run on this terminal")?;
    Ok(ExitCode::SUCCESS)
}

async fn look_again_and_again(
    mut source: Source,
    say: mpsc::Sender<Event>,
    mut wished: mpsc::Receiver<mcl_watch::Wish>,
) {
    loop {
        if say.send(source.look().await).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            wish = wished.recv() => {
                let Some(wish) = wish else { return };
                let result = source.tell(wish).await.map_err(|e| format!("{e:#}"));
                if say.send(Event::Told(wish, result)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A line for every change, until the run that was seen first is over.
async fn lines(mut source: Source, json: bool) -> Result<ExitCode> {
    let mut tape = Tape::default();
    let mut all_committed = false;
    loop {
        let event = source.look().await;
        for line in tape.take(&event, now()) {
            let text = if json { line.json.to_string() } else { line.text };
            match writeln!(std::io::stdout(), "{text}") {
                // Whoever read it has had enough.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
                written => written?,
            }
        }
        let gone = match &event {
            Event::Seen(seen) => {
                all_committed = Tape::all_committed(seen);
                false
            }
            // A coordinator of one run leaves with its job, perhaps between two looks.
            _ => all_committed,
        };
        match tape.ended() {
            Some("done") => return Ok(ExitCode::SUCCESS),
            Some("interrupted") => return Ok(ExitCode::from(INTERRUPTED)),
            Some(_) => return Ok(ExitCode::from(FAILED)),
            None if gone => return Ok(ExitCode::SUCCESS),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Where a run is looked at.
struct Source {
    place: Place,
    /// As whom it speaks.
    identity: Option<Identity>,
    /// The connection of the last look.
    client: Option<(String, Coordinator)>,
}

enum Place {
    /// A coordinator somewhere.
    Url(String),
    /// A run directory: its coordinator where one has it, else its files.
    Folder { folder: PathBuf, files: Box<Files> },
}

impl Source {
    fn of(a: &WatchArguments) -> Result<Self> {
        let place = match (&a.run_dir, &a.coordinator) {
            (Some(folder), _) => {
                if !folder.is_dir() {
                    bail!(Usage(format!("{}: expected a run directory", folder.display())));
                }
                let folder = std::path::absolute(folder)?;
                let files = Box::new(Files::new(&folder)?);
                Place::Folder { folder, files }
            }
            (None, Some(url)) => Place::Url(url.clone()),
            (None, None) => bail!(Usage("give a run directory, or --coordinator URL".to_owned())),
        };
        Ok(Self { place, identity: a.tls.identity()?, client: None })
    }

    async fn look(&mut self) -> Event {
        let url = match &mut self.place {
            Place::Url(url) => url.clone(),
            Place::Folder { folder, files } => match coordinator_of(folder) {
                Some((url, runs_many)) => {
                    let run = files.run_id().to_owned();
                    let identity = match &self.identity {
                        None if url.starts_with("https:") => Private::operator_of(folder),
                        given => given.clone(),
                    };
                    match self.ask(&url, identity).await {
                        // It may have another run of the same folder now, or have died.
                        Ok(seen) if !runs_many || seen.status.run_id == run => return seen_event(seen),
                        Ok(_) | Err(_) => return self.read(),
                    }
                }
                None => return self.read(),
            },
        };
        match self.ask(&url, self.identity.clone()).await {
            Ok(seen) => seen_event(seen),
            Err(error) => Event::Away(format!("{error:#}")),
        }
    }

    async fn ask(&mut self, url: &str, identity: Option<Identity>) -> Result<Snapshot> {
        let known = self.client.take().filter(|(at, _)| at == url).map(|(_, client)| client);
        let asking = async {
            let mut client = match known {
                Some(client) => client,
                None => Coordinator::connect(url, identity).await?,
            };
            let (status, history) = (client.status().await?, client.history(POINTS).await?);
            Ok::<_, anyhow::Error>((client, status, history))
        };
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        let (client, status, history) =
            answer.with_context(|| format!("coordinator at {url} does not answer"))??;
        self.client = Some((url.to_owned(), client));
        Ok(Snapshot { status, history, link: Link::Coordinator(url.to_owned()) })
    }

    fn read(&mut self) -> Event {
        let Place::Folder { files, .. } = &mut self.place else { return Event::Away(String::new()) };
        match files.look() {
            Ok(seen) => seen_event(seen),
            Err(error) => Event::Away(format!("{error:#}")),
        }
    }

    async fn tell(&mut self, wish: mcl_watch::Wish) -> Result<()> {
        let wish = match wish {
            mcl_watch::Wish::Pause => Wish::Pause,
            mcl_watch::Wish::Resume => Wish::Resume,
            mcl_watch::Wish::Drain => Wish::Drain,
        };
        let (_, client) = self.client.as_mut().context("no coordinator answers")?;
        tokio::time::timeout(PATIENCE, client.tell(wish)).await.context("the coordinator does not answer")?
    }
}

fn seen_event(seen: Snapshot) -> Event {
    Event::Seen(Box::new(seen))
}

/// The coordinator that has a run directory, or the folder of runs around it; whether it has the latter.
fn coordinator_of(folder: &Path) -> Option<(String, bool)> {
    let at = |folder: &Path| match whereabouts::of(folder) {
        Known::At(url) => Some(url),
        Known::Nothing | Known::Ended(_) => None,
    };
    at(folder).map(|url| (url, false)).or_else(|| Some((at(folder.parent()?)?, true)))
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
