//! Every file under configs/ is a valid job, and so is every recipe of a study.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[test]
fn every_shipped_configuration_is_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in ["configs", "experiments/objects", "experiments/computation", "experiments/real"] {
        let mut count = 0;
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name == "study.toml") {
                continue;
            }
            mcl_config::Job::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
            count += 1;
        }
        assert!(count >= 1, "{folder}");
    }
}
