//! The one progress bar of `mcl run`.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mcl_proto::v1::GetStatusResponse;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal a line is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Share of a step spent waiting for pictures above which the bar says so.
const DATA_LIMIT: f64 = 0.2;

/// Bar on a terminal, lines elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    last_line: Option<Instant>,
    last_phase: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
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
            } else {
                eprintln!("{line}");
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
            eprintln!("{}/{} steps  {message}", status.committed_steps, status.total_steps);
            self.last_line = Some(Instant::now());
        }
        status.phase.clone_into(&mut self.last_phase);
    }

    pub(crate) fn finish(&self) {
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
