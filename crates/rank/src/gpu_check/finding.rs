//! What a check found, as a line of the table and in `gpu-check.json`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Passed,
    Failed,
    Skipped,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) seconds: f64,
    /// What was measured, by name; the unit is the name's last part.
    pub(crate) figures: BTreeMap<String, f64>,
    pub(crate) detail: String,
}

impl Finding {
    fn new(name: &str, status: Status, detail: impl Into<String>) -> Self {
        let (name, detail) = (name.to_owned(), detail.into());
        Self { name, status, seconds: 0.0, figures: BTreeMap::new(), detail }
    }

    pub(crate) fn failed(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Failed, detail)
    }

    pub(crate) fn skipped(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Skipped, detail)
    }

    pub(crate) fn of(name: &str, passed: bool, detail: impl Into<String>) -> Self {
        Self::new(name, if passed { Status::Passed } else { Status::Failed }, detail)
    }

    /// With a figure; one that is no number is left out, since JSON has none.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        if value.is_finite() {
            self.figures.insert(name.to_owned(), value);
        }
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.status {
            Status::Passed => "ok",
            Status::Failed => "FAILED",
            Status::Skipped => "skipped",
        };
        write!(f, "{:<48} {verdict:<7} {:>6.1} s  {}", self.name, self.seconds, self.detail)
    }
}

/// The whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// Why nothing was checked.
    pub(crate) skipped: Option<String>,
    /// GPUs that libtorch can use.
    devices: u32,
    /// What the driver calls them.
    cards: Vec<String>,
    libtorch: &'static str,
    budget_seconds: u64,
    pub(crate) seconds: f64,
    pub(crate) checks: Vec<Finding>,
}

impl Outcome {
    pub(crate) fn new(devices: u32, libtorch: &'static str, budget_seconds: u64) -> Self {
        let (skipped, checks, cards) = (None, Vec::new(), cards());
        Self { skipped, devices, cards, libtorch, budget_seconds, seconds: 0.0, checks }
    }

    /// Passed, failed, skipped.
    pub(crate) fn counts(&self) -> [usize; 3] {
        [Status::Passed, Status::Failed, Status::Skipped]
            .map(|status| self.checks.iter().filter(|c| c.status == status).count())
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

/// Names of the cards as the driver gives them; none where it does not say.
fn cards() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let texts = entries.filter_map(|e| std::fs::read_to_string(e.path().join("information")).ok());
    let model = |text: String| {
        let line = text.lines().find_map(|l| l.strip_prefix("Model:"));
        line.map(|name| name.trim().to_owned())
    };
    texts.filter_map(model).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_does_not_reach_the_file() {
        let finding = Finding::of("x", true, "").with("a_ms", 1.5).with("b", f64::NAN);
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(
            (&json["figures"], &json["status"]),
            (&serde_json::json!({"a_ms": 1.5}), &"passed".into())
        );
    }

    #[test]
    fn a_result_without_a_gpu_is_written_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu-check.json");
        let mut outcome = Outcome::new(0, "2.11.0", 480);
        outcome.skipped = Some("no GPU".to_owned());
        outcome.write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!((&json["skipped"], json["checks"].as_array().unwrap().len()), (&"no GPU".into(), 0));
    }
}
