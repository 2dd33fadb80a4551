//! The plan's promises, for random datasets and batch shapes.
#![allow(clippy::unwrap_used, missing_docs)]

use mcl_plan::{EpochPlan, PlanSpec, SHARDS_AT_A_TIME, Shuffle, substitute};
use mcl_types::{Digest, Epoch, Lane, SampleIndex, Seed, Slot};
use proptest::prelude::*;
use std::collections::HashSet;

fn spec(seed: u64, shards: Vec<u64>, lanes: u32, images: u32, shuffle: Shuffle) -> PlanSpec {
    PlanSpec {
        seed: Seed::new(seed),
        dataset_digest: Digest::of(b"dataset"),
        dataset_len: shards.iter().sum(),
        shards,
        lanes,
        images_per_lane: images,
        shuffle,
    }
}

/// Ragged shards (empty ones too) with a batch that fits.
fn any_spec() -> impl Strategy<Value = PlanSpec> {
    let shards = prop_oneof![
        prop::collection::vec(0_u64..6, 1..80),
        prop::collection::vec(0_u64..200, 1..30),
        prop::collection::vec(1_u64..3000, 1..3),
    ];
    (any::<u64>(), shards, 1_u32..9, 1_u32..33, any::<bool>()).prop_filter_map(
        "at least one step",
        |(seed, shards, lanes, images, windowed)| {
            let shuffle = if windowed { Shuffle::Windowed } else { Shuffle::Global };
            let n: u64 = shards.iter().sum();
            let lanes = lanes.min(u32::try_from(n).ok()?.max(1));
            let images = images.min(u32::try_from(n / u64::from(lanes)).ok()?);
            (images > 0).then(|| spec(seed, shards, lanes, images, shuffle))
        },
    )
}

fn lane_stream(plan: &EpochPlan, lane: u32) -> Vec<u64> {
    let mut stream = Vec::new();
    for step in 0..plan.steps() {
        for slot in 0..plan.images_per_lane() {
            stream.push(plan.sample(step, Lane::new(lane), Slot::new(slot)).unwrap().get());
        }
    }
    stream
}

fn planned(plan: &EpochPlan) -> Vec<u64> {
    (0..plan.lanes()).flat_map(|lane| lane_stream(plan, lane)).collect()
}

fn shard_of(spec: &PlanSpec, index: u64) -> usize {
    let mut end = 0;
    spec.shards
        .iter()
        .position(|len| {
            end += len;
            index < end
        })
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_sample_is_planned_once_or_left_out(spec in any_spec(), epoch in 0_u64..5) {
        let plan = EpochPlan::new(&spec, Epoch::new(epoch)).unwrap();
        prop_assert_eq!(plan.steps(), spec.dataset_len / spec.step_len());
        let mut all = planned(&plan);
        prop_assert_eq!(all.len() as u64, plan.steps() * spec.step_len());
        let left: Vec<u64> = plan.left_out().map(SampleIndex::get).collect();
        prop_assert!((left.len() as u64) < spec.step_len());
        all.extend(left);
        all.sort_unstable();
        prop_assert_eq!(all, (0..spec.dataset_len).collect::<Vec<_>>());
    }

    #[test]
    fn the_plan_is_a_function_of_spec_and_epoch(spec in any_spec(), epoch in 0_u64..5) {
        let (a, b) = (EpochPlan::new(&spec, Epoch::new(epoch)).unwrap(), EpochPlan::new(&spec, Epoch::new(epoch)).unwrap());
        prop_assert_eq!(planned(&a), planned(&b));
        prop_assert_eq!(a.sample(a.steps(), Lane::new(0), Slot::new(0)), None);
        prop_assert_eq!(a.sample(0, Lane::new(a.lanes()), Slot::new(0)), None);
        prop_assert_eq!(a.sample(0, Lane::new(0), Slot::new(a.images_per_lane())), None);
    }

    #[test]
    fn a_lane_reads_its_slices_and_few_shards_at_a_time(mut spec in any_spec()) {
        spec.shuffle = Shuffle::Windowed;
        let plan = EpochPlan::new(&spec, Epoch::new(1)).unwrap();
        let bases: Vec<u64> = spec.shards.iter().scan(0, |at, len| { let base = *at; *at += len; Some(base) }).collect();
        for lane in 0..spec.lanes {
            let stream = lane_stream(&plan, lane);
            let mut at = 0;
            for window in plan.windows(Lane::new(lane)) {
                prop_assert!(!window.slices.is_empty() && window.slices.len() <= SHARDS_AT_A_TIME);
                prop_assert_eq!(window.first, at);
                let read = &stream[usize::try_from(at).unwrap()..usize::try_from(at + window.samples).unwrap()];
                let shards: HashSet<usize> = read.iter().map(|i| shard_of(&spec, *i)).collect();
                prop_assert!(shards.len() <= SHARDS_AT_A_TIME);
                let mut read = read.to_vec();
                let mut sliced: Vec<u64> = window.slices.iter().flat_map(|s| {
                    let first = bases[s.shard.unwrap()] + s.first;
                    first..first + s.samples
                }).collect();
                read.sort_unstable();
                sliced.sort_unstable();
                prop_assert_eq!(read, sliced, "a window is a permutation of its slices");
                at += window.samples;
            }
            prop_assert_eq!(at, stream.len() as u64);
        }
    }
}

