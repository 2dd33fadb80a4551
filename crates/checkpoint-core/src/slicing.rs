//! Who stores which tensor: a pure deal of tensors to slices.
//!
//! Invariants: every tensor is in exactly one slice; the deal depends on names and sizes only, never on
//! the order of the input; no slice carries more than the mean plus the largest tensor. Left out:
//! cutting one tensor in two (the largest one of a backbone is a few percent of its state).

use safetensors::Dtype;

/// What a tensor is, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique within the state.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Length in bytes.
    pub bytes: u64,
}

/// Deals tensors to `slices` slices, balanced by bytes: the largest first, each to the slice that is
/// lightest so far. Gives indices into `tensors`, each slice in name order; a slice may be empty.
/// Zero slices count as one.
pub fn assign(tensors: &[TensorInfo], slices: u32) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&tensors[a], &tensors[b]);
        b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name))
    });
    let mut dealt = vec![(0_u64, Vec::new()); slices.max(1) as usize];
    for index in order {
        // The first of the lightest, so that the deal is the same everywhere.
        if let Some((load, slice)) = dealt.iter_mut().min_by_key(|(load, _)| *load) {
            *load = load.saturating_add(tensors[index].bytes);
            slice.push(index);
        }
    }
    let by_name = |slice: &mut Vec<usize>| slice.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
    dealt
        .into_iter()
        .map(|(_, mut slice)| {
            by_name(&mut slice);
            slice
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tensors(sizes: &[u64]) -> Vec<TensorInfo> {
        let info = |(i, &bytes): (usize, &u64)| TensorInfo {
            name: format!("layer{i:04}.weight"),
            dtype: Dtype::U8,
            shape: vec![bytes as usize],
            bytes,
        };
        sizes.iter().enumerate().map(info).collect()
    }

    proptest! {
        #[test]
        fn every_tensor_is_in_exactly_one_slice_and_loads_are_even(
            sizes in proptest::collection::vec(0_u64..1 << 40, 0..60), slices in 0_u32..9,
        ) {
            let infos = tensors(&sizes);
            let dealt = assign(&infos, slices);
            prop_assert_eq!(dealt.len(), slices.max(1) as usize);
            let mut seen: Vec<usize> = dealt.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..infos.len()).collect::<Vec<_>>());
            let mean = sizes.iter().sum::<u64>() / u64::from(slices.max(1));
            let largest = sizes.iter().max().copied().unwrap_or(0);
            for slice in &dealt {
                prop_assert!(slice.is_sorted_by(|&a, &b| infos[a].name < infos[b].name));
                let load: u64 = slice.iter().map(|&i| infos[i].bytes).sum();
                prop_assert!(load <= mean + largest + 1, "{load} of mean {mean}, largest {largest}");
            }
        }

        #[test]
        fn the_order_of_the_input_does_not_matter(
            sizes in proptest::collection::vec(0_u64..100, 1..30), slices in 1_u32..5, turn in 0_usize..30,
        ) {
            let infos = tensors(&sizes);
            let mut turned = infos.clone();
            turned.rotate_left(turn % infos.len());
            let names = |infos: &[TensorInfo]| -> Vec<Vec<String>> {
                let dealt = assign(infos, slices);
                dealt.iter().map(|s| s.iter().map(|&i| infos[i].name.clone()).collect()).collect()
            };
            prop_assert_eq!(names(&infos), names(&turned));
        }
    }
}
