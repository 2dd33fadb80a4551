//! Where things lie: `[<run>/]step-0000000010/slice-000-of-002.safetensors` and `manifest.json`.
//!
//! Invariant: every name is made here from numbers and a checked run name; none is ever taken from a
//! file, so nothing can point outside its folder.

use mcl_types::{RunId, Step};
use object_store::path::Path;

/// The file that makes a checkpoint visible.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";
/// Beside a manifest: whatever the retention says, this checkpoint stays.
pub(crate) const PIN_FILE: &str = "pinned.json";
const STEP_PREFIX: &str = "step-";

/// How a run's name becomes a folder below the store's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// `<root>/<run>/step-...`: one service for many runs.
    #[default]
    RunFolders,
    /// `<root>/step-...`: the root belongs to one run (`mcl run` uses `<run directory>/checkpoints`).
    /// A checkpoint of another run found there is an error, never mixed in.
    Flat,
}

/// `slice-000-of-002.safetensors`
pub fn slice_file(slice: u32, slices: u32) -> String {
    format!("slice-{slice:03}-of-{slices:03}.safetensors")
}

/// What a staged slice must hash to, until the manifest says so.
pub(crate) fn ticket_file(slice: u32, slices: u32) -> String {
    format!("slice-{slice:03}-of-{slices:03}.staged.json")
}

/// `step-0000000010`
pub fn step_folder(step: Step) -> String {
    format!("{STEP_PREFIX}{:010}", step.get())
}

/// The step whose folder has this name, if any has.
pub(crate) fn parse_step_folder(name: &str) -> Option<Step> {
    let digits = name.strip_prefix(STEP_PREFIX)?;
    let step = Step::new(digits.parse().ok()?);
    (step_folder(step) == name).then_some(step)
}

/// One run's place in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Below the store's root; empty in a flat layout.
    pub prefix: Path,
    /// Whose checkpoints are expected here; `None` reads whatever run is there (offline).
    pub run: Option<RunId>,
}

impl Place {
    pub fn of(layout: Layout, run: &RunId) -> Self {
        let prefix = match layout {
            Layout::RunFolders => Path::from(run.as_str()),
            Layout::Flat => Path::default(),
        };
        Self { prefix, run: Some(run.clone()) }
    }

    pub fn step(&self, step: Step) -> Path {
        self.prefix.clone().join(step_folder(step))
    }

    pub fn manifest(&self, step: Step) -> Path {
        self.step(step).join(MANIFEST_FILE)
    }

    pub fn slice(&self, step: Step, slice: u32, slices: u32) -> Path {
        self.step(step).join(slice_file(slice, slices))
    }

    pub fn ticket(&self, step: Step, slice: u32, slices: u32) -> Path {
        self.step(step).join(ticket_file(slice, slices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented() {
        let run = RunId::new("demo").unwrap();
        let place = Place::of(Layout::RunFolders, &run);
        assert_eq!(
            place.slice(Step::new(10), 0, 2).as_ref(),
            "demo/step-0000000010/slice-000-of-002.safetensors"
        );
        let flat = Place::of(Layout::Flat, &run);
        assert_eq!(flat.manifest(Step::new(7)).as_ref(), "step-0000000007/manifest.json");
    }

    #[test]
    fn only_our_own_names_are_steps() {
        assert_eq!(parse_step_folder("step-0000000010"), Some(Step::new(10)));
        let wide = step_folder(Step::new(u64::MAX));
        assert_eq!(parse_step_folder(&wide), Some(Step::new(u64::MAX)));
        for other in ["step-10", "step-", "step-+000000010", "step-0000000010x", "slice-0", ""] {
            assert_eq!(parse_step_folder(other), None, "{other}");
        }
    }
}
