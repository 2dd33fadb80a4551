//! A short campaign of each family, by a fixed seed and without any rights. `make chaos` runs long ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::chaos::{Family, Settings, run};

/// About 20 s of faults.
const MINUTES: f64 = 0.33;

fn short(family: Family, seed: u64) {
    let folder = tempfile::tempdir().unwrap().keep();
    let settings =
        Settings { seed, minutes: MINUTES, family, folder: folder.clone(), keep: false, isolate: false };
    let summary = run(&settings);
    assert!(summary.broken().is_empty(), "see {}: {:#?}", folder.display(), summary.broken());
    assert!(summary.field("faults_total").as_u64().unwrap() >= 2, "{}", summary.json());
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_steady_cluster_under_faults_ends_with_the_bits_of_an_undisturbed_one() {
    short(Family::Steady, 1);
}

#[test]
fn an_elastic_cluster_under_faults_ends_with_the_weights_of_an_undisturbed_one() {
    short(Family::Elastic, 1);
}
