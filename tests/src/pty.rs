//! A program in a terminal of its own: a pseudo-terminal, and what a terminal would show of what it writes.

use crate::{PATIENCE, Sandbox, mcl};
use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often the screen is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// See the module. The program is killed when it goes.
pub struct Terminal {
    master: Box<dyn MasterPty + Send>,
    keyboard: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    screen: Arc<Mutex<vt100::Parser>>,
    /// Ends once the program and all that have the terminal are gone.
    reader: Option<std::thread::JoinHandle<()>>,
}

/// `mcl` with arguments on a terminal that shows `seen` (one word: blanks are jumped over), then is gone, as when its window is closed; how it ended.
pub fn hang_up(sandbox: &Sandbox, arguments: &[&str], seen: &str) -> ExitStatus {
    let pair = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut child = pair.slave.spawn_command(command(sandbox, arguments)).unwrap();
    drop(pair.slave);
    let mut from = pair.master.try_clone_reader().unwrap();
    let (mut shown, mut bytes) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&shown).contains(seen) {
        let read = from.read(&mut bytes).unwrap();
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&shown));
        shown.extend_from_slice(&bytes[..read]);
    }
    drop((from, pair.master));
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end without its terminal");
        }
        std::thread::sleep(LOOK);
    }
}

fn command(sandbox: &Sandbox, arguments: &[&str]) -> CommandBuilder {
    let mut command = CommandBuilder::new(mcl());
    command.args(arguments);
    command.cwd(sandbox.path(""));
    command.env_remove("NO_COLOR");
    command.env("TERM", "xterm-256color");
    command
}

impl Terminal {
    /// `mcl` with arguments, in a sandbox, on a terminal of this many rows and columns.
    pub fn start(
        sandbox: &Sandbox,
        arguments: &[&str],
        (rows, cols): (u16, u16),
        more: &[(&str, &str)],
    ) -> Self {
        let size = PtySize { rows, cols, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = command(sandbox, arguments);
        more.iter().for_each(|(key, value)| command.env(key, value));
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, cols, 1000)));
        let (mut from, shown) = (pair.master.try_clone_reader().unwrap(), Arc::clone(&screen));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..read]);
            }
        });
        let keyboard = pair.master.take_writer().unwrap();
        Self { master: pair.master, keyboard, child, screen, reader: Some(reader) }
    }

    /// What is on the screen, a line a row.
    pub fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Whether some cell on the screen has a colour.
    pub fn has_colour(&self) -> bool {
        let parser = self.screen.lock().unwrap();
        let screen = parser.screen();
        let (rows, cols) = screen.size();
        let coloured =
            |row: u16, col: u16| screen.cell(row, col).is_some_and(|c| c.fgcolor() != vt100::Color::Default);
        (0..rows).any(|row| (0..cols).any(|col| coloured(row, col)))
    }

    /// Whether the terminal is as a program finds it: its own screen, the cursor seen.
    pub fn is_restored(&self) -> bool {
        let parser = self.screen.lock().unwrap();
        !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
    }

    /// Waits until the screen shows something.
    pub fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if holds(&text) {
                return text;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} is not on the screen:\n{text}");
            std::thread::sleep(LOOK);
        }
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// The window gets another size.
    pub fn resize(&self, rows: u16, cols: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(rows, cols);
        self.master.resize(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }).unwrap();
    }

    /// The program's number.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.process_id().unwrap()).unwrap()
    }

    /// Waits for its end, and until all that it wrote is on the screen.
    pub fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end:\n{}", self.text());
            std::thread::sleep(LOOK);
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