#[test]
fn epochs_seeds_and_datasets_differ() {
    for shuffle in [Shuffle::Global, Shuffle::Windowed] {
        let base = spec(1, vec![40, 3, 57, 0, 100], 3, 4, shuffle);
        let of = |spec: &PlanSpec, epoch| planned(&EpochPlan::new(spec, Epoch::new(epoch)).unwrap());
        let first = of(&base, 0);
        assert_ne!(first, of(&base, 1));
        assert_ne!(first, of(&PlanSpec { seed: Seed::new(2), ..base.clone() }, 0));
        assert_ne!(first, of(&PlanSpec { dataset_digest: Digest::of(b"other"), ..base.clone() }, 0));
    }
}

#[test]
fn all_sizes_from_one_on() {
    for n in 1..200_u64 {
        for shuffle in [Shuffle::Global, Shuffle::Windowed] {
            let spec = spec(n, vec![n / 3, n - n / 3], 1, 1, shuffle);
            let mut all = planned(&EpochPlan::new(&spec, Epoch::new(0)).unwrap());
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_large_dataset_is_looked_up_without_a_table() {
    // 10^15 pictures: only O(1) set-up and lookup can do this in time.
    let spec = spec(5, vec![1_000_000_000_000_000], 8, 256, Shuffle::Global);
    let plan = EpochPlan::new(&spec, Epoch::new(9)).unwrap();
    let mut seen = HashSet::new();
    for step in (0..plan.steps()).step_by(usize::try_from(plan.steps() / 1000).unwrap()) {
        assert!(seen.insert(plan.sample(step, Lane::new(7), Slot::new(255)).unwrap()));
    }
    assert!(seen.len() >= 1000);
}

#[test]
fn windows_mix_their_shards() {
    let spec = spec(3, vec![100; 32], 2, 10, Shuffle::Windowed);
    let plan = EpochPlan::new(&spec, Epoch::new(0)).unwrap();
    let stream = lane_stream(&plan, 0);
    // The first 100 samples come from all 8 shards of the first window, not from one.
    let shards: HashSet<usize> = stream[..100].iter().map(|i| shard_of(&spec, *i)).collect();
    assert_eq!(shards.len(), 8);
}

#[test]
fn global_slices_are_the_whole_dataset() {
    let spec = spec(3, vec![5, 5], 2, 2, Shuffle::Global);
    let plan = EpochPlan::new(&spec, Epoch::new(0)).unwrap();
    let slices = plan.slices(Lane::new(1));
    assert_eq!(slices.len(), 1);
    assert_eq!((slices[0].shard, slices[0].first, slices[0].samples), (None, 0, 10));
    assert!(plan.slices(Lane::new(2)).is_empty() && plan.windows(Lane::new(0)).is_empty());
}

#[test]
fn substitutes_are_named_by_place_and_attempt() {
    let spec = spec(3, vec![1_000_000], 2, 2, Shuffle::Global);
    let at = |epoch, step, lane, slot, attempt| {
        substitute(&spec, Epoch::new(epoch), step, Lane::new(lane), Slot::new(slot), attempt)
    };
    let all = [
        at(0, 0, 0, 0, 0),
        at(1, 0, 0, 0, 0),
        at(0, 1, 0, 0, 0),
        at(0, 0, 1, 0, 0),
        at(0, 0, 0, 1, 0),
        at(0, 0, 0, 0, 1),
    ];
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    assert_eq!(at(0, 0, 0, 0, 0), all[0]);
}
