//! `make gpu-check`'s program on a CPU: every check but those of the card itself, at a small scale, with real processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::mcl;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn gpu_check(folder: &Path, arguments: &[&str]) -> (Output, Value) {
    let out = folder.join("gpu-check.json");
    let output = Command::new(mcl().with_file_name("mcl-rank"))
        .arg("gpu-check")
        .args(arguments)
        .arg("--out")
        .arg(&out)
        // Without a peer: whether this machine has a Python with torch must not decide the result.
        .env("MCL_PYTHON", "no-such-python")
        .current_dir(folder)
        .output()
        .unwrap();
    let json = serde_json::from_str(&std::fs::read_to_string(out).expect("no gpu-check.json")).unwrap();
    (output, json)
}

fn check<'a>(json: &'a Value, name: &str) -> &'a Value {
    let checks = json["checks"].as_array().unwrap();
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no `{name}` in {json:#}"))
}

fn figure(json: &Value, name: &str, figure: &str) -> f64 {
    check(json, name)["figures"][figure].as_f64().unwrap_or_else(|| panic!("{name}: no {figure} in {json:#}"))
}

/// A folder with one golden case: all of them have tests of their own.
fn with_one_case() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("goldens")).unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    std::os::unix::fs::symlink(cases.join("a_r18_w1"), folder.path().join("goldens/a_r18_w1")).unwrap();
    folder
}

#[test]
fn every_check_passes_on_a_cpu_and_its_figures_are_numbers() {
    let folder = with_one_case();
    let (output, json) = gpu_check(folder.path(), &["--device", "cpu", "goldens"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for check in json["checks"].as_array().unwrap() {
        let name = check["name"].as_str().unwrap();
        // Nothing new to measure without a peer, unless the benchmark can be told a precision.
        let may_skip = name.contains("bf16") && check["status"] == "skipped";
        assert!(check["status"] == "passed" || may_skip, "{check:#}");
        assert!(said.contains(name) && check["seconds"].as_f64().unwrap() >= 0.0, "{check:#}\n{said}");
        assert!(check["figures"].as_object().unwrap().values().all(Value::is_number), "{check:#}");
    }
    assert!(figure(&json, "golden a_r18_w1 official f64", "largest_error") <= 1e-9);
    assert!(figure(&json, "golden a_r18_w1 exact f64", "largest_error") <= 1e-9);
    assert!(figure(&json, "golden a_r18_w1 official f32", "loss_error") <= 1e-3);
    assert!(
        figure(&json, "ranks, world of 1", "loss") > 0.0 && figure(&json, "ranks, world of 2", "loss") > 0.0
    );
    assert!(
        figure(&json, "training", "images_per_s") > 0.0 && figure(&json, "training", "host_peak_bytes") > 1e6
    );
    assert!((0.0..1.0).contains(&figure(&json, "training", "data_wait_share")));
    assert_eq!(
        (figure(&json, "resume", "digests_equal"), figure(&json, "resume", "loss_difference")),
        (1.0, 0.0)
    );
    assert!(figure(&json, "a peer that dies", "error_after_s") < 5.0);
    assert!(figure(&json, "a peer that stops", "error_after_s") < 20.0);
    assert!(figure(&json, "bench: selective f32 beside eager official f32", "step_ms") > 0.0);
}

#[test]
fn what_the_budget_does_not_hold_is_listed_as_skipped() {
    let folder = with_one_case();
    let (output, json) = gpu_check(folder.path(), &["--device", "cpu", "--budget", "0", "goldens"]);
    assert!(output.status.success());
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.len() >= 10 && checks.iter().all(|c| c["status"] == "skipped"), "{json:#}");
    assert!(check(&json, "training")["detail"].as_str().unwrap().contains("budget"), "{json:#}");
}

#[test]
fn a_check_that_fails_is_told_and_ends_as_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let (output, json) =
        gpu_check(folder.path(), &["--device", "cpu", "--only", "golden f64 official", "nowhere"]);
    assert!(!output.status.success());
    let only = json["checks"].as_array().unwrap();
    assert_eq!((only.len(), &only[0]["status"]), (1, &"failed".into()), "{json:#}");
    assert!(only[0]["detail"].as_str().unwrap().contains("no golden case"), "{json:#}");
}

#[test]
fn without_a_gpu_it_says_so_and_succeeds() {
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (output, json) = gpu_check(folder.path(), &[]);
    assert!(output.status.success() && json["skipped"].is_string(), "{json:#}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("gpu-check skipped"));
}
