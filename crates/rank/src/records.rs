//! What all lanes did in the steps that this process applied and that are not yet durable elsewhere.
//!
//! Invariant: what is kept is of the line that leads to the state held. A record of a lane that another rank
//! carried comes from the step's agreement: numbers without texts, so ids are looked up and a reason is not
//! known.

use mcl_data::{Dataset, FedSample};
use mcl_proto::v1;
use mcl_types::SampleIndex;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers that tell one slot: index, two halves of the hash, what it replaces.
const NUMBERS: usize = 4;
/// In place of what a picture replaces where it replaces nothing.
const PLANNED: i64 = -1;
/// Why a picture was replaced, where only its number came along.
const TOLD: &str = "told by another rank";

/// Records by step; shared with the control thread.
#[derive(Debug, Default)]
pub(crate) struct Records(Mutex<BTreeMap<u64, v1::RecountedStep>>);

impl Records {
    fn steps(&self) -> MutexGuard<'_, BTreeMap<u64, v1::RecountedStep>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step was applied.
    pub(crate) fn note(&self, generation: u64, report: v1::StepReport) {
        let step = report.step;
        self.steps().insert(step, v1::RecountedStep { generation, report: Some(report) });
    }

    /// Steps before `end` are durable.
    pub(crate) fn forget_before(&self, end: u64) {
        let mut steps = self.steps();
        let rest = steps.split_off(&end);
        *steps = rest;
    }

    /// The state held is another's, or of another line.
    pub(crate) fn clear(&self) {
        self.steps().clear();
    }

    /// From which step on everything up to `applied` is known.
    pub(crate) fn known_from(&self, applied: u64) -> u64 {
        let steps = self.steps();
        let mut from = applied;
        while from > 0 && steps.contains_key(&(from - 1)) {
            from -= 1;
        }
        from
    }

    /// Those of `first..end` that are known.
    pub(crate) fn recount(&self, first: u64, end: u64) -> Vec<v1::RecountedStep> {
        if first >= end {
            return Vec::new();
        }
        self.steps().range(first..end).map(|(_, record)| record.clone()).collect()
    }
}

/// A lane's slots as numbers for the agreement.
pub(crate) fn notes(samples: &[FedSample]) -> Vec<i64> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    samples
        .iter()
        .flat_map(|s| {
            let hash = u128::from_be_bytes(s.hash);
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of the hash")]
            let (high, low) = ((hash >> 64) as u64, hash as u64);
            let replaces = s.replaced.as_ref().map_or(PLANNED, |r| number(r.wanted.get()));
            [number(s.index.get()), high.cast_signed(), low.cast_signed(), replaces]
        })
        .collect()
}

/// What [`notes`] said, with ids from the dataset.
pub(crate) fn samples_of(notes: &[i64], dataset: &Dataset) -> Vec<v1::FedSample> {
    let told = |slot: &[i64]| {
        let [index, high, low, replaces] = *slot else { return None };
        let index = u64::try_from(index).ok()?;
        let hash = (u128::from(high.cast_unsigned()) << 64) | u128::from(low.cast_unsigned());
        let replaces = u64::try_from(replaces).ok();
        Some(v1::FedSample {
            index,
            id: dataset.id(SampleIndex::new(index)).map(std::borrow::Cow::into_owned).unwrap_or_default(),
            hash: hash.to_be_bytes().to_vec(),
            replaces,
            reason: if replaces.is_some() { TOLD.to_owned() } else { String::new() },
        })
    };
    notes.chunks_exact(NUMBERS).filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_data::Replaced;
    use mcl_data::generate::{GenerateSpec, generate};
    use mcl_types::Seed;

    #[test]
    fn notes_tell_what_was_fed_by_numbers_alone() {
        let folder = tempfile::tempdir().unwrap();
        generate(folder.path(), &GenerateSpec::objects(4, Seed::new(1)), &mut |_, _| {}).unwrap();
        let dataset = Dataset::open(folder.path()).unwrap();
        let id = |n| dataset.id(SampleIndex::new(n)).unwrap().into_owned();
        let fed = [
            FedSample { index: SampleIndex::new(2), id: id(2), hash: [0xFE; 16], replaced: None },
            FedSample {
                index: SampleIndex::new(3),
                id: id(3),
                hash: std::array::from_fn(|i| u8::try_from(i).unwrap()),
                replaced: Some(Replaced { wanted: SampleIndex::new(1), reason: "cut".to_owned() }),
            },
        ];
        let told = samples_of(&notes(&fed), &dataset);
        assert_eq!(told.len(), 2);
        for (told, fed) in told.iter().zip(&fed) {
            assert_eq!((told.index, told.id.as_str()), (fed.index.get(), fed.id.as_str()));
            assert_eq!(told.hash, fed.hash);
            assert_eq!(told.replaces, fed.replaced.as_ref().map(|r| r.wanted.get()));
        }
        assert_eq!((told[0].reason.as_str(), told[1].reason.as_str()), ("", TOLD));
    }

    #[test]
    fn what_is_durable_is_forgotten_and_a_gap_ends_what_is_known() {
        let records = Records::default();
        for step in [3, 5, 6, 7] {
            records.note(2, v1::StepReport { step, ..v1::StepReport::default() });
        }
        assert_eq!((records.known_from(8), records.known_from(4), records.known_from(9)), (5, 3, 9));
        let steps = |r: Vec<v1::RecountedStep>| r.iter().map(|r| r.report.as_ref().unwrap().step).collect();
        let told: Vec<u64> = steps(records.recount(5, 7));
        assert_eq!(told, [5, 6]);
        records.forget_before(6);
        assert_eq!(records.known_from(8), 6);
        assert!(records.recount(7, 3).is_empty());
        records.clear();
        assert_eq!(records.known_from(8), 8);
    }
}
