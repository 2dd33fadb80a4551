//! Progress bars: that of `mcl run`, and those of other long work.
//!
//! They are drawn on standard error, and only where that is a terminal.

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mcl_proto::v1::GetStatusResponse;
use mcl_terminal::{has_bars, has_json_log, tell};
use mcl_watch::DATA_LIMIT;
use std::time::{Duration, Instant};

/// Without a terminal a line is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Bar on a terminal, lines elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    last_line: Option<Instant>,
    last_phase: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let terminal = has_bars();
        let bar = ProgressBar::new(0);
        if !terminal {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = "{bar:30} {pos}/{len} steps  {msg}  ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, terminal, last_line: None, last_phase: String::new() }
    }

    /// A printer of lines that does not tear the bar.
    pub(crate) fn printer(&self) -> crate::spawn::Show {
        let (bar, terminal) = (self.bar.clone(), self.terminal);
        std::sync::Arc::new(move |line: &str| {
            if terminal {
                bar.println(line);
            } else if has_json_log() && !line.starts_with('{') {
                tracing::info!("{line}");
            } else {
                tell!("{line}");
            }
        })
    }

    /// Shows where the run is.
    pub(crate) fn show(&mut self, status: &GetStatusResponse) {
        self.bar.set_length(status.total_steps);
        if self.bar.position() == 0 && status.committed_steps > 0 {
            // Resumed steps took no time now: the ETA counts from here.
            self.bar.set_position(status.committed_steps);
            self.bar.reset_eta();
        }
        self.bar.set_position(status.committed_steps);
        let message = message(status);
        self.bar.set_message(message.clone());
        let changed = status.phase != self.last_phase && status.phase != "training";
        let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
        if !self.terminal && (changed || due) {
            let (done, all) = (status.committed_steps, status.total_steps);
            if has_json_log() {
                tracing::info!(committed_steps = done, total_steps = all, phase = status.phase, "{message}");
            } else {
                tell!("{done}/{all} steps  {message}");
            }
            self.last_line = Some(Instant::now());
        }
        status.phase.clone_into(&mut self.last_phase);
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// How often bytes are asked for, where they are counted elsewhere.
const ASK: Duration = Duration::from_millis(100);

/// The bar of some work.
pub(crate) struct Work {
    bar: ProgressBar,
}

impl Work {
    /// Work whose parts are counted: `12/40 pictures`.
    pub(crate) fn counted(what: &'static str) -> Self {
        Self::with(&format!("{{bar:30}} {{pos}}/{{len}} {what}  {{per_sec}}  {{msg}}  ETA {{eta}}"), 0)
    }

    /// Work on so many bytes.
    pub(crate) fn bytes(what: &str, all: u64) -> Self {
        let template = format!("{{bar:30}} {what} {{bytes}}/{{total_bytes}}  {{bytes_per_sec}}  ETA {{eta}}");
        Self::with(&template, all)
    }

    /// Work on nobody knows how many bytes.
    pub(crate) fn some_bytes(what: &str) -> Self {
        let work = Self::with(&format!("{{spinner}} {what} {{bytes}}  {{bytes_per_sec}}"), 0);
        work.bar.unset_length();
        work.bar.enable_steady_tick(ASK);
        work
    }

    fn with(template: &str, all: u64) -> Self {
        let bar = ProgressBar::new(all);
        if !has_bars() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// So much is done, of so much in all.
    pub(crate) fn heard(&self, done: u64, all: u64) {
        self.bar.set_length(all);
        self.bar.set_position(done);
    }

    /// What is done by now took no time here: rate and ETA count from here.
    pub(crate) fn begins_now(&self) {
        self.bar.reset_eta();
    }

    /// What is counted took so many bytes.
    pub(crate) fn says_bytes(&self, bytes: u64) {
        self.bar.set_message(HumanBytes(bytes).to_string());
    }

    /// So much is done.
    pub(crate) fn is_at(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Shows while something is awaited how much is done, as `done` says.
    pub(crate) async fn during<T>(&self, done: impl Fn() -> u64, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut asked = tokio::time::interval(ASK);
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = asked.tick() => self.bar.set_position(done()),
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn message(status: &GetStatusResponse) -> String {
    if status.phase != "training" && status.phase != "draining" {
        return format!("{}: {}", status.phase, status.reason);
    }
    let data = if status.data_wait_share > DATA_LIMIT {
        format!("  data is the limit ({:.0} % of the time)", 100.0 * status.data_wait_share)
    } else {
        String::new()
    };
    format!("loss {:.4}  {:.0} img/s{data}", status.loss, status.images_per_second)
}
