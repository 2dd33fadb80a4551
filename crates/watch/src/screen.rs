//! The one place that touches a terminal.
//!
//! Invariant: however this ends (a key, a signal, an error, a panic), the terminal is as it was before.

use crate::draw::draw;
use crate::view::{Event, Key, Order, View, Wish, step};
use crossterm::cursor;
use crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::io;
use std::mem::ManuallyDrop;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How often the keyboard's thread looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(200);
/// How often times on the screen go on.
const CLOCK: Duration = Duration::from_secs(1);

/// Puts the terminal back, as far as it is still there.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = ratatui::try_restore();
        let _ = crossterm::execute!(io::stdout(), cursor::Show);
    }
}

/// Shows a view and what comes, full screen, until somebody leaves. Wishes go out by `wishes`.
///
/// # Errors
/// When the terminal cannot be used.
pub async fn show(
    mut view: View,
    mut events: mpsc::Receiver<Event>,
    wishes: mpsc::Sender<Wish>,
) -> io::Result<()> {
    let (mut interrupt, mut terminate, mut hang_up) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    // Before it is begun, which may fail half way; a panic is seen to there.
    let _restore = Restore;
    // Never dropped: where the terminal is gone by then, that would be a panic.
    let mut terminal = ManuallyDrop::new(ratatui::try_init()?);
    let mut keys = keyboard();
    let size = terminal.size()?;
    view = step(view, Event::Size(size.width, size.height)).0;
    let mut clock = tokio::time::interval(CLOCK);
    loop {
        terminal.draw(|frame| draw(&view, frame))?;
        let event = tokio::select! {
            Some(event) = keys.recv() => event?,
            Some(event) = events.recv() => event,
            _ = clock.tick() => Event::Clock(now()),
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
        };
        let (next, order) = step(view, event);
        view = next;
        match order {
            Some(Order::Quit) => return Ok(()),
            Some(Order::Tell(wish)) if wishes.try_send(wish).is_err() => {
                let busy = Err("the wish before it is still on its way".to_owned());
                view = step(view, Event::Told(wish, busy)).0;
            }
            Some(Order::Tell(_)) | None => {}
        }
    }
}

/// Keys and sizes, from a thread of its own: the terminal is read by waiting for it.
fn keyboard() -> mpsc::Receiver<io::Result<Event>> {
    let (say, said) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !say.is_closed() {
            let next = match event::poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let failed = next.is_err();
            let told = match next {
                Ok(event::Event::Key(pressed)) => key(pressed).map(|key| Ok(Event::Key(key))),
                Ok(event::Event::Resize(columns, rows)) => Some(Ok(Event::Size(columns, rows))),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            };
            let heard = told.is_none_or(|told| say.blocking_send(told).is_ok());
            if failed || !heard {
                return;
            }
        }
    });
    said
}

fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release || pressed.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char(c) if control => Key::Control(c.to_ascii_lowercase()),
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
