//! `mcl watch`: a run as it goes, from its coordinator or from the files of its directory.

mod files;

use crate::arguments::{Command, WatchArguments};
use crate::client::{Coordinator, Wish, runtime};
use crate::exit::{FAILED, INTERRUPTED, Usage};
use crate::private::Private;
use crate::whereabouts::{self, Ended, Known};
use anyhow::{Context, Result, bail};
use files::{Files, NOBODY, UNATTENDED, UNREACHABLE};
use mcl_proto::v1::AwaitEndResponse;
use mcl_terminal::{has_colour, has_screen};
use mcl_transport::Identity;
use mcl_watch::{Event, Link, Snapshot, Tape, View};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

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
        match tape.ended() {
            Some("done") => return Ok(ExitCode::SUCCESS),
            Some("interrupted") => return Ok(ExitCode::from(INTERRUPTED)),
            Some(_) => return Ok(ExitCode::from(FAILED)),
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
    /// What a coordinator said last.
    last: Option<Snapshot>,
    /// Hears how the run of that name ends.
    ending: Option<(String, JoinHandle<Result<AwaitEndResponse>>)>,
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
        Ok(Self { place, identity: a.tls.identity()?, client: None, last: None, ending: None })
    }

    async fn look(&mut self) -> Event {
        match &self.place {
            Place::Url(url) => {
                let url = url.clone();
                match self.ask(&url, self.identity.clone()).await {
                    Ok(seen) => seen_event(seen),
                    Err(error) => {
                        self.end().await.map_or_else(|| Event::Away(format!("{error:#}")), seen_event)
                    }
                }
            }
            Place::Folder { folder, .. } => {
                let folder = folder.clone();
                self.look_at(&folder).await
            }
        }
    }

    /// The coordinator that has a folder; where none does, the folder's files.
    async fn look_at(&mut self, folder: &Path) -> Event {
        let (url, runs_many) = match whereabouts::of(folder) {
            Known::At(url) => (url, false),
            Known::Ended(Ended { phase, reason }) => return self.read(&phase, &reason),
            Known::Elsewhere(host) => {
                let reason = format!("its coordinator can be reached on {host} alone: watch it there");
                return self.read(UNREACHABLE, &reason);
            }
            Known::Unreadable(reason) => return self.read(UNREACHABLE, &reason),
            Known::Nothing => match folder.parent().map(whereabouts::of) {
                Some(Known::At(url)) => (url, true),
                _ => return self.read(UNATTENDED, NOBODY),
            },
        };
        let identity = match &self.identity {
            None if url.starts_with("https:") => Private::operator_of(folder),
            given => given.clone(),
        };
        let run = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self.ask(&url, identity).await {
            Ok(seen) if !runs_many || seen.status.run_id == run => seen_event(seen),
            Ok(seen) => match files::elsewhere(&seen.status, &run) {
                Some((phase, reason)) => self.read(&phase, &reason),
                None => self.read(UNATTENDED, NOBODY),
            },
            // What was seen last stays, until it is known that nobody is there.
            Err(error) if self.last.is_some() => Event::Away(format!("{error:#}")),
            Err(error) => self.read(UNREACHABLE, &format!("{error:#}")),
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
        self.hear_of_its_end(&client, &status.run_id);
        self.client = Some((url.to_owned(), client));
        let seen = Snapshot { status, history, link: Link::Coordinator(url.to_owned()) };
        self.last = Some(seen.clone());
        Ok(seen)
    }

    fn hear_of_its_end(&mut self, client: &Coordinator, run_id: &str) {
        let heard = self.ending.as_ref().is_some_and(|(run, ending)| run == run_id && !ending.is_finished());
        if run_id.is_empty() || heard {
            return;
        }
        let (mut client, run) = (client.clone(), run_id.to_owned());
        let ending = tokio::spawn(async move { client.await_end(run).await });
        if let Some((_, before)) = self.ending.replace((run_id.to_owned(), ending)) {
            before.abort();
        }
    }

    /// A coordinator of one run leaves with it: what was seen last, with how it ended, where it said so.
    async fn end(&mut self) -> Option<Snapshot> {
        let (_, ending) = self.ending.take()?;
        let end = tokio::time::timeout(LOOK, ending).await.ok()?.ok()?.ok()?;
        let mut seen = self.last.clone()?;
        let status = &mut seen.status;
        (status.phase, status.reason) = (end.phase, end.reason);
        (status.committed_steps, status.last_checkpoint) = (end.committed_steps, end.last_checkpoint);
        Some(seen)
    }

    /// What the files say of a run that is in this phase.
    fn read(&mut self, phase: &str, reason: &str) -> Event {
        self.last = None;
        let Place::Folder { files, .. } = &mut self.place else { return Event::Away(reason.to_owned()) };
        match tokio::task::block_in_place(|| files.look(phase, reason)) {
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

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
