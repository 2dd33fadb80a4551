//! What lies in a run directory.

use crate::exit::Usage;
use anyhow::{Context, Result};
use mcl_config::{Job, Objective};
use mcl_history::METRICS;
use mcl_types::RunId;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The resolved job of a run.
pub(crate) const JOB: &str = "job.toml";

/// `runs/<job file's name>` where none is given.
pub(crate) fn default_for(job: &Path) -> PathBuf {
    Path::new("runs").join(job.file_stem().unwrap_or_else(|| "run".as_ref()))
}

/// The run's name: its folder's, less what a name may not hold.
pub(crate) fn run_id(folder: &Path) -> Result<RunId> {
    let name = folder.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned());
    let kept: String =
        name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).collect();
    let kept = kept.trim_start_matches('.');
    let kept = kept.get(..kept.len().min(64)).unwrap_or("run");
    RunId::new(if kept.is_empty() { "run" } else { kept }).map_err(|e| Usage(e.to_string()).into())
}

/// The run directory that a path is or lies in: its checkpoints folder, or one checkpoint.
pub(crate) fn around(path: &Path) -> Result<Option<PathBuf>> {
    let full = std::path::absolute(path)?;
    Ok(full.ancestors().take(3).find(|folder| folder.join(JOB).is_file()).map(Path::to_owned))
}

/// The job that a run directory holds.
pub(crate) fn job_of(run_dir: &Path) -> Result<Job> {
    let path = run_dir.join(JOB);
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Usage(format!("{}: {e}; expected a run directory, which holds {JOB}", path.display()))
    })?;
    Ok(Job::parse(&text, &path.display().to_string())?)
}

/// What a summary needs of a line of metrics.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metric {
    pub(crate) step: u64,
    pub(crate) loss: Option<f64>,
    pub(crate) images_per_s: f64,
}

/// Every committed step, in order.
pub(crate) fn metrics(run_dir: &Path) -> Result<Vec<Metric>> {
    let path = run_dir.join(METRICS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(n, line)| serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), n + 1)))
        .collect()
}

/// Mean of the middle half: one slow step does not count.
pub(crate) fn typical(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let quarter = values.len() / 4;
    let middle = values.get(quarter..values.len() - quarter).unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
    let count = middle.len().max(1) as f64;
    middle.iter().sum::<f64>() / count
}

/// Loss of guessing, and the least there can be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) chance: f64,
    pub(crate) floor: f64,
}

/// The bounds of a job's loss (see the README); `None` where labels decide them.
///
/// - `mcl`: 4 T sum(w) ln(KN) and 4 T sum(w) [ln(e^(1/T) + (n-1) e^(-1/(T(n-1)))) - 1/T], n = KN.
/// - `moco-v2`: ln(1 + Q) and ln(1 + Q e^(-1/T)), which is the least where the queue's Q keys point evenly in all directions.
#[expect(clippy::cast_precision_loss, reason = "a batch size")]
pub(crate) fn loss_bounds(job: &Job) -> Option<Bounds> {
    let (n, t) = (job.global_batch() as f64, job.method().temperature);
    match job.method().objective {
        Objective::Mcl => {
            let scale = 4.0 * t * job.method().level_weights.iter().sum::<f64>();
            // Written as ln(1 + (n-1) e^(-1/T - 1/(T(n-1)))), which cannot overflow at small T.
            let floor = scale * ((n - 1.0) * (-1.0 / t - 1.0 / (t * (n - 1.0))).exp()).ln_1p();
            Some(Bounds { chance: scale * n.ln(), floor })
        }
        Objective::MocoV2 => {
            let queue = job.method().queue as f64;
            Some(Bounds { chance: queue.ln_1p(), floor: (queue * (-1.0 / t).exp()).ln_1p() })
        }
        Objective::MclSupervised => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_formulas() {
        let toml = "[data]\nsource=\"x\"\n[train]\nsteps=1\n[batch]\nlanes=2\nimages_per_lane=16\n[method]\ntemperature=0.2\nlevels=[1,2,4]\nlevel_weights=[0.5,0.25,0.25]\n";
        let of = |toml: &str| loss_bounds(&Job::parse(toml, "x").unwrap());
        let Bounds { chance, floor } = of(toml).unwrap();
        assert!((chance - 0.8 * 32_f64.ln()).abs() < 1e-12);
        let direct = 0.8 * ((5_f64.exp() + 31.0 * (-5.0 / 31.0_f64).exp()).ln() - 5.0);
        assert!((floor - direct).abs() < 1e-9, "{floor} {direct}");
        let start = "[data]\nsource=\"x\"\n[train]\nsteps=1\n[method]\nobjective=";
        let moco = of(&format!("{start}\"moco-v2\"\nqueue=1024\n")).unwrap();
        assert!((moco.chance - 1025_f64.ln()).abs() < 1e-12, "{moco:?}");
        assert!((moco.floor - (1.0 + 1024.0 * (-5_f64).exp()).ln()).abs() < 1e-12, "{moco:?}");
        assert_eq!(of(&format!("{start}\"mcl-supervised\"\n")), None);
    }

    #[test]
    fn folder_names_become_run_names() {
        assert_eq!(run_id(Path::new("runs/my run!")).unwrap().as_str(), "myrun");
        assert_eq!(run_id(Path::new("/")).unwrap().as_str(), "run");
        assert_eq!(run_id(Path::new("runs/..x")).unwrap().as_str(), "x");
    }

    #[test]
    fn typical_ignores_outliers() {
        assert!((typical(vec![1.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 999.0]) - 10.0).abs() < 1e-12);
        assert!(typical(Vec::new()).abs() < 1e-12);
    }
}
